"""Procedural clips in the form that the trainer caches."""

import pytest
import torch

from livephoto_core.base import photo_tokens
from livephoto_core.demo.base import content_shape
from livephoto_core.demo.clips import ClipSet
from livephoto_core.demo.encode import encode_clip
from livephoto_core.demo.patches import new_patch_encoder
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import SHAPES
from livephoto_core.demo.vae import new_vae
from livephoto_core.intensity import clip_ssim


@torch.no_grad()
def test_a_clip_is_encoded_with_the_level_of_what_the_vae_shows():
    torch.manual_seed(0)
    noise = torch.rand(3, 12, 12).repeat_interleave(16, 1).repeat_interleave(16, 2)
    clips = ClipSet([Photo("noise", (255 * noise).byte())], SHAPES, frames=3)
    vae, patches = new_vae().eval(), new_patch_encoder().eval()
    vae.register_to_config(scaling_factor=0.5)
    clip, encoded = clips.clip(0), encode_clip(clips, 0, vae, patches)
    assert encoded.latents.shape == (3, 12, 16, 16) and encoded.caption == clip.caption
    tokens, grid = photo_tokens(patches, clip.frames[:1], content_shape())
    assert torch.equal(encoded.tokens, tokens[0]) and encoded.grid == grid == (16, 16)
    shown = (vae.decode(encoded.latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    assert encoded.ssim == pytest.approx(float(clip_ssim(shown)), abs=1e-5)
    assert encoded.ssim != pytest.approx(float(clip_ssim(clip.frames)), abs=1e-3)
