"""A training run from its config file: load the base, cache the clips, train, export."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from ..animatediff import load_motion
from ..base import Base, decode, encode_photo, load_base, load_image_encoder, photo_tokens, text_length
from ..checkpoint import load_adapter
from ..config import AdapterConfig
from ..data.clips import ClipSample, Skipped, readable_clips, report
from ..files import atomic_path
from ..intensity import calibrate, clip_ssim
from ..model.adapter import LivePhotoAdapter
from .batches import Batches
from .cache import CachedClips, EncodedClip, cache_stream
from .config import DataConfig, RunConfig, load_run
from .model import TrainingModel
from .samples import Sampler
from .trainer import fit


def open_source(data: DataConfig, config: AdapterConfig) -> Iterable[ClipSample | Skipped]:
    """The clips that the run's data section names."""
    if data.kind == "folder":
        from ..data.folder import FolderSource

        return FolderSource(Path(data.path), Path(data.csv) if data.csv else None, config.frames, config.frame_stride, config.size)
    from ..data.shards import ShardSource

    return ShardSource(data.path, config.frames, config.frame_stride, config.size)


@torch.no_grad()
def encode_sample(sample: ClipSample, base: Base, config: AdapterConfig, intensity_from: str) -> EncodedClip:
    """One clip's latents, reference tokens and SSIM, without gradients."""
    latents = torch.cat([encode_photo(base, part) for part in sample.frames.split(4)])
    tokens, grid = photo_tokens(base.image_encoder, sample.frames[:1], config.content)
    seen = decode(base, latents).cpu() if intensity_from == "reconstruction" else sample.frames
    return EncodedClip(latents.cpu(), tokens[0].cpu(), grid, float(clip_ssim(seen)), sample.caption)


def fill_cache(run: RunConfig, base: Base, config: AdapterConfig, folder: Path) -> None:
    """Encode the source into `folder`, unless that was finished before.

    Raises:
        LivePhotoError: not one clip of the source could be read.
    """
    finished = folder / "finished.txt"
    if finished.exists():
        return
    from tqdm import tqdm

    skipped: list[Skipped] = []
    clips = readable_clips(open_source(run.data, config), skipped)
    count = cache_stream(
        folder, (encode_sample(clip, base, config, run.data.intensity_from) for clip in tqdm(clips, desc="caching clips"))
    )
    print(report(skipped))
    with atomic_path(finished) as temporary:
        temporary.write_text(f"{count} clips\n{report(skipped)}\n", encoding="utf-8")


def build_adapter(run: RunConfig) -> LivePhotoAdapter:
    """A new adapter, or the one the run starts from; motion modules from an AnimateDiff file where one is named."""
    torch.manual_seed(run.seed)
    adapter = load_adapter(run.start_adapter) if run.start_adapter else LivePhotoAdapter(run.adapter)
    if run.motion_modules:
        print(load_motion(run.motion_modules, adapter).summary())
    return adapter


def token_ids_of(tokenizer: Any, texts: list[str], length: int) -> torch.Tensor:
    """Token ids [N, length], cut and padded as the text encoder wants them."""
    return tokenizer(texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt").input_ids


def prepare(run: RunConfig) -> tuple[TrainingModel, Batches, list[int], Sampler]:
    """The model, the batches, the held-out clips and the sheet drawer of a run."""
    base = load_base(run.base)
    adapter = build_adapter(run)
    config = adapter.config
    if run.image_encoder:
        base = replace(base, image_encoder=load_image_encoder(run.image_encoder))
    folder = Path(run.data.cache or Path(run.out) / "cache") if run.data.kind != "cache" else Path(run.data.path)
    if run.data.kind != "cache":
        fill_cache(run, base, config, folder)
    clips = CachedClips(folder)
    held_out = min(run.data.held_out, len(clips) // 10)
    train = list(range(held_out, len(clips)))
    thresholds = config.ssim_thresholds or calibrate(clips.ssims[held_out:].tolist())
    model = TrainingModel(
        base.unet, adapter, base.text_encoder, config.schedule, base.prediction_type, run.freeze_base, run.motion_weight
    )
    batches = Batches(
        clips,
        train,
        token_ids_of(base.tokenizer, clips.captions, text_length(base)),
        token_ids_of(base.tokenizer, [""], text_length(base))[0],
        thresholds,
        run.batch,
        run.seed,
        run.text_drop,
        run.frames_per_clip,
        config.schedule.timesteps,
    )
    sampler = Sampler(base, batches, list(range(held_out)), run.sample_texts, Path(run.out) / "samples", run.sample_cfg)
    return model, batches, list(range(held_out)), sampler


def train(config: str | Path, resume: bool = False) -> None:
    """Run the training that a config file describes.

    Raises:
        LivePhotoError: the config, the base or the data cannot be used; nothing to resume.
    """
    run = load_run(Path(config))
    model, batches, held_out, sampler = prepare(run)
    fit(model, batches, held_out, run, resume, sampler)
