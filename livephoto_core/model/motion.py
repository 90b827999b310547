"""Motion modules: temporal attention over the frames at one place, in AnimateDiff's layout and key names."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange, repeat
from torch import nn

from .attention import attend_over_frames
from .initial import fill


def sinusoids(length: int, width: int) -> torch.Tensor:
    """The position table [1, length, width] that AnimateDiff stores with its weights."""
    position = torch.arange(length, dtype=torch.float32)[:, None]
    rate = torch.exp(torch.arange(0, width, 2, dtype=torch.float32) * (-math.log(10000.0) / width))
    table = torch.zeros(1, length, width)
    table[0, :, 0::2] = torch.sin(position * rate)
    table[0, :, 1::2] = torch.cos(position * rate)
    return table


class PositionTable(nn.Module):
    """Adds the table's rows `places` [F] to a clip's frames [(b F), N, width]; the first F rows where none are given."""

    def __init__(self, length: int, width: int):
        super().__init__()
        self.register_buffer("pe", sinusoids(length, width))

    def forward(self, x: torch.Tensor, frames: int, places: torch.Tensor | None = None) -> torch.Tensor:
        rows = self.pe[0, :frames] if places is None else self.pe[0, places]
        return x + repeat(rows.to(x), "f c -> (b f) 1 c", b=len(x) // frames)


class TemporalAttention(nn.Module):
    """Self-attention over the frames at each place: [(b f), N, width] -> [(b f), N, width]."""

    def __init__(self, width: int, heads: int, max_frames: int, operations: Any = nn):
        super().__init__()
        self.heads = heads
        self.to_q = operations.Linear(width, width, bias=False)
        self.to_k = operations.Linear(width, width, bias=False)
        self.to_v = operations.Linear(width, width, bias=False)
        self.to_out = nn.ModuleList([operations.Linear(width, width)])
        self.pos_encoder = PositionTable(max_frames, width)

    def forward(self, x: torch.Tensor, frames: int, places: torch.Tensor | None = None) -> torch.Tensor:
        x = self.pos_encoder(x, frames, places)
        return self.to_out[0](attend_over_frames(self.to_q(x), self.to_k(x), self.to_v(x), frames, self.heads))


class GEGLU(nn.Module):
    """Gated linear unit: half of the projection, gated by the GELU of the other half."""

    def __init__(self, width: int, inner: int, operations: Any = nn):
        super().__init__()
        self.proj = operations.Linear(width, 2 * inner)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        value, gate = self.proj(x).chunk(2, dim=-1)
        return value * F.gelu(gate)


class FeedForward(nn.Module):
    """GEGLU with four times the width; the empty place keeps AnimateDiff's numbering (its dropout)."""

    def __init__(self, width: int, operations: Any = nn):
        super().__init__()
        self.net = nn.ModuleList(
            [GEGLU(width, 4 * width, operations), nn.Identity(), operations.Linear(4 * width, width)]
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        for layer in self.net:
            x = layer(x)
        return x


class TemporalBlock(nn.Module):
    """`attention_blocks` temporal attentions and a feed-forward, each on a normed input with a residual."""

    def __init__(self, width: int, heads: int, attention_blocks: int, max_frames: int, operations: Any = nn):
        super().__init__()
        count = range(attention_blocks)
        self.attention_blocks = nn.ModuleList([TemporalAttention(width, heads, max_frames, operations) for _ in count])
        self.norms = nn.ModuleList([operations.LayerNorm(width) for _ in count])
        self.ff = FeedForward(width, operations)
        self.ff_norm = operations.LayerNorm(width)

    def forward(self, x: torch.Tensor, frames: int, places: torch.Tensor | None = None) -> torch.Tensor:
        for norm, attention in zip(self.norms, self.attention_blocks, strict=True):
            x = x + attention(norm(x), frames, places)
        return x + self.ff(self.ff_norm(x))


class TemporalTransformer(nn.Module):
    """Transformer blocks over the frames of a feature map.

    Frames stay in the batch dimension, clip by clip: only attention looks across them, and a map in channels-last memory need
    not be moved at all.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        depth: int,
        attention_blocks: int,
        max_frames: int,
        groups: int,
        operations: Any = nn,
    ):
        super().__init__()
        self.norm = operations.GroupNorm(groups, width, eps=1e-6)
        self.proj_in = operations.Linear(width, width)
        self.transformer_blocks = nn.ModuleList(
            [TemporalBlock(width, heads, attention_blocks, max_frames, operations) for _ in range(depth)]
        )
        self.proj_out = operations.Linear(width, width)
        fill(self.proj_out.weight, 0)
        fill(self.proj_out.bias, 0)

    def forward(self, x: torch.Tensor, frames: int, places: torch.Tensor | None = None) -> torch.Tensor:
        height = x.shape[2]
        x = self.proj_in(rearrange(self.norm(x), "n c h w -> n (h w) c"))
        for block in self.transformer_blocks:
            x = block(x, frames, places)
        return rearrange(self.proj_out(x), "n (h w) c -> n c h w", h=height)


class MotionModule(nn.Module):
    """One AnimateDiff motion module: the residual of a temporal transformer; zero at the start of training."""

    def __init__(
        self,
        channels: int,
        heads: int,
        depth: int,
        attention_blocks: int,
        max_frames: int,
        groups: int,
        operations: Any = nn,
    ):
        super().__init__()
        self.temporal_transformer = TemporalTransformer(
            channels, heads, depth, attention_blocks, max_frames, groups, operations
        )

    def forward(self, x: torch.Tensor, frames: int, places: torch.Tensor | None = None) -> torch.Tensor:
        """The residual to add: [(b f), C, h, w] -> [(b f), C, h, w]; `places` [F] are the frames' numbers in the clip."""
        return self.temporal_transformer(x, frames, places)
