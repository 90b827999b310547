"""Content attention: the UNet looks at the reference photo's patch tokens (paper section 3.2).

Keys and values depend only on the photo. With rope positions a query looks from its own place, moved by an offset that it learns
from its hidden state. The offset is affine in the place: "a fifth of the picture to the left" is one direction of the hidden
state, which is what a sliding picture needs, and so are "outwards" and "round the middle", for zooms and turns. Centred offsets
have a middle of their own, which a query reads from its hidden state too: that of a thing which grows or spins.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange, repeat
from torch import nn

from .attention import attend, heads_first
from .initial import fill

# the share of the picture that an output of one stands for: a step of the optimizer then moves a look by well under a patch
OFFSET_UNIT = 0.25


@dataclass(frozen=True)
class KeysValues:
    """A photo's keys and values at one site: [B, heads, T, d] each."""

    keys: torch.Tensor
    values: torch.Tensor


def grid_positions(rows: int, columns: int, device: torch.device | None = None) -> torch.Tensor:
    """The centres [rows * columns, 2] of a grid's cells as (y, x) in 0..1, row by row."""
    y = (torch.arange(rows, device=device, dtype=torch.float32) + 0.5) / rows
    x = (torch.arange(columns, device=device, dtype=torch.float32) + 0.5) / columns
    return torch.stack([repeat(y, "r -> (r c)", c=columns), repeat(x, "c -> (r c)", r=rows)], dim=-1)


def rope_angles(positions: torch.Tensor, head_width: int) -> torch.Tensor:
    """Rotation angles [..., head_width / 2] of positions [..., 2]: half the pairs for y, half for x, half a turn to eight turns."""
    pairs = head_width // 4
    turns = (
        torch.logspace(-1, 3, pairs, base=2, device=positions.device)
        if pairs > 1
        else torch.ones(1, device=positions.device)
    )
    return rearrange(positions[..., None] * (turns * 2 * math.pi), "... a p -> ... (a p)")


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """[..., d] with its halves turned as pairs by angles [..., d / 2]."""
    cos, sin = angles.cos().to(x), angles.sin().to(x)
    first, second = x.chunk(2, dim=-1)
    return torch.cat(
        [torch.addcmul(first * cos, second, sin, value=-1), torch.addcmul(first * sin, second, cos)],
        dim=-1,
    )


def affine_offsets(fields: torch.Tensor, away: torch.Tensor) -> torch.Tensor:
    """Offsets [..., N, heads, 2] from fields [..., N, heads, 3, 2]: a constant, a slope down, one across.

    `away` [..., N, heads or 1, 2] is how far places are from what the slopes count from, (y, x), one from a picture's middle to its
    edge.
    """
    down, across = away[..., None].unbind(-2)
    constant, slope_down, slope_across = fields.unbind(-2)
    return torch.addcmul(torch.addcmul(constant, slope_down, down), slope_across, across)


class ContentAttention(nn.Module):
    """Cross-attention of one spatial transformer onto the photo's tokens; adds nothing at the start of training."""

    def __init__(
        self,
        channels: int,
        token_width: int,
        heads: int,
        head_width: int,
        positions: str,
        operations: Any = nn,
        *,
        centred: bool = False,
    ):
        super().__init__()
        inner = heads * head_width
        self.heads, self.head_width, self.positions, self.centred = heads, head_width, positions, centred
        self.to_q = operations.Linear(channels, inner)
        self.to_k = operations.Linear(token_width, inner)
        self.to_v = operations.Linear(token_width, inner)
        self.to_out = operations.Linear(inner, channels)
        fill(self.to_out.weight, 0)
        fill(self.to_out.bias, 0)
        if positions == "rope":
            # for each head y and x, and how each changes down and across the picture
            self.to_offset = operations.Linear(channels, 6 * heads)
            fill(self.to_offset.weight, 0)
            fill(self.to_offset.bias, 0)
            if centred:
                # for each head y and x, from the picture's middle
                self.to_centre = operations.Linear(channels, 2 * heads)
                fill(self.to_centre.weight, 0)
                fill(self.to_centre.bias, 0)
            # the constant part of queries and keys carries the place; equal phases: each place first looks at itself
            for layer in (self.to_q, self.to_k):
                fill(layer.bias, 1)

    def keys_values(self, tokens: torch.Tensor, grid: tuple[int, int]) -> KeysValues:
        """Keys and values of the projected tokens [B, rows * columns, width]."""
        k, v = heads_first(self.to_k(tokens), self.heads), heads_first(self.to_v(tokens), self.heads)
        if self.positions == "rope":
            k = rotate(k, rope_angles(grid_positions(*grid, device=k.device), self.head_width))
        return KeysValues(k, v)

    def forward(self, x: torch.Tensor, grid: tuple[int, int], image: KeysValues) -> torch.Tensor:
        """The residual to add: [(b f), N, C] hidden states of a grid of N places -> the same shape; b as in `image`."""
        q = rearrange(self.to_q(x), "n p (h d) -> n p h d", h=self.heads)
        if self.positions == "rope":
            places = grid_positions(*grid, device=q.device)
            fields = rearrange(self.to_offset(x).float(), "n p (h o a) -> n p h o a", h=self.heads, a=2)
            away = (2 * places - 1)[:, None]
            if self.centred:
                away = away - rearrange(self.to_centre(x).float(), "n p (h a) -> n p h a", a=2)
            moved = places[:, None] + OFFSET_UNIT * affine_offsets(fields, away)
            q = rotate(q, rope_angles(moved, self.head_width))
        q = rearrange(q, "(b f) p h d -> b h (f p) d", b=len(image.keys))
        out = self.to_out(attend(q, image.keys.to(q), image.values.to(q)))
        return rearrange(out, "b (f p) c -> (b f) p c", p=x.shape[1])

    def look(self, x: torch.Tensor, grid: tuple[int, int], tokens: torch.Tensor, token_grid: tuple[int, int]) -> torch.Tensor:
        """As `forward`, from the projected tokens [B, rows * columns, width] themselves."""
        return self(x, grid, self.keys_values(tokens, token_grid))
