"""The adapter gives the same in both hosts: at each UNet call of ComfyUI's sampling, and over a whole one."""

import dataclasses
import itertools

import pytest
import torch

from livephoto_core.checkpoint import load_adapter, save_adapter
from livephoto_core.commands.model_files import DEMO_FOLDER
from livephoto_core.conditioning import ClipCondition, even_levels
from livephoto_core.config import NoiseSchedule, Parts, noise_shares
from livephoto_core.diffusers_host import DiffusersHost
from livephoto_core.encoding import decode, encode_photo, encode_text, photo_tokens
from livephoto_core.evaluation.ablation_arms import Variant, write_variant
from livephoto_core.noise import share_noise

LINEAR = NoiseSchedule("linear")
BARE = Parts(intensity=False, content=False, reweight=False)
# (image strength, motion strength) where they are not 1
STRENGTHS = {"other_strengths": (0.6, 1.3), "no_strength": (0.0, 0.0)}
# the demo checkpoint's own, or another
SAMPLINGS = [("euler", None), ("euler_on_linear_betas", LINEAR)]
CHUNKS = {
    "one_cond": [[0], [0]],
    "two_conds": [[1, 0], [1, 0]],
    "two_conds_the_other_way_round": [[0, 1], [0, 1]],
    "conds_apart": [[1], [0], [1], [0]],
    "two_photos": [[1, 0], [1, 0]],
    "other_strengths": [[1, 0], [1, 0]],
    "no_strength": [[1, 0], [1, 0]],
    "most_frames": [[0]],
    "weighted_words": [[1, 0], [1, 0]],
    "long_prompt": [[1, 0], [1, 0]],
    "combined_conds": [[1, 0, 0], [1, 0, 0]],
    "cond_for_some_steps": [[1, 0], [1, 0, 0]],
    "masked_cond": [[1, 0, 0], [1, 0, 0]],
}


@pytest.fixture(scope="module")
def results(inside, demo):
    def prepare(base):
        _, adapter = demo
        config, adapter.config = adapter.config, dataclasses.replace(adapter.config, schedule=LINEAR)
        save_adapter(adapter, base / "models" / "livephoto" / "linear.safetensors", dtype=torch.float32)
        adapter.config = config
        write_variant(DEMO_FOLDER / "adapter.safetensors", Variant(BARE), base / "models" / "livephoto" / "bare.safetensors")

    return inside("eps", prepare=prepare)


def test_encoders(results, demo):
    found, (base, adapter) = results("parts"), demo
    with torch.no_grad():
        text = encode_text(base, ["camera pans left, zooming in"])
        latent = encode_photo(base, found["photo"])
        picture = decode(base, latent)
        tokens, _ = photo_tokens(base.image_encoder, found["photo"], adapter.config.content)
    for name, ours in {"text": text, "latent": latent, "picture": picture, "tokens": tokens}.items():
        assert torch.allclose(found[name], ours, atol=1e-4), (name, (found[name] - ours).abs().max())


@pytest.mark.parametrize("name", CHUNKS)
def test_same_output_of_the_unet(results, demo, replay, name):
    found, (base, adapter) = results(name), demo
    assert found["chunks"] == CHUNKS[name]
    difference = replay(found, base.unet, adapter, *STRENGTHS.get(name, ()))
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-4
    without = replay(found, base.unet, None)
    assert without < 1e-4 if name == "no_strength" else without > 0.01


def test_adapter_without_its_parts(results, demo, replay, tmp_path):
    """As an ablation trains it: no content attention, no re-weighting, and a level that is not read."""
    found, (base, _) = results("without_parts"), demo
    write_variant(DEMO_FOLDER / "adapter.safetensors", Variant(BARE), tmp_path / "bare.safetensors")
    bare = load_adapter(tmp_path / "bare.safetensors")
    assert replay(found, base.unet, bare) < 1e-4
    assert replay({**found, "level": found["level"] + 3}, base.unet, bare) < 1e-4
    assert replay(found, base.unet, demo[1]) > 0.01
    assert torch.equal(found["weighed"], found["text"].expand_as(found["weighed"]))


@pytest.mark.parametrize("name", ["two_conds_the_other_way_round", "conds_apart"])
def test_order_and_number_of_conds_do_not_matter(results, name):
    assert torch.allclose(results(name)["latents"], results("two_conds")["latents"], atol=1e-4)


def test_prompts_are_what_they_should_be(results):
    assert results("weighted_words")["difference"] > 0.01
    assert results("long_prompt")["call0/context"].shape[1] > 77


def sigmas_of(schedule):
    """[timesteps] noise levels, from the betas' definition."""
    if schedule.kind == "linear":
        betas = torch.linspace(schedule.beta_start, schedule.beta_end, schedule.timesteps, dtype=torch.float64)
    else:
        betas = torch.linspace(schedule.beta_start**0.5, schedule.beta_end**0.5, schedule.timesteps, dtype=torch.float64) ** 2
    kept = torch.cumprod(1 - betas, 0)
    return ((1 - kept) / kept).sqrt().float()


@torch.no_grad()
def euler(found, base, adapter, schedule, steps=4):
    """ComfyUI's euler and normal, written out for the diffusers host, in v-prediction; latents in the VAE's scale."""
    assert base.prediction_type == "v_prediction"
    table = sigmas_of(schedule)
    places = torch.linspace(schedule.timesteps - 1, 0, steps)
    low = places.floor().long()
    logs = torch.lerp(table.log()[low], table.log()[places.ceil().long()], places - low)
    sigmas = torch.cat([logs.exp(), torch.zeros(1)])
    texts = torch.cat([found["negative"], found["positive"]]).repeat_interleave(found["frames"], 0)
    levels = even_levels(found["level"], 1, found["frames"])
    condition = ClipCondition(found["latent"], found["tokens"], tuple(found["grid"]), levels).repeated(2)
    x = share_noise(found["start"][None], noise_shares(adapter.config, levels))[0] * (1 + sigmas[0] ** 2).sqrt()
    host = DiffusersHost(base.unet, adapter)
    with host, host.conditioned(condition):
        for sigma, following in itertools.pairwise(sigmas):
            scale = (sigma**2 + 1).sqrt()
            timestep = (sigma.log() - table.log()).abs().argmin()
            v = base.unet(torch.cat([x, x]) / scale, timestep, texts).sample
            negative, positive = (x / scale**2 - half * sigma / scale for half in v.chunk(2))
            denoised = negative + found["cfg"] * (positive - negative)
            x = x + (x - denoised) / sigma * (following - sigma)
    return x / base.vae.config.scaling_factor


@pytest.mark.parametrize(("name", "schedule"), SAMPLINGS)
def test_whole_sampling(results, demo, name, schedule):
    found = results(name)
    difference = (euler(found, *demo, schedule or demo[1].config.schedule) - found["latents"]).abs().max().item()
    print(f"{name}: {difference:.1e}")
    assert difference < 1e-3


@pytest.mark.parametrize(("name", "schedule"), SAMPLINGS)
def test_patched_model_has_the_checkpoints_noise_schedule_and_the_base_keeps_its_own(results, demo, name, schedule):
    found = results(name)
    assert torch.allclose(found["sigmas of patched"], sigmas_of(schedule or demo[1].config.schedule), rtol=1e-4)
    assert torch.allclose(found["sigmas of base"], sigmas_of(demo[0].schedule), rtol=1e-4)


def test_base_samples_as_before_after_another_noise_schedule(results):
    found = results("euler_on_linear_betas")
    assert torch.equal(found["base before"], found["base after"])
    assert not torch.allclose(found["latents"], results("euler")["latents"], atol=1e-2)
