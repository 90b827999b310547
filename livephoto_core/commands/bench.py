"""`livephoto bench`: its options, and calling what does the work."""

from __future__ import annotations

import argparse
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

from ..errors import LivePhotoError
from .guidance import add_guidance_options, guidance
from .model_files import check_device, default_device

PHOTOS = "photographs of your own, none of which the model was trained on (default: the installed packages' held-out ones)"
# which of `bench run`'s options go with which system
APPLY = {
    "livephoto": {
        *("model", "base", "image_encoder", "tokenizer", "steps", "sampler", "cfg", "min_cfg", "prior", "batch", "precision"),
    },
    "diffusers": {"folder", "size", "level_input", "level_values", "inputs"},
    "comfyui": {"url", "workflow", "set", "output_node", "seconds", "size", "level_values"},
    "folder": {"folder"},
    "function": {"function", "size"},
    "truth": set(),
    "still": set(),
}


def add_bench(commands) -> None:
    """Add `bench run`, `export`, `intensity`, `ablations` and `words` to the command line's subparsers."""
    about = "measure how well a system follows photo, text and level"
    parser = commands.add_parser("bench", help=about, description=f"MotionBench: {about}.")
    parts = parser.add_subparsers(title="parts", required=True, metavar="PART")
    _add_run(parts)
    _add_export(parts)
    _add_intensity(parts)
    _add_ablations(parts)
    _add_words(parts)


def _add_run(parts) -> None:
    parser = parts.add_parser("run", help="measure a system", description="Make every clip of the suite and measure it.")
    parser.add_argument("--system", default="livephoto", choices=list(SYSTEMS), help="what is measured (default livephoto)")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the report; an earlier one is replaced")
    _add_suite_options(parser)
    parser.add_argument("--size", type=int, help="pixels a side of the system's photo (default 64; livephoto: its own)")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("--dino", metavar="DIR", help="DINOv2 weights: adds the DINO score of adjacent frames")
    parser.add_argument("--clip", metavar="DIR", help="CLIP weights: adds the CLIP score of adjacent frames")
    ours = parser.add_argument_group("--system livephoto")
    ours.add_argument("--model", default="demo", metavar="demo|FILE", help="LivePhoto checkpoint (default demo)")
    ours.add_argument("--base", metavar="DIR|FILE", help="its base model")
    ours.add_argument("--image-encoder", metavar="DIR", help="the DINOv2 that the checkpoint names, if the base has none")
    ours.add_argument("--tokenizer", metavar="DIR", help="for a single-file base")
    ours.add_argument("--steps", type=int, default=20, help="default 20")
    ours.add_argument("--sampler", default="dpmpp_2m", help="dpmpp_2m (default), or lcm, with --steps 4 to 8 and --cfg 1")
    add_guidance_options(ours)
    ours.add_argument("--prior", default="0.033,0.016", metavar="FROM,TO", help="share of the inverted photo in the noise")
    ours.add_argument("--batch", type=int, default=8, help="clips made at a time (default 8)")
    precision = "fp32 (default), bf16, or on a GPU fp16: less memory and faster; figures differ a little"
    ours.add_argument("--precision", default="fp32", help=precision)
    others = parser.add_argument_group("other systems")
    others.add_argument("--folder", metavar="DIR", help="diffusers: the pipeline; folder: the clips")
    others.add_argument("--function", metavar="FILE.py:NAME", help="function: (photo, text, level, seed) -> frames")
    others.add_argument("--url", default="http://127.0.0.1:8188", help="comfyui: its address (default http://127.0.0.1:8188)")
    others.add_argument("--workflow", metavar="FILE", help="comfyui: a workflow exported as API JSON")
    places = "comfyui: where photo, text, level and seed go; once for each"
    others.add_argument("--set", action="append", default=[], metavar="NAME=NODE.INPUT", help=places)
    others.add_argument("--output-node", metavar="NODE", help="comfyui: the node that saves the clip, if there are several")
    others.add_argument("--seconds", type=float, default=1800, help="comfyui: a clip may take this long (default 1800)")
    others.add_argument("--level-input", metavar="NAME", help="diffusers: the input that sets the strength, such as motion_scale")
    values = "diffusers, comfyui: the level's input at level 1 to 10 (default 1,...,10)"
    others.add_argument("--level-values", metavar="V1,...,V10", help=values)
    others.add_argument("--inputs", default="{}", metavar="JSON", help='diffusers: more, such as {"num_inference_steps": 25}')
    fix = "use a smaller --batch or --precision bf16; for other systems a smaller --size"
    parser.set_defaults(run=_run, memory_fix=fix, default_of=parser.get_default)


def _add_export(parts) -> None:
    about = "write what to make, for a system that runs elsewhere"
    parser = parts.add_parser("export", help=about, description="Write photos and cases.csv.")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="a new folder")
    _add_suite_options(parser)
    parser.add_argument("--size", type=int, default=512, help="pixels a side of the photos (default 512)")
    parser.set_defaults(run=_export, memory_fix="use a smaller --size")


def _add_intensity(parts) -> None:
    parser = parts.add_parser(
        "intensity", help="compare measures of motion strength", description="Rank agreement of measures with the true speed."
    )
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the report; an earlier one is replaced")
    parser.add_argument("--photos", metavar="DIR", help=PHOTOS)
    parser.add_argument("--scenes", type=int, default=4, help="scenes for each motion (default 4)")
    parser.add_argument("--speeds", type=int, default=8, help="speeds for each scene (default 8)")
    parser.add_argument("--dino", metavar="DIR", help="DINOv2 weights: a measure more")
    parser.add_argument("--clip", metavar="DIR", help="CLIP weights: a measure more")
    parser.add_argument("--device", help="of DINO and CLIP (default: cuda if there is one, else cpu)")
    parser.set_defaults(run=_intensity, memory_fix="use fewer --speeds, or --device cpu")


def _add_ablations(parts) -> None:
    about = "train LivePhoto without one part at a time, or with levels of another measure, and measure each"
    parser = parts.add_parser("ablations", help=about, description=f"The paper's ablations: {about}. A stopped run goes on.")
    example = "livephoto_core/training/recipes/ablations.toml"
    parser.add_argument("config", metavar="CONFIG", help=f"a .toml or .yaml file, such as {example}")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the report's files; others in it stay")
    parser.add_argument("--photos", metavar="DIR", help=PHOTOS)
    parser.add_argument("--device", help="of sampling (default: cuda if there is one, else cpu)")
    parser.set_defaults(
        run=_ablations,
        memory_fix="set the study's batch to less, or with another work folder its training's accumulate to more or its "
        "gradient_checkpointing to true",
    )


def _add_words(parts) -> None:
    about = "what the text re-weighter makes of words, over a set of prompts"
    parser = parts.add_parser("words", help=about, description=f"Measures {about}.")
    parser.add_argument("-o", "--out", required=True, metavar="DIR", help="folder for the report; an earlier one is replaced")
    prompts = "CSV with the columns wording,text (default: the demo's vocabulary)"
    parser.add_argument("--prompts", metavar="FILE", help=prompts)
    parser.add_argument("--model", default="demo", metavar="demo|FILE", help="LivePhoto checkpoint (default demo)")
    parser.add_argument("--base", metavar="DIR|FILE", help="its base model")
    parser.add_argument("--tokenizer", metavar="DIR", help="for a single-file base")
    parser.set_defaults(run=_words)


def _add_suite_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--suite", default="full", help="full (default), medium, short, or reduced, for a quick look")
    parser.add_argument("--photos", metavar="DIR", help=PHOTOS)


def _run(options: argparse.Namespace) -> None:
    from ..evaluation.bench_report import build_report, check_folder, to_markdown, write_report
    from ..evaluation.benching import run_suite
    from ..evaluation.features import extractors, scorers
    from ..evaluation.suite import draw_suite, suite_photos

    _refuse_foreign(options)
    check_folder(options.out)
    options.device = options.device or default_device()
    check_device(options.device)
    features = extractors(options.dino, options.clip, options.device)
    suite = draw_suite(suite_photos(options.photos), options.suite)
    system = SYSTEMS[options.system](options, suite)
    result = run_suite(system, suite, scorers(features))
    report = build_report(system, suite, result, _settings(options, _foreign(options.system)))
    write_report(report, result, options.out)
    print(to_markdown(report))


def _export(options: argparse.Namespace) -> None:
    from ..evaluation.suite import draw_suite, suite_photos
    from ..evaluation.system_folder import export_suite
    from ..evaluation.systems import still_system

    if options.size < 16:
        raise LivePhotoError(f"--size must be 16 or more, got {options.size}")
    suite = draw_suite(suite_photos(options.photos), options.suite)
    count = export_suite(suite, options.out, replace(still_system(), size=options.size))
    print(f"{count} clips to make are in {Path(options.out) / 'cases.csv'}")
    print("name each clip as its row does, copy suite.json beside them, then, with the same --suite and --photos:")
    print("livephoto bench run --system folder --folder CLIPS -o REPORT")


def _intensity(options: argparse.Namespace) -> None:
    from ..evaluation.bench_report import check_folder
    from ..evaluation.features import extractors
    from ..evaluation.intensity_measures import MEASURES, feature_change
    from ..evaluation.intensity_study import FILES, sweep_scenes, write_study
    from ..evaluation.suite import suite_photos

    if options.scenes < 1 or options.speeds < 3:
        raise LivePhotoError(f"--scenes must be 1 or more and --speeds 3 or more, got {options.scenes} and {options.speeds}")
    check_folder(options.out, FILES)
    options.device = options.device or default_device()
    check_device(options.device)
    features = extractors(options.dino, options.clip, options.device)
    more = {f"{name} features": feature_change(f) for name, f in features.items()}
    photos = suite_photos(options.photos)
    print(write_study(sweep_scenes(photos, {**MEASURES, **more}, options.scenes, options.speeds), options.out))


def _ablations(options: argparse.Namespace) -> None:
    from ..evaluation.ablation_config import load_ablations
    from ..evaluation.ablation_report import check_report, write_ablations
    from ..evaluation.ablations import measure_starts, run_ablations
    from ..evaluation.features import extractors
    from ..evaluation.suite import draw_suite, suite_photos

    config, device = load_ablations(options.config), options.device or default_device()
    check_device(device)
    check_report(options.out)
    # missing weights are found before the training
    extractors(config.dino or None, config.clip or None, device)
    suite = draw_suite(suite_photos(options.photos), config.suite)
    measured = run_ablations(config, suite, device)
    print(write_ablations(config, measured, measure_starts(config, suite, device), options.out))


def _words(options: argparse.Namespace) -> None:
    from ..checkpoint import load_adapter
    from ..evaluation.bench_report import check_folder
    from ..evaluation.words import FILES, PROMPTS, read_prompts, weigh_prompts, words_report, write_words
    from .inspect_file import word_weights
    from .model_files import ModelFiles, load_model_base

    check_folder(options.out, FILES)
    prompts = read_prompts(options.prompts or PROMPTS)
    files = ModelFiles(options.model, options.base, tokenizer=options.tokenizer)
    adapter = load_adapter(files.adapter_path)
    if not adapter.config.parts.reweight:
        raise LivePhotoError(f"{options.model} was trained without text re-weighting: every word weighs 1")
    base = load_model_base(files)
    found = weigh_prompts(lambda text: word_weights(base, adapter, text), prompts)
    print(write_words(words_report(found, _settings(options)), options.out))


def _foreign(system: str) -> set[str]:
    """The options that say nothing to a system."""
    return set().union(*APPLY.values()) - APPLY[system]


def _refuse_foreign(options: argparse.Namespace) -> None:
    for name in sorted(_foreign(options.system)):
        if getattr(options, name) != options.default_of(name):
            systems = ", ".join(system for system, own in APPLY.items() if name in own)
            raise LivePhotoError(f"--{name.replace('_', '-')} is for --system {systems}, not {options.system}: leave it out")


def _settings(options: argparse.Namespace, left_out: set[str] = frozenset()) -> dict[str, Any]:
    """The options as given; paths by their last part alone, so that a report tells nothing of the machine."""
    left_out = {"run", "memory_fix", "out", "default_of", *left_out}
    names = {name: value for name, value in vars(options).items() if name not in left_out}
    paths = ("photos", "model", "base", "image_encoder", "tokenizer", "folder", "function", "workflow", "dino", "clip", "prompts")
    return {name: Path(value).name if name in paths and value is not None else value for name, value in names.items()}


def _size(options: argparse.Namespace) -> int:
    from ..evaluation.suite import SIZE

    size = SIZE if options.size is None else options.size
    if size < SIZE:
        raise LivePhotoError(f"--size must be {SIZE} or more, got {size}: clips are measured at {SIZE} pixels")
    return size


def _needed(options: argparse.Namespace, name: str) -> str:
    if (value := getattr(options, name)) is None:
        raise LivePhotoError(f"--system {options.system} needs --{name}; see livephoto bench run --help")
    return value


def _livephoto(options: argparse.Namespace, suite):
    from ..evaluation.generate import BatchSampling
    from ..evaluation.system_livephoto import livephoto_system
    from .model_files import ModelFiles, is_demo, read_model_config

    if options.batch < 1:
        raise LivePhotoError(f"--batch must be 1 or more, got {options.batch}")
    try:
        start, end = (float(part) for part in options.prior.split(","))
    except ValueError:
        raise LivePhotoError(f"--prior takes two shares as 0.033,0.016, got {options.prior!r}; 0,0 switches it off") from None
    files = ModelFiles(
        options.model, options.base, options.image_encoder, options.tokenizer, precision=options.precision
    )
    # kept among the options, which the report names as its settings
    options.cfg, options.min_cfg = guidance(options.cfg, options.min_cfg, options.sampler, is_demo(read_model_config(files)))
    sampling = BatchSampling(options.steps, options.cfg, options.min_cfg, start, end, options.sampler)
    return livephoto_system(files, options.device, sampling, options.batch)


def _diffusers(options: argparse.Namespace, suite):
    from ..evaluation.level_values import level_values
    from ..evaluation.system_diffusers import diffusers_system

    try:
        inputs = dict(json.loads(options.inputs))
    except (ValueError, TypeError):
        raise LivePhotoError(f'--inputs takes JSON such as {{"num_inference_steps": 25}}, got {options.inputs!r}') from None
    if options.level_values is not None and options.level_input is None:
        raise LivePhotoError("--level-values needs --level-input, the pipeline's input that gets them")
    values = level_values(options.level_values)
    folder = _needed(options, "folder")
    return diffusers_system(folder, _size(options), options.device, options.level_input, values, inputs)


def _comfyui(options: argparse.Namespace, suite):
    from ..evaluation.level_values import level_values
    from ..evaluation.system_comfyui import comfyui_system, read_workflow

    if options.level_values is not None and not any(place.startswith("level=") for place in options.set):
        raise LivePhotoError("--level-values needs --set level=NODE.INPUT, the input that gets them")
    workflow = read_workflow(_needed(options, "workflow"), options.set, options.output_node)
    return comfyui_system(options.url, workflow, _size(options), level_values(options.level_values), options.seconds)


def _folder(options: argparse.Namespace, suite):
    from ..evaluation.system_folder import folder_system

    return folder_system(_needed(options, "folder"), suite)


def _function(options: argparse.Namespace, suite):
    from ..evaluation.systems import function_system

    return function_system(_needed(options, "function"), _size(options))


def _truth(options: argparse.Namespace, suite):
    from ..evaluation.truth import truth_system

    return truth_system(suite)


def _still(options: argparse.Namespace, suite):
    from ..evaluation.systems import still_system

    return still_system()


SYSTEMS = {
    "livephoto": _livephoto,
    "diffusers": _diffusers,
    "comfyui": _comfyui,
    "folder": _folder,
    "function": _function,
    "truth": _truth,
    "still": _still,
}
