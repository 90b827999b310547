"""Clips to learn from: their level tells how fast a thing spins.

At one level spins are found that turn four times as fast as others: pale things must hurry to change a picture as much as bold
ones. A guess at any of them is an average of them all, and of a thing turned every way that is a blur, from which no sampling
comes back. Of what goes somewhere the average is at least one thing in one place.
"""

from __future__ import annotations

import math

import numpy as np

from ..intensity import clip_ssim
from .clips import SLOWEST, ClipSet, DemoClip
from .motions import REFERENCE_SIDE, SPEEDS
from .scenes import Scene

# 1 - SSIM of adjacent frames up to which spins change a picture more the faster they are
FASTEST_SPIN = 0.09
# a scene is drawn again until its 1 - SSIM is this near, in logarithms, to what its spin stands for
NEAR = 0.15
DRAWS = 12
# between the indices of a clip's draws, beyond any clip set's length
APART = 10**8
# radians a frame: what the bolder things of the clip set need, 12 degrees for a 1 - SSIM of 0.06, three for 0.006
RATE, POWER = 1.13, 0.6


def spin_rate(dissimilarity: float) -> float:
    """Radians a frame at which a thing spins whose clip has this 1 - SSIM (mean over adjacent frames)."""
    return RATE * dissimilarity**POWER


def spins_told_by() -> list[float]:
    """What tells these spins from those of another choice, for caches of them."""
    return [RATE, POWER, FASTEST_SPIN, NEAR, DRAWS]


def spin_speed(scene: Scene, rate: float) -> float:
    """Pixels a frame of a 64-pixel frame that the thing's rim goes at a rate in radians a frame, within the motion's range."""
    slowest, fastest = SPEEDS["spin"]
    return min(fastest, max(slowest, rate * scene.thing.start.half * REFERENCE_SIDE / 2))


class TellingClips(ClipSet):
    """A clip set in which things spin at the rate that their level stands for, the scenes chosen to fit; all else as it was."""

    def clip(self, index: int, motion: str | None = None) -> DemoClip:
        """Clip `index`, as ClipSet; a spin is the first draw that is near enough, or the nearest."""
        if self.scene(index, motion)[0].motion != "spin":
            return super().clip(index, motion)
        target = math.exp(np.random.default_rng((self.seed, index, 1)).uniform(math.log(SLOWEST), math.log(FASTEST_SPIN)))
        best, least = None, math.inf
        for draw in range(DRAWS):
            scene, rng = self.scene(index + draw * APART, "spin")
            clip = self.filmed(scene, spin_speed(scene, spin_rate(target)), rng)
            off = abs(math.log(max(1e-4, 1 - float(clip_ssim(clip.frames))) / target))
            if off < least:
                best, least = clip, off
            if off < NEAR:
                break
        return best
