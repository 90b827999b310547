"""Measures clips that a model makes: the motion seen in them, how they follow the level, and what the words weigh."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from ..demo.clips import DemoClip
from ..demo.motions import CAMERA, THING
from ..demo.sprites import COLOURS
from ..intensity import clip_ssim, level
from .figures import dissimilarity, first_frame_psnr, fit_psnr, sharpness_ratio
from .generate import Generate
from .recognise_photo import recognise_photo
from .recognise_thing import recognise_thing
from .verdict import Seen

LEVELS = (1, 3, 5, 7, 10)
NEUTRAL = LEVELS[2]
# without "in", which tells a place as often as a zoom
MOTION_WORDS = (
    *("left", "right", "up", "down", "upwards", "downwards", "out", "closer", "away", "clockwise", "counterclockwise"),
    *("grows", "growing", "bigger", "shrinks", "shrinking", "smaller", "rises", "sinks"),
)
RoundTrip = Callable[[torch.Tensor], torch.Tensor]
WordWeights = Callable[[str], list[tuple[str, float]]]


@dataclass(frozen=True)
class Model:
    """What is measured: making clips, the VAE there and back [N, 3, S, S], the level thresholds and the words' weights.

    `levels_from` says on what clips were measured to train it, their "reconstruction" by the VAE or the "frames" themselves.
    """

    generate: Generate
    round_trip: RoundTrip
    thresholds: Sequence[float]
    words: WordWeights
    levels_from: str = "reconstruction"


@dataclass(frozen=True)
class Made:
    """One clip that was made, and what was measured on it."""

    group: str
    motion: str
    caption: str
    level: int
    seen: Seen
    limit: Seen
    dissimilarity: float
    first: float
    first_limit: float
    sharp: float
    fit: float

    @property
    def right(self) -> bool:
        return self.seen.motion == self.motion


@dataclass(frozen=True)
class Levelled:
    """One scene at each of LEVELS, at its true clip's level and at NEUTRAL: 1 - SSIM of each, and whether its motion is right."""

    motion: str
    true_level: int
    at_levels: list[float]
    at_true: float
    at_neutral: float
    right: bool


def recognise(frames: torch.Tensor, clip: DemoClip) -> Seen:
    """The motion that frames [F, 3, S, S] made from the clip's first frame show."""
    thing = clip.scene.thing
    if thing is None:
        return recognise_photo(frames, clip.frames[0])
    return recognise_thing(frames, clip.frames[0], thing.start, thing.sprite[3])


def true_level(clip: DemoClip, model: Model, restored: torch.Tensor | None = None) -> int:
    """The clip's level as training measures it; `restored` is its VAE round trip, where that is at hand."""
    if model.levels_from == "frames":
        return level(float(clip_ssim(clip.frames)), model.thresholds)
    seen = model.round_trip(clip.frames) if restored is None else restored
    return level(float(clip_ssim(seen)), model.thresholds)


def measure_clips(model: Model, group: str, clips: Sequence[DemoClip], seed: int, batch: int) -> list[Made]:
    """Each clip made anew from its first frame, its caption and its true level, and measured; noise from seed + place."""
    made = []
    for start in tqdm(range(0, len(clips), batch), desc=group):
        part = clips[start : start + batch]
        truths = [model.round_trip(clip.frames) for clip in part]
        levels = [true_level(clip, model, truth) for clip, truth in zip(part, truths, strict=True)]
        frames = _generate(model, part, levels, seed + start)
        made += [_measure(group, *row) for row in zip(part, levels, frames, truths, strict=True)]
    return made


def _measure(group: str, clip: DemoClip, wanted: int, frames: torch.Tensor, truth: torch.Tensor) -> Made:
    motion = clip.scene.motion
    return Made(
        group=group,
        motion=motion,
        caption=clip.caption,
        level=wanted,
        seen=recognise(frames, clip),
        limit=recognise(truth, clip),
        dissimilarity=dissimilarity(frames),
        first=first_frame_psnr(frames, clip.frames[0]),
        first_limit=first_frame_psnr(truth, clip.frames[0]),
        sharp=sharpness_ratio(frames, clip),
        fit=fit_psnr(frames, clip) if motion in (*CAMERA, *THING) else float("nan"),
    )


def measure_levels(model: Model, clips: Sequence[DemoClip], seed: int, batch: int) -> list[Levelled]:
    """Each clip made at every level from the same noise of its own, and measured."""
    found = []
    for start in tqdm(range(0, len(clips), batch), desc="levels"):
        part = clips[start : start + batch]
        levels = [true_level(clip, model) for clip in part]
        own = _generate(model, part, levels, seed + start)
        at = {wanted: _generate(model, part, [wanted] * len(part), seed + start) for wanted in LEVELS}
        for i, clip in enumerate(part):
            found.append(
                Levelled(
                    motion=clip.scene.motion,
                    true_level=levels[i],
                    at_levels=[dissimilarity(at[wanted][i]) for wanted in LEVELS],
                    at_true=dissimilarity(own[i]),
                    at_neutral=dissimilarity(at[NEUTRAL][i]),
                    right=recognise(own[i], clip).motion == clip.scene.motion,
                )
            )
    return found


def _generate(model: Model, clips: Sequence[DemoClip], levels: Sequence[int], seed: int) -> torch.Tensor:
    photos = torch.stack([clip.frames[0] for clip in clips])
    return model.generate(photos, [clip.caption for clip in clips], levels, [seed + i for i in range(len(clips))])


def measure_words(weights: WordWeights, captions: Sequence[str]) -> list[tuple[float, float]]:
    """(mean weight of direction and size words, mean weight of colour words) of each caption that has both."""
    found = []
    for caption in dict.fromkeys(captions):
        words = weights(caption)
        motion = [weight for word, weight in words if word in MOTION_WORDS]
        colour = [weight for word, weight in words if word in COLOURS]
        if motion and colour:
            found.append((float(np.mean(motion)), float(np.mean(colour))))
    return found
