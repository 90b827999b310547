"""python -m benchmarks.speed -o FOLDER: measures, and writes speed.json and speed.md."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, replace
from importlib.util import find_spec
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import torch

from livephoto_core.cli import USER_ERROR
from livephoto_core.commands.model_files import check_device
from livephoto_core.commands.process import keep_freed_memory
from livephoto_core.config import BaseShape, NoiseSchedule
from livephoto_core.errors import LivePhotoError
from livephoto_core.files import atomic_path, check_writable

from .child import measure_alone
from .comfyui import measure_steps, measure_windows
from .demo import measure_demo
from .motion import measure_ssim
from .report import markdown
from .systems import SYSTEMS, Case, Encoders, Systems
from .timing import by_turns, flops, machine, paired_ratio, peak_flops, spread
from .training import TRAININGS

PARTS = ("steps", "memory", "clips", "comfyui", "training", "ssim", "demo")
# what a CPU gets done in minutes, and what a GPU is for
CPU_SIZES, GPU_SIZES = "64", "256,512"
TIMESTEPS = NoiseSchedule().timesteps
WINDOW_STEPS = 8


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure what the options say; returns the exit code."""
    diffusers.utils.logging.set_verbosity_error()
    # as `livephoto` does; all that is measured in this process has it
    keep_freed_memory()
    try:
        options = _options(arguments)
        folder = Path(options.out)
        check_writable(folder)
        report = measure(options)
        for name, text in (("speed.json", json.dumps(report, indent=1)), ("speed.md", markdown(report))):
            with atomic_path(folder / name) as path:
                path.write_text(text, encoding="utf-8")
        print(markdown(report))
    except LivePhotoError as error:
        print(f"benchmarks.speed: {error}", file=sys.stderr)
        return USER_ERROR
    return 0


def _options(arguments: Sequence[str] | None) -> argparse.Namespace:
    gpu = torch.cuda.is_available()
    parser = argparse.ArgumentParser(prog="python -m benchmarks.speed", description="Speed beside diffusers and ComfyUI.")
    parser.add_argument("-o", "--out", required=True, help="a folder for speed.json and speed.md")
    parser.add_argument("--device", default="cuda" if gpu else "cpu", help="default: cuda if there is one, else cpu")
    parser.add_argument("--precision", help="of float32, float16, bfloat16 (default: float32; on a GPU both halves)")
    parser.add_argument("--sizes", help=f"pixels a side (default {CPU_SIZES}; on a GPU {GPU_SIZES}); training is at the first")
    parser.add_argument("--frames", type=int, default=16, help="default 16")
    parser.add_argument("--cfg", default="1,7.5", help="guidance; 1 is none (default 1,7.5); clips are made at the first")
    parser.add_argument("--channels", help="the UNet's four widths, multiples of 64 (default: SD1.5's 320,640,1280,1280)")
    parser.add_argument("--rounds", type=int, default=5, help="turns that each system gets (default 5)")
    parser.add_argument("--clip-steps", type=int, default=20, help="steps of a whole clip (default 20)")
    parts = f"what to measure (default {','.join(PARTS)}); training leaves float16 out, which it would need a loss scale for"
    parser.add_argument("--parts", help=parts)
    options = parser.parse_args(arguments)
    check_device(options.device)
    on_gpu = torch.device(options.device).type == "cuda"
    if not on_gpu and options.device != "cpu":
        raise LivePhotoError(f"--device is {options.device!r}: choose cpu or cuda")
    asked = options.parts
    options.parts = _listed("--parts", asked or ",".join(PARTS), str)
    if unknown := set(options.parts) - set(PARTS):
        raise LivePhotoError(f"--parts has {', '.join(sorted(unknown))}: choose from {', '.join(PARTS)}")
    options.precision = _listed("--precision", options.precision or ("float16,bfloat16" if on_gpu else "float32"), str)
    if unknown := set(options.precision) - {"float32", "float16", "bfloat16"}:
        raise LivePhotoError(f"--precision has {', '.join(sorted(unknown))}: choose from float32, float16, bfloat16")
    if asked and "training" in options.parts and set(options.precision) == {"float16"}:
        raise LivePhotoError("training is not measured in float16: add another --precision, or leave training out of --parts")
    if "ssim" in options.parts and find_spec("skimage") is None:
        raise LivePhotoError("the part ssim needs scikit-image: pip install scikit-image, or leave ssim out of --parts")
    options.sizes = _listed("--sizes", options.sizes or (GPU_SIZES if on_gpu else CPU_SIZES), int)
    options.cfg = _listed("--cfg", options.cfg, float)
    full = ",".join(map(str, BaseShape().block_channels))
    options.channels = tuple(_listed("--channels", options.channels or full, int))
    if len(options.channels) != 4 or any(width % 64 or width < 64 for width in options.channels):
        raise LivePhotoError(f"--channels is {options.channels}: give four multiples of 64")
    if any(size % 64 or size < 64 for size in options.sizes):
        raise LivePhotoError(f"--sizes is {options.sizes}: give multiples of 64")
    if not all(cfg >= 1 for cfg in options.cfg):
        raise LivePhotoError(f"--cfg is {options.cfg}: give numbers from 1, which is without guidance")
    if options.rounds < 1 or not 1 <= options.clip_steps < TIMESTEPS or options.frames < 2:
        raise LivePhotoError(f"--rounds must be 1 or more, --clip-steps 1 to {TIMESTEPS - 1}, --frames 2 or more")
    return options


def _listed(name: str, text: str, kind: Callable) -> list:
    try:
        return [kind(value) for value in text.split(",")]
    except ValueError:
        raise LivePhotoError(f"{name} takes values with commas between them, got {text!r}") from None


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """All that was asked for, as plain values."""
    report: dict[str, Any] = {"machine": machine(options.device), "command": sys.argv[1:]}
    report |= {part: [] for part in ("steps", "clips", "comfyui", "windows", "training", "ssim", "demo")}
    for precision in options.precision:
        fixed = Case(frames=options.frames, channels=options.channels, device=options.device, precision=precision)
        peak = peak_flops(options.device, fixed.dtype)
        report["machine"][f"peak_flops_{precision}"] = peak
        for size, cfg in product(options.sizes, options.cfg):
            case = replace(fixed, size=size, cfg=cfg)
            if {"steps", "memory"} & set(options.parts):
                report["steps"].append(_steps(case, options.rounds, peak, "memory" in options.parts))
            if "comfyui" in options.parts:
                report["comfyui"].append({"case": asdict(case), **_comfyui(case, options.rounds)})
            if cfg == options.cfg[0] and "clips" in options.parts:
                report["clips"].append(_clips(case, options.clip_steps))
        if "training" in options.parts and precision != "float16":
            report["training"].append(_training(replace(fixed, size=options.sizes[0]), options.rounds))
    if "comfyui" in options.parts:
        report["windows"] = [_windows(options.device)]
    if "ssim" in options.parts:
        report["ssim"] = [
            measure_ssim(size, options.frames, options.device, options.rounds) for size in sorted({*options.sizes, 256})
        ]
    if "demo" in options.parts:
        _shown("the demo's clip")
        report["demo"] = [measure_demo(options.clip_steps, options.device, options.rounds)]
    return report


def _shown(text: str) -> None:
    print(text, file=sys.stderr, flush=True)


def _steps(case: Case, rounds: int, peak: float, memory: bool) -> dict[str, Any]:
    _shown(f"steps: {case}")
    systems = Systems(case)
    # a sampling's first step, where LivePhoto computes what it then keeps, is not counted
    systems.step("livephoto")
    counts = {name: flops(step) for name, step in systems.steps().items()}
    seconds = by_turns(systems.steps(), rounds, case.device, warm_up=0)
    found: dict[str, Any] = {}
    for name, values in seconds.items():
        share = counts[name] / spread(values)["median"] / peak
        found[name] = {"seconds": spread(values), "flops": counts[name], "share_of_peak": share}
        found[name]["livephoto_ratio"] = paired_ratio(seconds["livephoto"], values)
    del systems
    if memory:
        for name in SYSTEMS:
            found[name]["peak_memory"] = measure_alone("step", name, case, 1)["peak_memory"]
    return {"case": asdict(case), "systems": found}


def _clips(case: Case, steps: int) -> dict[str, Any]:
    _shown(f"clips: {case}")
    systems, encoders = Systems(case, SYSTEMS[1:]), Encoders(case)
    clips = {name: (lambda name=name: systems.clip(name, steps, encoders)) for name in systems.names}
    seconds = by_turns(clips, 1, case.device, warm_up=int(case.device != "cpu"))
    return {"case": asdict(case), "steps": steps, "seconds": {name: spread(values) for name, values in seconds.items()}}


def _comfyui(case: Case, rounds: int) -> dict[str, Any]:
    _shown(f"ComfyUI: {case}")
    try:
        seconds = measure_steps(case, rounds)
    except LivePhotoError as error:
        return {"error": str(error)}
    over = {f"over_{name}": paired_ratio(seconds["livephoto"], seconds[name]) for name in ("motion", "plain")}
    return {"seconds": {name: spread(values) for name, values in seconds.items()}, **over}


def _windows(device: str) -> dict[str, Any]:
    _shown("ComfyUI: the demo's clips in windows")
    try:
        seconds = measure_windows(WINDOW_STEPS, device)
    except LivePhotoError as error:
        return {"error": str(error)}
    times = {f"{frames} frames": spread(values) for frames, values in seconds.items()}
    return {"steps": WINDOW_STEPS, "seconds": times, "64_over_16": paired_ratio(seconds["64"], seconds["16"])}


def _training(case: Case, rounds: int) -> dict[str, Any]:
    _shown(f"training: {case}")
    found = {}
    # one after the other: there is seldom memory for all of them, with their optimizers
    for name in TRAININGS:
        measured = measure_alone("training", name, case, rounds)
        times = spread(measured["seconds"])
        found[name] = {"clips_a_second": 1 / times["median"], "seconds": times, "peak_memory": measured["peak_memory"]}
    return {"case": asdict(case), "systems": found}


if __name__ == "__main__":
    sys.exit(main())
