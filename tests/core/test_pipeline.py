from dataclasses import replace

import pytest
import torch

from livephoto_core.checkpoint import load_adapter
from livephoto_core.commands.model_files import DEMO_FOLDER, ModelFiles, load_model
from livephoto_core.config import NoiseSchedule, Parts
from livephoto_core.encoding import encode_photo, encode_text
from livephoto_core.errors import LivePhotoError
from livephoto_core.evaluation.generate import BatchSampling, batch_generator
from livephoto_core.media import read_image
from livephoto_core.model.adapter import LivePhotoAdapter
from livephoto_core.pipeline import LivePhoto, Settings, complete, make_sampler
from livephoto_core.schedule import alphas_cumprod

SETTINGS = Settings("camera pans left", steps=2, prior_start=0.0, prior_end=0.0)


@pytest.fixture
def model(tiny_base, tiny_adapter_file):
    return LivePhoto(tiny_base, load_adapter(tiny_adapter_file))


@pytest.fixture
def photo():
    return torch.rand(3, 48, 72, generator=torch.Generator().manual_seed(0))


def test_a_clip_of_the_photo(model, photo):
    frames = model.animate(photo, SETTINGS)
    assert frames.shape == (2, 3, 64, 64)
    assert frames.min() >= 0
    assert frames.max() <= 1
    assert not torch.equal(frames[0], frames[1])


def test_frames_and_size_of_choice(model, photo):
    assert model.animate(photo, replace(SETTINGS, frames=5, size=40)).shape == (5, 3, 40, 40)


def test_the_seed_decides(model, photo):
    first, again = (model.animate(photo, SETTINGS) for _ in range(2))
    assert torch.equal(first, again)
    assert not torch.equal(first, model.animate(photo, replace(SETTINGS, seed=1)))


CHANGES = {
    "text": "the circle spins",
    "intensity": 9.0,
    "cfg": 1.0,
    "min_cfg": 1.0,
    "fit": "pad",
    "negative": "snow falls",
    "prior_start": 0.5,
    "reweight": 0.0,
    "image_strength": 0.0,
    "motion_strength": 0.0,
    "sampler": "lcm",
}


@pytest.mark.parametrize("name", CHANGES)
def test_every_setting_counts(model, photo, name):
    changed = replace(SETTINGS, **{name: CHANGES[name]})
    assert not torch.equal(model.animate(photo, SETTINGS), model.animate(photo, changed))


def test_guidance_is_the_usual_extrapolation(model, photo):
    """One step at cfg 1 is the text alone; the other branch at cfg 1 is the negative text alone."""
    one = replace(SETTINGS, steps=1)
    latents = {}
    for name, settings in {
        "text": replace(one, cfg=1.0),
        "none": replace(one, cfg=1.0, text="still", negative="still"),
        "guided": replace(one, cfg=3.0, negative="still"),
    }.items():
        latents[name] = sample(model, photo, settings)
    expected = latents["none"] + 3 * (latents["text"] - latents["none"])
    assert torch.allclose(latents["guided"], expected, atol=1e-4 * float(expected.abs().max()))


def test_guidance_rises_over_the_frames(model, photo):
    """After one step the first frame is that of min_cfg and the last that of cfg; the frames between lie evenly between."""
    one = replace(SETTINGS, steps=1, negative="still")
    low, high = (sample(model, photo, replace(one, cfg=cfg)) for cfg in (1.5, 4.0))
    rising = sample(model, photo, replace(one, cfg=4.0, min_cfg=1.5))
    shares = torch.linspace(0, 1, len(low))[:, None, None, None]
    assert torch.allclose(rising, low + shares * (high - low), atol=1e-4 * float(high.abs().max()))
    assert not torch.equal(rising, high)


def sample(model, photo, settings):
    """The latents that `animate` decodes."""
    kept = []
    hook = model.base.vae.post_quant_conv.register_forward_pre_hook(lambda _, args: kept.append(args[0]))
    model.animate(photo, settings)
    hook.remove()
    return torch.cat(kept)


def test_the_base_is_left_as_it_was(model, photo):
    latent = encode_photo(model.base, photo[None, :, :48, :48])
    text = encode_text(model.base, ["still"])
    before = model.base.unet(latent, 500, encoder_hidden_states=text).sample
    model.animate(photo, SETTINGS)
    assert torch.equal(model.base.unet(latent, 500, encoder_hidden_states=text).sample, before)


def test_half_precision_gives_nearly_the_same_clip(model, photo):
    settings = replace(SETTINGS, prior_start=0.033, intensity=7.3)
    full = model.animate(photo, settings)
    model.base.to("cpu", torch.bfloat16)
    model.adapter.to(torch.bfloat16)
    half = model.animate(photo, settings)
    assert half.dtype == torch.float32
    assert -10 * (half - full).square().mean().log10() > 30


def test_the_demo_in_bf16_makes_the_same_clip():
    photo = read_image(next((DEMO_FOLDER.parent / "photos").glob("*.jpg")))
    settings = Settings("camera pans left", frames=8, steps=8, cfg=4.0)
    full, half = (load_model(ModelFiles(precision=precision), "cpu").animate(photo, settings) for precision in ("fp32", "bf16"))
    assert -10 * (half - full).square().mean().log10() > 45


def test_strengths_of_one_clip_do_not_stay_for_the_next(model, photo):
    first = model.animate(photo, SETTINGS)
    model.animate(photo, replace(SETTINGS, image_strength=0.0, motion_strength=0.5))
    assert torch.equal(model.animate(photo, SETTINGS), first)


def test_lcm_draws_its_noise_from_the_seed(model, photo):
    settings = replace(SETTINGS, sampler="lcm", steps=4)
    first, again = (model.animate(photo, settings) for _ in range(2))
    assert torch.equal(first, again)


def test_an_adapter_without_content_attention_needs_no_image_encoder(tiny_base, model, photo):
    config = model.adapter.config
    bare = LivePhoto(tiny_base, LivePhotoAdapter(replace(config, parts=Parts(content=False))).eval())
    with_encoder = bare.animate(photo, SETTINGS)
    tiny_base.image_encoder = None
    assert torch.equal(bare.animate(photo, SETTINGS), with_encoder)
    pictures = torch.rand(2, 3, config.size, config.size)
    clips = batch_generator(bare, BatchSampling(steps=1))(pictures, ["still", "snow falls"], [2.0, 8.0], [0, 1])
    assert clips.shape == (2, config.frames, 3, config.size, config.size)
    with pytest.raises(LivePhotoError, match="needs the image encoder tiny"):
        model.animate(photo, SETTINGS)


def test_progress_counts_the_inversion_too(model, photo):
    calls = []
    model.animate(photo, replace(SETTINGS, prior_start=0.033), lambda done, total: calls.append((done, total)))
    assert calls == [(done, 22) for done in range(1, 23)]


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_sampler_is_on_the_checkpoints_schedule(kind):
    schedule = NoiseSchedule(kind=kind)
    solver = make_sampler("dpmpp_2m", schedule, "v_prediction")
    assert torch.allclose(solver.alphas_cumprod, alphas_cumprod(schedule), atol=1e-6)
    assert solver.config.prediction_type == "v_prediction"


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
@pytest.mark.parametrize(("name", "steps"), [("dpmpp_2m", 10), ("lcm", 4)])
def test_sampler_finds_the_one_picture_that_a_perfect_model_knows(name, steps, prediction_type):
    """With the true noise (or v) for a single picture as the model's output, any start ends in that picture."""
    picture = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    solver = make_sampler(name, NoiseSchedule(), prediction_type)
    solver.set_timesteps(steps)
    kept = alphas_cumprod(NoiseSchedule())
    x = torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    for timestep in solver.timesteps:
        signal, spread = kept[timestep].sqrt(), (1 - kept[timestep]).sqrt()
        noise = (x - signal * picture) / spread
        output = noise if prediction_type == "epsilon" else signal * noise - spread * picture
        x = solver.step(output, timestep, x, generator=torch.Generator().manual_seed(2)).prev_sample
    assert torch.allclose(x, picture, atol=2e-3)


WRONG = {
    "text": ("  ", "the text is empty"),
    "sampler": ("euler", "unknown sampler 'euler'; choose one of dpmpp_2m, lcm"),
    "intensity": (11.0, "from 1 to 10, got 11"),
    "frames": (1, "2 to 16 frames with this model, got 1"),
    "steps": (0, "steps must be 1 to 999, got 0"),
    "cfg": (float("nan"), "cfg must be a number from 1"),
    "min_cfg": (SETTINGS.cfg + 1, r"min_cfg, the first frame's guidance, must be from 1 to cfg \("),
    "seed": (-1, "the seed must be 0 to"),
    "size": (100, "multiple of 8 .*, got 100: try 96"),
    "fit": ("zoom", "unknown fit 'zoom'"),
    "prior_end": (2.0, r"must lie in 0\.\.1"),
    "reweight": (float("inf"), "reweight must be a number"),
}


@pytest.mark.parametrize("name", WRONG)
def test_settings_out_of_range(model, name):
    value, message = WRONG[name]
    with pytest.raises(LivePhotoError, match=message):
        complete(replace(SETTINGS, **{name: value}), model.adapter.config)


@pytest.mark.parametrize("size", [0, 8, 4096])
def test_sizes_that_are_too_small_or_large(model, size):
    with pytest.raises(LivePhotoError, match="from 16 to 2048"):
        complete(replace(SETTINGS, size=size), model.adapter.config)


def test_text_that_is_too_long_is_not_cut_silently(model, photo):
    with pytest.raises(LivePhotoError, match=r"500 words.*shorten the text"):
        model.animate(photo, replace(SETTINGS, text="camera pans left and " * 125))


def test_adapter_for_another_base(tiny_base, tiny_adapter_file):
    tiny_base.unet.register_to_config(cross_attention_dim=32)
    with pytest.raises(LivePhotoError, match="context_width"):
        LivePhoto(tiny_base, load_adapter(tiny_adapter_file))


def test_adapter_of_a_base_that_predicts_something_else(tiny_base, tiny_adapter_file):
    adapter = load_adapter(tiny_adapter_file)
    for told in ("", "v_prediction"):
        adapter.config = replace(adapter.config, prediction_type=told)
        LivePhoto(tiny_base, adapter)
    adapter.config = replace(adapter.config, prediction_type="epsilon")
    with pytest.raises(LivePhotoError, match=r"predicts epsilon, this one predicts v_prediction: take the base"):
        LivePhoto(tiny_base, adapter)
