"""How well the camera's motions explain a clip: the whole first frame slid, zoomed and turned along every path there is."""

from __future__ import annotations

import math

import torch
from einops import rearrange

from ..demo.motions import CAMERA, SPEEDS, camera_path
from .matching import STEP, blur, flattened, matching_error, monotone_path, possible_travels, share_left, staying_error, warp
from .verdict import Fit

SLID_BLURS = (0.0, 1.0)


def camera_fits(frames: torch.Tensor, reference: torch.Tensor) -> dict[str, Fit]:
    """How well each of CAMERA explains a clip.

    Args:
        frames: [F, 3, S, S], 0..1.
        reference: [3, S, S], 0..1: the picture that moves.
    """
    return {motion: _camera_fit(frames, reference, motion) for motion in CAMERA}


def _camera_fit(frames: torch.Tensor, reference: torch.Tensor, motion: str) -> Fit:
    travels = possible_travels(SPEEDS[motion][1], len(frames))
    # one frame at speed t has travelled t
    maps = torch.stack([camera_path(motion, float(t), 2)[1] for t in travels])
    return _sliding_fit(*_slid_errors(frames, reference, maps), SPEEDS[motion][1])


def _sliding_fit(moved: torch.Tensor, stayed: torch.Tensor, fastest: float) -> Fit:
    """How well a steady or uneven slide away from 0 explains the clip; errors [F, K] at travels 0, STEP, 2 STEP ..."""
    path = monotone_path(moved, math.ceil(1.6 * fastest / STEP))
    frames = torch.arange(len(path))
    return Fit(share_left(moved[frames, path], stayed[frames, path]), float(path[-1]) * STEP)


def _slid_errors(frames: torch.Tensor, reference: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors [F, K] of the reference slid by K maps, and of the reference left in place seen through the same masks."""
    flat, errors = flattened(frames), []
    for sigma in SLID_BLURS:
        moved, masks = warp(blur(reference[None], sigma)[0], maps)
        masks = rearrange(masks, "k h w -> k (h w)")
        errors.append(matching_error(flat, flattened(moved), masks))
    return torch.stack(errors).amin(0), staying_error(flat, reference - 0.5, masks)
