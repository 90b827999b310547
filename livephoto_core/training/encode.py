"""A clip as the cache of a training set keeps it."""

from __future__ import annotations

import torch
from torch import nn

from ..config import ContentShape
from ..data.clips import ClipSample
from ..encoding import decode_latents, encode_pictures, photo_tokens
from ..measures import clip_similarity
from .cache import EncodedClip


@torch.no_grad()
def encode_sample(
    sample: ClipSample, vae: nn.Module, image_encoder: nn.Module, content: ContentShape, intensity_from: str, measure: str = "ssim"
) -> EncodedClip:
    """One clip's latents, tokens of its first frame and similarity, without gradients, on the CPU.

    `intensity_from` and `measure` as in `DataConfig`. VAE and image encoder may be on a device.
    """
    latents = torch.cat([encode_pictures(vae, part) for part in sample.frames.split(4)])
    tokens, grid = photo_tokens(image_encoder, sample.frames[:1], content)
    seen = decode_latents(vae, latents).cpu() if intensity_from == "reconstruction" else sample.frames
    return EncodedClip(latents.cpu(), tokens[0].cpu(), grid, clip_similarity(seen, measure), sample.caption)
