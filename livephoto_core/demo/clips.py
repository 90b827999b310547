"""The procedural clip set: an index in, a captioned clip out, the same on every machine and in any order."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import torch

from .captions import TEMPLATES, caption, wrong_words
from .motions import CAMERA, MOTIONS, STILL, THING, Placement
from .photos import Photo
from .scenes import Scene, Thing, render, speed_for
from .sprites import COLOURS, ODD_NAMES, Outline, colour_fill, draw_sprite, odd_outline

PHOTO_MOTIONS = tuple(m for m in MOTIONS if m not in THING)
# 1 - SSIM of adjacent frames that clips aim at; every motion covers as much of it as it can reach
SLOWEST, FASTEST = 0.004, 0.20


@dataclass(frozen=True)
class DemoClip:
    """A rendered clip [F, 3, S, S] in 0..1 with its caption, the scene it came from and its true speed."""

    frames: torch.Tensor
    caption: str
    scene: Scene
    speed: float
    wrong_content: bool


def _texture(rng: np.random.Generator, side: int = 160) -> torch.Tensor:
    """A textured backdrop [3, side, side]: smooth noise of a few octaves in two colours."""
    total = torch.zeros(1, 1, side, side)
    for cells in (3, 7, 17, 41):
        noise = torch.from_numpy(rng.standard_normal((1, 1, cells, cells)).astype(np.float32))
        total += torch.nn.functional.interpolate(noise, size=(side, side), mode="bicubic") / math.sqrt(cells)
    mix = torch.sigmoid(2.5 * total[0])
    first, second = (torch.from_numpy(rng.uniform(0.05, 0.95, 3).astype(np.float32))[:, None, None] for _ in range(2))
    return first * mix + second * (1 - mix)


def _start(motion: str, rng: np.random.Generator) -> Placement:
    """A first place that leaves the motion room in the frame."""
    half = float(rng.uniform(0.33, 0.55))
    if motion == "grow":
        half = float(rng.uniform(0.25, 0.4))
    if motion == "shrink":
        half = float(rng.uniform(0.45, 0.7))
    x, y = (float(v) for v in rng.uniform(-0.35, 0.35, 2))
    if motion in ("move left", "move right"):
        x = float(rng.uniform(0, 0.5)) * (1 if motion == "move left" else -1)
    if motion in ("move up", "move down"):
        y = float(rng.uniform(0, 0.5)) * (1 if motion == "move up" else -1)
    return Placement(x, y, half, float(rng.uniform(-0.4, 0.4)))


def _window(backdrop: torch.Tensor, room: float, rng: np.random.Generator) -> tuple[float, float, float]:
    """A window of the backdrop (centre x, y and half width, short side = 2) with `room` around it where there is any."""
    height, width = backdrop.shape[1:]
    short = min(height, width)
    half = float(rng.uniform(0.5, 0.9))
    half = min(half, 1 / (1 + room)) if room else half
    free_x = max(0.0, width / short - half * (1 + room))
    free_y = max(0.0, height / short - half * (1 + room))
    return float(rng.uniform(-free_x, free_x)), float(rng.uniform(-free_y, free_y)), half


@dataclass(frozen=True)
class ClipSet:
    """Clips drawn from photographs and shapes. `thing_share` of them carry a thing that moves; the rest are whole photographs.

    `odd_share` of the things have a shape of their own, under any name, and `mirror_share` of the photographs are mirrored: a
    model that saw a dozen shapes moves those and dissolves others.
    """

    photos: list[Photo]
    shapes: dict[str, Outline]
    frames: int = 16
    size: int = 64
    seed: int = 0
    thing_share: float = 0.45
    wrong_share: float = 0.33
    odd_share: float = 0.0
    mirror_share: float = 0.0
    templates: dict[str, tuple[str, ...]] | None = None

    def scene(self, index: int, motion: str | None = None) -> tuple[Scene, np.random.Generator]:
        """The index's scene, with its own motion or with the one given, and the generator that goes on from there."""
        rng = np.random.default_rng((self.seed, index))
        moves_thing = rng.random() < self.thing_share if motion is None else motion in THING
        drawn = (THING if moves_thing else PHOTO_MOTIONS)[rng.integers(len(THING if moves_thing else PHOTO_MOTIONS))]
        motion = motion or drawn
        photo = self.photos[rng.integers(len(self.photos))]
        on_photo = not moves_thing or rng.random() < 0.6
        backdrop = photo.pixels.float() / 255 if on_photo else _texture(rng)
        thing = None
        colour = list(COLOURS)[rng.integers(len(COLOURS))]
        name = list(self.shapes)[rng.integers(len(self.shapes))]
        if self.mirror_share and rng.random() < self.mirror_share:
            backdrop = backdrop.flip(-1)
        if moves_thing:
            outline = self.shapes[name]
            if self.odd_share and rng.random() < self.odd_share:
                names = (*ODD_NAMES, *self.shapes)
                outline, name = odd_outline(rng), names[rng.integers(len(names))]
            sprite = draw_sprite(outline, colour_fill(colour, rng))
            thing = Thing(sprite, _start(motion, rng), name, colour)
        scene = Scene(
            backdrop=backdrop,
            window=_window(backdrop, 0.4 if motion in CAMERA else 0.0, rng),
            motion=motion,
            thing=thing,
            ball_colour=tuple(v / 255 for v in COLOURS[colour]),
            ball_centre=tuple(float(v) for v in rng.uniform(-0.5, 0.5, 2)),
            seed=int(rng.integers(2**31)),
            words={"colour": colour, "name": name},
        )
        return scene, rng

    def clip(self, index: int, motion: str | None = None) -> DemoClip:
        """Clip `index`: its intensity drawn evenly on a log scale between SLOWEST and FASTEST."""
        scene, rng = self.scene(index, motion)
        target = math.exp(rng.uniform(math.log(SLOWEST), math.log(FASTEST)))
        speed = 0.0 if scene.motion in STILL else speed_for(scene, target, self.frames, self.size)
        return self.filmed(scene, speed, rng)

    def filmed(self, scene: Scene, speed: float, rng: np.random.Generator) -> DemoClip:
        """The scene's clip at a speed, with a caption of its own."""
        colour, name = scene.words["colour"], scene.words["name"]
        wrong = bool(rng.random() < self.wrong_share)
        if wrong:
            colour, name = wrong_words(colour, name, rng)
        text = caption(scene.motion, colour, name, rng, self.templates or TEMPLATES)
        frames = render(scene, speed, self.frames, self.size)
        return DemoClip(frames, text, scene, speed, wrong)
