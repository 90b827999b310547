"""The procedural clips as a source to train on: `livephoto train` with data.kind "procedural"."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from functools import partial
from pathlib import Path

from ..data.clips import ClipSample, Load, Source
from ..errors import LivePhotoError
from .clips import ClipSet
from .photos import SHORT_SIDE, Photo, load_photos, package_photos, split_photos
from .phrasings import phrasings
from .sprites import HELD_OUT_SHAPES, SHAPES
from .telling import TellingClips, spins_told_by

# most of the clips: what a thing does is small in the picture, and learnt late
THING_SHARE = 0.6
# a model that saw a dozen shapes on their photographs alone did far worse on others
ODD_SHARE, MIRROR_SHARE = 0.65, 0.5
# of a clip's: its window shows from half to nine tenths of a photograph
PHOTO_SIDES = 3


def photos_at(folder: str, size: int = 64) -> tuple[list[Photo], list[Photo]]:
    """(training, held-out) photographs for clips of `size` pixels: of a folder and those in it, or of the installed photo packages.

    Raises:
        LivePhotoError: no such folder, too few photographs, or one that cannot be read; no photo package.
    """
    short_side = max(SHORT_SIDE, PHOTO_SIDES * size)
    if not folder:
        return package_photos(short_side)
    if not Path(folder).is_dir():
        raise LivePhotoError(f"{folder} is not a folder: give one with photographs, or none for those of the photo packages")
    photos = load_photos([Path(folder)], short_side)
    train, test = split_photos(photos) if photos else ([], [])
    if not train or not test:
        raise LivePhotoError(
            f"{folder} holds {len(photos)} photographs, too few or too much alike to hold any out: give .jpg, .png or .webp files "
            "of seven different things or more, neither animated nor line art nor nearly black"
        )
    return train, test


class ProceduralSource(Source):
    """Clips of `frames` frames of `size` pixels, drawn by their number: the same on every machine and in any order.

    The first `held_out` of the `count` are of photographs and shapes that the others never show.

    photos: (training, held-out), as of `photos_at`.
    """

    def __init__(
        self, photos: tuple[list[Photo], list[Photo]], count: int, held_out: int, frames: int = 16, size: int = 64
    ) -> None:
        self.photos, self.count, self.held_out = photos, count, held_out
        common = {"frames": frames, "size": size, "thing_share": THING_SHARE}
        varied = {"odd_share": ODD_SHARE, "mirror_share": MIRROR_SHARE, "templates": phrasings()}
        self._train = TellingClips(photos[0], SHAPES, **common, **varied)
        self._test = ClipSet(photos[1], HELD_OUT_SHAPES, seed=1, **common)

    def __len__(self) -> int:
        return self.count

    def loads(self, count: int) -> Iterator[Load]:
        """As Source."""
        return (partial(self.sample, index) for index in range(count, self.count))

    def told_by(self) -> list[object]:
        """What tells these clips from others of as many, as plain values: the photographs, the captions' phrasings, the spins."""
        photos = [[hashlib.sha256(photo.pixels.numpy().tobytes()).hexdigest() for photo in part] for part in self.photos]
        return [photos, phrasings(), spins_told_by()]

    def sample(self, index: int) -> ClipSample:
        """Clip `index`."""
        clip = (self._test if index < self.held_out else self._train).clip(index)
        return ClipSample(clip.frames, clip.caption, f"clip {index}")
