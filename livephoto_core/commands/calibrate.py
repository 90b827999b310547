"""`livephoto calibrate`: the nine thresholds between the ten levels, from a set of clips (paper section 3.4)."""

from __future__ import annotations

from collections.abc import Iterable, Sized
from dataclasses import replace
from itertools import islice
from pathlib import Path

import torch
from torch import nn
from tqdm import tqdm

from ..base import load_base, load_vae
from ..checkpoint import CONFIG_KEY, opened, read_config, read_metadata, save_tensors
from ..config import AdapterConfig, to_json
from ..data.clips import ClipSample, Skipped, readable_clips
from ..encoding import decode_latents, encode_pictures
from ..errors import LivePhotoError
from ..intensity import LEVELS, check_thresholds
from ..measures import many_clips_similarity


def load_base_vae(path: str | Path, tokenizer: str | Path | None = None) -> nn.Module:
    """The VAE of a base model: of a folder alone, of a single file, which is read whole, with its `tokenizer`.

    Raises:
        LivePhotoError: as base.load_vae and base.load_base.
    """
    return load_vae(Path(path) / "vae") if Path(path).is_dir() else load_base(path, tokenizer=tokenizer).vae


def check_limit(limit: int | None) -> None:
    """Refuse fewer clips than there are levels.

    Raises:
        LivePhotoError: names the number and what it may be.
    """
    if limit is not None and limit < LEVELS:
        raise LivePhotoError(f"--limit is {limit}: {LEVELS} levels need {LEVELS} clips or more, thousands for fine ones")


def check_unwritten(path: str | Path, config: AdapterConfig) -> None:
    """Refuse to replace the levels of a checkpoint with the config `config`: its weights learnt what each of them asks for.

    Raises:
        LivePhotoError: it has thresholds.
    """
    if thresholds := config.ssim_thresholds:
        raise LivePhotoError(
            f"{path} has levels, cut at {thresholds[0]:.4f} to {thresholds[-1]:.4f}, which its weights learnt; new ones would make "
            f"level 5 another motion than the one learnt: give --replace to write them all the same, or to see them leave --write "
            f"out, with --frames {config.frames} --stride {config.frame_stride} --size {config.size}"
        )


@torch.no_grad()
def measure_source(
    source: Iterable[ClipSample | Skipped], vae: nn.Module | None = None, measure: str = "ssim", limit: int | None = None
) -> tuple[list[float], list[Skipped]]:
    """The similarity of each clip's frames by one of config.INTENSITY_MEASURES, and the clips that could not be used.

    With a base's VAE, on any device, clips are measured as it restores them: a generated clip can be no sharper, so levels from
    raw frames would lie too low. `limit` ends it after that many usable clips.

    Raises:
        LivePhotoError: not one usable clip.
    """
    skipped: list[Skipped] = []
    count = len(source) if isinstance(source, Sized) else None
    total = min((number for number in (count, limit) if number is not None), default=None)
    clips = tqdm(islice(readable_clips(source, skipped), limit), desc="calibrate", unit="clip", total=total)
    similarity_of = many_clips_similarity(measure)
    return [similarity_of(_seen(clip.frames, vae)) for clip in clips], skipped


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


def _seen(frames: torch.Tensor, vae: nn.Module | None) -> torch.Tensor:
    if vae is None:
        return frames
    # in parts, as clips are encoded to train on: a whole clip of large frames may not fit
    latents = torch.cat([encode_pictures(vae, part) for part in frames.split(4)])
    return decode_latents(vae, latents).cpu()
