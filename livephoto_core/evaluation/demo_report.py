"""Measures the demo model on photographs and shapes it was never trained on.

    python -m livephoto_core.evaluation.demo_report --model demo --count 128 -o report.json

Writes every figure with its interval to a JSON file and prints them as a Markdown table. The same arguments draw the same
clips and the same noise.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

import torch
from tqdm import tqdm

from ..commands.guidance import add_guidance_options, guidance
from ..config import AdapterConfig
from ..demo.clips import DemoClip
from ..demo.motions import MOTIONS, STILL
from ..errors import LivePhotoError
from ..files import atomic_path
from .bench import bench_clips
from .measuring import Model
from .report import GROUPS, measure_demo, to_json, to_markdown


def load_measured(files, device: str, sampling) -> tuple[Model, AdapterConfig]:
    """The model that a command line names, and its checkpoint's config.

    Raises:
        LivePhotoError: a missing or damaged file, or a checkpoint without level thresholds.
    """
    from ..commands.inspect_file import word_weights
    from ..commands.model_files import load_model
    from ..encoding import decode, encode_photo
    from .generate import batch_generator

    loaded = load_model(files, device)
    config = loaded.adapter.config
    if not config.ssim_thresholds:
        raise LivePhotoError(f"{files.adapter} has no level thresholds: run livephoto calibrate first")

    @torch.no_grad()
    def round_trip(pictures: torch.Tensor) -> torch.Tensor:
        return decode(loaded.base, encode_photo(loaded.base, pictures)).cpu()

    model = Model(
        generate=batch_generator(loaded, sampling),
        round_trip=round_trip,
        thresholds=config.ssim_thresholds,
        words=lambda text: word_weights(loaded.base, loaded.adapter, text),
        levels_from=config.intensity_from,
    )
    return model, config


def draw_bench(
    count: int, level_count: int, seed: int, frames: int, size: int
) -> tuple[dict[str, list[DemoClip]], list[DemoClip], torch.Tensor]:
    """`count` clips a group, `level_count` for the level, and held-out photographs [N, 3, size, size], from installed photos."""
    from ..demo.photos import package_photos
    from ..demo.sprites import HELD_OUT_SHAPES
    from ..media import fit_image

    _, held_out = package_photos()
    groups = {
        name: list(bench_clips(held_out, HELD_OUT_SHAPES, motions, count, seed + number, frames, size))
        for number, (name, motions) in enumerate(tqdm(GROUPS.items(), desc="drawing clips"))
    }
    moving = [motion for motion in MOTIONS if motion not in STILL]
    level_clips = list(bench_clips(held_out, HELD_OUT_SHAPES, moving, level_count, seed + len(GROUPS), frames, size))
    photos = torch.stack([fit_image(photo.pixels.float() / 255, size, size, "crop") for photo in held_out])
    return groups, level_clips, photos


def main(arguments: Sequence[str] | None = None) -> int:
    """The command; returns its exit code: 0, or 2 for a user's mistake."""
    parser = argparse.ArgumentParser(prog="python -m livephoto_core.evaluation.demo_report", description="Measure the demo model.")
    parser.add_argument("--model", default="demo", metavar="FILE", help="demo (default) or a checkpoint")
    parser.add_argument("--base", metavar="DIR", help="the base of a checkpoint that is not the demo's")
    parser.add_argument("--count", type=int, default=128, help="clips for each group of motions (default 128)")
    parser.add_argument("--level-count", type=int, help="clips for the level figures, each made 6 times (default: --count)")
    parser.add_argument("--steps", type=int, default=20, help="sampling steps (default 20)")
    add_guidance_options(parser)
    parser.add_argument("--precision", default="fp32", help="fp32 (default), bf16, or on a GPU fp16: figures differ a little")
    parser.add_argument("--batch", type=int, default=8, help="clips made at a time (default 8)")
    parser.add_argument("--seed", type=int, default=0, help="of the clips and of the noise (default 0)")
    parser.add_argument("--device", help="default: cuda if there is one, else cpu")
    parser.add_argument("-o", "--out", required=True, type=Path, help="the JSON file to write")
    options = parser.parse_args(arguments)
    try:
        _run(options)
    except LivePhotoError as error:
        print(f"demo_report: {' '.join(str(error).split())}", file=sys.stderr)
        return 2
    return 0


def _run(options: argparse.Namespace) -> None:
    from ..commands.model_files import ModelFiles, default_device, is_demo, read_model_config
    from .generate import BatchSampling

    if find_spec("scipy") is None:
        raise LivePhotoError("the report needs scipy: pip install 'comfyui-livephoto[eval]'")
    device = options.device or default_device()
    # kept among the options, which the report names as its settings
    files = ModelFiles(options.model, options.base, precision=options.precision)
    demo = is_demo(read_model_config(files))
    options.cfg, options.min_cfg = guidance(options.cfg, options.min_cfg, BatchSampling.sampler, demo)
    sampling = BatchSampling(options.steps, options.cfg, options.min_cfg)
    level_count = options.count if options.level_count is None else options.level_count
    if min(options.count, level_count, options.batch) < 1:
        raise LivePhotoError("--count, --level-count and --batch must be 1 or more")
    with atomic_path(options.out) as path:
        model, config = load_measured(files, device, sampling)
        if config.intensity_measure != "ssim":
            raise LivePhotoError(
                f"the levels of {options.model} are of {config.intensity_measure}, this report is on SSIM: use livephoto bench run"
            )
        frames, size = config.frames, config.size
        groups, level_clips, photos = draw_bench(options.count, level_count, options.seed, frames, size)
        report = measure_demo(model, groups, level_clips, photos, options.seed, options.batch)
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        path.write_text(to_json({"settings": settings, **report}))
    print(to_markdown(report))


if __name__ == "__main__":
    sys.exit(main())
