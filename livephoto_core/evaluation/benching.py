"""Runs a system through MotionBench's suite: makes every clip, measures it, and measures the true clips beside it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from tqdm import tqdm

from ..demo.scenes import render
from ..intensity import LEVELS, level
from .measuring import recognise
from .scoring import LevelRow, Row, Scorers, delivered, score, strength
from .suite import FRAMES, SIZE, Case, Suite, first_frame
from .systems import Request, System, at_size, checked
from .truth import Ladder, band_middles, climb

# the motion of level clips is judged where it is easy to see
RIGHT_AT = 8
SHEET_LEVEL_SCENES = 4


@dataclass(frozen=True)
class Result:
    """Everything measured on a system, and on the true clips through its VAE: what it could reach at best.

    `limits` and `level_limits` go with `rows` and `levels` one by one. For the contact sheets, [F, 3, SIZE, SIZE]: `shown` is
    {motion: (true clip, made clip)}, `shown_levels` {scene: clips at level 1 to 10}.
    """

    rows: list[Row]
    limits: list[Row]
    levels: list[LevelRow]
    level_limits: list[LevelRow]
    shown: dict[str, tuple[torch.Tensor, torch.Tensor]] = field(default_factory=dict)
    shown_levels: dict[str, list[torch.Tensor]] = field(default_factory=dict)


def run_suite(system: System, suite: Suite, scorers: Scorers | None = None) -> Result:
    """Every case of a suite made by a system, and measured.

    Raises:
        LivePhotoError: what the system cannot do, such as a clip that is missing or too short.
    """
    scorers = scorers or {}
    result = Result([], [], [], [])
    best = {scene: _best(case, system, scorers) for scene, case in _by_scene(suite.text).items()}
    asked = {scene: row.level for scene, (row, _) in best.items()}
    for case, frames in _made(system, suite.text, asked, "text"):
        limit, true = best[case.scene]
        result.rows.append(score(case, limit.level, frames, system, scorers))
        result.limits.append(replace(limit, name=case.name, wording=case.wording, text=case.text))
        if case.wording == "trained":
            result.shown.setdefault(case.motion, (at_size(true, SIZE), at_size(frames, SIZE)))
    _run_levels(system, suite, result)
    return result


def asked_level(case: Case, system: System) -> int:
    """The level a case asks for: its own, or that of its true clip as training measured it."""
    if case.level is not None:
        return case.level
    return delivered(system.measured_in_training(_true_clip(case, system)), system)


def _by_scene(cases: Sequence[Case]) -> dict[str, Case]:
    return {case.scene: case for case in reversed(cases)}


def _true_clip(case: Case, system: System) -> torch.Tensor:
    if system.size == SIZE:
        return case.clip.frames
    return render(case.clip.scene, case.clip.speed, FRAMES, system.size)


def _best(case: Case, system: System, scorers: Scorers) -> tuple[Row, torch.Tensor]:
    """The true clip as the system's VAE restores it, measured as if the system had made it."""
    frames = system.restored(_true_clip(case, system))
    return score(case, asked_level(case, system), frames, system, scorers), frames


def _made(system: System, cases: Sequence[Case], asked: dict[str, int], name: str) -> Iterator[tuple[Case, torch.Tensor]]:
    with tqdm(total=len(cases), desc=f"{name} clips", unit="clip") as bar:
        for start in range(0, len(cases), system.batch):
            part = cases[start : start + system.batch]
            clips = system.animate([_request(case, asked, system.size) for case in part])
            for case, frames in zip(part, clips, strict=True):
                yield case, checked(frames, case.name)
                bar.update()


def _request(case: Case, asked: dict[str, int], size: int) -> Request:
    level = asked[case.scene] if case.level is None else case.level
    return Request(case.name, first_frame(case.clip, size), case.text, level, case.seed)


def _run_levels(system: System, suite: Suite, result: Result) -> None:
    made: list[torch.Tensor] = []
    for case, frames in _made(system, suite.level, {}, "level"):
        # the cases of a scene follow one another, level 1 to 10
        made.append(frames)
        if len(made) < LEVELS:
            continue
        limit = _level_limit(case, system)
        found = [strength(clip, system) for clip in made]
        travel = [_travel(case, clip) for clip in made]
        result.level_limits.append(limit)
        result.levels.append(
            LevelRow(
                scene=case.scene,
                motion=case.motion,
                dissimilarity=found,
                delivered=[level(1 - value, system.thresholds) for value in found],
                reachable=limit.reachable,
                right=bool(np.isfinite(travel[RIGHT_AT - 1])),
                travel=travel,
            )
        )
        if len(result.shown_levels) < SHEET_LEVEL_SCENES:
            result.shown_levels[case.scene] = [at_size(clip, SIZE) for clip in made]
        made = []


def _level_limit(case: Case, system: System) -> LevelRow:
    """What the scene itself can do: any strength between that of its slowest and of its fastest clip.

    Levels are reached as training measured them, and delivered as the VAE restores the clip.
    """
    asked = _ladder(case, system, system.measured_in_training)
    reached = [asked.reached(middle) for middle in band_middles(system.thresholds)]
    reachable = [level(1 - value, system.thresholds) == number for number, value in enumerate(reached, 1)]
    found = reached
    if system.round_trip is not None and system.levels_from == "frames":
        restored = _ladder(case, system, system.restored)
        found = [restored.dissimilarity(asked.speed(value)) for value in reached]
    levels = [level(1 - value, system.thresholds) for value in found]
    strong = system.restored(render(case.clip.scene, asked.speed(reached[RIGHT_AT - 1]), FRAMES, system.size))
    return LevelRow(case.scene, case.motion, found, levels, reachable, bool(np.isfinite(_travel(case, strong))))


def _ladder(case: Case, system: System, seen: Callable[[torch.Tensor], torch.Tensor]) -> Ladder:
    return climb(case.clip.scene, system.size, lambda frames: at_size(seen(frames), system.level_size), system.measure)


def _travel(case: Case, frames: torch.Tensor) -> float:
    """How far the motion asked for goes, in pixels; nan where another is seen."""
    seen = recognise(at_size(frames, SIZE), case.clip)
    return seen.travel if seen.motion == case.motion else float("nan")
