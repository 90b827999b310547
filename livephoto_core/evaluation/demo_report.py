"""Measures the demo model on photographs and shapes it was never trained on.

    python -m livephoto_core.evaluation.demo_report --model demo --count 128 -o report.json

Writes every figure with its interval to a JSON file and prints them as a Markdown table. The same arguments draw the same
clips and the same noise.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import torch
from tqdm import tqdm

from ..demo.clips import DemoClip
from ..demo.motions import CAMERA, MOTIONS, STILL, THING
from ..demo.sprites import COLOURS
from ..errors import LivePhotoError
from ..files import atomic_path
from ..intensity import clip_ssim, level
from .bench import bench_clips
from .figures import first_frame_psnr, fit_psnr, interval, per_clip_spearman, sharpness_ratio, spearman
from .generate import Generate
from .recognition import Seen, recognise_photo, recognise_thing

GROUPS: dict[str, tuple[str, ...]] = {
    "sprites, directions": THING[:4],
    "sprites, other motions": THING[4:],
    "photographs, light": ("flicker",),
    "photographs, snow": ("snow",),
    "photographs, zoom": ("zoom in", "zoom out"),
    "photographs, pans": CAMERA[:4],
    "photographs, turns": ("turn clockwise", "turn counterclockwise"),
    "photographs, other motions": ("rain", "ripple", "ball appears", "fireworks", *STILL),
}
SPRITES = ("sprites, directions", "sprites, other motions")
LEVELS = (1, 3, 5, 7, 10)
NEUTRAL = LEVELS[2]
# without "in", which tells a place as often as a zoom
MOTION_WORDS = (
    *("left", "right", "up", "down", "upwards", "downwards", "out", "closer", "away", "clockwise", "counterclockwise"),
    *("grows", "growing", "bigger", "shrinks", "shrinking", "smaller", "rises", "sinks"),
)
TARGETS: dict[str, tuple[str, float]] = {
    "right: sprites, directions": ("at least", 0.90),
    "right: sprites, all motions": ("at least", 0.85),
    "right: photographs, light": ("at least", 0.80),
    "right: photographs, snow": ("at least", 0.80),
    "right: photographs, zoom": ("at least", 0.80),
    "right: photographs, pans": ("at least", 0.90),
    "sharpness of the last frame: photographs, pans": ("at least", 0.70),
    "level, Spearman a clip": ("at least", 0.95),
    "level, Spearman pooled": ("at least", 0.80),
    "level, Spearman neutralised": ("at most, either way", 0.20),
    "first frame, dB below the VAE": ("at most", 1.0),
    "VAE on held-out photographs, dB": ("at least", 28.0),
    "weight of motion words over colour words": ("at least", 2.0),
}
RoundTrip = Callable[[torch.Tensor], torch.Tensor]
WordWeights = Callable[[str], list[tuple[str, float]]]


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % bootstrap interval and how many clips (or captions) it is of."""

    value: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class Model:
    """What is measured: making clips, the VAE there and back [N, 3, S, S], the level thresholds and the words' weights."""

    generate: Generate
    round_trip: RoundTrip
    thresholds: Sequence[float]
    words: WordWeights


@dataclass(frozen=True)
class Made:
    """One clip that was made, and what was measured on it."""

    group: str
    motion: str
    caption: str
    level: int
    seen: Seen
    limit: Seen
    dissimilarity: float
    first: float
    first_limit: float
    sharp: float
    fit: float

    @property
    def right(self) -> bool:
        return self.seen.motion == self.motion


@dataclass(frozen=True)
class Levelled:
    """One scene at each of LEVELS, at its true clip's level and at NEUTRAL: 1 - SSIM of each, and whether its motion is right."""

    motion: str
    true_level: int
    at_levels: list[float]
    at_true: float
    at_neutral: float
    right: bool


def recognise(frames: torch.Tensor, clip: DemoClip) -> Seen:
    """The motion that frames [F, 3, S, S] made from the clip's first frame show."""
    thing = clip.scene.thing
    if thing is None:
        return recognise_photo(frames, clip.frames[0])
    return recognise_thing(frames, clip.frames[0], thing.start, thing.sprite[3])


def true_level(clip: DemoClip, model: Model) -> int:
    """The clip's level as training measures it: on its VAE round trip."""
    return level(float(clip_ssim(model.round_trip(clip.frames))), model.thresholds)


def measure_clips(model: Model, group: str, clips: Sequence[DemoClip], seed: int, batch: int) -> list[Made]:
    """Each clip made anew from its first frame, its caption and its true level, and measured; noise from seed + place."""
    made = []
    for start in tqdm(range(0, len(clips), batch), desc=group):
        part = clips[start : start + batch]
        truths = [model.round_trip(clip.frames) for clip in part]
        levels = [level(float(clip_ssim(truth)), model.thresholds) for truth in truths]
        frames = _generate(model, part, levels, seed + start)
        made += [_measure(group, *row) for row in zip(part, levels, frames, truths, strict=True)]
    return made


def _measure(group: str, clip: DemoClip, wanted: int, frames: torch.Tensor, truth: torch.Tensor) -> Made:
    motion = clip.scene.motion
    return Made(
        group=group,
        motion=motion,
        caption=clip.caption,
        level=wanted,
        seen=recognise(frames, clip),
        limit=recognise(truth, clip),
        dissimilarity=_dissimilarity(frames),
        first=first_frame_psnr(frames, clip.frames[0]),
        first_limit=first_frame_psnr(truth, clip.frames[0]),
        sharp=sharpness_ratio(frames, clip),
        fit=fit_psnr(frames, clip) if motion in (*CAMERA, *THING) else float("nan"),
    )


def measure_levels(model: Model, clips: Sequence[DemoClip], seed: int, batch: int) -> list[Levelled]:
    """Each clip made at every level from the same noise, and measured."""
    found = []
    for start in tqdm(range(0, len(clips), batch), desc="levels"):
        part = clips[start : start + batch]
        levels = [true_level(clip, model) for clip in part]
        own = _generate(model, part, levels, seed + start)
        at = {wanted: _generate(model, part, [wanted] * len(part), seed + start) for wanted in LEVELS}
        for i, clip in enumerate(part):
            found.append(
                Levelled(
                    motion=clip.scene.motion,
                    true_level=levels[i],
                    at_levels=[_dissimilarity(at[wanted][i]) for wanted in LEVELS],
                    at_true=_dissimilarity(own[i]),
                    at_neutral=_dissimilarity(at[NEUTRAL][i]),
                    right=recognise(own[i], clip).motion == clip.scene.motion,
                )
            )
    return found


def _generate(model: Model, clips: Sequence[DemoClip], levels: Sequence[int], seed: int) -> torch.Tensor:
    photos = torch.stack([clip.frames[0] for clip in clips])
    return model.generate(photos, [clip.caption for clip in clips], levels, [seed + i for i in range(len(clips))])


def _dissimilarity(frames: torch.Tensor) -> float:
    return 1 - float(clip_ssim(frames))


def measure_words(weights: WordWeights, captions: Sequence[str]) -> list[tuple[float, float]]:
    """(mean weight of direction and size words, mean weight of colour words) of each caption that has both."""
    found = []
    for caption in dict.fromkeys(captions):
        words = weights(caption)
        motion = [weight for word, weight in words if word in MOTION_WORDS]
        colour = [weight for word, weight in words if word in COLOURS]
        if motion and colour:
            found.append((float(np.mean(motion)), float(np.mean(colour))))
    return found


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean of what is finite, with its interval."""
    finite = np.array([value for value in values if np.isfinite(value)])
    value = float(finite.mean()) if len(finite) else float("nan")
    return Figure(value, *interval(len(finite), lambda index: float(finite[index].mean())), len(finite))


def spearman_figure(a: Sequence[float], b: Sequence[float]) -> Figure:
    """Rank correlation over clips, with its interval."""
    a, b = np.asarray(a, dtype=float), np.asarray(b, dtype=float)
    value = spearman(a, b) if len(a) else float("nan")
    return Figure(value, *interval(len(a), lambda index: spearman(a[index], b[index])), len(a))


def ratio_figure(pairs: Sequence[tuple[float, float]]) -> Figure:
    """Mean of the first over mean of the second, with its interval."""
    table = np.asarray(pairs, dtype=float).reshape(-1, 2)

    def ratio(index: np.ndarray) -> float:
        return float(table[index, 0].mean() / max(table[index, 1].mean(), 1e-8))

    value = ratio(np.arange(len(table))) if len(table) else float("nan")
    return Figure(value, *interval(len(table), ratio), len(table))


def clip_figures(made: Sequence[Made]) -> dict[str, Figure]:
    """What the clips made at their true levels tell: motion right, first frame, sharpness and fit."""
    parts = {group: [m for m in made if m.group == group] for group in GROUPS}
    parts["sprites, all motions"] = [m for group in SPRITES for m in parts[group]]
    parts = {name: part for name, part in parts.items() if part}
    figures = {f"right: {name}": mean_figure([m.right for m in part]) for name, part in parts.items()}
    for name, part in parts.items():
        figures[f"right, true clips through the VAE: {name}"] = mean_figure([m.limit.motion == m.motion for m in part])
    for name, part in parts.items():
        figures[f"sharpness of the last frame: {name}"] = mean_figure([m.sharp for m in part])
    for name, part in parts.items():
        if any(np.isfinite(m.fit) for m in part):
            figures[f"fit to the true motion, dB: {name}"] = mean_figure([m.fit for m in part])
    figures["first frame, dB"] = mean_figure([m.first for m in made])
    figures["first frame, dB below the VAE"] = mean_figure([m.first_limit - m.first for m in made])
    return figures


def level_figures(found: Sequence[Levelled]) -> dict[str, Figure]:
    """How the level asked for is followed: over all clips, and over those alone whose motion is right."""
    figures = {}
    for name, part in (("", found), (", motion right", [f for f in found if f.right])):
        spearmans = per_clip_spearman(LEVELS, [f.at_levels for f in part])
        # a clip that is the same at every level follows none
        figures[f"level, Spearman a clip{name}"] = mean_figure(np.nan_to_num(spearmans))
        figures[f"level, Spearman pooled{name}"] = spearman_figure([f.true_level for f in part], [f.at_true for f in part])
        figures[f"level, Spearman neutralised{name}"] = spearman_figure([f.true_level for f in part], [f.at_neutral for f in part])
    return figures


def word_figures(pairs: Sequence[tuple[float, float]]) -> dict[str, Figure]:
    """The weights of direction and size words beside those of colour words."""
    return {
        "weight of motion words": mean_figure([motion for motion, _ in pairs]),
        "weight of colour words": mean_figure([colour for _, colour in pairs]),
        "weight of motion words over colour words": ratio_figure(pairs),
    }


def confusion(made: Sequence[Made]) -> dict[str, dict[str, int]]:
    """How often each true motion was seen as which."""
    return {
        motion: dict(Counter(m.seen.motion for m in made if m.motion == motion).most_common())
        for motion in MOTIONS
        if any(m.motion == motion for m in made)
    }


def measure_demo(
    model: Model,
    groups: dict[str, Sequence[DemoClip]],
    level_clips: Sequence[DemoClip],
    photos: torch.Tensor,
    seed: int = 0,
    batch: int = 8,
) -> dict:
    """Every figure of a model.

    Args:
        model: what makes clips, and its VAE, thresholds and words.
        groups: the clips of each of GROUPS.
        level_clips: clips whose motion has a level, for the level figures.
        photos: held-out photographs [N, 3, S, S], 0..1, for the VAE.
        seed: of the noise.
        batch: clips made at a time; changes speed and memory alone.

    Returns:
        {"figures": {name: {value, low, high, count}}, "confusion": {...}, "clips": [...], "levels": [...]}, plain data.
    """
    made = [m for name, clips in groups.items() for m in measure_clips(model, name, clips, seed, batch)]
    levels = measure_levels(model, level_clips, seed, batch)
    restored = torch.cat([model.round_trip(part) for part in photos.split(16)])
    figures = {
        **clip_figures(made),
        **level_figures(levels),
        "VAE on held-out photographs, dB": mean_figure(
            [first_frame_psnr(a[None], b) for a, b in zip(restored, photos, strict=True)]
        ),
        **word_figures(measure_words(model.words, [m.caption for m in made])),
    }
    return {
        "figures": {name: asdict(figure) for name, figure in figures.items()},
        "confusion": confusion(made),
        "clips": [_brief(m) for m in made],
        "levels": [asdict(found) for found in levels],
    }


def _brief(made: Made) -> dict:
    row = asdict(made)
    seen, limit = row.pop("seen"), row.pop("limit")
    return {**row, "seen": seen["motion"], "travel": seen["travel"], "seen_through_vae": limit["motion"]}


def is_met(name: str, value: float) -> bool | None:
    """Whether a figure reaches its target; None if it has none."""
    if name not in TARGETS:
        return None
    kind, bound = TARGETS[name]
    if kind == "at least":
        return value >= bound
    return (abs(value) if kind == "at most, either way" else value) <= bound


def to_markdown(report: dict) -> str:
    """The figures and the confusion as two Markdown tables."""
    lines = ["| figure | value | 95 % interval | n | target | met |", "|---|---|---|---|---|---|"]
    for name, figure in report["figures"].items():
        target = "{} {:g}".format(*TARGETS[name]) if name in TARGETS else ""
        met = {None: "", True: "yes", False: "no"}[is_met(name, figure["value"])]
        span = f"{figure['low']:.3f} to {figure['high']:.3f}"
        lines.append(f"| {name} | {figure['value']:.3f} | {span} | {figure['count']} | {target} | {met} |")
    lines += ["", "| true motion | seen as |", "|---|---|"]
    for motion, seen in report["confusion"].items():
        lines.append(f"| {motion} | {', '.join(f'{name} {count}' for name, count in seen.items())} |")
    return "\n".join(lines)


def _to_json(report: dict) -> str:
    # JSON knows no nan
    def plain(value):
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps(plain(report), indent=1)


def load_measured(files, device: str, sampling) -> tuple[Model, tuple[int, int]]:
    """The model that a command line names, and the (frames, size) of its clips.

    Raises:
        LivePhotoError: a missing or damaged file, or a checkpoint without level thresholds.
    """
    from ..base import decode, encode_photo
    from ..commands.inspect_file import word_weights
    from ..commands.model_files import load_model
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
    )
    return model, (config.frames, config.size)


def draw_bench(
    count: int, level_count: int, seed: int, frames: int, size: int
) -> tuple[dict[str, list[DemoClip]], list[DemoClip], torch.Tensor]:
    """`count` clips a group, `level_count` for the level, and held-out photographs [N, 3, size, size], from installed photos."""
    from ..demo.build import PHOTO_SIDE
    from ..demo.photos import load_photos, package_folders, split_photos
    from ..demo.sprites import HELD_OUT_SHAPES
    from ..media import fit_image

    _, held_out = split_photos(load_photos(package_folders(), PHOTO_SIDE))
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
    parser.add_argument("--cfg", type=float, default=1.5, help="guidance, 1 is none (default 1.5)")
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
    from ..commands.model_files import ModelFiles
    from .generate import BatchSampling

    device = options.device or ("cuda" if torch.cuda.is_available() else "cpu")
    sampling = BatchSampling(options.steps, options.cfg)
    level_count = options.count if options.level_count is None else options.level_count
    if min(options.count, level_count, options.batch) < 1:
        raise LivePhotoError("--count, --level-count and --batch must be 1 or more")
    with atomic_path(options.out) as path:
        model, (frames, size) = load_measured(ModelFiles(options.model, options.base), device, sampling)
        groups, level_clips, photos = draw_bench(options.count, level_count, options.seed, frames, size)
        report = measure_demo(model, groups, level_clips, photos, options.seed, options.batch)
        settings = {key: str(value) if isinstance(value, Path) else value for key, value in vars(options).items()}
        path.write_text(_to_json({"settings": settings, **report}))
    print(to_markdown(report))


if __name__ == "__main__":
    sys.exit(main())
