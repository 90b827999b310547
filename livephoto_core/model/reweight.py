"""Text re-weighting: how much each token counts in each frame (paper section 3.5, figure 3)."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import nn

from .attention import attend, heads_first
from .initial import fill

START_WEIGHT_LOGIT = 1.5


class EncoderLayer(nn.Module):
    """A pre-norm transformer encoder layer over tokens: [B, L, D] -> [B, L, D]."""

    def __init__(self, width: int, heads: int, operations: Any = nn):
        super().__init__()
        self.heads = heads
        self.norm1 = operations.LayerNorm(width)
        self.to_q = operations.Linear(width, width)
        self.to_k = operations.Linear(width, width)
        self.to_v = operations.Linear(width, width)
        self.to_out = operations.Linear(width, width)
        self.norm2 = operations.LayerNorm(width)
        self.ff_in = operations.Linear(width, 4 * width)
        self.ff_out = operations.Linear(4 * width, width)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.norm1(x)
        q, k, v = (heads_first(layer(y), self.heads) for layer in (self.to_q, self.to_k, self.to_v))
        x = x + self.to_out(attend(q, k, v))
        return x + self.ff_out(F.gelu(self.ff_in(self.norm2(x))))


class TextReweighter(nn.Module):
    """Weights in 0..1 for each token and frame.

    The last layer starts at weight zero and a bias above zero, so that every token starts with the same high weight: from a
    random start all weights fall to zero within a hundred steps and no gradient brings them back.
    """

    def __init__(self, width: int, frames: int, layers: int, heads: int, operations: Any = nn):
        super().__init__()
        self.frames = frames
        self.layers = nn.ModuleList([EncoderLayer(width, heads, operations) for _ in range(layers)])
        self.norm = operations.LayerNorm(width)
        self.to_frames = operations.Linear(width, frames)
        fill(self.to_frames.weight, 0)
        fill(self.to_frames.bias, START_WEIGHT_LOGIT)

    def logits(self, text: torch.Tensor) -> torch.Tensor:
        """Text embeddings [B, L, D] -> the logits of the weights [B, L, F] in the frames that it was trained on."""
        for layer in self.layers:
            text = layer(text)
        return self.to_frames(self.norm(text))

    def forward(self, text: torch.Tensor, frames: int) -> torch.Tensor:
        """Text embeddings of one chunk [B, L, D] -> weights [B, F, L]; other frame counts are read between the learnt ones."""
        logits = self.logits(text)
        if frames != self.frames:
            logits = F.interpolate(logits, size=frames, mode="linear", align_corners=True)
        return rearrange(torch.sigmoid(logits), "b l f -> b f l")


class EvenWeights(nn.Module):
    """Stands in for the TextReweighter of an adapter that was trained without it: every token counts fully in every frame."""

    def forward(self, text: torch.Tensor, frames: int) -> torch.Tensor:
        """Text embeddings [B, L, D] -> ones [B, F, L]."""
        return text.new_ones(len(text), frames, text.shape[1])


def word_factors(weights: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """What words are multiplied by, [B, F, L], under weights [B, F, L]: strength 0 leaves them as they are.

    A strength above 1 turns words down further than learnt, at most to nothing.
    """
    return (1 + strength * (weights - 1)).clamp(min=0)


def scale_words(text: torch.Tensor, factors: torch.Tensor) -> torch.Tensor:
    """Text [B, L, D], or what is linear in it, times factors [B, F, L] -> one a frame [(b f), L, D]."""
    return rearrange(text[:, None] * factors[..., None].to(text), "b f l d -> (b f) l d")


def apply_weights(text: torch.Tensor, weights: torch.Tensor, strength: float = 1.0) -> torch.Tensor:
    """Text [B, L, D] under weights [B, F, L] -> a text a frame [(b f), L, D], with a strength as in `word_factors`."""
    return scale_words(text, word_factors(weights, strength))
