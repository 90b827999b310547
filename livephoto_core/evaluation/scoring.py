"""What is measured on one clip that a system made for MotionBench."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import torch

from ..intensity import clip_ssim, level
from ..measures import clip_similarity
from .figures import first_frame_psnr, psnr, sharpness_ratio
from .identity import TRACKED, identity
from .measuring import recognise
from .suite import SIZE, Case
from .systems import System, at_size

# {name: score of a clip [F, 3, H, W]}, such as those of features.py
Scorers = dict[str, Callable[[torch.Tensor], float]]


@dataclass(frozen=True)
class Row:
    """One clip and what was measured on it, nan where a figure does not apply.

    `seen` is one of MOTIONS or "unclear". dB: `first` frame against the photo, `identity` over time and in the last frame
    (identity.py), `adjacent_psnr`. `adjacent_ssim`: mean SSIM of adjacent frames. `sharpness`: of the last frame, over the true
    clip's. `scores`: those of the user's own feature extractors.
    """

    name: str
    scene: str
    motion: str
    wording: str
    text: str
    level: int
    seen: str
    delivered: int
    first: float
    identity: float
    identity_last: float
    adjacent_ssim: float
    adjacent_psnr: float
    sharpness: float
    scores: dict[str, float] = field(default_factory=dict)

    @property
    def right(self) -> bool:
        return self.seen == self.motion


def score(case: Case, asked: int, frames: torch.Tensor, system: System, scorers: Scorers) -> Row:
    """Measure a clip [F, 3, H, W], 0..1, that a system made of a case at level `asked`.

    The level is measured at the size where the system's thresholds hold, everything else at the suite's.
    """
    clip, small = case.clip, at_size(frames, SIZE)
    kept = identity(small, clip) if case.motion in TRACKED else [float("nan")]
    return Row(
        name=case.name,
        scene=case.scene,
        motion=case.motion,
        wording=case.wording,
        text=case.text,
        level=asked,
        seen=recognise(small, clip).motion,
        delivered=delivered(frames, system),
        first=first_frame_psnr(small, clip.frames[0]),
        identity=sum(kept) / len(kept),
        identity_last=kept[-1],
        adjacent_ssim=float(clip_ssim(small)),
        adjacent_psnr=psnr(small[1:], small[:-1]),
        sharpness=sharpness_ratio(small, clip),
        scores={name: scorer(frames) for name, scorer in scorers.items()},
    )


def strength(frames: torch.Tensor, system: System) -> float:
    """How much a clip moves by the measure of the system's levels, 1 - similarity at the size that those are of."""
    return 1 - clip_similarity(at_size(frames, system.level_size), system.measure)


def delivered(frames: torch.Tensor, system: System) -> int:
    """The level 1..10 that a clip has on its system's scale."""
    return level(1 - strength(frames, system), system.thresholds)


@dataclass(frozen=True)
class LevelRow:
    """One scene asked for at every level, 1 first: 1 - similarity by the system's measure, and the level delivered at each.

    `reachable`: whether the true scene has that level at one of its motion's speeds. `right`: whether the motion asked for is
    seen in a strong clip (benching.RIGHT_AT). `travel`: how far it goes at each level, in pixels; nan where another motion is seen;
    empty where it was not measured.
    """

    scene: str
    motion: str
    dissimilarity: Sequence[float]
    delivered: Sequence[int]
    reachable: Sequence[bool]
    right: bool
    travel: Sequence[float] = ()
