"""MotionBench's figures, each with a 95 % interval over scenes: the cases of a scene are not independent."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from ..demo.motions import CAMERA, MOTIONS, THING
from ..intensity import LEVELS
from .figures import interval, spearman
from .report import GROUPS, Figure, mean_figure, share_figure
from .scoring import LevelRow, Row
from .suite import WORDINGS

ASKED = tuple(range(1, LEVELS + 1))
Pair = tuple[Sequence[float], Sequence[float]]
# distances in one unit
IN_PIXELS = (*CAMERA, *THING)


def scene_mean(rows: Sequence[Row], value: Callable[[Row], float]) -> Figure:
    """Mean over scenes of the mean over a scene's rows, of what is finite; the count is of scenes."""
    return mean_figure(_means(rows, value))


def scene_share(rows: Sequence[Row]) -> Figure:
    """Mean over scenes of the share of a scene's rows that are right; the interval is exact where no scene is half right."""
    means = _means(rows, lambda r: r.right)
    return share_figure(means) if set(means) <= {0.0, 1.0} else mean_figure(means)


def _means(rows: Sequence[Row], value: Callable[[Row], float]) -> list[float]:
    scenes: dict[str, list[float]] = {}
    for row in rows:
        if np.isfinite(number := float(value(row))):
            scenes.setdefault(row.scene, []).append(number)
    return [float(np.mean(values)) for values in scenes.values()]


def text_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """The share of clips in which the motion asked for is seen: of all, by wording, and by group of motions."""
    parts = {"all": list(rows)}
    parts.update({f"{wording} wording": [r for r in rows if r.wording == wording] for wording in WORDINGS})
    parts.update({group: [r for r in rows if r.motion in motions] for group, motions in GROUPS.items()})
    return {f"text, right: {name}": scene_share(part) for name, part in parts.items() if part}


def photo_figures(rows: Sequence[Row]) -> dict[str, Figure]:
    """How the photo is kept: in the first frame, over time, and from frame to frame."""
    if not rows:
        return {}
    figures = {
        "photo, first frame, dB": scene_mean(rows, lambda r: r.first),
        "photo, identity over time, dB": scene_mean(rows, lambda r: r.identity),
        "photo, identity in the last frame, dB": scene_mean(rows, lambda r: r.identity_last),
        "photo, sharpness of the last frame": scene_mean(rows, lambda r: r.sharpness),
        "photo, adjacent frames, SSIM": scene_mean(rows, lambda r: r.adjacent_ssim),
        "photo, adjacent frames, dB": scene_mean(rows, lambda r: r.adjacent_psnr),
    }
    for name in rows[0].scores:
        figures[f"photo, {name}"] = scene_mean(rows, lambda r, name=name: r.scores[name])
    return figures


def first_frame_loss(rows: Sequence[Row], limits: Sequence[Row]) -> Figure:
    """dB by which the first frame is below what the system's VAE makes of the photo."""
    best = {limit.name: limit.first for limit in limits}
    return scene_mean(rows, lambda r: best[r.name] - r.first)


def level_figures(rows: Sequence[LevelRow]) -> dict[str, Figure]:
    """How the level is followed: over all scenes, and over those alone whose motion is right, without which it says little."""
    figures = {}
    for name, part in (("", rows), (", motion right", [row for row in rows if row.right])):
        # a clip that is the same at every level follows none
        spearmans = np.nan_to_num([spearman(ASKED, row.dissimilarity) for row in part])
        figures[f"level, Spearman a clip{name}"] = mean_figure(spearmans)
        figures[f"level, Spearman pooled{name}"] = pooled_spearman([(ASKED, row.dissimilarity) for row in part])
        figures[f"level, error{name}"] = mean_figure([level_error(row, np.abs, row.reachable) for row in part])
        offsets = [level_error(row, np.array, row.reachable) for row in part]
        figures[f"level, delivered minus requested{name}"] = mean_figure(offsets)
    figures["level, error, out of the scene's reach too"] = mean_figure([level_error(row, np.abs, [True] * LEVELS) for row in rows])
    for name, steps in {
        "": [_steps(row, row.reachable) for row in rows],
        ", out of the scene's reach too": [_steps(row, [True] * LEVELS) for row in rows],
    }.items():
        figures[f"level, steps that rise{name}"] = mean_figure([float(np.mean(s)) if s else float("nan") for s in steps])
        figures[f"level, clips whose every step rises{name}"] = share_figure([all(s) for s in steps if s])
    if any(row.travel for row in rows):
        figures["level and distance, Spearman a clip"] = mean_figure([distance_agreement(row) for row in rows])
        figures["level and distance, Spearman pooled"] = pooled_spearman([distances(row) for row in rows])
    return figures


def distance_agreement(row: LevelRow) -> float:
    """Rank correlation of level and distance gone where the motion asked for is seen; nan where that is at no two levels.

    0 where it goes as far at every level: that follows none.
    """
    levels, gone = distances(row)
    return float(np.nan_to_num(spearman(levels, gone))) if len(levels) > 1 else float("nan")


def distances(row: LevelRow) -> Pair:
    """The levels at which the motion is seen and how far it goes at each; none for motions whose distances do not compare."""
    gone = np.array(row.travel if row.motion in IN_PIXELS else [], dtype=float)
    seen = np.isfinite(gone)
    return np.array(ASKED)[: len(gone)][seen], gone[seen]


def pooled_spearman(*seeds: Sequence[Pair]) -> Figure:
    """Rank correlation over the values of all scenes together, each given as (a, b); drawn anew scene by scene.

    Of the same scenes with several seeds, the mean over the seeds that have values. Scenes without values in any do not count.
    """
    scenes = [scene for scene in zip(*seeds, strict=True) if any(len(a) for a, _ in scene)]

    def of_one(seed: int, index: Iterable[int]) -> float:
        return spearman(*(np.concatenate([scenes[i][seed][side] for i in index]) for side in (0, 1)))

    def figure(index: Iterable[int]) -> float:
        found = [of_one(seed, index) for seed in range(len(seeds))]
        finite = [value for value in found if np.isfinite(value)]
        return float(np.mean(finite)) if finite else float("nan")

    value = figure(range(len(scenes))) if scenes else float("nan")
    return Figure(value, *interval(len(scenes), figure), len(scenes))


def level_error(row: LevelRow, size: Callable[[np.ndarray], np.ndarray], counted: Sequence[bool]) -> float:
    """Mean over the counted levels of `size` of delivered minus requested; nan where none counts."""
    errors = size(np.subtract(row.delivered, ASKED))[np.asarray(counted)]
    return float(errors.mean()) if len(errors) else float("nan")


def _steps(row: LevelRow, counted: Sequence[bool]) -> list[bool]:
    """Whether 1 - SSIM rises from each level to the next, where both count."""
    found = row.dissimilarity
    return [found[k + 1] > found[k] for k in range(LEVELS - 1) if counted[k] and counted[k + 1]]


def level_curve(rows: Sequence[LevelRow]) -> list[dict[str, float]]:
    """For each level asked for, the mean of the levels delivered, its 95 % interval, and their 10 % and 90 % quantiles."""
    if not rows:
        return []
    table = np.array([row.delivered for row in rows], dtype=float)
    low, high = np.quantile(table, [0.1, 0.9], axis=0)
    means = [mean_figure(column.tolist()) for column in table.T]
    columns = zip(ASKED, means, low, high, strict=True)
    return [
        {"asked": asked, "mean": m.value, "mean low": m.low, "mean high": m.high, "low": float(a), "high": float(b)}
        for asked, m, a, b in columns
    ]


def confusions(rows: Sequence[Row]) -> dict[str, dict[str, dict[str, int]]]:
    """{wording: {motion asked for: {motion seen: clips}}}."""
    table: dict[str, dict[str, dict[str, int]]] = {}
    for wording in WORDINGS:
        of_wording = [row for row in rows if row.wording == wording]
        asked = [motion for motion in MOTIONS if any(row.motion == motion for row in of_wording)]
        table[wording] = {m: dict(Counter(r.seen for r in of_wording if r.motion == m).most_common()) for m in asked}
    return {wording: found for wording, found in table.items() if found}
