"""A clip as the cache of a training set keeps it."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..config import ContentShape
from ..data.clips import ClipSample
from ..encoding import decode_latents, encode_pictures, photo_tokens
from .cache import EncodedClip


@torch.no_grad()
def encode_sample(
    sample: ClipSample,
    vae: nn.Module,
    image_encoder: nn.Module,
    content: ContentShape,
    intensity_from: str,
    similarity_of: Callable[[Tensor], float],
) -> EncodedClip:
    """One clip's latents, tokens of its first frame and similarity, without gradients, on the CPU.

    `intensity_from` as in `DataConfig`; `similarity_of` measures frames [F, 3, H, W], 0..1. VAE and image encoder may be on a
    device.
    """
    latents = torch.cat([encode_pictures(vae, part) for part in sample.frames.split(4)])
    tokens, grid = photo_tokens(image_encoder, sample.frames[:1], content)
    seen = decode_latents(vae, latents).cpu() if intensity_from == "reconstruction" else sample.frames
    return EncodedClip(latents.cpu(), tokens[0].cpu(), grid, similarity_of(seen), sample.caption)
