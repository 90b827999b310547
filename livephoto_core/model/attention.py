"""Attention shared by the adapter's parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange


def heads_first(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return rearrange(x, "b n (h d) -> b h n d", h=heads)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention of [B, heads, N, d] queries onto [B, heads, M, d] -> [B, N, heads * d]."""
    return rearrange(F.scaled_dot_product_attention(q, k, v), "b h n d -> b n (h d)")
