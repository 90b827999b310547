"""Scenes and their clips: a photograph or a texture, perhaps a thing on it, one motion, one speed."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from einops import rearrange

from ..intensity import clip_ssim
from .motions import (
    CAMERA,
    SPEEDS,
    STILL,
    THING,
    Placement,
    appearing_ball,
    camera_path,
    falling,
    flicker_gain,
    ripple_offset,
    sparks,
    thing_path,
)

OVERSAMPLE = 2


@dataclass(frozen=True)
class Thing:
    """A sprite (RGBA [4, T, T]) at its place in the first frame, and the words that name it."""

    sprite: torch.Tensor
    start: Placement
    name: str
    colour: str


@dataclass(frozen=True)
class Scene:
    """Everything about a clip but its speed. `backdrop` is [3, H, W] 0..1; `window` maps the frame into it."""

    backdrop: torch.Tensor
    window: tuple[float, float, float]
    motion: str
    thing: Thing | None = None
    ball_colour: tuple[float, float, float] = (0.8, 0.2, 0.2)
    ball_centre: tuple[float, float] = (0.0, 0.0)
    seed: int = 0
    words: dict[str, str] = field(default_factory=dict)


def _grid(theta: torch.Tensor, side: int) -> torch.Tensor:
    """Sampling positions [F, side, side, 2] of affine maps [F, 2, 3]."""
    return F.affine_grid(theta, [theta.shape[0], 1, side, side], align_corners=False)


def _sample(picture: torch.Tensor, grid: torch.Tensor, padding: str) -> torch.Tensor:
    """[C, H, W] read at [F, s, s, 2] -> [F, C, s, s]; one picture for all frames, never repeated in memory."""
    frames = grid.shape[0]
    flat = rearrange(grid, "f h w c -> 1 (f h) w c")
    out = F.grid_sample(picture[None], flat, mode="bilinear", padding_mode=padding, align_corners=False)
    return rearrange(out[0], "c (f h) w -> f c h w", f=frames)


def _frame_to_backdrop(scene: Scene, grid: torch.Tensor) -> torch.Tensor:
    """Frame units to the backdrop's: the window is (centre x, centre y, half width), all relative to the short side."""
    height, width = scene.backdrop.shape[1:]
    short = min(height, width)
    x, y, half = scene.window
    aspect = torch.tensor([short / width, short / height])
    return (grid * half + torch.tensor([x, y])) * aspect


def _thing_layer(thing: Thing, path: torch.Tensor, camera: torch.Tensor, side: int) -> torch.Tensor:
    """The thing seen by the camera: RGBA [F, 4, side, side]."""
    x, y, half, angle = path.unbind(-1)
    cos, sin = angle.cos() / half, angle.sin() / half
    frames = path.shape[0]
    inverse = torch.stack(
        [torch.stack([cos, sin, -(cos * x + sin * y)], -1), torch.stack([-sin, cos, sin * x - cos * y], -1)], -2
    )
    last = torch.tensor([0.0, 0.0, 1.0]).expand(frames, 1, 3)
    full_camera = torch.cat([camera, last], 1)
    return _sample(thing.sprite, _grid(inverse @ full_camera, side), "zeros")


def render(scene: Scene, speed: float, frames: int, size: int) -> torch.Tensor:
    """The scene's clip [F, 3, size, size], 0..1, at `speed` (pixels a frame of a 64-pixel frame)."""
    side = size * OVERSAMPLE
    rng = np.random.default_rng(scene.seed)
    camera = camera_path(scene.motion, speed, frames)
    grid = _grid(camera, side)
    if scene.motion == "ripple":
        grid = grid.clone()
        grid[..., 0] += ripple_offset(speed, frames, side)
    picture = _sample(scene.backdrop, _frame_to_backdrop(scene, grid), "reflection")
    if scene.thing is not None:
        path = thing_path(scene.motion, speed, frames, scene.thing.start)
        layer = _thing_layer(scene.thing, path, camera, side)
        picture = picture * (1 - layer[:, 3:]) + layer[:, :3] * layer[:, 3:]
    if scene.motion in ("snow", "rain"):
        cover = falling(scene.motion, speed, frames, side, rng)[:, None]
        white = 0.97 if scene.motion == "snow" else 0.8
        picture = picture * (1 - cover) + white * cover
    elif scene.motion == "ball appears":
        cover = appearing_ball(speed, frames, side, scene.ball_centre)[:, None]
        picture = picture * (1 - cover) + torch.tensor(scene.ball_colour)[:, None, None] * cover
    elif scene.motion == "fireworks":
        light = sparks(speed, frames, side, rng)[:, None]
        picture = picture * (1 - light) + torch.tensor([1.0, 0.9, 0.6])[:, None, None] * light
    elif scene.motion == "flicker":
        picture = picture * flicker_gain(speed, frames, rng)[:, None, None, None]
    return F.avg_pool2d(picture, OVERSAMPLE).clamp(0, 1)


def thing_cover(scene: Scene, size: int) -> torch.Tensor:
    """How much of each pixel the scene's thing covers in the first frame: [size, size], 0..1; nothing without a thing."""
    if scene.thing is None:
        return torch.zeros(size, size)
    path = thing_path(scene.motion, 0.0, 1, scene.thing.start)
    layer = _thing_layer(scene.thing, path, camera_path(scene.motion, 0.0, 1), size * OVERSAMPLE)
    return F.avg_pool2d(layer[0, 3:], OVERSAMPLE)[0]


def speed_for(scene: Scene, dissimilarity: float, frames: int, size: int, rounds: int = 2) -> float:
    """A speed whose clip has about `dissimilarity` = 1 - SSIM (mean over adjacent frames), within the motion's range.

    Secant steps on the logarithms: 1 - SSIM grows nearly as a power of the speed.
    """
    slowest, fastest = SPEEDS[scene.motion]
    if scene.motion in STILL:
        return 0.0
    speed, power = math.sqrt(slowest * fastest), 1.3
    last: tuple[float, float] | None = None
    for _ in range(rounds):
        found = 1 - float(clip_ssim(render(scene, speed, frames, size)[min(-2, -frames // 2) :]))
        point = (math.log(speed), math.log(max(found, 1e-4)))
        if last is not None and abs(point[0] - last[0]) > 1e-3:
            power = min(3.0, max(0.5, (point[1] - last[1]) / (point[0] - last[0])))
        last = point
        step = (math.log(dissimilarity) - point[1]) / power
        speed = min(fastest, max(slowest, math.exp(point[0] + step)))
    return speed


def true_path(scene: Scene, speed: float, frames: int) -> torch.Tensor:
    """Where the subject's points of frame 0 come from in each frame: affine maps [F, 2, 3], output to first frame.

    The picture for camera motions, the thing for its own; in frame units. Used to hold a clip against its true motion.
    """
    if scene.motion in CAMERA or scene.motion not in THING or scene.thing is None:
        return camera_path(scene.motion, speed, frames)
    start = scene.thing.start
    x, y, half, angle = thing_path(scene.motion, speed, frames, start).unbind(-1)
    scale, turn = start.half / half, start.angle - angle
    cos, sin = scale * turn.cos(), scale * turn.sin()
    shift_x = start.x - (cos * x - sin * y)
    shift_y = start.y - (sin * x + cos * y)
    return torch.stack([torch.stack([cos, -sin, shift_x], -1), torch.stack([sin, cos, shift_y], -1)], -2)
