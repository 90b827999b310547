"""`livephoto calibrate`: the nine thresholds between the ten levels, from a set of clips (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import replace
from pathlib import Path

import torch
from tqdm import tqdm

from ..base import Base
from ..checkpoint import CONFIG_KEY, opened, read_config, read_metadata, save_tensors
from ..config import to_json
from ..data.clips import ClipSample, Skipped, readable_clips
from ..encoding import decode, encode_photo
from ..intensity import check_thresholds
from ..measures import clip_similarity


@torch.no_grad()
def measure_source(
    source: Iterable[ClipSample | Skipped], base: Base | None = None, measure: str = "ssim"
) -> tuple[list[float], list[Skipped]]:
    """The similarity of each clip's frames by one of config.INTENSITY_MEASURES, and the clips that could not be used.

    With a base, clips are measured as its VAE restores them: a generated clip can be no sharper, so levels from raw frames
    would lie too low.

    Raises:
        LivePhotoError: not one usable clip.
    """
    skipped: list[Skipped] = []
    count = len(source) if isinstance(source, Sized) else None
    clips = tqdm(readable_clips(source, skipped), desc="calibrate", unit="clip", total=count)
    return [clip_similarity(_seen(clip.frames, base), measure) for clip in clips], skipped


def store_thresholds(path: str | Path, thresholds: tuple[float, ...], intensity_from: str = "frames") -> None:
    """Put thresholds into a checkpoint; its weights stay as they are, and the file changes whole or not at all.

    Args:
        path: the checkpoint.
        thresholds: nine falling values of the checkpoint's own measure.
        intensity_from: what they were measured on, "frames" or "reconstruction".

    Raises:
        LivePhotoError: no LivePhoto checkpoint, or it cannot be written.
    """
    config = replace(read_config(path), ssim_thresholds=check_thresholds(thresholds), intensity_from=intensity_from)
    metadata = {**read_metadata(path), CONFIG_KEY: to_json(config)}
    with opened(path) as file:
        # copies: a mapped file must not be replaced under its own tensors
        tensors = {name: file.get_tensor(name).clone() for name in file.keys()}  # noqa: SIM118
    save_tensors(tensors, path, metadata)


def _seen(frames: torch.Tensor, base: Base | None) -> torch.Tensor:
    return frames if base is None else decode(base, encode_photo(base, frames)).cpu()
