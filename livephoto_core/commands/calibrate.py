"""`livephoto calibrate`: the nine SSIM thresholds between the ten levels, from a set of clips (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sized
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..base import Base, decode, encode_photo
from ..checkpoint import CONFIG_KEY, opened, read_config, read_metadata, save_tensors
from ..config import to_json
from ..data.clips import ClipSample, Skipped, Window, load_sample, readable_clips
from ..data.folder import FolderSource
from ..data.shards import ShardSource
from ..errors import LivePhotoError
from ..intensity import check_thresholds, clip_ssim
from ..media import ANIMATION_FORMATS

CLIP_SUFFIXES = (".mp4", ".mov", ".mkv", ".webm", ".avi", ".m4v", *(f".{kind.lower()}" for kind in ANIMATION_FORMATS))


class PlainFolder:
    """Clips of a folder without captions, in the order of their names; a folder of pictures in it is a clip too.

    Raises:
        LivePhotoError: no clips in the folder.
    """

    def __init__(self, folder: Path, window: Window):
        self.folder, self.window = folder, window
        self.paths = sorted(p for p in folder.iterdir() if p.is_dir() or p.suffix.lower() in CLIP_SUFFIXES)
        if not self.paths:
            raise LivePhotoError(f"{folder} holds no clips: give a folder of videos, animated webp or gif, or folders of pictures")

    def __len__(self) -> int:
        return len(self.paths)

    def __iter__(self) -> Iterator[ClipSample | Skipped]:
        return (load_sample(path, self.window, "", path.name) for path in self.paths)


def open_source(data: str | Path, window: Window) -> Iterable[ClipSample | Skipped]:
    """The clips at a path: a CSV file beside its clips, a folder with one, a folder of videos, or webdataset shards.

    Raises:
        LivePhotoError: nothing there, or nothing that is a clip.
    """
    data = Path(data)
    cut = {"frames": window.frames, "stride": window.stride, "size": window.size, "position": window.position}
    if data.suffix.lower() == ".csv" and data.is_file():
        return FolderSource(data.parent, data, **cut)
    if not data.is_dir():
        if ".tar" in data.name:
            return ShardSource(data, **cut)
        raise LivePhotoError(f"{data} is no folder of clips: give a folder, a CSV or .tar shards")
    if any(data.glob("*.csv")):
        return FolderSource(data, **cut)
    return ShardSource(data, **cut) if any(data.glob("*.tar")) else PlainFolder(data, window)


@torch.no_grad()
def measure_source(
    source: Iterable[ClipSample | Skipped], base: Base | None = None
) -> tuple[list[float], list[Skipped]]:
    """The SSIM of each clip, and the clips that could not be used.

    With a base, clips are measured as its VAE restores them: a generated clip can be no sharper, so levels from raw frames
    would lie too low.

    Raises:
        LivePhotoError: not one usable clip.
    """
    skipped: list[Skipped] = []
    count = len(source) if isinstance(source, Sized) else None
    clips = tqdm(readable_clips(source, skipped), desc="calibrate", unit="clip", total=count)
    return [float(clip_ssim(_seen(clip.frames, base))) for clip in clips], skipped


def store_thresholds(path: str | Path, thresholds: tuple[float, ...]) -> None:
    """Put thresholds into a checkpoint; its weights stay as they are, and the file changes whole or not at all.

    Raises:
        LivePhotoError: no LivePhoto checkpoint, or it cannot be written.
    """
    config = replace(read_config(path), ssim_thresholds=check_thresholds(thresholds))
    metadata = {**read_metadata(path), CONFIG_KEY: to_json(config)}
    with opened(path) as file:
        # copies: a mapped file must not be replaced under its own tensors
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_tensors(tensors, path, metadata)


def _seen(frames: torch.Tensor, base: Base | None) -> torch.Tensor:
    return frames if base is None else decode(base, encode_photo(base, frames)).cpu()
