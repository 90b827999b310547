"""Attention shared by the adapter's parts."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from einops import rearrange

# CUDA's attention kernels take no more heads at once
MOST_HEADS = 2**16 - 1
HALVES = (torch.bfloat16, torch.float16)


def heads_first(x: torch.Tensor, heads: int) -> torch.Tensor:
    """[B, N, heads * d] -> [B, heads, N, d]."""
    return rearrange(x, "b n (h d) -> b h n d", h=heads)


def scaled_dot_product(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """torch's attention; halves on a CPU are computed in float32, where its kernels are faster and lose nothing."""
    if q.device.type != "cpu" or q.dtype not in HALVES:
        return F.scaled_dot_product_attention(q, k, v)
    # autocast would make halves of them again
    with torch.autocast("cpu", enabled=False):
        return F.scaled_dot_product_attention(q.float(), k.float(), v.float()).to(q.dtype)


def attend(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor) -> torch.Tensor:
    """Scaled dot-product attention of [B, heads, N, d] queries onto [B, heads, M, d] -> [B, N, heads * d]."""
    return rearrange(scaled_dot_product(q, k, v), "b h n d -> b n (h d)")


def attend_over_frames(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, frames: int, heads: int) -> torch.Tensor:
    """Attention over the frames of each place: [(b f), N, heads * d] three times -> [(b f), N, heads * d].

    The places count as further heads, so that no tensor is copied; a sequence for each place would take all four apart.
    """
    parts = [rearrange(x, "(b f) n (h d) -> b (n h) f d", f=frames, h=heads).split(MOST_HEADS, dim=1) for x in (q, k, v)]
    done = [scaled_dot_product(*part) for part in zip(*parts, strict=True)]
    return rearrange(done[0] if len(done) == 1 else torch.cat(done, 1), "b (n h) f d -> (b f) n (h d)", h=heads)
