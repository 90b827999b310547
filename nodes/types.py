"""What our nodes hand to one another, and the names that ComfyUI shows for it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from comfy_api.latest import io
from einops import repeat

from ..livephoto_core.config import AdapterConfig
from ..livephoto_core.model.adapter import LivePhotoAdapter


@dataclass(frozen=True)
class LoadedModel:
    """A LivePhoto checkpoint in ComfyUI's memory management: `patcher` is a ModelPatcher whose model is the adapter."""

    patcher: Any
    name: str

    @property
    def adapter(self) -> LivePhotoAdapter:
        return self.patcher.model

    @property
    def config(self) -> AdapterConfig:
        return self.adapter.config


@dataclass(frozen=True)
class Reference:
    """Encoded photos.

    latent: [B, C, h, w] in the VAE's own scale, as a LATENT holds them.
    tokens: patch tokens [B, rows * columns, D] without the class token.
    grid: (rows, columns) of the tokens.
    inverted: Inv(r0) [B, C, h, w], noise of about unit variance; None before LivePhotoPriorInversion.
    """

    latent: torch.Tensor
    tokens: torch.Tensor
    grid: tuple[int, int]
    inverted: torch.Tensor | None = None


@dataclass(frozen=True)
class Motion:
    """How strongly the clip moves: a level 1..10."""

    level: float

    def levels(self, clips: int, frames: int) -> torch.Tensor:
        """The level of each frame [clips, frames]."""
        return repeat(torch.tensor(float(self.level)), "-> b f", b=clips, f=frames)


ModelType = io.Custom("LIVEPHOTO_MODEL")
ReferenceType = io.Custom("LIVEPHOTO_REFERENCE")
MotionType = io.Custom("LIVEPHOTO_MOTION")
