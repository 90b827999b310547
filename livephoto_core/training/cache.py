"""Latents, image tokens, SSIM and captions of a clip set, computed once and kept as safetensors shards."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, field, fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open

from ..data.clips import Skipped
from ..errors import LivePhotoError
from ..files import atomic_path

SHARD = 32
# shards kept open: each is a mapping, of which a process may have some 65,000
OPEN_SHARDS = 1024
MANIFEST = "cache.json"


@dataclass(frozen=True)
class EncodedClip:
    """One clip as training wants it: latents [F, C, h, w], tokens [T, D], grid (rows, columns), caption.

    `ssim` is the mean similarity of adjacent frames: their SSIM, or by the measure that the cache's manifest names (measures.py).
    """

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


def shard_path(folder: Path, number: int) -> Path:
    """Where a shard of a cache lies."""
    return folder / f"clips-{number:05d}.safetensors"


@dataclass
class Manifest:
    """What a cache folder holds, kept as JSON beside its shards and rewritten after each.

    made_from: what the clips were made from, by name; empty where that is not known.
    counts: clips in each shard; files beyond these are left from another cache and not read.
    position: how many items of the source are in the shards, those that were skipped included.
    skipped: [name, reason] of those.
    finished: whether the source was read to its end.
    """

    made_from: dict[str, Any] = field(default_factory=dict)
    counts: list[int] = field(default_factory=list)
    position: int = 0
    skipped: list[list[str]] = field(default_factory=list)
    finished: bool = False


def read_manifest(folder: Path) -> Manifest | None:
    """The manifest of a cache folder; None for a folder without one.

    Raises:
        LivePhotoError: it cannot be read.
    """
    path = folder / MANIFEST
    if not path.exists():
        return None
    try:
        manifest = Manifest(**json.loads(path.read_text(encoding="utf-8")))
        if any(type(getattr(manifest, f.name)) is not type(getattr(Manifest(), f.name)) for f in fields(Manifest)):
            raise ValueError("a value of the wrong kind")
    except (OSError, ValueError, TypeError) as error:
        raise LivePhotoError(f"{path} cannot be read ({error}): delete {folder} and run again, it is made anew") from error
    return manifest


def write_manifest(folder: Path, manifest: Manifest) -> None:
    """Store a manifest, whole or not at all."""
    with atomic_path(folder / MANIFEST) as temporary:
        temporary.write_text(json.dumps(asdict(manifest)), encoding="utf-8")


def made_from_of(folder: Path) -> dict[str, Any]:
    """What the clips of a cache were made from, by name, as far as it is known; measured by SSIM unless it says otherwise."""
    return {"data.intensity_measure": "ssim", **(read_manifest(folder) or Manifest()).made_from}


def check_made_from(folder: Path, found: dict[str, Any], wanted: dict[str, Any], fix: str) -> None:
    """Refuse a cache that was made from something else; `fix` says what to do then.

    Raises:
        LivePhotoError: names what differs.
    """
    other = [f"{name} ({found[name]}, now {wanted[name]})" for name in wanted if name in found and found[name] != wanted[name]]
    if other:
        raise LivePhotoError(
            f"the cached clips in {folder} were made with another {', another '.join(other)}: {fix}"
        )


def fill_shards(folder: Path, count: int, encode: Callable[[int], EncodedClip], process: int = 0, processes: int = 1) -> None:
    """Encode clips 0..count-1, processes taking turns by shard; shards that are whole are kept. `finish_cache` then ends it.

    Raises:
        LivePhotoError: the folder cannot be written.
    """
    make_folder(folder)
    counts = _shard_counts(count)
    for number in range(process, len(counts), processes):
        path = shard_path(folder, number)
        if _stored_count(path) != counts[number]:
            write_shard(path, [encode(i) for i in range(number * SHARD, number * SHARD + counts[number])])


def finish_cache(folder: Path, count: int, made_from: dict[str, Any]) -> None:
    """The manifest of a cache whose shards are all there."""
    write_manifest(folder, Manifest(made_from=made_from, counts=_shard_counts(count), position=count, finished=True))


def _shard_counts(count: int) -> list[int]:
    return [min(SHARD, count - first) for first in range(0, count, SHARD)]


def cache_stream(folder: Path, items: Iterable[EncodedClip | Skipped], manifest: Manifest | None = None) -> int:
    """Encode a stream of clips into shards; returns how many clips the cache then holds.

    Args:
        folder: of the cache.
        items: the stream, from item `manifest.position` on.
        manifest: what a stopped run left; kept up to date. None starts anew.

    Raises:
        LivePhotoError: the folder cannot be written, or not one clip could be used.
    """
    manifest = manifest or Manifest()
    make_folder(folder)
    # first, so that shards of an older cache no longer count
    write_manifest(folder, manifest)
    pending: list[EncodedClip] = []

    def store() -> None:
        write_shard(shard_path(folder, len(manifest.counts)), pending)
        manifest.counts.append(len(pending))
        pending.clear()

    for item in items:
        manifest.position += 1
        if isinstance(item, Skipped):
            manifest.skipped.append([item.name, item.reason])
        else:
            pending.append(item)
        if len(pending) == SHARD:
            store()
            write_manifest(folder, manifest)
    if pending:
        store()
    if not manifest.counts:
        first = "; the first, {}: {}".format(*manifest.skipped[0]) if manifest.skipped else ""
        raise LivePhotoError(f"none of {len(manifest.skipped)} clips can be used{first}")
    manifest.finished = True
    write_manifest(folder, manifest)
    return sum(manifest.counts)


def make_folder(folder: Path) -> None:
    """Create a cache folder.

    Raises:
        LivePhotoError: it cannot be created.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise LivePhotoError(f"cannot create the cache folder {folder} ({error.strerror}): set data.cache to another") from error


@dataclass(frozen=True)
class _Shard:
    """What a shard holds: its captions, its grid, its clips' SSIM [N], and the shapes of one clip's latents and tokens."""

    captions: list[str]
    grid: tuple[int, int]
    ssims: torch.Tensor
    shapes: tuple[tuple[int, ...], tuple[int, ...]]


def _read_shard(path: Path) -> _Shard:
    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            captions, (rows, columns) = json.loads(metadata["captions"]), json.loads(metadata["grid"])
            # a copy: the file is closed behind it
            ssims = file.get_tensor("ssim").clone()
            latents, tokens = (tuple(file.get_slice(name).get_shape()) for name in ("latents", "tokens"))
    except (OSError, SafetensorError, KeyError, TypeError, ValueError) as error:
        raise LivePhotoError(_damaged(path, " ".join(str(error).split()))) from error
    if not len(captions) == len(ssims) == latents[0] == tokens[0] or rows * columns != tokens[1]:
        raise LivePhotoError(_damaged(path, "its tensors do not belong together"))
    return _Shard(captions, (rows, columns), ssims, (latents[1:], tokens[1:]))


def _damaged(path: Path, why: str) -> str:
    return f"the cached clips {path} are damaged or missing ({why}): delete {path.parent} and run again, it is made anew"


def _stored_count(path: Path) -> int:
    """Clips in a shard; 0 where there is none that can be read."""
    try:
        return len(_read_shard(path).captions)
    except LivePhotoError:
        return 0


class CachedClips:
    """Random access to a cache folder; tensors are read from disk as they are asked for.

    Of a folder with a manifest the shards that it lists are read, else all. `grid` (rows, columns) is that of the tokens,
    `latent_shape` (F, C, h, w) and `token_shape` (T, D) are those of every clip, `ssims` is [N], as in EncodedClip.

    Raises:
        LivePhotoError: no cached clips, a cache that was not finished, a shard that is damaged or unlike the others.
    """

    def __init__(self, folder: Path):
        manifest = read_manifest(folder)
        paths = sorted(folder.glob("clips-*.safetensors"))
        if manifest is not None:
            if not manifest.finished:
                raise LivePhotoError(
                    f"the cache {folder} stopped after {sum(manifest.counts)} clips: run what made it again, it goes on"
                )
            paths = [shard_path(folder, number) for number in range(len(manifest.counts))]
        if not paths:
            raise LivePhotoError(f"{folder} holds no cached clips (clips-*.safetensors): run the caching step first")
        shards = [_read_shard(path) for path in paths]
        for path, shard, count in zip(paths, shards, manifest.counts if manifest else [None] * len(paths), strict=True):
            if count not in (None, len(shard.captions)):
                raise LivePhotoError(_damaged(path, f"{len(shard.captions)} clips, {count} expected"))
            if (shard.grid, shard.shapes) != (shards[0].grid, shards[0].shapes):
                raise LivePhotoError(
                    f"{path} holds clips of other shapes {shard.shapes} than {paths[0].name} {shards[0].shapes}: "
                    f"delete {folder} and run again, it is made anew"
                )
        self._open = lru_cache(OPEN_SHARDS)(lambda number: safe_open(paths[number], "pt"))
        self.captions: list[str] = [caption for shard in shards for caption in shard.captions]
        self._where = [(number, row) for number, shard in enumerate(shards) for row in range(len(shard.captions))]
        self.grid = shards[0].grid
        self.latent_shape, self.token_shape = shards[0].shapes
        self.ssims = torch.cat([shard.ssims for shard in shards])

    def __len__(self) -> int:
        return len(self._where)

    def digest(self) -> str:
        """Tells these clips from others, by their captions and similarities."""
        return hashlib.sha256(json.dumps([self.captions, self.ssims.tolist()]).encode()).hexdigest()[:16]

    def latents(self, indices: list[int]) -> torch.Tensor:
        """[B, F, C, h, w], float32."""
        return torch.stack([self._row("latents", i) for i in indices]).float()

    def tokens(self, indices: list[int]) -> torch.Tensor:
        """[B, T, D], float32."""
        return torch.stack([self._row("tokens", i) for i in indices]).float()

    def _row(self, name: str, index: int) -> torch.Tensor:
        number, row = self._where[index]
        return self._open(number).get_slice(name)[row]
