"""Measures of how strongly a clip moves, for the ten levels: SSIM, as the paper chose, and two that it tried before (section 3.4).

Each is kept as a similarity of adjacent frames that is 1 where nothing moves and falls as the motion grows: SSIM itself, 1 - the
mean squared error, 1 - the mean length of the optical flow in pixels. So thresholds, levels and calibration (intensity.py) are
the same for all of them.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from .errors import LivePhotoError
from .intensity import ManyClipsSsim, check_pairs, clip_ssim, ssim

GREY = (0.299, 0.587, 0.114)
# what 1 - similarity is called
MOTION_NAMES = {"ssim": "1 - SSIM", "mse": "MSE", "flow": "flow, pixels"}


def similarity(a: Tensor, b: Tensor, measure: str) -> Tensor:
    """Similarity of pictures [N, 3, H, W], 0..1, pair by pair, by one of config.INTENSITY_MEASURES.

    Returns:
        [N], float32, at most 1.

    Raises:
        LivePhotoError: the shapes differ or are too small, or the measure's package is not installed.
    """
    check_pairs(a, b)
    return _SIMILARITIES[measure](a, b)


def clip_similarity(frames: Tensor, measure: str) -> float:
    """Mean similarity of a clip's adjacent frames [F, 3, H, W], 0..1: what its level is read from.

    Raises:
        LivePhotoError: as `similarity`, or a clip of one frame.
    """
    if measure == "ssim":
        return float(clip_ssim(frames))
    if len(frames) < 2:
        raise LivePhotoError(f"motion needs a clip of 2 frames or more, got {len(frames)}; use a longer clip")
    return float(similarity(frames[:-1], frames[1:], measure).mean())


def many_clips_similarity(measure: str) -> Callable[[Tensor], float]:
    """`clip_similarity` by a measure, for a training set: SSIM compiles itself where the clips are many (`ManyClipsSsim`)."""
    if measure != "ssim":
        return partial(clip_similarity, measure=measure)
    ssim_of = ManyClipsSsim()
    return lambda frames: float(ssim_of(frames))


def squared_error(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared error [N] of pictures [N, 3, H, W]."""
    return (a.float() - b.float()).square().mean((1, 2, 3))


def flow_length(a: Tensor, b: Tensor) -> Tensor:
    """Mean length [N] of the optical flow from pictures [N, 3, H, W] to others, in pixels of theirs.

    TV-L1 of scikit-image (Zach, Pock and Bischof 2007) on grey pictures: where a photo is flat, methods without its smoothness,
    such as Lucas-Kanade's, make up any motion.

    Raises:
        LivePhotoError: scikit-image is not installed.
    """
    try:
        from skimage.registration import optical_flow_tvl1
    except ModuleNotFoundError as error:
        raise LivePhotoError(
            f"motion measured by optical flow needs the package {error.name}, which is not installed: pip install scikit-image"
        ) from error

    before, after = (torch.einsum("nchw,c->nhw", x.float(), torch.tensor(GREY, device=x.device)).cpu().numpy() for x in (a, b))
    flows = [optical_flow_tvl1(x, y, num_warp=3, num_iter=6) for x, y in zip(before, after, strict=True)]
    return torch.tensor([float(((flow**2).sum(0) ** 0.5).mean()) for flow in flows])


_SIMILARITIES: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "ssim": ssim,
    "mse": lambda a, b: 1 - squared_error(a, b),
    "flow": lambda a, b: 1 - flow_length(a, b),
}
