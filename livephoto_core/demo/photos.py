"""Photographs for the demo model: still pictures out of installed PyPI packages, split without near-duplicates.

The pictures come from ComfyUI's template media packages and are only needed to train; none of them is shipped.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps

from ..errors import LivePhotoError
from ..media import PILLOW_ERRORS

# others hold other pictures, and part them otherwise into those to train on and the rest
PACKAGES = {"comfyui_workflow_templates_media_image": "0.3.160", "comfyui_workflow_templates_media_assets_01": "0.1.48"}
# pixels that a photograph is shrunk to: room around a window of 64
SHORT_SIDE = 192
SUFFIXES = {".webp", ".jpg", ".jpeg", ".png"}


@dataclass(frozen=True)
class Photo:
    """One photograph: uint8 [3, H, W], shrunk to the short side it was asked for, and the file's name."""

    name: str
    pixels: torch.Tensor


def _installed_version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return "none"


def package_folders() -> list[Path]:
    """Folders of the installed photo packages.

    Raises:
        LivePhotoError: one is not installed, or of another version than PACKAGES has it.
    """
    found, missing = [], []
    for package, wanted in PACKAGES.items():
        name = package.replace("_", "-")
        installed = _installed_version(name)
        if installed == wanted:
            found += map(Path, importlib.util.find_spec(package).submodule_search_locations)
        else:
            missing.append((f"{name}=={wanted}", installed))
    if missing:
        told = ", ".join(f"{name} (installed: {installed})" for name, installed in missing)
        raise LivePhotoError(
            f"the photographs that the demo learns from, and those that it never sees, are those of {told}: "
            f"pip install {' '.join(name for name, _ in missing)}"
        )
    return found


def _is_still(image: Image.Image) -> bool:
    # phones' photographs carry a small second picture, or one for other screens
    return image.format == "MPO" or getattr(image, "n_frames", 1) == 1


def _is_photographic(pixels: np.ndarray) -> bool:
    """False for line art, charts and nearly black pictures: flat in most places or without mid-tones."""
    grey = pixels.mean(2)
    dark, bright = (grey < 12).mean(), (grey > 243).mean()
    return dark < 0.5 and bright < 0.5 and grey.std() > 18


def _thumbnail(pixels: np.ndarray) -> np.ndarray:
    small = np.asarray(Image.fromarray(pixels).convert("L").resize((16, 16), Image.Resampling.BOX), dtype=np.float32)
    small = small - small.mean()
    return (small / (np.linalg.norm(small) + 1e-6)).ravel()


def _still_pixels(path: Path, short_side: int) -> np.ndarray | None:
    """[H, W, 3], shrunk or enlarged to a short side; None of an animation."""
    with Image.open(path) as image:
        if not _is_still(image):
            return None
        # what is transparent shows the colour below: the packages' pictures have been read so from the start
        upright = ImageOps.exif_transpose(image).convert("RGB")
    scale = short_side / min(upright.size)
    width, height = (max(short_side, round(side * scale)) for side in upright.size)
    return np.asarray(upright.resize((width, height), Image.Resampling.LANCZOS))


def _in_order(folders: list[Path]) -> Iterator[Path]:
    """The pictures below folders by name, the same on every system: Windows' own order goes by lower case."""
    found = [(path.relative_to(folder.parent).parts, path) for folder in folders for path in folder.rglob("*")]
    return (path for _, path in sorted(found) if path.suffix.lower() in SUFFIXES)


def load_photos(folders: list[Path], short_side: int = SHORT_SIDE) -> list[Photo]:
    """Every still photograph below the folders, in name order, with a short side of so many pixels.

    Raises:
        LivePhotoError: a file that is named as a picture and is none, or a broken one.
    """
    photos = []
    for path in _in_order(folders):
        try:
            pixels = _still_pixels(path, short_side)
        except PILLOW_ERRORS as error:
            raise LivePhotoError(f"cannot read the picture {path} ({error}): mend it, or take it out of the folder") from error
        if pixels is not None and _is_photographic(pixels):
            photos.append(Photo(path.name, torch.from_numpy(pixels.copy()).permute(2, 0, 1)))
    return photos


def split_photos(photos: list[Photo], held_out: float = 0.15, alike: float = 0.8) -> tuple[list[Photo], list[Photo]]:
    """(training, held-out) photographs; pictures whose 16x16 grey thumbnails correlate above `alike` stay together."""
    thumbs = np.stack([_thumbnail(p.pixels.permute(1, 2, 0).numpy()) for p in photos])
    similar = thumbs @ thumbs.T > alike
    group = np.full(len(photos), -1)
    for first in range(len(photos)):
        if group[first] >= 0:
            continue
        stack = [first]
        while stack:
            index = stack.pop()
            if group[index] < 0:
                group[index] = first
                stack += [int(j) for j in np.flatnonzero(similar[index]) if group[j] < 0]
    # every k-th group, so that the split never depends on chance or on how many photographs follow
    step = max(2, round(1 / held_out))
    order = {g: i for i, g in enumerate(dict.fromkeys(group.tolist()))}
    test = [order[g] % step == step - 1 for g in group.tolist()]
    return (
        [p for p, t in zip(photos, test, strict=True) if not t],
        [p for p, t in zip(photos, test, strict=True) if t],
    )


def package_photos(short_side: int = SHORT_SIDE) -> tuple[list[Photo], list[Photo]]:
    """The installed packages' photographs, to train on and held out, with a short side of so many pixels.

    Raises:
        LivePhotoError: as `package_folders`.
    """
    return split_photos(load_photos(package_folders(), short_side))
