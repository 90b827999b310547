"""MotionBench's suite: what every system is asked to make, the same for everybody who has the same photographs."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from ..demo.captions import PLACES, TEMPLATES, UNSEEN, caption, wrong_words
from ..demo.clips import FASTEST, SLOWEST, DemoClip
from ..demo.motions import MOTIONS, STILL, THING
from ..demo.photos import Photo, load_photos, package_photos
from ..demo.scenes import Scene, render
from ..demo.sprites import COLOURS, HELD_OUT_SHAPES
from ..errors import LivePhotoError
from ..intensity import LEVELS
from .bench import bench_clips

# raise it with any change that gives other cases, photographs or frames
VERSION = 1
SEED = 1000
FRAMES, SIZE = 16, 64
# equal steps of log (1 - SSIM), over which the clips' speeds are drawn evenly
THRESHOLDS = tuple(1 - SLOWEST * (FASTEST / SLOWEST) ** (k / LEVELS) for k in range(1, LEVELS))
WORDINGS = ("trained", "unseen", "wrong")
MOVING = tuple(motion for motion in MOTIONS if motion not in STILL)


@dataclass(frozen=True)
class Plan:
    """Which motions are asked for and on how many scenes each: for the text in each of WORDINGS, for the level at 1..10."""

    text_motions: Sequence[str]
    text_scenes: int
    level_motions: Sequence[str]
    level_scenes: int


PLANS = {
    "full": Plan(MOTIONS, 6, MOVING, 2),
    "medium": Plan(
        MOTIONS,
        2,
        ("pan left", "pan up", "zoom in", "turn clockwise", "move right", "move up", "spin", "grow", "ripple", "snow"),
        1,
    ),
    # what the shipped demo can do at least in part, so that a figure has room both ways
    "short": Plan(
        ("pan left", "pan up", "zoom in", "turn clockwise", "flicker", "move left", "move right", "move up", "grow", "spin"),
        2,
        ("pan right", "pan up", "zoom out", "turn counterclockwise", "move left", "move down", "grow", "spin"),
        1,
    ),
    "reduced": Plan(
        ("pan left", "zoom in", "move right", "grow", "snow", "flicker", "still"), 1, ("pan right", "zoom out", "move up"), 1
    ),
}


@dataclass(frozen=True)
class Case:
    """One clip to make.

    `clip` is the true clip at SIZE; its first frame is the photo. `level` of None means the true clip's level on the system's
    own scale. Cases of one scene share photo and seed.
    """

    name: str
    scene: str
    clip: DemoClip
    text: str
    wording: str
    level: int | None
    seed: int

    @property
    def motion(self) -> str:
        return self.clip.scene.motion


@dataclass(frozen=True)
class Suite:
    """The cases for the text, those for the level, and a fingerprint of all texts, levels, seeds and first frames."""

    plan: str
    text: tuple[Case, ...]
    level: tuple[Case, ...]
    fingerprint: str

    @property
    def scenes(self) -> dict[str, DemoClip]:
        """{name: its true clip} of every scene."""
        return {case.scene: case.clip for case in (*self.text, *self.level)}


def draw_suite(photos: list[Photo], plan: str) -> Suite:
    """The cases of one of PLANS on given photographs; the same again for the same photographs.

    Raises:
        LivePhotoError: an unknown plan, or photographs so flat that no motion is visible on them.
    """
    if plan not in PLANS:
        raise LivePhotoError(f"unknown suite {plan!r}: choose one of {', '.join(PLANS)}")
    chosen = PLANS[plan]
    text = [
        Case(f"{scene}-{wording}", scene, clip, _text(clip.scene, wording, number), wording, None, SEED + number)
        for number, scene, clip in _scenes(photos, "text", chosen.text_motions, chosen.text_scenes, SEED)
        for wording in WORDINGS
    ]
    levels = [
        Case(f"{scene}-{level:02}", scene, clip, _text(clip.scene, "trained", number), "trained", level, SEED + number)
        for number, scene, clip in _scenes(photos, "level", chosen.level_motions, chosen.level_scenes, SEED + 1)
        for level in range(1, LEVELS + 1)
    ]
    return Suite(plan, tuple(text), tuple(levels), _fingerprint([*text, *levels]))


def suite_photos(folder: str | Path | None) -> list[Photo]:
    """The photographs of the user's own folder; of None, those of the installed photo packages that nothing is trained on.

    Raises:
        LivePhotoError: no photo package is installed, or the folder has no photograph.
    """

    if folder is None:
        return package_photos()[1]
    photos = load_photos([Path(folder)])
    if not photos:
        raise LivePhotoError(f"{folder} has no photograph (JPEG, PNG or WebP, neither black nor flat): give one that has")
    return photos


def first_frame(clip: DemoClip, size: int) -> torch.Tensor:
    """The photo of a scene [3, size, size], 0..1, drawn anew at that size and not enlarged."""
    if size == clip.frames.shape[-1]:
        return clip.frames[0]
    return render(clip.scene, clip.speed, 1, size)[0]


def _scenes(photos: list[Photo], part: str, motions: Sequence[str], each: int, seed: int) -> list[tuple[int, str, DemoClip]]:
    """(number, name, true clip) of `each` scenes a motion."""
    clips = bench_clips(photos, HELD_OUT_SHAPES, motions, each * len(motions), seed, FRAMES, SIZE)
    found = []
    for number, clip in enumerate(clips):
        found.append((number, f"{part}-{clip.scene.motion.replace(' ', '_')}-{number // len(motions)}", clip))
    return found


def _text(scene: Scene, wording: str, number: int) -> str:
    rng = np.random.default_rng((SEED, number, WORDINGS.index(wording)))
    colour, name = scene.words["colour"], scene.words["name"]
    if wording != "wrong":
        return caption(scene.motion, colour, name, rng, UNSEEN if wording == "unseen" else TEMPLATES)
    colour, name = wrong_words(colour, name, rng)
    text = caption(scene.motion, colour, name, rng, TEMPLATES)
    if scene.motion in (*THING, "ball appears") or " in a " in text:
        return text
    # a photograph has no words of its own: a place that it does not show
    return f"{text} in a {list(COLOURS)[rng.integers(len(COLOURS))]} {PLACES[rng.integers(len(PLACES))]}"


def _fingerprint(cases: Sequence[Case]) -> str:
    digest = hashlib.sha256(json.dumps([VERSION, *([c.name, c.text, c.level, c.seed] for c in cases)]).encode())
    for clip in {case.scene: case.clip for case in cases}.values():
        digest.update((clip.frames[0] * 255).round().byte().numpy().tobytes())
    return digest.hexdigest()[:16]
