"""Latents, image tokens, SSIM and captions of a clip set, computed once and kept as safetensors shards."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path

import safetensors.torch
import torch
from safetensors import safe_open

from ..errors import LivePhotoError
from ..files import atomic_path

SHARD = 32


@dataclass(frozen=True)
class EncodedClip:
    """One clip as training wants it: latents [F, C, h, w], tokens [T, D], grid (rows, columns), mean SSIM, caption."""

    latents: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    ssim: float
    caption: str


def write_shard(path: Path, clips: list[EncodedClip]) -> None:
    """Store clips of one size, whole or not at all; halves keep eleven bits, a tenth of the noise at the last step."""
    tensors = {
        "latents": torch.stack([c.latents for c in clips]).half().contiguous(),
        "tokens": torch.stack([c.tokens for c in clips]).half().contiguous(),
        "ssim": torch.tensor([c.ssim for c in clips]),
    }
    metadata = {"captions": json.dumps([c.caption for c in clips]), "grid": json.dumps(clips[0].grid)}
    with atomic_path(path) as temporary:
        temporary.write_bytes(safetensors.torch.save(tensors, metadata))


def build_cache(folder: Path, count: int, encode: Callable[[int], EncodedClip], process: int = 0, processes: int = 1) -> None:
    """Encode clips 0..count-1 in shards; shards that exist are kept, so a stopped run goes on. Processes take turns by shard."""
    folder.mkdir(parents=True, exist_ok=True)
    for shard in range(process, -(-count // SHARD), processes):
        path = folder / f"clips-{shard:05d}.safetensors"
        if not path.exists():
            write_shard(path, [encode(i) for i in range(shard * SHARD, min(count, (shard + 1) * SHARD))])


def cache_stream(folder: Path, clips: Iterable[EncodedClip]) -> int:
    """Encode a stream of clips into shards; returns how many there were."""
    folder.mkdir(parents=True, exist_ok=True)
    pending: list[EncodedClip] = []
    shard = count = 0
    for clip in clips:
        pending.append(clip)
        count += 1
        if len(pending) == SHARD:
            write_shard(folder / f"clips-{shard:05d}.safetensors", pending)
            pending, shard = [], shard + 1
    if pending:
        write_shard(folder / f"clips-{shard:05d}.safetensors", pending)
    return count


class CachedClips:
    """Random access to a cache folder; tensors are read from disk as they are asked for."""

    def __init__(self, folder: Path):
        files = sorted(folder.glob("clips-*.safetensors"))
        if not files:
            raise LivePhotoError(f"{folder} holds no cached clips (clips-*.safetensors): run the caching step first")
        self._files = [safe_open(f, "pt") for f in files]
        self.captions: list[str] = []
        self._where: list[tuple[int, int]] = []
        ssims = []
        for number, file in enumerate(self._files):
            metadata = file.metadata()
            captions = json.loads(metadata["captions"])
            self.captions += captions
            self._where += [(number, i) for i in range(len(captions))]
            ssims.append(file.get_tensor("ssim"))
            self.grid = tuple(json.loads(metadata["grid"]))
        self.ssims = torch.cat(ssims)

    def __len__(self) -> int:
        return len(self._where)

    def latents(self, indices: list[int]) -> torch.Tensor:
        """[B, F, C, h, w], float32."""
        return torch.stack([self._row("latents", i) for i in indices]).float()

    def tokens(self, indices: list[int]) -> torch.Tensor:
        """[B, T, D], float32."""
        return torch.stack([self._row("tokens", i) for i in indices]).float()

    def _row(self, name: str, index: int) -> torch.Tensor:
        number, row = self._where[index]
        return self._files[number].get_slice(name)[row]
