"""Procedural motion: what moves how, as pure functions of a speed and a frame count.

Geometry is in frame units: the frame spans -1..1 on both axes, y down. Speeds are in pixels a frame of a 64-pixel frame;
frame 0 is always the untouched photograph, so that it can serve as the reference.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

REFERENCE_SIDE = 64

CAMERA = (
    "pan left",
    "pan right",
    "pan up",
    "pan down",
    "zoom in",
    "zoom out",
    "turn clockwise",
    "turn counterclockwise",
)
THING = ("move left", "move right", "move up", "move down", "grow", "shrink", "spin", "shake")
NATURE = ("snow", "rain", "ripple", "flicker")
THIN_AIR = ("ball appears", "fireworks")
STILL = ("still",)
MOTIONS = CAMERA + THING + NATURE + THIN_AIR + STILL

# slowest and fastest speed of each motion, chosen so that the fastest still keeps the subject in the picture
SPEEDS: dict[str, tuple[float, float]] = {
    **dict.fromkeys(CAMERA, (0.03, 1.4)),
    **dict.fromkeys(THING[:4], (0.05, 2.2)),
    "grow": (0.04, 1.2),
    "shrink": (0.04, 1.0),
    "spin": (0.05, 4.0),
    "shake": (0.1, 5.0),
    "snow": (0.1, 3.0),
    "rain": (0.1, 5.0),
    "ripple": (0.03, 2.5),
    "flicker": (0.01, 0.8),
    "ball appears": (0.1, 2.0),
    "fireworks": (0.1, 2.5),
    "still": (0.0, 0.0),
}


@dataclass(frozen=True)
class Placement:
    """Where the thing is in the first frame: centre in frame units, half size in frame units, angle in radians."""

    x: float = 0.0
    y: float = 0.0
    half: float = 0.35
    angle: float = 0.0


def _units(pixels: torch.Tensor) -> torch.Tensor:
    return pixels * 2 / REFERENCE_SIDE


def _steps(speed: float, frames: int) -> torch.Tensor:
    return speed * torch.arange(frames, dtype=torch.float32)


def camera_path(motion: str, speed: float, frames: int) -> torch.Tensor:
    """Affine maps [F, 2, 3] from output position to source position for one of CAMERA (identity for anything else).

    Camera words mean the camera: "pan left" looks further left, so the picture moves right. For zooms and turns the speed is
    that of the middle of the frame's edge.
    """
    travel = _units(_steps(speed, frames))
    scale, angle = torch.ones(frames), torch.zeros(frames)
    x, y = torch.zeros(frames), torch.zeros(frames)
    if motion in ("pan left", "pan right"):
        x = travel if motion == "pan right" else -travel
    elif motion in ("pan up", "pan down"):
        y = travel if motion == "pan down" else -travel
    elif motion in ("zoom in", "zoom out"):
        scale = torch.exp(-travel if motion == "zoom in" else travel)
    elif motion in ("turn clockwise", "turn counterclockwise"):
        angle = travel if motion == "turn clockwise" else -travel
    cos, sin = scale * angle.cos(), scale * angle.sin()
    return torch.stack([torch.stack([cos, -sin, x], -1), torch.stack([sin, cos, y], -1)], -2)


def thing_path(motion: str, speed: float, frames: int, start: Placement) -> torch.Tensor:
    """The thing's [F, 4] centre x, y, half size and angle for one of THING (unmoved for anything else)."""
    steps = _steps(speed, frames)
    travel = _units(steps)
    x, y = torch.full((frames,), start.x), torch.full((frames,), start.y)
    half, angle = torch.full((frames,), start.half), torch.full((frames,), start.angle)
    if motion in ("move left", "move right"):
        x = x + (travel if motion == "move right" else -travel)
    elif motion in ("move up", "move down"):
        y = y + (travel if motion == "move down" else -travel)
    elif motion in ("grow", "shrink"):
        half = half * torch.exp((travel if motion == "grow" else -travel) / (2 * start.half))
    elif motion == "spin":
        angle = angle + travel / start.half
    elif motion == "shake":
        # a period of five frames: every phase is seen, and the first frame is at rest
        x = x + _units(speed * torch.sin(torch.arange(frames) * 2 * math.pi / 5))
    return torch.stack([x, y, half, angle], -1)


def ripple_offset(speed: float, frames: int, side: int) -> torch.Tensor:
    """Sideways displacement [F, side, 1] of each row in frame units: travelling waves, none in the first frame."""
    rows = torch.linspace(-1, 1, side)
    phase = torch.arange(frames, dtype=torch.float32)[:, None] * 0.7
    wave = torch.sin(3 * math.pi * rows[None] + phase) - torch.sin(3 * math.pi * rows[None])
    return _units(speed * wave)[..., None]


def flicker_gain(speed: float, frames: int, rng: np.random.Generator) -> torch.Tensor:
    """Brightness factor [F] of the light, 1 in the first frame; `speed` is its largest deviation."""
    gain = 1 + speed * torch.from_numpy(rng.uniform(-1, 0.6, frames).astype(np.float32))
    gain[0] = 1
    return gain


def _splats(
    centre_x: torch.Tensor,
    centre_y: torch.Tensor,
    width_x: torch.Tensor,
    width_y: torch.Tensor,
    weight: torch.Tensor,
    side: int,
) -> torch.Tensor:
    """Coverage [F, side, side], 0..1, of soft dots; all arguments [F, N], lengths in frame units."""
    axis = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    across = torch.exp(-0.5 * ((axis - centre_x[..., None]) / width_x[..., None]) ** 2)
    down = torch.exp(-0.5 * ((axis - centre_y[..., None]) / width_y[..., None]) ** 2)
    return torch.einsum("fny,fnx->fyx", down * weight[..., None], across).clamp(max=1)


def falling(motion: str, speed: float, frames: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    """Coverage [F, side, side] of snow flakes or rain streaks: thin air in the first frame, full after a few."""
    snow = motion == "snow"
    count = 45 if snow else 40
    time = torch.arange(frames, dtype=torch.float32)[:, None]
    x, y, size = (torch.from_numpy(rng.uniform(-1, 1, count).astype(np.float32)) for _ in range(3))
    drop = _units(time * speed * (1.0 + 0.2 * size))
    fall = (y + 1.2 + drop) % 2.4 - 1.2
    sway = 0.03 * torch.sin(time * 0.5 + 6 * y) * min(1.0, speed) if snow else torch.zeros_like(drop)
    pixel = 2 / REFERENCE_SIDE
    wide = (1.1 + 0.25 * size if snow else torch.full_like(size, 0.55)) * pixel
    tall = wide if snow else torch.full_like(size, 3.0) * pixel
    opacity = (0.9 if snow else 0.7) * min(1.0, 0.35 + speed / 2) * (time / 3).clamp(max=1)
    shape = (frames, count)
    return _splats(x + sway, fall, wide.expand(shape), tall.expand(shape), opacity.expand(shape), side)


def appearing_ball(speed: float, frames: int, side: int, centre: tuple[float, float]) -> torch.Tensor:
    """Coverage [F, side, side] of a ball that swells out of thin air, up to a third of the frame's width."""
    axis = torch.linspace(-1 + 1 / side, 1 - 1 / side, side)
    distance = ((axis[None, :] - centre[0]) ** 2 + (axis[:, None] - centre[1]) ** 2).sqrt()
    radius = _units(_steps(speed, frames)).clamp(max=0.34)[:, None, None]
    edge = 2 / REFERENCE_SIDE
    return ((radius - distance) / edge).clamp(0, 1)


def sparks(speed: float, frames: int, side: int, rng: np.random.Generator) -> torch.Tensor:
    """Light [F, side, side] of two bursts of fireworks, the second some frames after the first; dark in frame 0."""
    light = torch.zeros(frames, side, side)
    for start in (0, 6):
        centre = rng.uniform((-0.55, -0.6), (0.55, 0.1)).astype(np.float32)
        angle = torch.linspace(0, 2 * math.pi, 15)[:-1] + float(rng.uniform(0, 1))
        age = (torch.arange(frames, dtype=torch.float32) - start).clamp(min=0)[:, None]
        radius = _units(age * speed)
        pixel = torch.full((frames, len(angle)), 1.1 * 2 / REFERENCE_SIDE)
        weight = ((age > 0) * torch.exp(-age / 12)).expand(frames, len(angle))
        light += _splats(centre[0] + radius * angle.cos(), centre[1] + radius * angle.sin(), pixel, pixel, weight, side)
    return light.clamp(max=1)
