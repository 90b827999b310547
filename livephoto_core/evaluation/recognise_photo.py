"""Which motion a clip of a whole photograph shows, found without learned weights by analysis through synthesis.

The photograph is moved along every path of the vocabulary, at every distance; the path under which it looks most like the clip is
the motion seen, if it explains clearly more than a picture that stays and perhaps blurs. Light, snow, rain, the ball and fireworks
are told by what is added to the first frame. Distances are in pixels of a 64-pixel frame.
"""

from __future__ import annotations

import math
from dataclasses import replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from ..demo.motions import REFERENCE_SIDE, ripple_offset
from .matching import SOFTEN, blur, flattened, in_frame, matching_error, sampled, share_left, staying_error
from .recognise_camera import SLID_BLURS, camera_fits
from .verdict import Fit, Seen, decide

MUSH = 4.0
STREAK = 2.2
BALL_SPEEDS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0)
SPARK_SPEEDS = (0.2, 0.35, 0.5, 0.7, 0.9, 1.2, 1.6, 2.0, 2.5)
RING_WIDTH = 0.09
FIRST_BURSTS, SECOND_BURSTS = (0, 1), (3, 4, 5, 6, 7, 8)
FALL_LAGS = (1, 2, 4, 8)
FALL_SHIFTS = tuple(range(1, 9))


def recognise_photo(frames: torch.Tensor, reference: torch.Tensor) -> Seen:
    """The motion a clip of a whole photograph shows.

    Args:
        frames: [F, 3, S, S], 0..1.
        reference: [3, S, S], 0..1: the photograph the clip was made from.
    """
    return decide(_photo_fits(frames, reference), frames, reference)


def _photo_fits(frames: torch.Tensor, reference: torch.Tensor) -> dict[str, Fit]:
    soft, first = blur(frames, SOFTEN), blur(reference[None], SOFTEN)[0]
    falling, streak = _falling_fit(soft)
    ball, fireworks = _ball_fit(soft), _fireworks_fit(soft)
    # wide rings fill a disc: what is a disc of one colour is no sparks
    sparks = max(fireworks.unexplained, 1 - ball.unexplained)
    return {
        **camera_fits(soft, first),
        "ripple": _ripple_fit(soft, first),
        "flicker": _flicker_fit(soft),
        "ball appears": ball,
        "fireworks": replace(fireworks, unexplained=sparks),
        "rain" if streak > STREAK else "snow": falling,
    }


def _ripple_fit(frames: torch.Tensor, reference: torch.Tensor) -> Fit:
    side = reference.shape[-1]
    speeds = torch.arange(0.4, 3.2, 0.4)
    identity = torch.eye(2, 3)[None]
    still = F.affine_grid(identity, [1, 1, side, side], align_corners=False)
    offsets = torch.stack([ripple_offset(float(s), len(frames), side) for s in speeds], 1)
    best = []
    for frame, offset in zip(frames[1:], offsets[1:], strict=True):
        grid = still.repeat(len(speeds), 1, 1, 1)
        grid[..., 0] += offset
        masks = rearrange(in_frame(grid, side), "k h w -> k (h w)")
        flat = flattened(frame[None])
        moved = [matching_error(flat, flattened(sampled(blur(reference[None], s)[0], grid)), masks) for s in SLID_BLURS]
        best.append((torch.stack(moved).amin(0)[0], staying_error(flat, reference - 0.5, masks)[0]))
    moved, stayed = torch.stack([m for m, _ in best]).sum(0), torch.stack([s for _, s in best]).sum(0)
    chosen = int(moved.argmin())
    return Fit(float(moved[chosen] / stayed[chosen].clamp(min=1e-6)), 2 * float(speeds[chosen]))


def _flicker_fit(frames: torch.Tensor) -> Fit:
    """A gain of its own for each frame; its travel is how far the gain goes to and fro a frame, so that a fade has none."""
    first = frames[0]
    gains = einsum(frames, first, "f c h w, c h w -> f") / (first**2).sum().clamp(min=1e-6)
    lit, mush = (((frames - _lit(gains, picture)) ** 2).mean((1, 2, 3)) for picture in (first, blur(first[None], MUSH)[0]))
    stayed = ((frames - first) ** 2).mean((1, 2, 3))
    to_and_fro = gains.diff().abs().sum() - (gains.amax() - gains.amin())
    # darker mush is no flicker: the picture itself must be there under its light
    return Fit(max(share_left(lit, stayed), share_left(lit, mush)), float(to_and_fro) / (len(frames) - 1))


def _lit(gains: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    return (gains[:, None, None, None] * picture).clamp(0, 1)


def _ball_fit(frames: torch.Tensor) -> Fit:
    """A disc of one colour that swells at a fixed place, anywhere, at any speed."""
    small = F.avg_pool2d(frames, 2)
    change = (small - small[0]) ** 2
    total = change.sum().clamp(min=1e-6)
    sums = rearrange(torch.cat([small, small**2, change], 1), "f c h w -> c f h w")
    fits = []
    for speed in BALL_SPEEDS:
        discs = _discs(speed, len(frames), small.shape[-1])
        inside = F.conv2d(sums, discs[None], padding=discs.shape[-1] // 2)[:, 0]
        value, square, before = inside.split(small.shape[1])
        # inside a disc what is left is the spread about its one colour, outside the whole change
        left = (square - value**2 / discs.sum()).sum(0) - before.sum(0)
        fits.append(Fit(float(1 + left.amin() / total), speed * (len(frames) - 1)))
    return min(fits, key=lambda fit: fit.unexplained)


def _discs(speed: float, frames: int, side: int) -> torch.Tensor:
    """Swelling discs [F, D, D] as `appearing_ball` draws them, in a window just large enough, for pictures of `side`."""
    axis = _window_axis(0.36, side)
    distance = (axis[None, :] ** 2 + axis[:, None] ** 2).sqrt()
    radius = (torch.arange(frames) * speed * 2 / REFERENCE_SIDE).clamp(max=0.34)[:, None, None]
    return ((radius - distance) * REFERENCE_SIDE / 2).clamp(0, 1)


def _window_axis(reach: float, side: int) -> torch.Tensor:
    """Offsets [D] in frame units of the pixels around a pixel, an odd number of them."""
    half = math.ceil(reach * side / 2)
    return torch.arange(-half, half + 1) * 2 / side


def _fireworks_fit(frames: torch.Tensor) -> Fit:
    """Light on one or two rings that widen from fixed centres, the second from a later frame."""
    small = F.avg_pool2d(frames, 2)
    change = small - small[0]
    total = (change**2).sum().clamp(min=1e-6)
    light = (change.clamp(min=0) ** 2).sum(1)
    fits = []
    for speed in SPARK_SPEEDS:
        rings = _rings(speed, *light.shape[:2])
        first, gathered = _best_burst(light, rings, FIRST_BURSTS)
        second, more = _best_burst(light * (1 - gathered), rings, SECOND_BURSTS)
        # light spread evenly would fall on the rings too, as much as they cover
        covered = torch.maximum(gathered, more).mean()
        share = ((first + second) / total - covered) / (1 - covered)
        fits.append(Fit(1 - float(share), speed * (len(frames) - 1)))
    return min(fits, key=lambda fit: fit.unexplained)


def _rings(speed: float, frames: int, side: int) -> torch.Tensor:
    """Rings [F, 2 S, 2 S] by their age in frames, about the corner [0, 0] with negative places wrapped round; none at age 0."""
    axis = torch.fft.fftfreq(2 * side) * 2 * side * 2 / side
    distance = (axis[None, :] ** 2 + axis[:, None] ** 2).sqrt()
    age = torch.arange(frames)[:, None, None]
    return ((distance - age * speed * 2 / REFERENCE_SIDE).abs() < RING_WIDTH).float() * (age > 0)


def _best_burst(light: torch.Tensor, rings: torch.Tensor, starts: tuple[int, ...]) -> tuple[torch.Tensor, torch.Tensor]:
    """The most light [F, S, S] that one burst of widening rings gathers, and where it gathered (0 or 1, [F, S, S])."""
    frames, side = light.shape[:2]
    spectrum = torch.fft.rfft2(light, s=rings.shape[1:])
    ring_spectrum = torch.fft.rfft2(rings).conj()
    sums = torch.stack([(spectrum[start:] * ring_spectrum[: frames - start]).sum(0) for start in starts])
    gathered = torch.fft.irfft2(sums, s=rings.shape[1:])[:, :side, :side]
    start, row, column = (int(i) for i in torch.unravel_index(gathered.argmax(), gathered.shape))
    placed = rings.roll((row, column), (1, 2))[: frames - starts[start], :side, :side]
    return gathered.amax(), F.pad(placed, (0, 0, 0, 0, starts[start], 0))


def _falling_fit(frames: torch.Tensor) -> tuple[Fit, float]:
    """Light spots that move down while the picture stays, and how much narrower than tall they are.

    Spots are followed from a frame to a later one by correlation: what is left unexplained is what the best downward shift
    correlates less, or what no shift or an upward one correlates too.
    """
    light = (frames - frames[0]).clamp(min=0).mean(1)[2:]
    light = light - light.mean((1, 2), keepdim=True)
    best = Fit(1.0, 0.0)
    for lag in FALL_LAGS:
        before, after = light[:-lag], light[lag:]
        stayed = _correlation(before, after)
        for shift in FALL_SHIFTS:
            down = _correlation(before[:, :-shift], after[:, shift:])
            up = _correlation(before[:, shift:], after[:, :-shift])
            left = 1 - float(down - max(0.0, stayed, up))
            if left < best.unexplained:
                best = Fit(left, shift / lag * (len(frames) - 1))
    across, along = (light.diff(dim=2) ** 2).mean(), (light.diff(dim=1) ** 2).mean()
    return best, float(across / along.clamp(min=1e-9))


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / ((a**2).sum() * (b**2).sum()).sqrt().clamp(min=1e-9))
