"""Procedural clips as the trainer's cache wants them."""

from __future__ import annotations

from pathlib import Path

import torch
from diffusers import AutoencoderKL
from transformers import Dinov2Model

from ..intensity import clip_ssim
from ..training.cache import EncodedClip
from .clips import ClipSet
from .patches import normalised


@torch.no_grad()
def encode_clip(clips: ClipSet, index: int, vae: AutoencoderKL, patches: Dinov2Model) -> EncodedClip:
    """Clip `index`, its level measured on its VAE reconstruction, which is what a user of the demo will see."""
    clip = clips.clip(index)
    # channels-last halves the time of these thin convolutions on a CPU
    pictures = (clip.frames * 2 - 1).contiguous(memory_format=torch.channels_last)
    latents = vae.encode(pictures).latent_dist.mean
    seen = (vae.decode(latents).sample / 2 + 0.5).clamp(0, 1)
    tokens = patches(normalised(clip.frames[:1])).last_hidden_state[0, 1:]
    side = clips.size // patches.config.patch_size
    return EncodedClip(latents * vae.config.scaling_factor, tokens, (side, side), float(clip_ssim(seen)), clip.caption)


def load_encoders(folder: Path) -> tuple[AutoencoderKL, Dinov2Model]:
    """The trained VAE and patch encoder of a demo base folder."""
    vae = AutoencoderKL.from_pretrained(folder / "vae").to(memory_format=torch.channels_last).eval()
    patches = Dinov2Model.from_pretrained(folder / "image_encoder").eval()
    return vae, patches
