"""Drawn things for the procedural clips: a shape in a fill, as RGBA."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import torch
from PIL import Image, ImageDraw

TEXTURE = 96
Outline = list[tuple[float, float]]

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 48, 40),
    "green": (58, 166, 74),
    "blue": (46, 92, 214),
    "yellow": (240, 204, 50),
    "purple": (140, 70, 190),
    "orange": (240, 136, 40),
    "white": (240, 240, 236),
    "black": (34, 34, 38),
}


def _polar(radius: Callable[[float], float], steps: int = 120) -> Outline:
    angles = [2 * math.pi * i / steps for i in range(steps)]
    return [(radius(a) * math.sin(a), -radius(a) * math.cos(a)) for a in angles]


def _star(points: int, inner: float) -> Outline:
    corners = []
    for i in range(2 * points):
        r, a = (1.0 if i % 2 == 0 else inner), math.pi * i / points
        corners.append((r * math.sin(a), -r * math.cos(a)))
    return corners


def _heart() -> Outline:
    angles = [2 * math.pi * i / 120 for i in range(120)]
    return [
        (
            math.sin(a) ** 3,
            -(13 * math.cos(a) - 5 * math.cos(2 * a) - 2 * math.cos(3 * a) - math.cos(4 * a)) / 17,
        )
        for a in angles
    ]


def _fish() -> Outline:
    body = [(-0.35 + 0.65 * math.cos(a), 0.45 * math.sin(a)) for a in (math.pi * i / 30 + 0.35 for i in range(56))]
    return [*body, (0.95, -0.5), (0.75, 0.0), (0.95, 0.5)]


CAR: Outline = [(-1, 0.45), (-1, 0), (-0.6, -0.05), (-0.35, -0.5), (0.35, -0.5), (0.65, -0.05), (1, 0.05), (1, 0.45)]
HOUSE: Outline = [(-0.8, 0.9), (-0.8, -0.1), (-1, -0.1), (0, -1), (1, -0.1), (0.8, -0.1), (0.8, 0.9)]
ROCKET: Outline = [(0, -1), (0.35, -0.4), (0.35, 0.4), (0.75, 0.95), (-0.75, 0.95), (-0.35, 0.4), (-0.35, -0.4)]
ARROWHEAD: Outline = [(0, -1), (0.9, 0.9), (0, 0.45), (-0.9, 0.9)]

SHAPES: dict[str, Outline] = {
    "ball": _polar(lambda a: 0.9),
    "star": _star(5, 0.45),
    "heart": _heart(),
    "box": [(-0.8, -0.8), (0.8, -0.8), (0.8, 0.8), (-0.8, 0.8)],
    "diamond": [(0, -1), (0.7, 0), (0, 1), (-0.7, 0)],
    "flower": _polar(lambda a: 0.7 + 0.25 * math.cos(6 * a)),
    "fish": _fish(),
    "car": CAR,
    "house": HOUSE,
    "leaf": _polar(lambda a: 0.35 + 0.6 * abs(math.cos(a)) ** 1.5),
    "cross": [
        (-0.3, -0.9),
        (0.3, -0.9),
        (0.3, -0.3),
        (0.9, -0.3),
        (0.9, 0.3),
        (0.3, 0.3),
        (0.3, 0.9),
        (-0.3, 0.9),
        (-0.3, 0.3),
        (-0.9, 0.3),
        (-0.9, -0.3),
        (-0.3, -0.3),
    ],
    "gem": _polar(lambda a: 0.9, steps=6),
}
HELD_OUT_SHAPES: dict[str, Outline] = {
    "rocket": ROCKET,
    "snowflake": _star(8, 0.6),
    "butterfly": _polar(lambda a: 0.25 + 0.7 * abs(math.sin(2 * a)) ** 0.7),
    "arrow": ARROWHEAD,
}

ODD_NAMES = ("shape", "thing", "blob")


def odd_outline(rng: np.random.Generator) -> Outline:
    """A shape that nobody named: a blob, a polygon of 4 to 9 corners, or petals, of any proportions."""
    kind = rng.integers(3)
    if kind == 0:
        heights, turns = rng.uniform(-1, 1, 5) * (0.25, 0.25, 0.2, 0.15, 0.1), rng.uniform(0, 2 * math.pi, 5)
        waves = list(zip(heights, turns, strict=True))
        outline = _polar(lambda a: min(1.0, max(0.15, 0.65 + sum(h * math.cos(n * a + t) for n, (h, t) in enumerate(waves, 1)))))
    elif kind == 1:
        corners = int(rng.integers(4, 10))
        # a corner a sector: angles drawn anywhere leave slivers
        angles = 2 * math.pi * (np.arange(corners) + rng.uniform(0, 0.8, corners)) / corners
        outline = [(r * math.sin(a), -r * math.cos(a)) for r, a in zip(rng.uniform(0.4, 1, corners), angles, strict=True)]
    else:
        petals, inner, bend = int(rng.integers(2, 9)), rng.uniform(0.25, 0.75), rng.uniform(0.5, 2)
        outline = _polar(lambda a: inner + (0.95 - inner) * abs(math.cos(petals * a / 2)) ** bend)
    wide, high = rng.uniform(0.6, 1, 2)
    return [(float(wide * x), float(high * y)) for x, y in outline]


def shape_mask(outline: Outline) -> np.ndarray:
    """The shape's coverage [TEXTURE, TEXTURE], 0..1, antialiased; its unit square spans 80 % of the texture."""
    scale = 4
    image = Image.new("L", (TEXTURE * scale, TEXTURE * scale))
    half = TEXTURE * scale / 2
    ImageDraw.Draw(image).polygon([(half + 0.8 * half * x, half + 0.8 * half * y) for x, y in outline], fill=255)
    return np.asarray(image.resize((TEXTURE, TEXTURE), Image.Resampling.BOX), dtype=np.float32) / 255


def colour_fill(colour: str, rng: np.random.Generator) -> np.ndarray:
    """[TEXTURE, TEXTURE, 3] in the named colour with a light from one side and, half the time, stripes or dots."""
    base = np.array(COLOURS[colour], dtype=np.float32) / 255
    y, x = np.mgrid[-1 : 1 : TEXTURE * 1j, -1 : 1 : TEXTURE * 1j].astype(np.float32)
    angle = rng.uniform(0, 2 * math.pi)
    light = 0.85 + 0.25 * (x * math.cos(angle) + y * math.sin(angle))
    fill = base * light[..., None]
    pattern = rng.integers(4)
    if pattern >= 2:
        wave = np.sin(rng.uniform(6, 12) * (x * math.cos(angle) - y * math.sin(angle)))
        if pattern == 3:
            wave = wave * np.sin(rng.uniform(6, 12) * (x * math.sin(angle) + y * math.cos(angle)))
        second = np.array(list(COLOURS.values())[rng.integers(len(COLOURS))], dtype=np.float32) / 255
        # the named colour must stay the larger part, or the caption would be wrong by accident
        fill = np.where((wave > 0.55)[..., None], second, fill)
    return fill.clip(0, 1)


def draw_sprite(outline: Outline, fill: np.ndarray) -> torch.Tensor:
    """RGBA [4, TEXTURE, TEXTURE], 0..1, with a darker rim so that it stands out from any background."""
    mask = shape_mask(outline)
    core = shape_mask([(0.88 * x, 0.88 * y) for x, y in outline])
    rgb = fill * (0.45 + 0.55 * core[..., None])
    return torch.from_numpy(np.concatenate([rgb, mask[..., None]], axis=2).astype(np.float32)).permute(2, 0, 1)
