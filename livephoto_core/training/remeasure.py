"""A cache of clips with their levels measured anew, by another measure than it was made with."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from torch import nn
from tqdm import tqdm

from ..base import Base
from ..encoding import decode_latents
from ..errors import LivePhotoError
from ..measures import many_clips_similarity
from .cache import CachedClips, EncodedClip, Manifest, cache_stream, made_from_of, read_manifest


def remeasure(source: Path, target: Path, base: Base, measure: str, device: torch.device) -> None:
    """Copy cached clips, measured by one of config.INTENSITY_MEASURES on what the VAE restores, from where a stopped copy left off.

    The pictures themselves are not in a cache. The base is on the CPU afterwards.

    Raises:
        LivePhotoError: `target` is `source` or holds other clips, or the measure's package is not installed.
    """
    if target.resolve() == source.resolve():
        raise LivePhotoError(f"data.cache is {target}, the cache that is to be measured anew: name another folder")
    clips = CachedClips(source)
    made_from = {**made_from_of(source), **_marks(clips, measure)}
    manifest = read_manifest(target) or Manifest()
    if manifest.made_from != made_from and any(target.glob("clips-*.safetensors")):
        raise LivePhotoError(f"{target} holds other cached clips: set data.cache to another folder, or delete this one")
    if manifest.finished:
        return
    manifest.made_from = made_from
    try:
        cache_stream(target, _measured(clips, manifest.position, base.vae.to(device), measure, device), manifest)
    finally:
        base.to("cpu")


def _marks(clips: CachedClips, measure: str) -> dict[str, Any]:
    """What tells this copy from another."""
    return {
        "data.intensity_from": "reconstruction",
        "data.intensity_measure": measure,
        "the clips": clips.digest(),
    }


@torch.no_grad()
def _measured(clips: CachedClips, first: int, vae: nn.Module, measure: str, device: torch.device) -> Iterator[EncodedClip]:
    similarity_of = many_clips_similarity(measure)
    for index in tqdm(range(first, len(clips)), desc=f"measuring clips by {measure}", unit="clip"):
        latents, tokens = clips.latents([index])[0], clips.tokens([index])[0]
        seen = decode_latents(vae, latents.to(device)).float().cpu()
        yield EncodedClip(latents, tokens, clips.grid, similarity_of(seen), clips.captions[index])
