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

    A picture that hardly moves has little use for noise that differs from frame to frame. 0 for `still` is `moving` at all levels.
    """
    share = moving + ((still or moving) - moving) * (LEVELS - levels) / (LEVELS - 1)
    # rounding may end beyond 1, whose rest has no root
    return share.clamp(0, 1)


def share_noise(noise: torch.Tensor, share: float | torch.Tensor) -> torch.Tensor:
    """The first frame's noise in all frames, as a share of the variance.

    z'_1 = z_1, z'_n = sqrt(s_n) z_1 + sqrt(1 - s_n) z_n for the other frames n. After PYoCo's mixed noise (arXiv 2305.10474), with
    the first frame's for what is common, which then needs no draw of its own: it correlates with frame n by sqrt(s_n), frames m
    and n by sqrt(s_m s_n).

    Args:
        noise: [B, F, ...], unit variance, each frame's own; one that has the first frame's already keeps it.
        share: s, 0..1, for all, or [B, F] for each frame, the first of which is not looked at. 0 gives the noise back as it is.

    Returns:
        [B, F, ...], unit variance.
    """
    first, others = noise[:, :1], noise[:, 1:]
    share = torch.as_tensor(share, dtype=torch.float32, device=noise.device).expand(noise.shape[:2])[:, 1:]
    common, own = (part.sqrt().to(noise)[(..., *[None] * (noise.ndim - 2))] for part in (share, 1 - share))
    mixed = common * first + own * others
    # whoever repeats noise, such as a batch of latents with one seed, shares it already: added to itself it would be too strong
    equal = (others == first).flatten(2).all(2)[(..., *[None] * (noise.ndim - 2))]
    return torch.cat([first, torch.where(equal, others, mixed)], 1)
