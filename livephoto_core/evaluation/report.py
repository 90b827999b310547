"""The report on a demo model: its figures with their intervals, their targets, and the tables."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import numpy as np
import torch

from ..demo.clips import DemoClip
from ..demo.motions import CAMERA, MOTIONS, STILL, THING
from .figures import first_frame_psnr, interval, per_clip_spearman, share_interval, spearman
from .measuring import LEVELS, Levelled, Made, Model, measure_clips, measure_levels, measure_words

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


@dataclass(frozen=True)
class Figure:
    """A figure with its 95 % interval (bootstrap, or exact for a share) and how many clips (or captions) it is of."""

    value: float
    low: float
    high: float
    count: int


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


def mean_figure(values: Sequence[float]) -> Figure:
    """Mean of what is finite, with its interval."""
    finite = np.array([value for value in values if np.isfinite(value)])
    value = float(finite.mean()) if len(finite) else float("nan")
    return Figure(value, *interval(len(finite), lambda index: float(finite[index].mean())), len(finite))


def share_figure(right: Sequence[bool]) -> Figure:
    """The share of what is right, with its exact interval."""
    count, total = sum(map(bool, right)), len(right)
    return Figure(count / total if total else float("nan"), *share_interval(count, total), total)


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
    figures = {f"right: {name}": share_figure([m.right for m in part]) for name, part in parts.items()}
    for name, part in parts.items():
        figures[f"right, true clips through the VAE: {name}"] = share_figure([m.limit.motion == m.motion for m in part])
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


def is_met(name: str, value: float) -> bool | None:
    """Whether a figure reaches its target; None if it has none."""
    if name not in TARGETS:
        return None
    kind, bound = TARGETS[name]
    if kind == "at least":
        return value >= bound
    return (abs(value) if kind == "at most, either way" else value) <= bound


def span(low: float, high: float) -> str:
    """An interval as a table has it."""
    return f"{low:.3f} to {high:.3f}" if np.isfinite([low, high]).all() else "too few"


def to_markdown(report: dict) -> str:
    """The figures and the confusion as two Markdown tables."""
    lines = ["| figure | value | 95 % interval | n | target | met |", "|---|---|---|---|---|---|"]
    for name, figure in report["figures"].items():
        target = "{} {:g}".format(*TARGETS[name]) if name in TARGETS else ""
        met = {None: "", True: "yes", False: "no"}[is_met(name, figure["value"])]
        cells = name, f"{figure['value']:.3f}", span(figure["low"], figure["high"]), str(figure["count"]), target, met
        lines.append(f"| {' | '.join(cells)} |")
    lines += ["", "| true motion | seen as |", "|---|---|"]
    for motion, seen in report["confusion"].items():
        lines.append(f"| {motion} | {', '.join(f'{name} {count}' for name, count in seen.items())} |")
    return "\n".join(lines)


def to_json(report: dict) -> str:
    """A report as JSON, which knows no nan: null stands for it."""

    def plain(value):
        if isinstance(value, dict):
            return {key: plain(v) for key, v in value.items()}
        if isinstance(value, list):
            return [plain(v) for v in value]
        return None if isinstance(value, float) and not np.isfinite(value) else value

    return json.dumps(plain(report), indent=1)
