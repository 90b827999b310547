"""Filling the cache of a training run: which clips, encoded by what, and whether those that lie there are the same."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..base import Base
from ..config import AdapterConfig
from ..data.clips import ClipSample, Skipped, Source, Window, report
from ..data.folder import FolderSource
from ..data.source import open_source
from ..demo.source import ProceduralSource, photos_at
from ..errors import LivePhotoError
from ..files import atomic_path
from ..measures import many_clips_similarity
from .cache import CachedClips, EncodedClip, Manifest, cache_stream, check_made_from, made_from_of, read_manifest, shard_path
from .config import DataConfig, RunConfig
from .encode import encode_sample

_SAMPLED = 64


def weights_digest(part: nn.Module) -> str:
    """Tells a VAE or an image encoder from another: a hash of some values of each tensor, and of what scales its output.

    Of the values in half precision, so that a model is itself after it was saved so.
    """
    digest = hashlib.sha256(str(getattr(part.config, "scaling_factor", None)).encode())
    for name, tensor in part.state_dict().items():
        values = tensor.detach().flatten()
        some = values[:: max(1, len(values) // _SAMPLED)].cpu().half().contiguous()
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(some.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()[:16]


def encoding_of(base: Base, config: AdapterConfig) -> dict[str, Any]:
    """What clips are encoded by and how they are cut, by name: what a run needs its cache to agree with."""
    parts = {"the VAE": base.vae, "the image encoder": base.image_encoder}
    return {
        "adapter.frames": config.frames,
        "adapter.frame_stride": config.frame_stride,
        "adapter.size": config.size,
        "adapter.content.image_size": config.content.image_size,
        **{name: weights_digest(part) for name, part in parts.items() if part is not None},
    }


def open_clips(data: DataConfig, config: AdapterConfig) -> Source:
    """The clips that a run is to encode, cut as its adapter takes them.

    Raises:
        LivePhotoError: they, or the photographs to draw them over, are not there.
    """
    if data.kind == "procedural":
        photos = photos_at(data.path, config.size)
        return ProceduralSource(photos, data.clips, min(data.held_out, data.clips // 10), config.frames, config.size)
    window = Window(config.frames, config.frame_stride, config.size)
    return open_source(data.path, window, data.kind, data.csv or None)


def origin_of(run: RunConfig, config: AdapterConfig, source: Source) -> dict[str, Any]:
    """Which clips a cache is of, wherever they lie: how they are measured, and what tells the source from another."""
    if isinstance(source, ProceduralSource):
        told_by = {"data.clips": source.count, "data.held_out": source.held_out}
        told_by["the photographs and captions"] = _digest(source.told_by())
    elif isinstance(source, FolderSource):
        told_by = {"the CSV's contents": hashlib.sha256(source.csv.read_bytes()).hexdigest()[:16]}
    else:
        # not their contents, which would be read for hours
        told_by = {"the shards' names and sizes": _digest([(shard.name, shard.stat().st_size) for shard in source.shards])}
    return {
        "data.kind": run.data.kind,
        "data.intensity_from": run.data.intensity_from,
        "data.intensity_measure": config.intensity_measure,
        **told_by,
    }


def _digest(values: Any) -> str:
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()[:16]


def fill_cache(run: RunConfig, base: Base, config: AdapterConfig, folder: Path, device: torch.device) -> None:
    """Encode the source into `folder` on a device, from where a stopped run left off; the base is on the CPU afterwards.

    A finished cache serves without its source too.

    Raises:
        LivePhotoError: the folder holds other clips or is too small, or not one clip of the source could be read.
    """
    manifest = read_manifest(folder) or Manifest()
    other = "set data.cache to another folder, or delete this one"
    as_they_are = f"to train on them as they are, set data.kind to 'cache' and data.path to {folder}; else {other}"
    if not manifest.made_from and any(folder.glob("clips-*.safetensors")):
        raise LivePhotoError(f"{folder} holds cached clips, but not what they were made from: {as_they_are}")
    encoding = encoding_of(base, config)
    check_made_from(folder, manifest.made_from, encoding, other)
    try:
        source = open_clips(run.data, config)
    except LivePhotoError as error:
        if not manifest.finished:
            raise
        print(f"{error}; going on with the clips cached in {folder}")
        return
    origin = origin_of(run, config, source)
    if manifest.made_from:
        check_made_from(folder, made_from_of(folder), origin, as_they_are)
    if manifest.finished:
        _tell_skipped(manifest, folder)
        return
    manifest.made_from = {**origin, **encoding}
    total = len(source) if isinstance(source, Sized) else None
    rest = checking_room(source.after(manifest.position), folder, manifest, total)
    with tqdm(rest, desc="caching clips", unit="clip", initial=manifest.position, total=total) as items:
        try:
            cache_stream(folder, encoded(items, base.to(device), config, run.data), manifest)
        finally:
            base.to("cpu")
    skipped = report([Skipped(*item) for item in manifest.skipped])
    print(skipped)
    with atomic_path(folder / "finished.txt") as temporary:
        temporary.write_text(f"{sum(manifest.counts)} clips\n{skipped}\n", encoding="utf-8")


def _tell_skipped(manifest: Manifest, folder: Path) -> None:
    # what could not be read then may be there now
    if manifest.skipped:
        print(report([Skipped(*item) for item in manifest.skipped]))
        print(f"skipped when the clips were cached: to try them again, delete {folder}")


def checking_room(
    items: Iterable[ClipSample | Skipped], folder: Path, manifest: Manifest, total: int | None
) -> Iterator[ClipSample | Skipped]:
    """The items; as soon as one shard is there, tell what a clip takes, and refuse `total` clips that have no room.

    Raises:
        LivePhotoError: names what is needed and what is free.
    """
    told = False
    for item in items:
        if manifest.counts and not told:
            told = True
            _tell_room(folder, manifest, total)
        yield item


def _tell_room(folder: Path, manifest: Manifest, total: int | None) -> None:
    size = shard_path(folder, 0).stat().st_size / manifest.counts[0]
    if total is None:
        tqdm.write(f"a cached clip takes {size / 1e6:.2f} MB")
        return
    told = f"{total} clips of {size / 1e6:.2f} MB take {total * size / 1e9:.1f} GB"
    tqdm.write(told)
    free = shutil.disk_usage(folder).free
    if (total - manifest.position) * size > free:
        raise LivePhotoError(
            f"{told}, and {folder} has room for {free / 1e9:.1f} GB more: set data.cache to a folder on a larger disk, or "
            "adapter.content.image_size, which most of a clip goes by, to less"
        )


def encoded(
    items: Iterable[ClipSample | Skipped], base: Base, config: AdapterConfig, data: DataConfig
) -> Iterator[EncodedClip | Skipped]:
    """A source's clips encoded; those that it skipped stay as they are."""
    similarity_of = many_clips_similarity(config.intensity_measure)
    for item in items:
        if isinstance(item, Skipped):
            yield item
        else:
            yield encode_sample(item, base.vae, base.image_encoder, config.content, data.intensity_from, similarity_of)


def check_cache(clips: CachedClips, folder: Path, config: AdapterConfig) -> None:
    """Refuse clips that an adapter with this config cannot be trained on.

    Raises:
        LivePhotoError: names what differs, both numbers and the fix.
    """
    (frames, channels, *_), (_, width) = clips.latent_shape, clips.token_shape
    for name, found, wanted in (
        ("frames a clip", frames, config.frames),
        ("latent channels", channels, config.base.latent_channels),
        ("wide image tokens", width, config.content.token_width),
    ):
        if found != wanted:
            raise LivePhotoError(
                f"the cached clips in {folder} have {found} {name}, the adapter takes {wanted}: cache the clips again for this "
                "adapter and base, or change the adapter's config"
            )
