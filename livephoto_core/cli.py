"""The `livephoto` command: parses arguments, calls what does the work, and turns a user's mistake into one line."""

from __future__ import annotations

import argparse
import io
import os
import sys
from collections.abc import Sequence
from importlib import import_module
from importlib.util import find_spec

from . import __version__
from .commands.bench import add_bench
from .commands.guidance import LCM, add_guidance_options, guidance
from .commands.process import keep_freed_memory, take_huge_pages
from .errors import LivePhotoError

USER_ERROR = 2
INTERRUPTED = 130
STEPS, LCM_STEPS = 20, 6


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code: 0, 2 for a user's mistake (one line on stderr), 130 when interrupted."""
    # before any library reads it: nothing is fetched at run time
    os.environ["HF_HUB_OFFLINE"] = "1"
    keep_freed_memory()
    take_huge_pages()
    for stream in (sys.stdout, sys.stderr):
        # a terminal that lacks a letter of the user's text shows a question mark
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    try:
        _run(_parser().parse_args(arguments))
    except LivePhotoError as error:
        return _fail(str(error))
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] == __package__.partition(".")[0]:
            raise
        return _fail(f"this needs the package {error.name}, which is not installed: pip install 'comfyui-livephoto[train,eval]'")
    except KeyboardInterrupt:
        print("livephoto: stopped", file=sys.stderr)
        return INTERRUPTED
    except BrokenPipeError:
        # the reader of the output went away; keep the interpreter from writing to it again at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        # such as a name that is too long, or a folder that must not be searched; not what goes wrong between processes
        if error.filename is None:
            raise
        return _fail(f"cannot use {error.filename} ({error.strerror}): give another path")
    return 0


def _run(options: argparse.Namespace) -> None:
    try:
        options.run(options)
    except (RuntimeError, MemoryError) as error:
        if not _is_out_of_memory(error):
            raise
        raise LivePhotoError(f"not enough memory: {options.memory_fix}") from error


def _is_out_of_memory(error: Exception) -> bool:
    # by name: torch is not to be imported for --help
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or "allocate memory" in str(error)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> None:
        raise LivePhotoError(f"{message}; see {self.prog} --help")


def _fail(message: str) -> int:
    print(f"livephoto: {' '.join(message.split())}", file=sys.stderr)
    return USER_ERROR


def _parser() -> argparse.ArgumentParser:
    parser = _Parser(prog="livephoto", description="Animate a photo by a text, as strongly as a level from 1 to 10 says.")
    parser.add_argument("--version", action="version", version=__version__)
    # for commands that name no fix of their own
    parser.set_defaults(memory_fix="end other programs, or use a machine with more")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    _add_animate(commands)
    _add_measure(commands)
    _add_inspect(commands)
    _add_train(commands)
    _add_calibrate(commands)
    add_bench(commands)
    return parser


def _add_animate(commands) -> None:
    parser = commands.add_parser("animate", help="photo, text and level in, clip out", description="Animate a photo.")
    parser.add_argument("photo", metavar="PHOTO", help="a picture: JPEG, PNG, WebP, GIF, BMP or TIFF")
    parser.add_argument("text", type=_text, metavar="TEXT", help="what moves and how, such as 'camera pans left'; never how fast")
    parser.add_argument("-o", "--out", required=True, help="OUT.mp4, .webp, .gif, or .png for a contact sheet")
    parser.add_argument(
        "--intensity",
        default="5",
        metavar="LEVEL",
        help="1 to 10, fractions too (default 5); several, as 1,3,5,8,10, make a .png sheet with a row a level, or a clip "
        "with the levels side by side",
    )
    parser.add_argument("--frames", type=int, help="default: as the model was trained (16)")
    parser.add_argument("--steps", type=int, help=f"default {STEPS}; with --sampler lcm {LCM_STEPS}")
    add_guidance_options(parser)
    parser.add_argument(
        "--sampler", default="dpmpp_2m", help=f"dpmpp_2m (default), or {LCM} for 4 to 8 steps with an LCM-LoRA, at --cfg 1 to 2"
    )
    parser.add_argument("--negative", type=_text, default="", metavar="TEXT", help="what to stay away from, with guidance")
    parser.add_argument("--seed", type=int, default=0, help="default 0; the same seed gives the same file")
    parser.add_argument("--size", type=int, help="pixels a side, a multiple of 8 (default: as the model was trained)")
    parser.add_argument("--fit", default="crop", help="crop (default), pad or stretch the photo to a square")
    parser.add_argument("--fps", type=float, default=8.0, help="frames a second in the file (default 8)")
    parser.add_argument(
        "--prior",
        default="0.033,0.016",
        metavar="FROM,TO",
        help="share of the inverted photo in the noise (default 0.033,0.016); the inversion takes --steps, at least 20",
    )
    parser.add_argument("--reweight", type=float, default=1.0, help="strength of text re-weighting (default 1)")
    parser.add_argument("--image-strength", type=float, default=1.0, help="strength of the photo's branches (default 1)")
    parser.add_argument("--motion-strength", type=float, default=1.0, help="strength of the motion modules (default 1)")
    _add_model_options(parser)
    parser.add_argument("--lora", action="append", default=[], metavar="FILE", help="an SD1.5 LoRA; may be given again")
    parser.add_argument("--lora-strength", type=float, default=1.0, help="default 1")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument(
        "--precision",
        default="auto",
        help="fp32, bf16, or on a GPU fp16: less memory and faster; frames differ a little. auto (default): bf16 on a CPU that "
        "calculates in it, else fp32",
    )
    parser.set_defaults(run=_animate, memory_fix="use a smaller --size, fewer --frames, or --precision bf16")


def _add_measure(commands) -> None:
    parser = commands.add_parser(
        "measure",
        help="SSIM and level of clips",
        description="Measure the motion of clips, at the size and frame stride that the model was trained with.",
    )
    parser.add_argument("clips", nargs="+", metavar="CLIP", help="a video, an animated webp or gif, or a folder of pictures")
    parser.add_argument("--model", default="demo", metavar="FILE", help="whose levels: demo (default) or a checkpoint")
    parser.add_argument("--size", type=int, help="crop frames to this side first (default: the model's)")
    parser.add_argument(
        "--stride", type=int, help="keep every n-th frame (default: the model's, and 1 for clips that livephoto wrote)"
    )
    parser.add_argument("--json", action="store_true", help="print JSON, not a table")
    parser.set_defaults(run=_measure, memory_fix="use a smaller --size, or clips of fewer pixels a frame")


def _add_inspect(commands) -> None:
    parser = commands.add_parser(
        "inspect",
        help="what a checkpoint is and how it weighs words",
        description="Describe a LivePhoto checkpoint, or print the settings of a clip that livephoto wrote.",
    )
    parser.add_argument("file", metavar="FILE", help="demo, a checkpoint, or a clip that livephoto wrote")
    parser.add_argument("--text", type=_text, help="show the weight of each of its words as bars")
    parser.add_argument("--json", action="store_true", help="print JSON")
    _add_base_options(parser)
    parser.set_defaults(run=_inspect)


def _add_train(commands) -> None:
    parser = commands.add_parser("train", help="train an adapter", description="Train an adapter as a config file says.")
    parser.add_argument("config", metavar="CONFIG", help="a .toml or .yaml file")
    parser.add_argument("--resume", action="store_true", help="go on from the run's last saved state")
    parser.set_defaults(
        run=_train,
        memory_fix="set gradient_checkpointing to true, accumulate to more (fewer clips at once), or mixed_precision to 'bf16'; "
        "all three may change on --resume",
    )


def _add_calibrate(commands) -> None:
    parser = commands.add_parser(
        "calibrate",
        help="thresholds between the ten levels from a set of clips",
        description="Compute the nine thresholds that cut a set of clips into ten levels of equal population, in SSIM or in the "
        "checkpoint's own measure.",
    )
    parser.add_argument("data", metavar="DATA", help="a folder of clips, with or without a CSV, a CSV, or .tar shards")
    parser.add_argument("--write", metavar="FILE", help="put the thresholds into this checkpoint; its size and stride apply")
    parser.add_argument("--replace", action="store_true", help="with --write: also where it has levels, which its weights learnt")
    parser.add_argument("--base", metavar="DIR|FILE", help="measure the clips as this base's VAE restores them")
    parser.add_argument("--tokenizer", metavar="DIR", help="for a single-file base")
    parser.add_argument("--device", help="of the base's VAE (default: cuda if there is one, else cpu)")
    parser.add_argument("--limit", type=int, metavar="N", help="measure the first N usable clips only (10 or more)")
    for name, default in (("frames", 16), ("stride", 4), ("size", 256)):
        parser.add_argument(f"--{name}", type=int, help=f"{name} of the clips (default: the checkpoint's, or {default})")
    parser.set_defaults(
        run=_calibrate, memory_fix="give --device cpu if it is a GPU's, else a smaller --size or fewer --frames, without --write"
    )


def _add_model_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--model", default="demo", metavar="demo|FILE", help="LivePhoto checkpoint (default demo)")
    _add_base_options(parser)


def _add_base_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--base", metavar="DIR|FILE", help="diffusers folder or single-file SD1.5 checkpoint")
    parser.add_argument("--image-encoder", metavar="DIR", help="the DINOv2 that the checkpoint names, if the base has none")
    parser.add_argument("--tokenizer", metavar="DIR", help="for a single-file base: a folder with vocab.json and merges.txt")


def _animate(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from .commands.animate import animate
    from .commands.model_files import ModelFiles, default_device, is_demo, precision_for, read_model_config
    from .intensity import check_level
    from .pipeline import Settings

    device = options.device or default_device()
    files = ModelFiles(
        options.model,
        options.base,
        options.image_encoder,
        options.tokenizer,
        options.lora,
        options.lora_strength,
        precision_for(options.precision, device),
    )
    levels = [check_level(level.strip()) for level in options.intensity.split(",")]
    default_steps = LCM_STEPS if options.sampler == LCM else STEPS
    cfg, min_cfg = guidance(options.cfg, options.min_cfg, options.sampler, is_demo(read_model_config(files)))
    start, end = _shares(options.prior)
    settings = Settings(
        options.text,
        frames=options.frames,
        steps=default_steps if options.steps is None else options.steps,
        sampler=options.sampler,
        cfg=cfg,
        min_cfg=min_cfg,
        seed=options.seed,
        size=options.size,
        fit=options.fit,
        negative=options.negative,
        prior_start=start,
        prior_end=end,
        reweight=options.reweight,
        image_strength=options.image_strength,
        motion_strength=options.motion_strength,
    )
    print(animate(options.photo, options.out, settings, levels, files, options.fps, device))


def _measure(options: argparse.Namespace) -> None:
    from .commands.measure import format_json, format_table, measure
    from .commands.model_files import ModelFiles, read_model_config

    config = read_model_config(ModelFiles(options.model))
    side = config.size if options.size is None else options.size
    results = []
    for clip in options.clips:
        stride = _stride(clip, config.frame_stride) if options.stride is None else options.stride
        results += measure([clip], config.ssim_thresholds or None, (side, side), stride, config.intensity_measure)
    print(format_json(results) if options.json else format_table(results))


def _inspect(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from .commands.inspect_file import inspect_file
    from .commands.model_files import ModelFiles

    files = ModelFiles(options.file, options.base, options.image_encoder, options.tokenizer)
    print(inspect_file(files, options.text, options.json))


def _train(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from .training.run import train

    train(options.config, options.resume)


def _calibrate(options: argparse.Namespace) -> None:
    _quiet_libraries()
    from .checkpoint import read_config
    from .commands.calibrate import check_limit, check_unwritten, load_base_vae, measure_source, store_thresholds
    from .commands.model_files import check_device, default_device
    from .config import AdapterConfig
    from .data.clips import Window, report
    from .data.source import open_source
    from .intensity import calibrate

    check_limit(options.limit)
    # only a VAE runs on a device
    device = options.device or ("cpu" if options.base is None else default_device())
    check_device(device)
    config = AdapterConfig() if options.write is None else read_config(options.write)
    numbers = {"frames": config.frames, "stride": config.frame_stride, "size": config.size}
    given = {name: getattr(options, name) for name in numbers if getattr(options, name) is not None}
    for name, value in given.items():
        if options.write is not None and value != numbers[name]:
            raise LivePhotoError(
                f"--{name} is {value}, but the levels of {options.write} are of clips with {name} {numbers[name]}: "
                f"leave --{name} out, or --write"
            )
    if options.write is not None and not options.replace:
        check_unwritten(options.write, config)
    source = open_source(options.data, Window(**{**numbers, **given}))
    vae = None if options.base is None else load_base_vae(options.base, options.tokenizer).to(device)
    found, skipped = measure_source(source, vae, config.intensity_measure, options.limit)
    print(report(skipped), file=sys.stderr)
    thresholds = calibrate(found)
    # before they are stored: a full disk must not lose what took long to measure
    print(f"{len(found)} clips; levels 1 to 10 are cut at")
    print(f"ssim_thresholds = [{', '.join(f'{threshold:.6f}' for threshold in thresholds)}]")
    measured_on = "frames" if vae is None else "reconstruction"
    print(f'intensity_from = "{measured_on}"')
    if options.write is not None:
        store_thresholds(options.write, thresholds, measured_on)


def _text(argument: str) -> str:
    """An argument's text; Python keeps bytes of it that are no UTF-8 as lone surrogates, which tokenizers do not take."""
    try:
        argument.encode()
    except UnicodeEncodeError:
        raise argparse.ArgumentTypeError("the text is not UTF-8: set the terminal to UTF-8, or write it in ASCII") from None
    return argument


def _shares(text: str) -> tuple[float, float]:
    try:
        start, end = (float(part) for part in text.split(","))
    except ValueError:
        raise LivePhotoError(f"--prior takes two shares as 0.033,0.016, got {text!r}; 0,0 switches it off") from None
    return start, end


def _stride(clip: str, trained: int) -> int:
    """1 for a clip that livephoto wrote, whose frames already lie as far apart as in training."""
    from .media import read_record

    try:
        return trained if read_record(clip) is None else 1
    except LivePhotoError:
        return trained


def _quiet_libraries() -> None:
    """The libraries' own bars and hints would bury ours."""
    # `inspect` and others do without them
    for name in filter(find_spec, ("diffusers", "transformers")):
        library = import_module(name)
        library.utils.logging.set_verbosity_error()
        library.utils.logging.disable_progress_bar()


if __name__ == "__main__":
    sys.exit(main())
