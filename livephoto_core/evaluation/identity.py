"""Whether the photo keeps its looks over time: its region is tracked along the known motion and held against the first frame."""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import rearrange

from ..demo.clips import DemoClip
from ..demo.motions import CAMERA, SPEEDS, STILL, THING
from ..demo.scenes import render, true_path
from .bench import travel
from .matching import flattened, matching_error, monotone_path, warp

# a shake goes to and fro, the others have no region that stays the same
TRACKED = (*CAMERA, *(motion for motion in THING if motion != "shake"), *STILL)
# between the travels tried, in pixels: at matching.STEP the rounding alone costs a detailed photo several dB
FINE = 0.25
# how far beyond the true travel the region is looked for: this much more, and this many pixels
BEYOND, MARGIN = 1.5, 4.0
MOST = 50.0


def identity(frames: torch.Tensor, clip: DemoClip) -> list[float]:
    """PSNR in dB, frame by frame from the second on, of the tracked region against how the photo shows it; at most 50.

    The region is the thing with a rim around it, or what is in view of the whole photo. It may move along the clip's motion at
    any pace and may stay, but not turn back: how fast it moves and whether it does are other figures' matter.

    Args:
        frames: [F, 3, S, S], 0..1.
        clip: the true clip, of one of TRACKED.
    """
    pictures, regions = _along(clip, len(frames), frames.shape[-1])
    masks = rearrange(regions, "k h w -> k (h w)")
    flat, shown = flattened(frames), flattened(pictures)
    fastest = SPEEDS[clip.scene.motion][1]
    path = monotone_path(matching_error(flat, shown, masks), max(1, math.ceil(1.6 * fastest / FINE)))
    square = ((flat - shown[path]) ** 2).mean(1)
    error = (square * masks[path]).sum(1) / masks[path].sum(1).clamp(min=1)
    return (-10 * error.clamp(min=10 ** (-MOST / 10)).log10())[1:].tolist()


def _along(clip: DemoClip, frames: int, side: int) -> tuple[torch.Tensor, torch.Tensor]:
    """The scene [K, 3, S, S] at travels 0, FINE, 2 FINE ... and where its region is [K, S, S], 0 or 1."""
    scene, far = clip.scene, BEYOND * travel(clip.scene.motion, clip.speed, frames) + MARGIN
    count = 1 if scene.motion in STILL else math.ceil(far / FINE) + 1
    pictures = render(scene, FINE, count, side)
    if scene.thing is None:
        return pictures, warp(pictures[0], true_path(scene, FINE, count))[1]
    white = torch.cat([torch.ones_like(scene.thing.sprite[:3]), scene.thing.sprite[3:]])
    bare = replace(scene, backdrop=torch.zeros_like(scene.backdrop), thing=replace(scene.thing, sprite=white))
    cover = render(bare, FINE, count, side)[:, :1]
    return pictures, (F.max_pool2d(cover, 5, stride=1, padding=2)[:, 0] > 0.1).float()
