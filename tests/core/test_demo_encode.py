"""Procedural clips in the form that the trainer caches."""

import shutil
from pathlib import Path

import pytest
import torch
from einops import rearrange

from livephoto_core import training
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.data.clips import ClipSample
from livephoto_core.demo import clip_cache
from livephoto_core.demo.base import content_shape
from livephoto_core.demo.clips import ClipSet
from livephoto_core.demo.encode import encode_clip, load_encoders
from livephoto_core.demo.patches import new_patch_encoder
from livephoto_core.demo.photos import Photo
from livephoto_core.demo.sprites import SHAPES
from livephoto_core.demo.vae import new_vae, optimizer_of, patch_components, reconstruction_loss, set_linear_encoder
from livephoto_core.encoding import photo_tokens
from livephoto_core.errors import LivePhotoError
from livephoto_core.intensity import clip_ssim
from livephoto_core.training.cache import finish_cache
from livephoto_core.training.config import read_values, run_from_dict
from livephoto_core.training.run import prepare

RECIPE = Path(training.__file__).parent / "recipes" / "demo_further.toml"


@torch.no_grad()
def test_a_clip_is_encoded_with_the_level_of_what_the_vae_shows():
    torch.manual_seed(0)
    noise = torch.rand(3, 12, 12).repeat_interleave(16, 1).repeat_interleave(16, 2)
    clips = ClipSet([Photo("noise", (255 * noise).byte())], SHAPES, frames=3)
    vae, patches = new_vae().eval(), new_patch_encoder().eval()
    vae.register_to_config(scaling_factor=0.5)
    clip = clips.clip(0)
    encoded = encode_clip(ClipSample(clip.frames, clip.caption, "0"), vae, patches)
    assert encoded.latents.shape == (3, 12, 16, 16) and encoded.caption == clip.caption
    tokens, grid = photo_tokens(patches, clip.frames[:1], content_shape())
    assert torch.equal(encoded.tokens, tokens[0]) and encoded.grid == grid == (16, 16)
    shown = (vae.decode(encoded.latents / 0.5).sample / 2 + 0.5).clamp(0, 1)
    assert encoded.ssim == pytest.approx(float(clip_ssim(shown)), abs=1e-5)
    assert encoded.ssim != pytest.approx(float(clip_ssim(clip.frames)), abs=1e-3)


def test_the_shipped_demo_can_be_trained_further(tmp_path, monkeypatch):
    """By its recipe, on clips encoded by its own parts, which the trainer takes and which no other demo may add to."""
    monkeypatch.chdir(RECIPE.parents[3])
    noise = [Photo("noise", (255 * torch.rand(3, 96, 128)).byte())]
    monkeypatch.setattr(clip_cache, "package_photos", lambda: (noise, noise))
    cache = tmp_path / "cache"
    for process in range(2):
        clip_cache.make_share(DEMO_FOLDER, cache, 26, process, 2)
    finish_cache(cache, 26, clip_cache.origin_of(DEMO_FOLDER, 26))
    values = read_values(RECIPE)
    data = {**values["data"], "path": str(cache), "held_out": 2}
    model, batches, held_out, _ = prepare(run_from_dict({**values, "data": data, "out": str(tmp_path / "run")}))
    assert (len(batches.clips), held_out) == (26, [0, 1])
    assert model.adapter.config.intensity_from == "reconstruction"

    other = tmp_path / "other"
    shutil.copytree(DEMO_FOLDER / "image_encoder", other / "image_encoder")
    vae, _ = load_encoders(DEMO_FOLDER)
    with torch.no_grad():
        vae.decoder.conv_out.weight.mul_(1.5)
    vae.save_pretrained(other / "vae")
    with pytest.raises(LivePhotoError, match=r"another the VAE .*name another folder, or delete"):
        clip_cache.make_cache(other, cache, 26, 1)
    with pytest.raises(LivePhotoError, match=r"holds no config.json: give the folder of a VAE"):
        clip_cache.make_cache(tmp_path, cache, 26, 1)
    with pytest.raises(LivePhotoError, match="24 clips by 1 processes: use more"):
        clip_cache.make_cache(DEMO_FOLDER, cache, 24, 1)
    finish_cache(cache, 26, {"data.kind": "folder"})
    with pytest.raises(LivePhotoError, match=r"data\.kind"):
        clip_cache.make_cache(DEMO_FOLDER, cache, 26, 1)


def pictures(count, side=64):
    """Smooth pictures [N, 3, S, S] in -1..1 with detail in them."""
    generator = torch.Generator().manual_seed(1)
    parts = [torch.randn(count, 3, cells, cells, generator=generator) for cells in (4, 16, side)]
    grown = [torch.nn.functional.interpolate(part, size=(side, side), mode="bilinear") for part in parts]
    return torch.tanh(grown[0] + 0.5 * grown[1] + 0.1 * grown[2])


@torch.no_grad()
def test_the_encoder_gives_each_patchs_principal_components():
    shown = pictures(8)
    components, mean = patch_components(shown)
    vae = new_vae().eval()
    set_linear_encoder(vae, components, mean)
    posterior = vae.encode(shown).latent_dist
    patches = rearrange(shown, "n c (r p) (k q) -> n r k c p q", p=4, q=4) - mean
    wanted = torch.einsum("nrkcpq,lcpq->nlrk", patches, components)
    assert posterior.mean.shape == wanted.shape == (8, 12, 16, 16)
    torch.testing.assert_close(posterior.mean, wanted, atol=0.02, rtol=0.005)
    torch.testing.assert_close(posterior.sample(), posterior.mean, atol=1e-5, rtol=0)
    # uncorrelated, the strongest first
    covariance = rearrange(wanted, "n l r k -> l (n r k)").cov()
    spread = covariance.diag().sqrt()
    assert (covariance / spread / spread[:, None] - torch.eye(12)).abs().max() < 0.05
    assert (spread.diff() < 0).all()


def test_the_loss_of_the_vae_minds_texture():
    shown = pictures(2)
    checkered = torch.tensor([1.0, -1.0]).repeat(32)
    checkered = checkered * checkered[:, None]
    # the same error at every pixel
    shifted, rough = reconstruction_loss(shown + 0.1, shown), reconstruction_loss(shown + 0.1 * checkered, shown)
    assert reconstruction_loss(shown, shown) == 0
    assert shifted == pytest.approx(0.1 + 2 * 0.1**2, abs=1e-5)
    assert rough > shifted + 0.005


def test_muon_takes_the_hidden_part_of_the_decoder_alone():
    vae = new_vae()
    vae.encoder.requires_grad_(False)
    names = {id(parameter): name for name, parameter in vae.named_parameters()}
    groups = optimizer_of(vae, 1e-3).param_groups
    hidden, rest = ([names[id(p)] for p in group["params"]] for group in sorted(groups, key=lambda g: not g["orthogonal"]))
    assert "decoder.up_blocks.0.resnets.0.conv1.weight" in hidden and "decoder.mid_block.attentions.0.to_q.weight" in hidden
    assert {"decoder.conv_in.weight", "decoder.conv_out.weight", "post_quant_conv.weight", "decoder.conv_in.bias"} <= set(rest)
    assert not any(name.startswith("encoder.") for name in [*hidden, *rest])
