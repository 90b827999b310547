"""The table of an ablation study: each arm's figures, their differences from the full model scene by scene, and the seeds apart."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic_parts, check_writable
from ..training.config import without_folders
from .ablation_arms import FULL, Arm
from .ablation_config import Ablations
from .ablations import Measured
from .bench_figures import ASKED, distance_agreement, distances, level_error, pooled_spearman
from .figures import spearman
from .plots import INK, new_plot, save_plot
from .report import Figure, mean_figure, to_json
from .scoring import LevelRow
from .suite import WORDINGS

# over all scenes together, so with no value on one
POOLED = ("level, Spearman pooled", "level and distance, Spearman pooled")
# by the measure of the arm's own levels, so not to be compared with an arm that has another
BY_OWN_SCALE = ("level, Spearman a clip", "level, error")
# in the tables alone: alike in most arms, or told by another panel
UNPLOTTED = ("adjacent frames, SSIM", "level, Spearman a clip", "level, Spearman pooled", "level and distance, Spearman a clip")
# the bootstrap's intervals of a few scenes are too narrow to tell by
CHANCE, SIGN_DRAWS = 0.05, 9999
# {scene: value} of one arm and one seed
Scenes = dict[str, float]
# {seed: MotionBench's report} of one arm
Reports = dict[int, dict[str, Any]]


def scene_values(report: dict[str, Any]) -> dict[str, Scenes]:
    """{figure: its value on each scene} out of MotionBench's report on one arm; what has no value on a scene is left out."""
    clips, levels = report["clips"], [LevelRow(**row) for row in report["levels"]]
    figures = {}
    for wording in WORDINGS:
        figures[f"text right, {wording} wording"] = _scene_means([c for c in clips if c["wording"] == wording], _is_right)
    for name, key in (("first frame, dB", "first"), ("identity, dB", "identity"), ("adjacent frames, SSIM", "adjacent_ssim")):
        figures[name] = _scene_means(clips, lambda clip, key=key: clip[key])
    for name in clips[0]["scores"] if clips else ():
        figures[name] = _scene_means(clips, lambda clip, name=name: clip["scores"][name])
    # a clip that is the same at every level follows none
    figures["level, Spearman a clip"] = {r.scene: float(np.nan_to_num(spearman(ASKED, r.dissimilarity))) for r in levels}
    errors = {r.scene: level_error(r, np.abs, r.reachable) for r in levels}
    agreements = {r.scene: distance_agreement(r) for r in levels}
    for name, found in (("level and distance, Spearman a clip", agreements), ("level, error", errors)):
        figures[name] = {scene: value for scene, value in found.items() if np.isfinite(value)}
    return {name: values for name, values in figures.items() if values}


def _is_right(clip: dict[str, Any]) -> float:
    return float(clip["seen"] == clip["motion"])


def _scene_means(clips: Sequence[dict[str, Any]], value: Callable[[dict[str, Any]], float | None]) -> Scenes:
    scenes: dict[str, list[float]] = {}
    for clip in clips:
        if (number := value(clip)) is not None:
            scenes.setdefault(clip["scene"], []).append(number)
    return {scene: float(np.mean(values)) for scene, values in scenes.items()}


def over_seeds(seeds: Sequence[dict[str, Scenes]]) -> dict[str, Scenes]:
    """Each figure's value on each scene, as the mean over the seeds that have it."""
    found: dict[str, dict[str, list[float]]] = {}
    for figures in seeds:
        for name, scenes in figures.items():
            for scene, value in scenes.items():
                found.setdefault(name, {}).setdefault(scene, []).append(value)
    return {name: {scene: float(np.mean(values)) for scene, values in scenes.items()} for name, scenes in found.items()}


def pooled_values(reports: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """The figures of POOLED out of one arm's reports, one a seed."""
    seeds = [[LevelRow(**row) for row in report["levels"]] for report in reports]
    pairs = (
        [[(ASKED, row.dissimilarity) for row in rows] for rows in seeds],
        [[distances(row) for row in rows] for rows in seeds],
    )
    return {name: pooled_spearman(*found) for name, found in zip(POOLED, pairs, strict=True) if any(map(len, found))}


def build_ablations(config: Ablations, measured: Sequence[Measured], starts: Sequence[Measured] = ()) -> dict[str, Any]:
    """The study's figures and what they were made from; plain data.

    Intervals are over scenes, of the means over seeds: they tell nothing of how much another seed would differ, which each seed's
    own figures show.
    """
    found: dict[Arm, Reports] = {}
    for one in measured:
        found.setdefault(one.arm, {})[one.seed] = one.report
    full = next((reports for arm, reports in found.items() if arm.name == FULL), None)
    return {
        "suite": measured[0].report["suite"],
        "settings": _settings(config),
        "seeds": list(config.seeds),
        "arms": [_row(arm, reports, full) for arm, reports in found.items()],
        "before training": [{"name": one.arm.name, "figures": _plain(figures_of([one.report]))} for one in starts],
    }


def figures_of(reports: Sequence[dict[str, Any]]) -> dict[str, Figure]:
    """An arm's figures out of its reports, one a seed."""
    scenes = over_seeds([scene_values(report) for report in reports])
    return {**{name: mean_figure(list(values.values())) for name, values in scenes.items()}, **pooled_values(reports)}


def chance(differences: Sequence[float]) -> float:
    """Two-sided p of a sign-flip test: how often random signs give paired differences a mean as far from 0."""
    values = np.asarray(differences, dtype=float)
    signs = np.random.default_rng(0).choice((-1.0, 1.0), (SIGN_DRAWS, len(values)))
    as_far = np.abs(signs @ values) >= abs(values.sum()) - 1e-9
    return float((1 + as_far.sum()) / (SIGN_DRAWS + 1))


def against(full: Reports, arm: Reports) -> dict[str, dict[str, Any]]:
    """{figure: arm minus full, seed by seed and scene by scene}, and whether the difference is clear; none of two scales.

    Clear: chance alone would do it in fewer than CHANCE of all cases, and every seed has the same sign.
    """
    pairs = [(scene_values(full[seed]), scene_values(report)) for seed, report in arm.items() if seed in full]
    one_scale = len({report["measure"] for reports in (full, arm) for report in reports.values()}) == 1
    seeds = [
        {name: _minus(lacking[name], whole[name]) for name in lacking if name in whole and (one_scale or name not in BY_OWN_SCALE)}
        for whole, lacking in pairs
    ]
    compared = {}
    for name, scenes in over_seeds(seeds).items():
        differences = list(scenes.values())
        signs = {np.sign(np.mean(list(seed[name].values()))) if seed.get(name) else None for seed in seeds}
        clear = chance(differences) < CHANCE and len(signs) == 1
        compared[name] = {**asdict(mean_figure(differences)), "clear": bool(clear)}
    return compared


def _minus(arm: Scenes, full: Scenes) -> Scenes:
    return {scene: arm[scene] - full[scene] for scene in arm if scene in full}


def _row(arm: Arm, reports: Reports, full: Reports | None) -> dict[str, Any]:
    return {
        **asdict(arm),
        "figures": _plain(figures_of(list(reports.values()))),
        "minus full": {} if full is None or full is reports else against(full, reports),
        "by seed": {
            str(seed): {name: figure.value for name, figure in figures_of([report]).items()} for seed, report in reports.items()
        },
    }


def _plain(figures: dict[str, Figure]) -> dict[str, dict[str, float]]:
    return {name: asdict(figure) for name, figure in figures.items()}


def _settings(config: Ablations) -> dict[str, Any]:
    """The study's values; paths by their last part alone, so that a report tells nothing of the machine."""
    phases = [without_folders(phase) for phase in config.training]
    sampled = {name: getattr(config, name) for name in ("steps", "cfg", "min_cfg")}
    return {**without_folders(config.fixed), "training": phases, **sampled}


def ablations_markdown(report: dict[str, Any]) -> str:
    """The figures as Markdown tables."""
    suite, arms = report["suite"], report["arms"]
    names = list(dict.fromkeys(name for arm in arms for name in arm["figures"]))
    seeds = ", ".join(map(str, report["seeds"]))
    lines = [
        f"MotionBench {suite['version']}, suite `{suite['plan']}` `{suite['fingerprint']}`; seeds {seeds}",
        "",
        "Means over scenes and seeds, with 95 % intervals over scenes. Levels of another measure are judged by that measure.",
        "",
        *_table(arms, "figures", names),
    ]
    compared = [arm for arm in arms if arm["minus full"]]
    if compared:
        cells = sum(len(arm["minus full"]) for arm in compared)
        lines += [
            "",
            f"Minus full, scene by scene. Bold: p < {CHANCE:g} by random signs, and the same sign in every seed. Of {cells} "
            f"differences chance alone would make up to about {CHANCE * cells:.0f} bold.",
            "",
            *_table(compared, "minus full", [name for name in names if name not in POOLED]),
        ]
    if before := report["before training"]:
        lines += ["", "What the arms start from, before any training:", "", *_table(before, "figures", names)]
    lines += ["", "Each seed:", "", f"| arm | seed | {' | '.join(names)} |", f"|---|---|{'---|' * len(names)}"]
    for arm in arms:
        for seed, found in arm["by seed"].items():
            cells = ("" if not np.isfinite(found.get(name, np.nan)) else f"{found[name]:.3f}" for name in names)
            lines.append(f"| {arm['name']} | {seed} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _table(arms: Sequence[dict[str, Any]], kind: str, names: Sequence[str]) -> list[str]:
    rows = (f"| {arm['name']} | {' | '.join(_cell(arm[kind].get(name)) for name in names)} |" for arm in arms)
    return [f"| arm | {' | '.join(names)} |", f"|---|{'---|' * len(names)}", *rows]


def _cell(figure: dict[str, Any] | None) -> str:
    if figure is None or not np.isfinite(figure["value"]):
        return ""
    sign = "+" if "clear" in figure else ""
    few = not np.isfinite([figure["low"], figure["high"]]).all()
    reach = "too few" if few else f"{figure['low']:{sign}.3f} to {figure['high']:{sign}.3f}"
    text = f"{figure['value']:{sign}.3f} ({reach})"
    return f"**{text}**" if figure.get("clear") else text


def check_report(out: str | Path) -> None:
    """Find before the long work what would hinder `write_ablations` after it; makes the folder.

    Raises:
        LivePhotoError: the folder cannot be written.
        ModuleNotFoundError: matplotlib or scipy is not installed.
    """
    import scipy  # noqa: F401

    new_plot(1, 1)
    check_writable(out)


def write_ablations(config: Ablations, measured: Sequence[Measured], starts: Sequence[Measured], out: str | Path) -> str:
    """Write report.json, report.md and ablations.svg and .png into a folder, beside what else is in it; returns the tables.

    Raises:
        LivePhotoError: the folder cannot be written.
    """
    report = build_ablations(config, measured, starts)
    text = ablations_markdown(report)
    with atomic_parts(out) as folder:
        (folder / "report.json").write_text(to_json(report), encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        save_plot(_plot(report), folder / "ablations")
    return text


def _plot(report: dict[str, Any]):
    """A panel a figure: each arm's mean with its interval, and its seeds as dots."""
    arms = report["arms"]
    names = [name for name in arms[0]["figures"] if name not in UNPLOTTED]
    figure, axes = new_plot(2 + 1.7 * len(names), 1 + 0.32 * len(arms), len(names))
    for axis, name in zip(axes, names, strict=True):
        for place, arm in enumerate(arms):
            if name not in arm["figures"]:
                continue
            found = arm["figures"][name]
            axis.plot([found["low"], found["high"]], [place, place], color=INK, linewidth=2)
            axis.plot(found["value"], place, "s", color=INK, markersize=5)
            dots = [values[name] for values in arm["by seed"].values() if name in values]
            axis.plot(dots, [place] * len(dots), "o", color="crimson", markersize=3)
        axis.set_title(name.replace(", ", ",\n"), fontsize=8)
        axis.set_yticks(range(len(arms)), [arm["name"] for arm in arms] if axis is axes[0] else [])
        axis.invert_yaxis()
        axis.tick_params(labelsize=7)
    return figure
