"""The LivePhotoAdapter: every trained part of LivePhoto, additive on a Stable Diffusion v1.5 UNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from ..config import AdapterConfig, Parts, content_sites, motion_sites
from .content import ContentAttention, KeysValues
from .motion import MotionModule
from .reweight import EvenWeights, TextReweighter
from .stem import ConditionStem


class Sites(nn.Module):
    """Modules under dotted names, "down_blocks.0.motion_modules.1"; the names become the keys of the checkpoint."""

    def __init__(self, modules: dict[str, nn.Module]):
        super().__init__()
        for name, module in modules.items():
            *path, last = name.split(".")
            parent: nn.Module = self
            for part in path:
                if part not in parent._modules:
                    parent.add_module(part, nn.Module())
                parent = parent.get_submodule(part)
            parent.add_module(last, module)
        self.names = tuple(modules)

    def __getitem__(self, name: str) -> nn.Module:
        return self.get_submodule(name)


def unread_channels(parts: Parts, latent_channels: int) -> tuple[int, ...]:
    """The stem's channels that an adapter was trained without, in the order of `conditioning.stem_channels`."""
    channels = {latent_channels: parts.frame_embedding, latent_channels + 1: parts.intensity}
    return tuple(channel for channel, is_read in channels.items() if not is_read)


class LivePhotoAdapter(nn.Module):
    """Condition stem, motion modules, content attention and text re-weighter; what the config's `parts` leave out is not built.

    It knows no UNet; a host binds it to one. `operations` makes the layers (torch.nn, or an inference framework's own layers
    that cast or offload their weights).
    """

    def __init__(self, config: AdapterConfig, operations: Any = nn):
        super().__init__()
        self.config = config
        base, motion, content, parts = config.base, config.motion, config.content, config.parts
        unread = unread_channels(parts, base.latent_channels)
        self.stem = ConditionStem(base.latent_channels, base.block_channels[0], operations, unread)
        self.motion = Sites(
            {
                name: MotionModule(
                    channels,
                    motion.heads,
                    motion.depth,
                    motion.attention_blocks,
                    motion.max_frames,
                    base.norm_groups,
                    operations,
                )
                for name, channels in motion_sites(base, motion.mid_block).items()
            }
        )
        if parts.content:
            self.content_proj = operations.Linear(content.token_width, content.width)
            self.content_norm = operations.LayerNorm(content.width)
        self.content = Sites(
            {
                name: ContentAttention(
                    channels,
                    content.width,
                    content.heads,
                    content.head_width,
                    content.positions,
                    operations,
                    centred=content.centred,
                )
                for name, channels in (content_sites(base) if parts.content else {}).items()
            }
        )
        reweight = config.reweight
        self.reweight = (
            TextReweighter(base.context_width, config.frames, reweight.layers, reweight.heads, operations)
            if parts.reweight
            else EvenWeights()
        )

    def project_tokens(self, tokens: torch.Tensor) -> torch.Tensor:
        """Patch tokens [B, T, token_width] as the content sites read them, [B, T, width]."""
        return self.content_norm(self.content_proj(tokens))

    def photo_keys_values(self, tokens: torch.Tensor, grid: tuple[int, int]) -> dict[str, KeysValues]:
        """Keys and values of patch tokens [B, rows * columns, token_width] at every content site, once for a whole sampling."""
        if not self.content.names:
            return {}
        projected = self.project_tokens(tokens)
        return {name: self.content[name].keys_values(projected, grid) for name in self.content.names}

    def parameter_counts(self) -> dict[str, int]:
        """Parameters of each part."""
        parts = {
            "condition stem": [self.stem],
            "motion modules": [self.motion],
            "content attention": [m for name, m in self.named_children() if name.startswith("content")],
            "text re-weighter": [self.reweight],
        }
        return {name: sum(p.numel() for m in modules for p in m.parameters()) for name, modules in parts.items()}
