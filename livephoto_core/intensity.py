"""Motion intensity: SSIM of adjacent frames, cut into ten levels (paper section 3.4).

A clip's intensity is I(X) = mean over adjacent frames of SSIM(x_i, x_i+1). Level 1 moves least (highest SSIM), level 10
most. The nine thresholds t_1 > t_2 > ... > t_9 between the levels are SSIM values: level k holds t_k <= SSIM < t_(k-1).
"""

import math
from bisect import bisect_left
from collections.abc import Iterable, Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .errors import LivePhotoError

LEVELS = 10
WINDOW = 7
# (K * data range)^2 with K1 = 0.01, K2 = 0.03 and a range of 1, as in Wang et al. 2004 and scikit-image.
_C1 = 0.01**2
_C2 = 0.03**2
_PIXELS = WINDOW**2
# what a core's cache holds, with what is computed of it
_CACHED_VALUES = 2**18


def ssim(a: Tensor, b: Tensor) -> Tensor:
    """Structural similarity of pictures, pair by pair.

    Equal to scikit-image's `structural_similarity(a, b, channel_axis=-1, data_range=1.0)` within 1e-4: 7x7 uniform
    window, sample covariance, only windows that lie inside the picture, mean over the channels. Computed in float32 and
    differentiable. Two identical pictures give exactly 1.

    Args:
        a, b: [N, C, H, W], values 0..1, H and W at least 7.

    Returns:
        [N], float32, at most 1.

    Raises:
        LivePhotoError: as `check_pairs`.
    """
    check_pairs(a, b)
    pairs = _at_once(a.device, a.shape[1:].numel(), len(a))
    parts = [_ssim(*part) for part in zip(a.float().split(pairs), b.float().split(pairs), strict=True)]
    return torch.cat(parts) if parts else a.new_zeros(0, dtype=torch.float32)


def check_pairs(a: Tensor, b: Tensor) -> None:
    """Refuse pictures whose motion cannot be measured pair by pair.

    Raises:
        LivePhotoError: the shapes differ, are not [N, C, H, W], or a side is shorter than 7 pixels.
    """
    if a.ndim != 4 or a.shape != b.shape:
        raise LivePhotoError(
            f"motion is measured between two batches [N, C, H, W] of one shape, got {list(a.shape)} and {list(b.shape)}; "
            "bring the pictures to the same size"
        )
    if min(a.shape[-2:]) < WINDOW:
        raise LivePhotoError(
            f"motion needs pictures of {WINDOW}x{WINDOW} pixels or more, got {a.shape[-1]}x{a.shape[-2]}; use larger pictures"
        )


def clip_ssim(frames: Tensor) -> Tensor:
    """Motion intensity of clips as an SSIM: mean over adjacent frames (paper section 3.4). High means still.

    Args:
        frames: [F, 3, H, W] or [B, F, 3, H, W], values 0..1, F at least 2, H and W at least 7.

    Returns:
        A scalar for one clip, [B] for a batch of clips.

    Raises:
        LivePhotoError: a clip of one frame, a wrong shape, or pictures below 7 pixels.
    """
    if frames.ndim not in (4, 5):
        raise LivePhotoError(f"a clip is [F, 3, H, W] or [B, F, 3, H, W], got {list(frames.shape)}; stack its frames")
    if frames.shape[-4] < 2:
        raise LivePhotoError(f"motion needs a clip of 2 frames or more, got {frames.shape[-4]}; use a longer clip")
    clips = frames.float().reshape(-1, *frames.shape[-4:])
    check_pairs(clips[:, 0], clips[:, 1])
    batch = _at_once(clips.device, clips.shape[1:].numel(), len(clips))
    parts = [_adjacent_ssim(part) for part in clips.split(batch)]
    return (torch.cat(parts) if parts else clips.new_zeros(0)).reshape(frames.shape[:-4])


def calibrate(ssims: Iterable[float]) -> tuple[float, ...]:
    """Thresholds that cut clips into ten levels of equal population (paper section 3.4).

    Args:
        ssims: `clip_ssim` of each clip of the training set, at least ten different values.

    Returns:
        Nine SSIM values, strictly falling: the 0.9, 0.8, ... 0.1 quantiles (linear between neighbouring clips).

    Raises:
        LivePhotoError: a value that is not finite, fewer than ten different values, or so many equal ones that a level
            would be empty.
    """
    values = np.asarray([float(value) for value in ssims], dtype=np.float64)
    broken = values[~np.isfinite(values)]
    if len(broken):
        raise LivePhotoError(f"{len(broken)} of {len(values)} clips have SSIM {broken[0]}; remove the broken clips")
    distinct = len(np.unique(values))
    if distinct < LEVELS:
        raise LivePhotoError(
            f"{LEVELS} levels need {LEVELS} clips of different motion or more, got {distinct}; calibrate on more clips"
        )
    thresholds = tuple(float(t) for t in np.quantile(values, np.arange(LEVELS - 1, 0, -1) / LEVELS))
    for upper, lower in pairwise(thresholds):
        if upper <= lower:
            raise LivePhotoError(
                f"too many clips have the same SSIM {lower:.6f}, a level would be empty; remove repeated or still clips"
            )
    return thresholds


def check_thresholds(thresholds: Sequence[float]) -> tuple[float, ...]:
    """Return the thresholds as floats; raise LivePhotoError unless they are nine finite, strictly falling numbers."""
    try:
        values = tuple(float(t) for t in thresholds)
    except (TypeError, ValueError):
        raise LivePhotoError(f"SSIM thresholds are nine numbers, got {thresholds!r}; calibrate again") from None
    falling = all(upper > lower for upper, lower in pairwise(values))
    if len(values) != LEVELS - 1 or not all(map(math.isfinite, values)) or not falling:
        raise LivePhotoError(f"SSIM thresholds are nine falling, finite numbers, got {values}; calibrate again")
    return values


def level(ssim: float, thresholds: Sequence[float]) -> int:
    """Level 1..10 of a clip's SSIM: 1 + the number of thresholds above it, so that t_k itself belongs to level k.

    Raises:
        LivePhotoError: an SSIM that is not finite, or thresholds that `check_thresholds` refuses.
    """
    ssim, thresholds = _check_ssim(ssim), check_thresholds(thresholds)
    return 1 + bisect_left([-t for t in thresholds], -ssim)


def fractional_level(ssim: float, thresholds: Sequence[float]) -> float:
    """Level of a clip's SSIM with a fraction that tells where in its level's band the clip lies, 1..10.

    With t_0 = 1 (a still clip), band k < 10 runs from k at t_(k-1) to k + 1 at t_k, linear in SSIM: k + 0.5 is its
    middle, and inside a band the integer part is `level`; at t_k itself, which `level` gives to k, it is k + 1. Band 10
    has no far end and is 10 throughout. Continuous, and never rising with SSIM. If t_1 is 1 or more, band 1 is that one
    point, with value 1.

    Raises:
        LivePhotoError: as `level`.
    """
    ssim, thresholds = _check_ssim(ssim), check_thresholds(thresholds)
    bounds = (max(1.0, thresholds[0]), *thresholds)
    if ssim >= bounds[0]:
        return 1.0
    if ssim <= bounds[-1]:
        return float(LEVELS)
    k = level(ssim, thresholds)
    return k + (bounds[k - 1] - ssim) / (bounds[k - 1] - bounds[k])


def check_level(value: float | str) -> float:
    """Return a motion level, a number or its text, as a float; raise LivePhotoError unless it lies in 1..10."""
    try:
        number = math.nan if isinstance(value, bool) else float(value)
    except (TypeError, ValueError):
        number = math.nan
    if not 1 <= number <= LEVELS:
        raise LivePhotoError(f"motion intensity must be a number from 1 to {LEVELS}, got {value!r}; 5 is the default")
    return number


class _Windows(NamedTuple):
    """What SSIM needs of every 7x7 window of pictures [..., H, W]; rows and columns are one axis.

    `around_mean` [..., H * W] is the picture less its mean: variances do not change with a shift, and around zero
    E[x^2] - E[x]^2 loses no digits on bright flat pictures. The others hold each window at the place of its upper left pixel,
    windows that run over the right edge among them: `sums` of `around_mean`; `total`, of the picture; `spread`, 48 times
    (variance + C2 / 2); `light`, 49^2 times (mean^2 + C1 / 2).
    """

    around_mean: Tensor
    sums: Tensor
    total: Tensor
    spread: Tensor
    light: Tensor


def _windows(pictures: Tensor) -> _Windows:
    # results keep their operands' layout, and `_similarity` wants columns side by side
    width, flat = pictures.shape[-1], pictures.flatten(-2).contiguous()
    mean = flat.mean(-1, keepdim=True)
    around_mean = flat - mean
    sums = _window_sum(around_mean, width)
    total = sums + _PIXELS * mean
    return _Windows(around_mean, sums, total, _spread(around_mean, around_mean, sums, sums, width), _light(total, total))


def _spread(a: Tensor, b: Tensor, sums_a: Tensor, sums_b: Tensor, width: int) -> Tensor:
    covariance = _window_sum(a * b, width).addcmul_(sums_a, sums_b, value=-1 / _PIXELS)
    return covariance.add_(_C2 / 2 * (_PIXELS - 1))


def _light(total_a: Tensor, total_b: Tensor) -> Tensor:
    return (total_a * total_b).add_(_C1 / 2 * _PIXELS**2)


def _similarity(a: _Windows, b: _Windows, height: int, width: int) -> Tensor:
    """SSIM [..., H - 6, W - 6] of every window inside the picture; the numbers that scale its four factors cancel."""
    spread = _spread(a.around_mean, b.around_mean, a.sums, b.sums, width)
    alike = _light(a.total, b.total) * spread
    flat = alike / ((a.light + b.light) * (a.spread + b.spread)) * 4
    rows, columns = height - WINDOW + 1, width - WINDOW + 1
    return flat.as_strided((*flat.shape[:-1], rows, columns), (*flat.stride()[:-1], width, 1))


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    return _similarity(_windows(a), _windows(b), *a.shape[-2:]).mean((1, 2, 3))


def _adjacent_ssim(clips: Tensor) -> Tensor:
    """[B] of clips [B, F, C, H, W]: a frame's windows serve the pair before and the pair after it."""
    height = clips.shape[-2]
    rows = max(WINDOW, _at_once(clips.device, clips[..., 0, :].numel(), height))
    total = clips.new_zeros(len(clips))
    for top in range(0, height - WINDOW + 1, rows):
        strip = clips[..., top : top + rows + WINDOW - 1, :]
        windows = _windows(strip)
        before, after = (_Windows(*(x[:, part] for x in windows)) for part in (slice(None, -1), slice(1, None)))
        total = total + _similarity(before, after, *strip.shape[-2:]).mean((1, 2, 4)).sum(-1)
    return total / (height - WINDOW + 1)


def _at_once(device: torch.device, values: int, count: int) -> int:
    """How many of `count` parts of so many values are best computed at once: a CPU is fastest within its cache, a GPU on all."""
    return max(1, _CACHED_VALUES // max(1, values) if device.type == "cpu" else count)


def _window_sum(flat: Tensor, width: int) -> Tensor:
    """Sums over the 7x7 windows of pictures [..., H * W] of a width, [..., (H - 6) * W - 6]: fastest with rows in one stretch."""
    return _seven(_seven(flat, width), 1)


def _seven(x: Tensor, step: int) -> Tensor:
    # seven as four and two and one: 4 additions in place of 6
    two = x[..., :-step] + x[..., step:]
    four = two[..., : -2 * step] + two[..., 2 * step :]
    size = x.shape[-1] - 6 * step
    return four[..., :size] + two[..., 4 * step : 4 * step + size] + x[..., 6 * step :]


def _check_ssim(ssim: float) -> float:
    value = float(ssim)
    if not math.isfinite(value):
        raise LivePhotoError(f"a clip's SSIM must be a finite number, got {value}; check its frames for nan")
    return value
