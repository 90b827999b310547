"""What MotionBench measures: anything that turns photo, text, level and seed into frames."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from ..errors import LivePhotoError
from ..media import fit_image
from .suite import FRAMES, SIZE, THRESHOLDS

LEAST_FRAMES = 12


@dataclass(frozen=True)
class Request:
    """A clip to make from a photo [3, size, size], 0..1, at a level 1..10; `name` is the case's, unique in the suite."""

    name: str
    photo: torch.Tensor
    text: str
    level: int
    seed: int


# one clip [F, 3, H, W], 0..1, for each request
Animate = Callable[[Sequence[Request]], Sequence[torch.Tensor]]
# (photo [3, size, size], text, level, seed) -> frames [F, 3, H, W], 0..1
AnimateOne = Callable[[torch.Tensor, str, int, int], torch.Tensor]


@dataclass(frozen=True)
class System:
    """A system under test.

    `size` is the side of the photo it takes. `thresholds` are its levels' (see intensity.py), in the similarity of `measure`
    (measures.py), of frames of that size; the suite's own, of frames of SIZE, for a system that has none. `round_trip` is what
    its VAE makes of pictures [N, 3, size, size], if it has one: what the system could reach at best. `levels_from` says on what
    clips were measured to train it, "frames" or their "reconstruction" by the VAE. `batch` requests are handed over at a time.
    """

    name: str
    animate: Animate
    size: int = SIZE
    thresholds: Sequence[float] = THRESHOLDS
    measure: str = "ssim"
    round_trip: Callable[[torch.Tensor], torch.Tensor] | None = None
    levels_from: str = "frames"
    batch: int = 1

    @property
    def level_size(self) -> int:
        """The side of the frames that its levels are measured on: a larger picture of the same motion is less alike."""
        return SIZE if self.thresholds is THRESHOLDS else self.size

    def restored(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, size, size] as the system's VAE gives them back; as they are without one."""
        return pictures if self.round_trip is None else self.round_trip(pictures)

    def measured_in_training(self, pictures: torch.Tensor) -> torch.Tensor:
        """Pictures [N, 3, size, size] of a true clip as its level was measured for training."""
        return self.restored(pictures) if self.levels_from == "reconstruction" else pictures


def one_by_one(function: AnimateOne) -> Animate:
    """A function that makes one clip, as one that takes requests."""
    return lambda requests: [function(r.photo, r.text, r.level, r.seed) for r in requests]


def still_system() -> System:
    """The simplest system there is, the photo again and again: what a figure is worth is how far it is above this one's."""
    return System("still photo", one_by_one(lambda photo, text, level, seed: photo.expand(FRAMES, -1, -1, -1)))


def function_system(place: str, size: int) -> System:
    """A function of the user's own Python file, named as FILE.py:FUNCTION; see AnimateOne.

    Raises:
        LivePhotoError: no such file, or no such function in it.
    """
    file, _, name = place.rpartition(":")
    path = Path(file)
    if path.suffix != ".py" or not path.is_file():
        raise LivePhotoError(f"a system of your own is named as FILE.py:FUNCTION, got {place!r}: that names no Python file")
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    function = getattr(module, name, None)
    if not callable(function):
        raise LivePhotoError(f"{path.name} has no function {name!r}: it must take (photo, text, level, seed) and return frames")
    return System(f"{path.stem}:{name}", one_by_one(function), size)


def checked(frames: torch.Tensor, name: str) -> torch.Tensor:
    """A clip as a system gave it, its first FRAMES frames, once it is sure that it can be measured.

    Raises:
        LivePhotoError: not [F, 3, H, W], too few frames, or values that are not finite.
    """
    if not isinstance(frames, torch.Tensor) or frames.ndim != 4 or frames.shape[1] != 3:
        shape = list(frames.shape) if isinstance(frames, torch.Tensor) else type(frames).__name__
        raise LivePhotoError(f"the system's clip of {name} is {shape}: it must be a tensor [frames, 3, height, width]")
    if len(frames) < LEAST_FRAMES:
        raise LivePhotoError(f"the system's clip of {name} has {len(frames)} frames: {LEAST_FRAMES} or more can be measured")
    frames = frames[:FRAMES].detach().float().cpu()
    if not torch.isfinite(frames).all():
        raise LivePhotoError(f"the system's clip of {name} has values that are not finite: check the system")
    return frames.clamp(0, 1)


def at_size(frames: torch.Tensor, size: int) -> torch.Tensor:
    """Frames [F, 3, H, W] cropped and resized to [F, 3, size, size]; those of the size as they are."""
    return frames if frames.shape[-2:] == (size, size) else fit_image(frames, size, size, "crop")
