"""Procedural clips as the trainer's cache wants them."""

from __future__ import annotations

from functools import partial
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Model

from ..base import load_image_encoder, load_vae
from ..data.clips import ClipSample
from ..measures import clip_similarity
from ..training.cache import EncodedClip
from ..training.encode import encode_sample
from .base import content_shape


def encode_clip(sample: ClipSample, vae: AutoencoderKL, patches: Dinov2Model) -> EncodedClip:
    """A clip, its level measured on its VAE reconstruction, which is what a user of the demo will see."""
    similarity_of = partial(clip_similarity, measure="ssim")
    return encode_sample(sample, vae, patches, content_shape(sample.frames.shape[-1]), "reconstruction", similarity_of)


def load_encoders(folder: Path) -> tuple[AutoencoderKL, Dinov2Model]:
    """The trained VAE and patch encoder of a demo base folder.

    Raises:
        LivePhotoError: the folder lacks one of them.
    """
    # channels-last halves the time of its thin convolutions on a CPU
    vae = load_vae(folder / "vae").to(memory_format=torch.channels_last)
    return vae, load_image_encoder(folder / "image_encoder")
