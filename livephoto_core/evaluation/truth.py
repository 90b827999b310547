"""The perfect system: the renderer itself, which reads the text, finds the scene by its photo and moves it as strongly as told.

It shows what a figure can reach at best, and the tests break it on purpose to see whether the bench notices.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
import torch

from ..demo.captions import motion_said
from ..demo.motions import SPEEDS, STILL
from ..demo.scenes import Scene, render
from ..errors import LivePhotoError
from ..measures import clip_similarity
from .suite import FRAMES, THRESHOLDS, Suite
from .systems import System, one_by_one

RUNGS = 8
LEAST_DISSIMILARITY = 1e-6


@dataclass(frozen=True)
class Ladder:
    """Speeds of a scene, rising, and 1 - similarity of its clip at each, never falling."""

    speeds: Sequence[float]
    dissimilarities: Sequence[float]

    def speed(self, dissimilarity: float) -> float:
        """The speed whose clip has this 1 - similarity, or the nearest that the scene can reach."""
        return math.exp(np.interp(math.log(dissimilarity), np.log(self.dissimilarities), np.log(self.speeds)))

    def dissimilarity(self, speed: float) -> float:
        """The 1 - similarity of the clip at a speed."""
        return math.exp(np.interp(math.log(speed), np.log(self.speeds), np.log(self.dissimilarities)))

    def reached(self, dissimilarity: float) -> float:
        """The 1 - similarity nearest to this one that the scene can reach."""
        return min(max(dissimilarity, self.dissimilarities[0]), self.dissimilarities[-1])


def climb(scene: Scene, size: int, restored: Callable[[torch.Tensor], torch.Tensor], measure: str = "ssim") -> Ladder:
    """The ladder of a moving scene, rendered at `size` and measured on what `restored` makes of the frames [F, 3, size, size]."""
    speeds = np.geomspace(*SPEEDS[scene.motion], RUNGS)
    found = [1 - clip_similarity(restored(render(scene, float(speed), FRAMES, size)), measure) for speed in speeds]
    rising = np.maximum.accumulate(np.maximum(found, LEAST_DISSIMILARITY))
    return Ladder(tuple(speeds.tolist()), tuple(rising.tolist()))


def band_middles(thresholds: Sequence[float]) -> list[float]:
    """1 - similarity in the middle of each level's band, on a log scale; the outer bands as wide as their neighbours."""
    ends = [max(1 - t, LEAST_DISSIMILARITY) for t in thresholds]
    ends = [ends[0] ** 2 / ends[1], *ends, ends[-1] ** 2 / ends[-2]]
    return [math.sqrt(low * high) for low, high in pairwise(ends)]


def motion_of(text: str) -> str:
    """The motion that a text of the suite asks for, whatever its content words.

    Raises:
        LivePhotoError: no phrasing of the vocabulary.
    """
    if (motion := motion_said(text)) is None:
        raise LivePhotoError(f"the text {text!r} is no phrasing of the vocabulary: the renderer knows those of the suite alone")
    return motion


def truth_system(suite: Suite) -> System:
    """The renderer on a suite's scenes, with the suite's own levels."""
    scenes = [clip.scene for clip in suite.scenes.values()]
    photos = torch.stack([clip.frames[0] for clip in suite.scenes.values()])
    middles = band_middles(THRESHOLDS)
    ladders: dict[tuple[int, str], Ladder] = {}

    def animate(photo: torch.Tensor, text: str, level: int, seed: int) -> torch.Tensor:
        number = int(((photos - photo) ** 2).mean((1, 2, 3)).argmin())
        scene, size = replace(scenes[number], motion=motion_of(text)), photo.shape[-1]
        if scene.motion in STILL:
            return render(scene, 0.0, FRAMES, size)
        place = number, scene.motion
        if place not in ladders:
            ladders[place] = climb(scene, size, lambda frames: frames)
        return render(scene, ladders[place].speed(middles[level - 1]), FRAMES, size)

    return System("true renderings", one_by_one(animate))
