"""The text module of LivePhoto-Wan2.1: writes the motion level into the umt5 text (authors' release XavierCHEN34/LivePhoto).

Names and shapes are those of the released base.safetensors, 28 tensors beside a plain Wan2.1-T2V-1.3B.
"""

from __future__ import annotations

from typing import Any

import torch
from einops import repeat
from torch import nn

from ..errors import LivePhotoError
from .attention import attend, heads_first

TEXT_WIDTH = 4096
# umt5's rows, zeros after the prompt; the released model reads the zeros' rows too
TEXT_ROWS = 512
# what a user chooses from; level 0 is "no level", for the other two branches of the guidance
LEVELS = range(1, 7)
_MOTION_TOKENS = 2
_HEADS = 8
_EPS = 1e-6
# where training starts: relu has no gradient there, so a file that still holds it never learnt the levels
_WARMUP_START = -9.0


def check_wan_level(level: float) -> int:
    """A level of LivePhoto-Wan2.1, checked.

    Raises:
        LivePhotoError: not one of the whole numbers 1 to 6.
    """
    if level not in LEVELS:
        raise LivePhotoError(f"motion intensity must be a whole number from 1 to 6, got {level}")
    return int(level)


class CrossAttention(nn.Module):
    """Attention of x [B, N, D] onto y [B, M, D] -> [B, N, D]; queries and keys pass an RMSNorm over their whole width."""

    def __init__(self, width: int, operations: Any = nn):
        super().__init__()
        self.q = operations.Linear(width, width)
        self.k = operations.Linear(width, width)
        self.v = operations.Linear(width, width)
        self.o = operations.Linear(width, width)
        self.norm_q = operations.RMSNorm(width, eps=_EPS)
        self.norm_k = operations.RMSNorm(width, eps=_EPS)

    def forward(self, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
        q, k, v = self.norm_q(self.q(x)), self.norm_k(self.k(y)), self.v(y)
        return self.o(attend(*(heads_first(part, _HEADS) for part in (q, k, v))))


class WanTextReweight(nn.Module):
    """Two cross-attentions of the text onto the motion tokens, mixed in by a learnt gate."""

    def __init__(self, width: int, operations: Any = nn):
        super().__init__()
        self.cross_attn_0 = CrossAttention(width, operations)
        self.cross_attn_1 = CrossAttention(width, operations)
        self.ln0_0 = operations.LayerNorm(width, eps=_EPS)
        self.ln0_1 = operations.LayerNorm(width, eps=_EPS)
        self.ln1_1 = operations.LayerNorm(width, eps=_EPS)
        self.warmup = nn.Parameter(torch.tensor(_WARMUP_START))

    def gate(self) -> torch.Tensor:
        """How much of the module counts, 0 to 1; at 0 the text leaves as it came and the level does nothing."""
        return self.warmup.clamp(0, 1)

    def forward(self, text: torch.Tensor, motion: torch.Tensor) -> torch.Tensor:
        """Text [B, L, D] and motion tokens [B, 2, D] -> [B, L, D]."""
        x = text + self.cross_attn_0(self.ln0_1(text), motion)
        x = x + self.cross_attn_1(self.ln1_1(x), motion)
        gate = self.gate().to(x)
        return (1 - gate) * text + gate * self.ln0_0(x)


class WanTextModule(nn.Module):
    """Motion levels and the re-weighting of the text.

    `operations` makes the layers: torch.nn, or a host's own with its casts.
    """

    def __init__(self, operations: Any = nn):
        super().__init__()
        # no level, then LEVELS
        self.motion_intensity_embed = operations.Embedding(1 + len(LEVELS), _MOTION_TOKENS * TEXT_WIDTH)
        self.text_reweight = WanTextReweight(TEXT_WIDTH, operations)

    def forward(self, text: torch.Tensor, level: int) -> torch.Tensor:
        """Text [B, 512, 4096] at a level 0..6 -> the same shape. Every row changes, those behind the prompt too."""
        motion = self.motion_intensity_embed(torch.tensor(level, device=text.device)).to(text)
        return self.text_reweight(text, repeat(motion, "(n d) -> b n d", b=len(text), n=_MOTION_TOKENS))
