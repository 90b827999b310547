"""Which measure of intensity goes with the true speed: rank agreement on clips of known speed, within and across motions."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
from tqdm import tqdm

from ..demo.clips import ClipSet
from ..demo.motions import CAMERA, MOTIONS, SPEEDS, STILL, THING
from ..demo.photos import Photo
from ..demo.scenes import render
from ..demo.sprites import HELD_OUT_SHAPES
from ..files import atomic_folder
from .bench_figures import IN_PIXELS, pooled_spearman
from .bench_report import REPORT, check_folder
from .figures import spearman
from .intensity_measures import Measure
from .plots import new_plot, save_plot
from .report import Figure, mean_figure, span, to_json
from .suite import FRAMES, SEED, SIZE

FILES = frozenset({REPORT, "report.md", "intensity.svg", "intensity.png"})
FAMILIES = {"camera": CAMERA, "things": THING, "all of these": IN_PIXELS}


@dataclass(frozen=True)
class Sweep:
    """One scene at rising speeds: what each measure says at each speed, and the seconds it took in all."""

    motion: str
    speeds: list[float]
    values: dict[str, list[float]]
    seconds: dict[str, float]


def sweep_scenes(photos: list[Photo], measures: dict[str, Measure], scenes: int, speeds: int) -> list[Sweep]:
    """`scenes` held-out scenes of every motion, each at `speeds` speeds over its motion's range.

    The scenes of a motion divide its range's steps evenly between them: of equal speeds no measure could say which is greater.
    """
    clips = ClipSet(photos, HELD_OUT_SHAPES, FRAMES, SIZE, SEED)
    found = []
    moving = [motion for motion in MOTIONS if motion not in STILL]
    for number, motion in enumerate(tqdm(moving, desc="motions")):
        for index in range(scenes):
            scene, _ = clips.scene(number * scenes + index, motion)
            (slowest, fastest), shift = SPEEDS[motion], (index * len(moving) + number) / (len(moving) * scenes)
            steps = (slowest * (fastest / slowest) ** ((np.arange(speeds) + shift) / speeds)).tolist()
            frames = [render(scene, speed, FRAMES, SIZE) for speed in steps]
            values, seconds = {}, {}
            for name, measure in measures.items():
                start = time.process_time()
                values[name] = [measure(clip) for clip in frames]
                seconds[name] = time.process_time() - start
            found.append(Sweep(motion, steps, values, seconds))
    return found


def study_figures(sweeps: Sequence[Sweep], measures: Sequence[str]) -> dict[str, dict[str, Figure]]:
    """{measure: {figure: value with its interval over scenes; of "within a motion" over motions}}.

    "within a scene": rank agreement with the true speed as one scene speeds up. "within a motion": over different photos of one
    motion together, mean over the motions. "across ...": over all clips of a family of motions together.
    """
    return {name: _figures_of(sweeps, name) for name in measures}


def _figures_of(sweeps: Sequence[Sweep], name: str) -> dict[str, Figure]:
    figures = {
        "within a scene": mean_figure([_agreement([sweep], name) for sweep in sweeps]),
        "within a motion": mean_figure([_agreement(_of(sweeps, [motion]), name) for motion in {s.motion: 0 for s in sweeps}]),
    }
    for family, motions in FAMILIES.items():
        figures[f"across {family}"] = pooled_spearman([(s.speeds, s.values[name]) for s in _of(sweeps, motions)])
    figures["ms a clip"] = mean_figure([1000 * s.seconds[name] / len(s.speeds) for s in sweeps])
    return figures


def _of(sweeps: Sequence[Sweep], motions: Sequence[str]) -> list[Sweep]:
    return [sweep for sweep in sweeps if sweep.motion in motions]


def _agreement(sweeps: Sequence[Sweep], name: str) -> float:
    value = spearman(np.concatenate([s.speeds for s in sweeps]), np.concatenate([s.values[name] for s in sweeps]))
    # a measure that stays the same agrees with nothing
    return 0.0 if np.isnan(value) else value


def by_motion(sweeps: Sequence[Sweep], measures: Sequence[str]) -> dict[str, dict[str, float]]:
    """{motion: {measure: rank agreement with the true speed over all the motion's clips}}."""
    motions = {sweep.motion: 0 for sweep in sweeps}
    return {motion: {name: _agreement(_of(sweeps, [motion]), name) for name in measures} for motion in motions}


def study_markdown(figures: dict[str, dict[str, Figure]], motions: dict[str, dict[str, float]]) -> str:
    """The figures and the agreement motion by motion as Markdown tables."""
    columns = list(next(iter(figures.values())))
    lines = [f"| measure | {' | '.join(columns)} |", f"|---|{'---|' * len(columns)}"]
    for name, row in figures.items():
        cells = [f"{f.value:.3f} ({span(f.low, f.high)})" for f in row.values()]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    lines += ["", f"| motion | {' | '.join(figures)} |", f"|---|{'---|' * len(figures)}"]
    lines += [f"| {motion} | {' | '.join(f'{row[name]:.3f}' for name in figures)} |" for motion, row in motions.items()]
    return "\n".join(lines) + "\n"


def write_study(sweeps: Sequence[Sweep], out: str | Path) -> str:
    """Write report.json, report.md and intensity.svg and .png into a folder; returns the tables.

    Raises:
        LivePhotoError: a folder that holds something else, or cannot be written.
    """
    check_folder(out, FILES)
    measures = list(sweeps[0].values)
    figures, motions = study_figures(sweeps, measures), by_motion(sweeps, measures)
    text = study_markdown(figures, motions)
    plain = {name: {key: asdict(figure) for key, figure in row.items()} for name, row in figures.items()}
    with atomic_folder(out) as folder:
        report = {"figures": plain, "motions": motions, "sweeps": [asdict(sweep) for sweep in sweeps]}
        (folder / REPORT).write_text(to_json(report), encoding="utf-8")
        (folder / "report.md").write_text(text, encoding="utf-8")
        save_plot(_plot(sweeps, measures), folder / "intensity")
    return text


def _plot(sweeps: Sequence[Sweep], measures: Sequence[str]):
    figure, axes = new_plot(4 * len(measures), 3.6, len(measures))
    for axis, name in zip(axes, measures, strict=True):
        for family, colour in (("camera", "#20639b"), ("things", "#d1495b")):
            part = _of(sweeps, FAMILIES[family])
            for number, sweep in enumerate(part):
                label = family if number == 0 else None
                axis.plot(sweep.speeds, sweep.values[name], "-", color=colour, alpha=0.4, linewidth=0.8, label=label)
        axis.set(xscale="log", yscale="log", xlabel="true speed, pixels a frame", title=name)
    axes[0].set_ylabel("measured")
    axes[0].legend(fontsize=8, frameon=False)
    return figure
