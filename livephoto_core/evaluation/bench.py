"""The clips a demo model is measured on: held-out photographs and shapes, and only motion that anybody could tell."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..demo.clips import ClipSet, DemoClip
from ..demo.motions import STILL
from ..demo.photos import Photo
from ..demo.sprites import Outline
from ..errors import LivePhotoError
from ..intensity import clip_ssim

# pixels of a 64-pixel frame, and 1 - SSIM of adjacent frames
LEAST_TRAVEL = 3.0
LEAST_INTENSITY = 0.004
DRAWS_A_CLIP = 60


def travel(motion: str, speed: float, frames: int) -> float:
    """How far the fastest points get from where they were, in pixels of a 64-pixel frame (flicker: no distance, 0).

    Growing and shrinking count the change of the thing's width; a shake goes to and fro by a little less than twice its speed.
    """
    if motion in STILL or motion == "flicker":
        return 0.0
    if motion in ("shake", "ripple"):
        return 2 * speed
    return speed * (frames - 1)


def is_visible(clip: DemoClip) -> bool:
    """Whether the clip's true motion is far and strong enough to be seen; a still clip always is what it is."""
    motion = clip.scene.motion
    if motion in STILL:
        return True
    far = motion == "flicker" or travel(motion, clip.speed, len(clip.frames)) >= LEAST_TRAVEL
    return far and 1 - float(clip_ssim(clip.frames)) >= LEAST_INTENSITY


def bench_clips(
    photos: list[Photo],
    shapes: dict[str, Outline],
    motions: Sequence[str],
    count: int,
    seed: int,
    frames: int = 16,
    size: int = 64,
) -> Iterator[DemoClip]:
    """`count` clips that take the motions in turn, the same for the same arguments; drawn again until visible.

    Raises:
        LivePhotoError: a motion that was never visible in many draws, as with flat photographs.
    """
    clips = ClipSet(photos, shapes, frames, size, seed)
    index = 0
    for number in range(count):
        motion = motions[number % len(motions)]
        for _ in range(DRAWS_A_CLIP):
            clip = clips.clip(index, motion)
            index += 1
            if is_visible(clip):
                yield clip
                break
        else:
            raise LivePhotoError(f"no clip of '{motion}' was visible in {DRAWS_A_CLIP} draws; use photographs with more detail")
