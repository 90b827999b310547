"""Noise that a clip's frames have partly in common: what differs between frames is then more motion and less chance."""

from __future__ import annotations

import torch

from .errors import LivePhotoError
from .intensity import LEVELS


def check_share(name: str, share: float) -> None:
    """Refuse a share of the noise outside 0..1.

    Raises:
        LivePhotoError: names the setting and its value.
    """
    if not 0 <= share <= 1:
        raise LivePhotoError(f"{name} is {share:g}; use 0 (each frame its own noise) to 1 (all frames the same)")


def share_at(levels: torch.Tensor, moving: float, still: float) -> torch.Tensor:
    """The share of the noise in common at motion levels [...], 1..10: `still` at level 1, falling evenly to `moving` at level 10.

    A picture that hardly moves has little use for noise that differs from frame to frame. A `still` below `moving` counts as that.
    """
    return moving + (max(moving, still) - moving) * (LEVELS - levels) / (LEVELS - 1)


def share_noise(noise: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """The first frame's noise in all frames, as a share of the variance.

    z'_1 = z_1, z'_n = sqrt(s_n) z_1 + sqrt(1 - s_n) z_n for the other frames n. After PYoCo's mixed noise (arXiv 2305.10474), with
    the first frame's for what is common, which then needs no draw of its own: it correlates with the others by sqrt(s), they by s.

    Args:
        noise: [B, F, ...], unit variance, each frame's own.
        share: s, 0..1, for all, or [B, F] for each frame. 0 gives the noise back as it is.

    Returns:
        [B, F, ...], unit variance.
    """
    first, others = noise[:, :1], noise[:, 1:]
    share = torch.as_tensor(share).to(noise).expand(noise.shape[:2])[(..., *[None] * (noise.ndim - 2))][:, 1:]
    return torch.cat([first, share**0.5 * first + (1 - share) ** 0.5 * others], 1)
