"""What a clip is taken to show, once each motion has been fitted to it."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .matching import blur

UNCLEAR = "unclear"
LEAST_SEEN = 1.5
# a motion is seen when what it leaves unexplained is below this share of what a picture that stays leaves
CLEARLY = 0.75
STILL_CHANGE = 0.03
# below this root mean square change of the whole clip there is nothing to explain
NO_CHANGE = 0.003
LEAST_FLICKER = 0.02
# mean squared error of a first frame that still shows the photo: 18 dB
FIRST_OFF = 10**-1.8


@dataclass(frozen=True)
class Seen:
    """The motion seen, one of MOTIONS or UNCLEAR, its travel in pixels, and what each candidate left unexplained (0..1)."""

    motion: str
    travel: float
    unexplained: dict[str, float]


@dataclass(frozen=True)
class Fit:
    """How well one motion fits a clip: what it leaves unexplained (0..1) and its travel in pixels."""

    unexplained: float
    travel: float


def decide(fits: dict[str, Fit], frames: torch.Tensor, reference: torch.Tensor) -> Seen:
    """The motion that explains most, if it does so clearly and is far enough to be seen; else still, or nothing known."""
    unexplained = {motion: fit.unexplained for motion, fit in fits.items()}
    soft, first = blur(frames, 1.0), blur(reference[None], 1.0)[0]
    if float(((soft[0] - first) ** 2).mean()) > FIRST_OFF:
        return Seen(UNCLEAR, 0.0, unexplained)
    change = float(((soft - soft[0]) ** 2).mean().sqrt())
    best = min(fits, key=lambda motion: fits[motion].unexplained)
    least = LEAST_FLICKER if best == "flicker" else LEAST_SEEN
    if change > NO_CHANGE and fits[best].unexplained < CLEARLY and fits[best].travel >= least:
        return Seen(best, fits[best].travel, unexplained)
    return Seen("still" if change < STILL_CHANGE else UNCLEAR, 0.0, unexplained)
