"""Which motion a clip shows, found without learned weights by analysis through synthesis.

The reference picture is moved along every path of the vocabulary, at every distance; the path under which it looks most like
the clip is the motion seen, if it explains clearly more than a picture that stays and perhaps blurs. Light, snow, rain, the
ball and fireworks are told by what is added to the first frame. Distances are in pixels of a 64-pixel frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import einsum, rearrange

from ..demo.motions import CAMERA, REFERENCE_SIDE, SPEEDS, THING, Placement, camera_path, ripple_offset, thing_path

UNCLEAR = "unclear"
LEAST_SEEN = 1.5
# a motion is seen when what it leaves unexplained is below this share of what a picture that stays leaves
CLEARLY = 0.75
STILL_CHANGE = 0.03
# below this root mean square change of the whole clip there is nothing to explain
NO_CHANGE = 0.003
STEP = 0.75
SLID_BLURS = (0.0, 1.0)
STAYED_BLURS = (0.0, 1.0, 2.0, 4.0)
LEAST_FLICKER = 0.02
MUSH = 4.0
STREAK = 2.2
SOFTEN = 0.6
BALL_SPEEDS = (0.15, 0.3, 0.5, 0.75, 1.0, 1.4, 2.0, 3.0)
SPARK_SPEEDS = (0.2, 0.35, 0.5, 0.7, 0.9, 1.2, 1.6, 2.0, 2.5)
RING_WIDTH = 0.09
FIRST_BURSTS, SECOND_BURSTS = (0, 1), (3, 4, 5, 6, 7, 8)
BEST_JUDGED_AGAIN = 3
# mean squared error of a first frame that still shows the photo: 18 dB
FIRST_OFF = 10**-1.8
FALL_LAGS = (1, 2, 4, 8)
FALL_SHIFTS = tuple(range(1, 9))


@dataclass(frozen=True)
class Seen:
    """The motion seen, one of MOTIONS or UNCLEAR, its travel in pixels, and what each candidate left unexplained (0..1)."""

    motion: str
    travel: float
    unexplained: dict[str, float]


@dataclass(frozen=True)
class _Fit:
    unexplained: float
    travel: float


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
    return _sample(picture, grid), _in_view(grid, picture.shape[-1])


def _sample(picture: torch.Tensor, grid: torch.Tensor) -> torch.Tensor:
    rows = rearrange(grid, "k h w c -> 1 (k h) w c")
    moved = F.grid_sample(picture[None], rows, mode="bilinear", padding_mode="border", align_corners=False)
    return rearrange(moved[0], "c (k h) w -> k c h w", k=len(grid))


def _in_view(grid: torch.Tensor, side: int) -> torch.Tensor:
    # half a pixel at the border is made up by the padding
    return (grid.abs().amax(-1) <= 1 - 1 / side).to(grid.dtype)


def _matching_error(frames: torch.Tensor, pictures: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
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


def _staying_error(frames: torch.Tensor, reference: torch.Tensor, masks: torch.Tensor) -> torch.Tensor:
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


def _flat(pictures: torch.Tensor) -> torch.Tensor:
    # around zero the products of _matching_error lose no digits
    return rearrange(pictures, "k c h w -> k c (h w)") - 0.5


def _monotone_path(error: torch.Tensor, most_steps: int) -> torch.Tensor:
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


def _along(error: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Error [F, K] read at fractional positions [N, F], linear in between -> [N, F]."""
    positions = positions.clamp(0, error.shape[1] - 1)
    low = positions.floor().long().clamp(max=error.shape[1] - 2)
    share = positions - low
    rows = error[None].expand(len(positions), -1, -1)
    return rows.gather(2, low[..., None])[..., 0] * (1 - share) + rows.gather(2, low[..., None] + 1)[..., 0] * share


def _ratio(moved: torch.Tensor, stayed: torch.Tensor) -> float:
    return float(moved.sum() / stayed.sum().clamp(min=1e-6))


def _sliding_fit(moved: torch.Tensor, stayed: torch.Tensor, fastest: float) -> _Fit:
    """How well a steady or uneven slide away from 0 explains the clip; errors [F, K] at travels 0, STEP, 2 STEP ..."""
    path = _monotone_path(moved, math.ceil(1.6 * fastest / STEP))
    frames = torch.arange(len(path))
    return _Fit(_ratio(moved[frames, path], stayed[frames, path]), float(path[-1]) * STEP)


def _travels(fastest: float, frames: int) -> torch.Tensor:
    return torch.arange(0, 1.25 * fastest * (frames - 1) + STEP, STEP)


def _slid_errors(frames: torch.Tensor, reference: torch.Tensor, maps: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Errors [F, K] of the reference slid by K maps, and of the reference left in place seen through the same masks."""
    flat, errors = _flat(frames), []
    for sigma in SLID_BLURS:
        moved, masks = warp(blur(reference[None], sigma)[0], maps)
        masks = rearrange(masks, "k h w -> k (h w)")
        errors.append(_matching_error(flat, _flat(moved), masks))
    return torch.stack(errors).amin(0), _staying_error(flat, reference - 0.5, masks)


def _camera_fit(frames: torch.Tensor, reference: torch.Tensor, motion: str) -> _Fit:
    travels = _travels(1.4, len(frames))
    # one frame at speed t has travelled t
    maps = torch.stack([camera_path(motion, float(t), 2)[1] for t in travels])
    return _sliding_fit(*_slid_errors(frames, reference, maps), 1.4)


def _ripple_fit(frames: torch.Tensor, reference: torch.Tensor) -> _Fit:
    side = reference.shape[-1]
    speeds = torch.arange(0.4, 3.2, 0.4)
    identity = torch.eye(2, 3)[None]
    still = F.affine_grid(identity, [1, 1, side, side], align_corners=False)
    offsets = torch.stack([ripple_offset(float(s), len(frames), side) for s in speeds], 1)
    best = []
    for frame, offset in zip(frames[1:], offsets[1:], strict=True):
        grid = still.repeat(len(speeds), 1, 1, 1)
        grid[..., 0] += offset
        masks = rearrange(_in_view(grid, side), "k h w -> k (h w)")
        flat = _flat(frame[None])
        moved = [_matching_error(flat, _flat(_sample(blur(reference[None], s)[0], grid)), masks) for s in SLID_BLURS]
        best.append((torch.stack(moved).amin(0)[0], _staying_error(flat, reference - 0.5, masks)[0]))
    moved, stayed = torch.stack([m for m, _ in best]).sum(0), torch.stack([s for _, s in best]).sum(0)
    chosen = int(moved.argmin())
    return _Fit(float(moved[chosen] / stayed[chosen].clamp(min=1e-6)), 2 * float(speeds[chosen]))


def _flicker_fit(frames: torch.Tensor) -> _Fit:
    """A gain of its own for each frame; its travel is how far the gain goes to and fro a frame, so that a fade has none."""
    first = frames[0]
    gains = einsum(frames, first, "f c h w, c h w -> f") / (first**2).sum().clamp(min=1e-6)
    lit, mush = (((frames - _lit(gains, picture)) ** 2).mean((1, 2, 3)) for picture in (first, blur(first[None], MUSH)[0]))
    stayed = ((frames - first) ** 2).mean((1, 2, 3))
    to_and_fro = gains.diff().abs().sum() - (gains.amax() - gains.amin())
    # darker mush is no flicker: the picture itself must be there under its light
    return _Fit(max(_ratio(lit, stayed), _ratio(lit, mush)), float(to_and_fro) / (len(frames) - 1))


def _lit(gains: torch.Tensor, picture: torch.Tensor) -> torch.Tensor:
    return (gains[:, None, None, None] * picture).clamp(0, 1)


def _ball_fit(frames: torch.Tensor) -> _Fit:
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
        fits.append(_Fit(float(1 + left.amin() / total), speed * (len(frames) - 1)))
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


def _fireworks_fit(frames: torch.Tensor) -> _Fit:
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
        fits.append(_Fit(1 - float(share), speed * (len(frames) - 1)))
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


def _falling_fit(frames: torch.Tensor) -> tuple[_Fit, float]:
    """Light spots that move down while the picture stays, and how much narrower than tall they are.

    Spots are followed from a frame to a later one by correlation: what is left unexplained is what the best downward shift
    correlates less, or what no shift or an upward one correlates too.
    """
    light = (frames - frames[0]).clamp(min=0).mean(1)[2:]
    light = light - light.mean((1, 2), keepdim=True)
    best = _Fit(1.0, 0.0)
    for lag in FALL_LAGS:
        before, after = light[:-lag], light[lag:]
        stayed = _correlation(before, after)
        for shift in FALL_SHIFTS:
            down = _correlation(before[:, :-shift], after[:, shift:])
            up = _correlation(before[:, shift:], after[:, :-shift])
            left = 1 - float(down - max(0.0, stayed, up))
            if left < best.unexplained:
                best = _Fit(left, shift / lag * (len(frames) - 1))
    across, along = (light.diff(dim=2) ** 2).mean(), (light.diff(dim=1) ** 2).mean()
    return best, float(across / along.clamp(min=1e-9))


def _correlation(a: torch.Tensor, b: torch.Tensor) -> float:
    return float((a * b).sum() / ((a**2).sum() * (b**2).sum()).sqrt().clamp(min=1e-9))


def _photo_fits(frames: torch.Tensor, reference: torch.Tensor) -> dict[str, _Fit]:
    soft, first = blur(frames, SOFTEN), blur(reference[None], SOFTEN)[0]
    falling, streak = _falling_fit(soft)
    ball, fireworks = _ball_fit(soft), _fireworks_fit(soft)
    # wide rings fill a disc: what is a disc of one colour is no sparks
    sparks = max(fireworks.unexplained, 1 - ball.unexplained)
    return {
        **{motion: _camera_fit(soft, first, motion) for motion in CAMERA},
        "ripple": _ripple_fit(soft, first),
        "flicker": _flicker_fit(soft),
        "ball appears": ball,
        "fireworks": replace(fireworks, unexplained=sparks),
        "rain" if streak > STREAK else "snow": falling,
    }


def _decide(fits: dict[str, _Fit], frames: torch.Tensor, reference: torch.Tensor) -> Seen:
    """The motion that explains most, if it does so clearly and is far enough to be seen; else still, or nothing known."""
    unexplained = {motion: fit.unexplained for motion, fit in fits.items()}
    soft, first = blur(frames, 1.0), blur(reference[None], 1.0)[0]
    if float(((soft[0] - first) ** 2).mean()) > FIRST_OFF:
        return Seen(UNCLEAR, 0.0, unexplained)
    change = float(((soft - soft[0]) ** 2).mean().sqrt())
    best = min(fits, key=lambda motion: fits[motion].unexplained)
    least = LEAST_FLICKER if best == "flicker" else LEAST_SEEN
    if change > NO_CHANGE and fits[best].unexplained < CLEARLY and fits[best].travel >= least:
        return Seen(best, fits[best].travel, unexplained)
    return Seen("still" if change < STILL_CHANGE else UNCLEAR, 0.0, unexplained)


def recognise_photo(frames: torch.Tensor, reference: torch.Tensor) -> Seen:
    """The motion a clip of a whole photograph shows.

    Args:
        frames: [F, 3, S, S], 0..1.
        reference: [3, S, S], 0..1: the photograph the clip was made from.
    """
    return _decide(_photo_fits(frames, reference), frames, reference)


def _fill(picture: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
    """What may lie behind the thing: [C, S, S] with the `hidden` places (1 where hidden, [S, S]) filled from around them."""
    shown = (1 - hidden)[None]
    filled, known = picture * shown, shown
    result = filled
    for sigma in (1.0, 2.0, 4.0, 8.0, 16.0):
        colour = blur(filled[None], sigma)[0]
        weight = blur(known[None], sigma)[0]
        result = torch.where(known > 0.5, result, torch.where(weight > 0.02, colour / weight.clamp(min=1e-6), result))
        known = torch.where((known > 0.5) | (weight > 0.02), 1.0, 0.0)
        filled = result * known
    return result


def _pose(start: Placement, motion: str, travel: float) -> torch.Tensor:
    """The thing's centre x, y, half size and angle after `travel`; "shake" counts as a move to the right."""
    return thing_path("move right" if motion == "shake" else motion, travel, 2, start)[1]


def _sprite_maps(poses: torch.Tensor) -> torch.Tensor:
    """Affine maps [K, 2, 3] from the frame to the sprite that lies there in poses [K, 4]: x, y, half size, angle."""
    x, y, half, angle = poses.unbind(-1)
    cos, sin = angle.cos() / half, angle.sin() / half
    rows = torch.stack([cos, sin, -(cos * x + sin * y)], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)
    return torch.stack(rows, -2)


def _to_first(poses: torch.Tensor, start: torch.Tensor) -> torch.Tensor:
    """Affine maps [K, 2, 3] from where the thing is, in poses [K, 4], to where it was at first, in pose [4]."""
    last = torch.tensor([[[0.0, 0.0, 1.0]]])
    there = torch.cat([_sprite_maps(poses), last.expand(len(poses), 1, 3)], 1)
    here = torch.cat([_sprite_maps(start[None]), last], 1)
    return (torch.linalg.inv(here) @ there)[:, :2]


@dataclass(frozen=True)
class _Stage:
    """A scene with a thing, ready to be put together with the thing elsewhere; `hidden` is where it was at first."""

    reference: torch.Tensor
    behind: torch.Tensor
    hidden: torch.Tensor
    mask: torch.Tensor
    start: Placement

    def errors(self, frames: torch.Tensor, poses: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Errors [F, K] of the scene with the thing in K poses, and of the scene left as it was, in the same places."""
        first = thing_path("still", 0.0, 1, self.start)[0]
        cover = _coverage(self.mask, poses, self.reference.shape[-1])
        moved, _ = warp(self.reference, _to_first(poses, first))
        pictures = moved * cover[:, None] + self.behind * (1 - cover[:, None])
        places = rearrange(torch.maximum(_widen(cover), self.hidden[None]), "k h w -> k (h w)")
        matching = _matching_error(_flat(frames), _flat(pictures), places)
        return matching, _staying_error(_flat(frames), self.reference - 0.5, places)

    def uncovered_by(self, frames: torch.Tensor, poses: torch.Tensor) -> _Stage:
        """The stage with the clip's own picture of what comes out from behind the thing, if it went through poses [F, 4]."""
        bare = (1 - _coverage(self.mask, poses, self.reference.shape[-1]))[:, None] ** 2
        seen = (frames * bare).sum(0) / bare.sum(0).clamp(min=1e-6)
        known = self.hidden * (bare.sum(0)[0] > 0.5)
        return replace(self, behind=torch.lerp(self.behind, seen, known))


@dataclass(frozen=True)
class _Path:
    """A way of the thing through the clip: its poses [F, 4] and how far it goes."""

    poses: torch.Tensor
    travel: float
    unexplained: float


def _coverage(mask: torch.Tensor, poses: torch.Tensor, side: int) -> torch.Tensor:
    """The thing's coverage [K, S, S] in poses [K, 4]."""
    # drawn finer than it is shown: halved, so that its edges stay smooth
    halved = F.avg_pool2d(mask[None, None], 2)
    grid = F.affine_grid(_sprite_maps(poses), [len(poses), 1, side, side], align_corners=False)
    rows = rearrange(grid, "k h w c -> 1 (k h) w c")
    cover = F.grid_sample(halved, rows, mode="bilinear", padding_mode="zeros", align_corners=False)
    return rearrange(cover, "1 1 (k h) w -> k h w", k=len(poses))


def _widen(cover: torch.Tensor) -> torch.Tensor:
    return F.max_pool2d(cover[None], 5, stride=1, padding=2)[0]


def _poses(start: Placement, motion: str, travels: torch.Tensor) -> torch.Tensor:
    return torch.stack([_pose(start, motion, float(travel)) for travel in travels])


def _slide_path(frames: torch.Tensor, stage: _Stage, motion: str) -> _Path:
    fastest = SPEEDS[motion][1]
    travels = _travels(fastest, len(frames))
    moved, stayed = stage.errors(frames, _poses(stage.start, motion, travels))
    steps = _monotone_path(moved, math.ceil(1.6 * fastest / STEP))
    index = torch.arange(len(steps))
    far = travels[steps]
    return _Path(_poses(stage.start, motion, far), float(far[-1]), _ratio(moved[index, steps], stayed[index, steps]))


def _shake_path(frames: torch.Tensor, stage: _Stage) -> _Path:
    """To and fro as `thing_path` does it, either way round."""
    reach = 7.0
    moved, stayed = stage.errors(frames, _poses(stage.start, "shake", torch.arange(-reach, reach + STEP, STEP)))
    sizes = torch.cat([torch.arange(0.5, reach, 0.5), -torch.arange(0.5, reach, 0.5)])
    offsets = sizes[:, None] * thing_path("shake", 1.0, len(frames), Placement())[:, 0] * REFERENCE_SIDE / 2
    best, ratio = _best_steady(moved, stayed, (offsets + reach) / STEP)
    return _Path(_poses(stage.start, "shake", offsets[best]), 2 * float(sizes[best].abs()), ratio)


def _spin_path(frames: torch.Tensor, stage: _Stage) -> _Path:
    """Round at a steady speed, either way round."""
    travels = torch.arange(0.0, math.pi * stage.start.half * REFERENCE_SIDE, STEP)
    # once round is back at the start
    moved, stayed = (torch.cat([e, e[:, :1]], 1) for e in stage.errors(frames, _poses(stage.start, "spin", travels)))
    speeds = torch.cat([torch.arange(0.1, 5.0, 0.1), -torch.arange(0.1, 5.0, 0.1)])
    far = speeds[:, None] * torch.arange(len(frames))
    best, ratio = _best_steady(moved, stayed, (far / STEP) % len(travels))
    return _Path(_poses(stage.start, "spin", far[best]), float(far[best, -1].abs()), ratio)


def _best_steady(moved: torch.Tensor, stayed: torch.Tensor, positions: torch.Tensor) -> tuple[int, float]:
    """The best of N given paths [N, F] through errors [F, K], and what it leaves unexplained."""
    costs = _along(moved, positions).sum(1)
    best = int(costs.argmin())
    return best, _ratio(costs[best], _along(stayed, positions[best : best + 1]))


def _thing_fits(frames: torch.Tensor, stage: _Stage) -> dict[str, _Fit]:
    paths = {motion: _slide_path(frames, stage, motion) for motion in THING if motion not in ("spin", "shake")}
    paths["shake"], paths["spin"] = _shake_path(frames, stage), _spin_path(frames, stage)
    fits = {motion: _Fit(path.unexplained, path.travel) for motion, path in paths.items()}
    # what comes out from behind the thing was a guess so far: judge the best again by what the clip itself shows there
    for motion in sorted(fits, key=lambda m: fits[m].unexplained)[:BEST_JUDGED_AGAIN]:
        path = paths[motion]
        moved, stayed = stage.uncovered_by(frames, path.poses).errors(frames, path.poses)
        fits[motion] = _Fit(_ratio(moved.diagonal(), stayed.diagonal()), path.travel)
    return fits


def recognise_thing(frames: torch.Tensor, reference: torch.Tensor, start: Placement, mask: torch.Tensor) -> Seen:
    """The motion a clip with a thing on a background shows.

    Args:
        frames: [F, 3, S, S], 0..1.
        reference: [3, S, S], 0..1: the first true frame.
        start: where the thing is in it.
        mask: [T, T], 0..1: the thing's coverage of its square.
    """
    soft = blur(frames, SOFTEN)
    # the clip's own first frame: what a decoder gets wrong of a background that stays is then no change
    first = soft[0]
    cover = _coverage(mask, thing_path("still", 0.0, 1, start), reference.shape[-1])
    hidden = _widen((cover > 0.02).to(first.dtype))[0]
    return _decide(_thing_fits(soft, _Stage(first, _fill(first, hidden), hidden, mask, start)), frames, reference)
