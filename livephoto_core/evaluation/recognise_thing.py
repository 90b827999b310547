"""Which motion a clip with a thing on a background shows, found without learned weights by analysis through synthesis.

The scene is put together with the thing in every pose of every path of the vocabulary, and slid as a whole as a camera would; what
looks most like the clip is the motion seen, if it explains clearly more than a scene that stays. Distances are in pixels of a
64-pixel frame.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from einops import rearrange

from ..demo.motions import REFERENCE_SIDE, SPEEDS, THING, Placement, thing_path
from .matching import (
    SOFTEN,
    STEP,
    blur,
    flattened,
    matching_error,
    monotone_path,
    possible_travels,
    share_left,
    staying_error,
    warp,
)
from .recognise_camera import camera_fits
from .verdict import Fit, Seen, decide

BEST_JUDGED_AGAIN = 3


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
    things = _thing_fits(soft, _Stage(first, _fill(first, hidden), hidden, mask, start))
    # the thing goes too where the camera does: only the rest of the picture tells
    return decide({**things, **camera_fits(soft, first)}, frames, reference)


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
        matching = matching_error(flattened(frames), flattened(pictures), places)
        return matching, staying_error(flattened(frames), self.reference - 0.5, places)

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


def _poses(start: Placement, motion: str, travels: torch.Tensor) -> torch.Tensor:
    return torch.stack([_pose(start, motion, float(travel)) for travel in travels])


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


def _thing_fits(frames: torch.Tensor, stage: _Stage) -> dict[str, Fit]:
    paths = {motion: _slide_path(frames, stage, motion) for motion in THING if motion not in ("spin", "shake")}
    paths["shake"], paths["spin"] = _shake_path(frames, stage), _spin_path(frames, stage)
    fits = {motion: Fit(path.unexplained, path.travel) for motion, path in paths.items()}
    # what comes out from behind the thing was a guess so far: judge the best again by what the clip itself shows there
    for motion in sorted(fits, key=lambda m: fits[m].unexplained)[:BEST_JUDGED_AGAIN]:
        path = paths[motion]
        moved, stayed = stage.uncovered_by(frames, path.poses).errors(frames, path.poses)
        fits[motion] = Fit(share_left(moved.diagonal(), stayed.diagonal()), path.travel)
    return fits


def _slide_path(frames: torch.Tensor, stage: _Stage, motion: str) -> _Path:
    fastest = SPEEDS[motion][1]
    travels = possible_travels(fastest, len(frames))
    moved, stayed = stage.errors(frames, _poses(stage.start, motion, travels))
    steps = monotone_path(moved, math.ceil(1.6 * fastest / STEP))
    index = torch.arange(len(steps))
    far = travels[steps]
    return _Path(_poses(stage.start, motion, far), float(far[-1]), share_left(moved[index, steps], stayed[index, steps]))


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
    return best, share_left(costs[best], _along(stayed, positions[best : best + 1]))


def _along(error: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
    """Error [F, K] read at fractional positions [N, F], linear in between -> [N, F]."""
    positions = positions.clamp(0, error.shape[1] - 1)
    low = positions.floor().long().clamp(max=error.shape[1] - 2)
    share = positions - low
    rows = error[None].expand(len(positions), -1, -1)
    return rows.gather(2, low[..., None])[..., 0] * (1 - share) + rows.gather(2, low[..., None] + 1)[..., 0] * share
