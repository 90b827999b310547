"""Motion intensity: SSIM of adjacent frames, cut into ten levels (paper section 3.4).

A clip's intensity is I(X) = mean over adjacent frames of SSIM(x_i, x_i+1). Level 1 moves least (highest SSIM), level 10
most. The nine thresholds t_1 > t_2 > ... > t_9 between the levels are SSIM values: level k holds t_k <= SSIM < t_(k-1).
"""

import math
from bisect import bisect_left
from collections.abc import Callable, Iterable, Sequence
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
# compiling costs what measuring so many values saves, about 8 seconds: 20 000 clips of 64x64x16, 1400 of 256x256x16
_WORTH_COMPILING = 2**32


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
    return _clip_ssim(frames, _strip_ssim)


class ManyClipsSsim:
    """`clip_ssim` of thousands of clips of one shape, which compiles itself on a CPU once that saves more time than it takes.

    The first `after` values (frames x channels x rows x columns) are measured as `clip_ssim` does. Then torch.compile makes the
    same three times as fast, in 2 to 11 seconds a shape; the results differ by rounding, 1e-6 at most. Where it cannot, for
    want of a compiler say, and on other devices, it stays `clip_ssim`.
    """

    def __init__(self, after: int = _WORTH_COMPILING) -> None:
        self._left = after
        self._strip_ssim = _strip_ssim

    def __call__(self, frames: Tensor) -> Tensor:
        """As `clip_ssim`."""
        if frames.device.type != "cpu":
            return clip_ssim(frames)
        if self._left <= 0 and self._strip_ssim is _strip_ssim:
            self._strip_ssim = _compiled_where_it_can_be(_strip_ssim)
        self._left -= frames.numel()
        return _clip_ssim(frames, self._strip_ssim)


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

    k is the middle of band k, as a model that was told whole levels makes it: what is measured can be asked for. With t_0 = 1 (a
    still clip), band k < 10 runs from k - 0.5 at t_(k-1) to k + 0.5 at t_k, linear in SSIM; band 10, which has no far end, goes on
    as steeply as band 9, up to 10. Never below 1, continuous, and never rising with SSIM. If t_1 is 1 or more, band 1 is that one
    point, with value 1.

    Raises:
        LivePhotoError: as `level`.
    """
    ssim, thresholds = _check_ssim(ssim), check_thresholds(thresholds)
    bounds = (max(1.0, thresholds[0]), *thresholds)
    if ssim >= bounds[0]:
        return 1.0
    k = level(ssim, thresholds)
    upper, lower = bounds[k - 1 : k + 1] if k < LEVELS else bounds[-2:]
    found = min(k, LEVELS - 1) - 0.5 + (upper - ssim) / (upper - lower)
    return min(max(found, 1.0), float(LEVELS))


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
    # the constant is summed with the products, which saves the pass that would add it
    constant = a.new_full((), _C2 / 2 * (_PIXELS - 1) / _PIXELS)
    return _window_sum(torch.addcmul(constant, a, b), width).addcmul_(sums_a, sums_b, value=-1 / _PIXELS)


def _light(total_a: Tensor, total_b: Tensor) -> Tensor:
    return torch.addcmul(total_a.new_full((), _C1 / 2 * _PIXELS**2), total_a, total_b)


def _similarity(a: _Windows, b: _Windows, height: int, width: int) -> Tensor:
    """Mean SSIM [...] of the windows inside the pictures; the numbers that scale its four factors cancel, but for a 4."""
    spread = _spread(a.around_mean, b.around_mean, a.sums, b.sums, width)
    flat = _light(a.total, b.total).mul_(spread).div_((a.light + b.light).mul_(a.spread + b.spread))
    rows, columns = height - WINDOW + 1, width - WINDOW + 1
    inside = flat.as_strided((*flat.shape[:-1], rows, columns), (*flat.stride()[:-1], width, 1))
    return 4 * inside.mean((-2, -1))


def _ssim(a: Tensor, b: Tensor) -> Tensor:
    return _similarity(_windows(a), _windows(b), *a.shape[-2:]).mean(1)


def _clip_ssim(frames: Tensor, strip_ssim: Callable[[Tensor], Tensor]) -> Tensor:
    if frames.ndim not in (4, 5):
        raise LivePhotoError(f"a clip is [F, 3, H, W] or [B, F, 3, H, W], got {list(frames.shape)}; stack its frames")
    if frames.shape[-4] < 2:
        raise LivePhotoError(f"motion needs a clip of 2 frames or more, got {frames.shape[-4]}; use a longer clip")
    clips = frames.float().reshape(-1, *frames.shape[-4:])
    check_pairs(clips[:, 0], clips[:, 1])
    batch = _at_once(clips.device, clips.shape[1:].numel(), len(clips))
    parts = [_adjacent_ssim(part, strip_ssim) for part in clips.split(batch)]
    return (torch.cat(parts) if parts else clips.new_zeros(0)).reshape(frames.shape[:-4])


def _adjacent_ssim(clips: Tensor, strip_ssim: Callable[[Tensor], Tensor]) -> Tensor:
    """[B] of clips [B, F, C, H, W], strip by strip."""
    height = clips.shape[-2]
    rows = max(WINDOW, _at_once(clips.device, clips[..., 0, :].numel(), height))
    total = clips.new_zeros(len(clips))
    for top in range(0, height - WINDOW + 1, rows):
        strip = clips[..., top : top + rows + WINDOW - 1, :]
        total = total + strip_ssim(strip) * (strip.shape[-2] - WINDOW + 1)
    return total / (height - WINDOW + 1)


def _strip_ssim(clips: Tensor) -> Tensor:
    """[B] of clips [B, F, C, H, W]: a frame's windows serve the pair before and the pair after it."""
    windows = _windows(clips)
    before, after = (_Windows(*(x[:, part] for x in windows)) for part in (slice(None, -1), slice(1, None)))
    return _similarity(before, after, *clips.shape[-2:]).mean((1, 2))


def _compiled_where_it_can_be(plain: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    """Compiled for each shape that it meets, in this process alone; `plain` from the first failure on."""
    measure = None

    def either(x: Tensor) -> Tensor:
        nonlocal measure
        try:
            measure = measure or torch.compile(plain, dynamic=False, options={"compile_threads": 1})
            return measure(x)
        # what is missing has many names: a compiler, its OpenMP, a folder to write to, this Python
        except Exception:
            measure = plain
            return plain(x)

    return either


def _at_once(device: torch.device, values: int, count: int) -> int:
    """How many of `count` parts of so many values are best computed at once: a CPU is fastest within its cache, a GPU on all."""
    return max(1, _CACHED_VALUES // max(1, values) if device.type == "cpu" else count)


def _window_sum(flat: Tensor, width: int) -> Tensor:
    """Sums over the 7x7 windows of pictures [..., H * W] of a width, [..., (H - 6) * W - 6]: fastest with rows in one stretch."""
    return _seven(_seven(flat, width), 1)


def _seven(x: Tensor, step: int) -> Tensor:
    # seven as four and two and one: 4 additions in place of 6
    size = x.shape[-1] - 6 * step
    two = x[..., :-step] + x[..., step:]
    four = two[..., :size] + two[..., 2 * step : 2 * step + size]
    return four.add_(two[..., 4 * step : 4 * step + size]).add_(x[..., 6 * step :])


def _check_ssim(ssim: float) -> float:
    value = float(ssim)
    if not math.isfinite(value):
        raise LivePhotoError(f"a clip's SSIM must be a finite number, got {value}; check its frames for nan")
    return value
