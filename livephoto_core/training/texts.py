"""Captions as a frozen text encoder sees them, computed once and kept as safetensors shards beside the cached clips."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

import safetensors.torch
import torch
from safetensors import SafetensorError, safe_open
from torch import nn
from tqdm import tqdm

from ..errors import LivePhotoError
from ..files import atomic_path
from .cache import OPEN_SHARDS, make_folder

SHARD = 256
NAME = "text"


class Texts:
    """Token ids [N, L] of a run's captions and, behind them, of the empty text: each different text has one place."""

    def __init__(self, ids: torch.Tensor):
        self.different, self.places = torch.unique(ids, dim=0, return_inverse=True)

    def digest(self) -> str:
        """Tells these texts from others."""
        return hashlib.sha256(self.different.numpy().tobytes()).hexdigest()[:16]


def encoder_digest(encoder: nn.Module) -> str:
    """Tells a text encoder from another by all of its weights, in half precision: a few new words change a few rows alone."""
    digest = hashlib.sha256(str(encoder.config.hidden_act).encode())
    for name, tensor in encoder.state_dict().items():
        digest.update(f"{name} {tuple(tensor.shape)}".encode())
        digest.update(tensor.detach().half().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()[:16]


def texts_folder(cache: Path, texts: Texts, encoder: nn.Module) -> Path:
    """Where a run's texts lie: a folder of their own for each set of captions and each text encoder."""
    return cache / f"texts-{texts.digest()}-{encoder_digest(encoder)}"


def _path(folder: Path, number: int) -> Path:
    return folder / f"texts-{number:05d}.safetensors"


@torch.no_grad()
def fill_texts(folder: Path, texts: Texts, encoder: nn.Module, device: torch.device) -> None:
    """Encode the texts that a stopped run has not, on a device; the encoder is on the CPU afterwards.

    Raises:
        LivePhotoError: the folder cannot be written.
    """
    parts = texts.different.split(SHARD)
    missing = [number for number in range(len(parts)) if not _path(folder, number).is_file()]
    if not missing:
        return
    make_folder(folder)
    encoder.to(device)
    try:
        for number in tqdm(missing, desc="caching texts", unit="shard"):
            # another run may have been faster
            if _path(folder, number).is_file():
                continue
            hidden = encoder(parts[number].to(device)).last_hidden_state
            with atomic_path(_path(folder, number)) as temporary:
                temporary.write_bytes(safetensors.torch.save({NAME: hidden.half().cpu().contiguous()}))
    finally:
        encoder.to("cpu")


class CachedTexts:
    """Random access to what `fill_texts` wrote.

    Raises:
        LivePhotoError: a shard that is missing, damaged or of other texts.
    """

    def __init__(self, folder: Path, texts: Texts):
        self._places = texts.places
        paths = [_path(folder, number) for number in range(-(-len(texts.different) // SHARD))]
        for path, part in zip(paths, texts.different.split(SHARD), strict=True):
            _check(path, tuple(part.shape))
        self._open = lru_cache(OPEN_SHARDS)(lambda number: safe_open(paths[number], "pt"))

    def of(self, rows: list[int]) -> torch.Tensor:
        """The texts of captions, by their place in the token ids, as the UNet's cross-attention takes them: [B, L, D], float32."""
        return torch.stack([self._row(*divmod(int(self._places[row]), SHARD)) for row in rows]).float()

    def _row(self, number: int, place: int) -> torch.Tensor:
        return self._open(number).get_slice(NAME)[place]


def _check(path: Path, shape: tuple[int, ...]) -> None:
    try:
        with safe_open(path, "pt") as file:
            found = tuple(file.get_slice(NAME).get_shape())
    except (OSError, SafetensorError) as error:
        raise LivePhotoError(f"the cached texts {path} are damaged or missing: delete {path.parent} and run again") from error
    if found[:2] != shape:
        raise LivePhotoError(f"{path} holds texts {found[:2]}, {shape} expected: delete {path.parent} and run again")
