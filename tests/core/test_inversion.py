import pytest
import torch
from einops import repeat

from livephoto_core.encoding import encode_text
from livephoto_core.errors import LivePhotoError
from livephoto_core.inversion import inversion_timesteps, invert, invert_sigmas, prior_noise, prior_weights
from livephoto_core.schedule import alphas_cumprod, sigmas


@pytest.fixture
def latent():
    return torch.randn(2, 12, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def empty(tiny_base):
    return encode_text(tiny_base, [""])


def clean_estimate(base, x, timestep, empty):
    """What the tiny base (v-prediction) takes for the clean latent in x = sqrt(a) clean + sqrt(1 - a) noise."""
    kept = alphas_cumprod(base.schedule)[timestep]
    v = base.unet(x, timestep, encoder_hidden_states=empty.expand(len(x), -1, -1)).sample
    return kept.sqrt() * x - (1 - kept).sqrt() * v


@torch.no_grad()
def denoise(base, x, steps, empty):
    """DDIM from noise back along the inversion's timesteps."""
    kept = alphas_cumprod(base.schedule)
    timesteps = inversion_timesteps(base.schedule, steps).flip(0)
    for now, after in zip(timesteps[:-1].tolist(), timesteps[1:].tolist(), strict=True):
        clean = clean_estimate(base, x, now, empty)
        noise = (x - kept[now].sqrt() * clean) / (1 - kept[now]).sqrt()
        x = kept[after].sqrt() * clean + (1 - kept[after]).sqrt() * noise
    return x / kept[0].sqrt()


def test_sampling_from_inverted_noise_gives_the_photo_back(tiny_base, latent, empty):
    inverted = invert(tiny_base, latent, tiny_base.schedule, 100, empty)
    back = denoise(tiny_base, inverted, 100, empty)
    unrelated = denoise(tiny_base, torch.randn(latent.shape, generator=torch.Generator().manual_seed(1)), 100, empty)
    error, chance = (back - latent).square().mean(), (unrelated - latent).square().mean()
    assert error < 0.02 * chance


def test_more_steps_invert_better(tiny_base, latent, empty):
    errors = []
    for steps in (5, 20, 80):
        inverted = invert(tiny_base, latent, tiny_base.schedule, steps, empty)
        errors.append((denoise(tiny_base, inverted, steps, empty) - latent).square().mean().item())
    assert errors == sorted(errors, reverse=True)


@torch.no_grad()
@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_sigmas_and_timesteps_agree(tiny_base, latent, empty, prediction_type):
    """The walk in noise levels, with the same UNet behind it, ends where the one in timesteps ends."""
    tiny_base.prediction_type = prediction_type
    timesteps = inversion_timesteps(tiny_base.schedule, 6)
    levels = sigmas(tiny_base.schedule)[timesteps]
    kept = alphas_cumprod(tiny_base.schedule)

    def model(x, sigma):
        t = int(timesteps[(levels == sigma).nonzero()[0, 0]])
        scaled = x / (1 + sigma**2).sqrt()
        if prediction_type == "v_prediction":
            return clean_estimate(tiny_base, scaled, t, empty)
        noise = tiny_base.unet(scaled, t, encoder_hidden_states=empty.expand(len(x), -1, -1)).sample
        return (scaled - (1 - kept[t]).sqrt() * noise) / kept[t].sqrt()

    by_sigmas = invert_sigmas(model, latent, levels)
    by_timesteps = invert(tiny_base, latent, tiny_base.schedule, 6, empty)
    scale = by_timesteps.abs().max()
    assert (by_sigmas - by_timesteps).abs().max() < 1e-4 * scale


def test_progress_is_called_once_a_step(tiny_base, latent, empty):
    calls = []
    invert(tiny_base, latent, tiny_base.schedule, 3, empty, lambda: calls.append(1))
    assert len(calls) == 3


def test_prior_noise_is_the_papers_mix():
    generator = torch.Generator().manual_seed(0)
    noise = torch.randn(2, 16, 4, 8, 8, generator=generator)
    inverted = torch.randn(2, 4, 8, 8, generator=generator)
    mixed = prior_noise(noise, inverted)
    assert torch.allclose(mixed[:, 0], 0.033 * inverted + 0.967 * noise[:, 0])
    assert torch.allclose(mixed[:, 15], 0.016 * inverted + 0.984 * noise[:, 15])
    assert torch.equal(prior_noise(noise, inverted, 0, 0), noise)
    assert torch.allclose(prior_noise(noise, inverted, 1, 1), repeat(inverted, "b c h w -> b f c h w", f=16))


def test_prior_weights_fall_evenly():
    weights = prior_weights(16)
    steps = weights[1:] - weights[:-1]
    assert (steps < 0).all()
    assert torch.allclose(steps, steps[:1].expand(15))


@pytest.mark.parametrize("share", [-0.1, 1.5, float("nan")])
def test_share_outside_its_range(share):
    with pytest.raises(LivePhotoError, match=r"0\.\.1"):
        prior_weights(4, share, 0.0)


def test_steps_and_sigmas_out_of_range(tiny_base, latent):
    for steps in (0, 1000):
        with pytest.raises(LivePhotoError, match="1 to 999 steps"):
            inversion_timesteps(tiny_base.schedule, steps)
    for levels in ([0.0, 1.0], [2.0, 1.0], [1.0]):
        with pytest.raises(LivePhotoError, match="rise from above 0"):
            invert_sigmas(lambda x, sigma: x, latent, torch.tensor(levels))
