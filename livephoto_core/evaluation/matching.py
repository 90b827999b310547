"""Moving a picture and comparing it with the frames of a clip: warps, blur, errors, and paths through the errors.

Distances are in pixels of a 64-pixel frame.
"""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from einops import rearrange

STEP = 0.75
STAYED_BLURS = (0.0, 1.0, 2.0, 4.0)
# of clips before they are compared: small models' decoders leave noise
SOFTEN = 0.6


def blur(pictures: torch.Tensor, sigma: float) -> torch.Tensor:
    """Gaussian blur of [N, C, H, W] with mirrored borders; sigma 0 gives the pictures back."""
    if sigma == 0:
        return pictures
    reach = min(math.ceil(2.5 * sigma), min(pictures.shape[-2:]) - 1)
    x = torch.arange(-reach, reach + 1, dtype=pictures.dtype)
    kernel = torch.exp(-0.5 * (x / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(pictures, (reach,) * 4, mode="reflect")
    flat = rearrange(padded, "n c h w -> (n c) 1 h w")
    flat = F.conv2d(F.conv2d(flat, kernel[None, None, None]), kernel[None, None, :, None])
    return rearrange(flat, "(n c) 1 h w -> n c h w", c=pictures.shape[1])


def warp(picture: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Move a picture [C, S, S] by affine maps [K, 2, 3] from output to source, in frame units.

    Returns:
        The moved pictures [K, C, S, S] and where they were in view [K, S, S] (0 or 1).
    """
    grid = F.affine_grid(maps, [len(maps), 1, *picture.shape[-2:]], align_corners=False)
    return sampled(picture, grid), in_frame(grid, picture.shape[-1])


def sampled(picture: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    """A picture [C, S, S] read at K grids [K, S, S, 2] of places in frame units -> [K, C, S, S]."""
    rows = rearrange(grid, "k h w c -> 1 (k h) w c")
    moved = F.grid_sample(picture[None], rows, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(moved[0], "c (k h) w -> k c h w", k=len(grid))


def in_frame(grid: torch.Tensor, side: int) -> torch.Tensor:
    """Which places of grids [K, S, S, 2] lie in a picture of `side` pixels, 0 or 1 -> [K, S, S]."""
    # half a pixel at the border is made up by the padding
    return (grid.abs().amax(-1) <= 1 - 1 / side).to(grid.dtype)


def matching_error(frames: torch.Tensor, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """Mean squared difference [F, K] of frames [F, C, P] and pictures [K, C, P] under masks [K, P].

    A difference of the mean colour is free: small models drift in colour. Products instead of differences: no [F, K, P].
    """
    area = masks.sum(-1).clamp(min=1)
    weighted = pictures * masks[:, None]
    square = (
        torch.einsum("fcp,kp->fk", frames**2, masks)
        - 2 * torch.einsum("fcp,kcp->fk", frames, weighted)
        + (weighted * pictures).sum((1, 2))
    )
    shift = torch.einsum("fcp,kp->fkc", frames, masks) - weighted.sum(-1)
    return ((square - (shift**2).sum(-1) / area) / area).clamp(min=0)


def staying_error(frames: torch.Tensor, reference: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
    """The least error [F, K] under masks [K, P] of the reference [C, S, S] that stays in place, sharp or blurred."""
    errors = []
    for sigma in STAYED_BLURS:
        picture = rearrange(blur(reference[None], sigma), "1 c h w -> 1 c (h w)")
        difference = frames - picture
        area = masks.sum(-1).clamp(min=1)
        square = torch.einsum("fcp,kp->fk", difference**2, masks)
        shift = torch.einsum("fcp,kp->fkc", difference, masks)
        errors.append(((square - (shift**2).sum(-1) / area) / area).clamp(min=0))
    return torch.stack(errors).amin(0)


def flattened(pictures: torch.Tensor) -> torch.Tensor:
    """Pictures [K, C, H, W], 0..1, as [K, C, P] around zero, where the products of `matching_error` lose no digits."""
    return rearrange(pictures, "k c h w -> k c (h w)") - 0.5


def possible_travels(fastest: float, frames: int) -> torch.Tensor:
    """Distances [K] from 0 on, STEP apart, up to a quarter beyond what `fastest` pixels a frame reach."""
    return torch.arange(0, 1.25 * fastest * (frames - 1) + STEP, STEP)


def monotone_path(error: torch.Tensor, most_steps: int) -> torch.Tensor:
    """The cheapest way [F] through error [F, K] that starts at 0 and never turns back, by at most so many steps a frame."""
    cost = torch.full((error.shape[1],), math.inf)
    cost[0] = 0.0
    back = []
    for row in error[1:]:
        before = F.pad(cost, (most_steps, 0), value=math.inf).unfold(0, most_steps + 1, 1)
        least, index = before.min(-1)
        back.append(torch.arange(len(cost)) - most_steps + index)
        cost = least + row
    path = [int(cost.argmin())]
    for pointers in reversed(back):
        path.append(int(pointers[path[-1]]))
    return torch.tensor(path[::-1])


def share_left(moved: torch.Tensor, stayed: torch.Tensor) -> float:
    """How much of the error of a picture that stays is left of one that moves."""
    return float(moved.sum() / stayed.sum().clamp(min=1e-6))
