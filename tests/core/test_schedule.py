import pytest
import torch
from diffusers import DDIMScheduler

from livephoto_core.config import NoiseSchedule
from livephoto_core.schedule import add_noise, alphas_cumprod, betas, clean_and_noise, prediction_target, sigmas


@pytest.mark.parametrize("kind", ["linear", "scaled_linear"])
def test_as_diffusers_has_it(kind):
    """AnimateDiff's linear betas and SD1.5's scaled-linear ones."""
    theirs = DDIMScheduler(beta_start=0.00085, beta_end=0.012, beta_schedule=kind)
    ours = alphas_cumprod(NoiseSchedule(kind=kind))
    assert ours.shape == (1000,)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs.alphas_cumprod, rtol=1e-4, atol=0)


def test_ends_of_the_betas():
    for kind in ("linear", "scaled_linear"):
        values = betas(NoiseSchedule(kind=kind))
        assert values[0].item() == pytest.approx(0.00085, rel=1e-12)
        assert values[-1].item() == pytest.approx(0.012, rel=1e-12)


def test_linear_and_scaled_linear_differ():
    linear, scaled = (alphas_cumprod(NoiseSchedule(kind=kind)) for kind in ("linear", "scaled_linear"))
    assert (linear - scaled).abs().max() > 0.05


def test_sigmas_are_noise_over_signal():
    schedule = NoiseSchedule()
    kept = alphas_cumprod(schedule).double()
    assert torch.allclose(sigmas(schedule).double(), ((1 - kept) / kept).sqrt(), rtol=1e-4)
    # Stable Diffusion v1's own range, as every sampler in sigmas states it
    assert sigmas(schedule)[0].item() == pytest.approx(0.0292, abs=1e-4)
    assert sigmas(schedule)[-1].item() == pytest.approx(14.6146, abs=1e-3)
    assert (sigmas(schedule).diff() > 0).all()


def test_number_of_timesteps():
    assert alphas_cumprod(NoiseSchedule(timesteps=50)).shape == (50,)


@pytest.mark.parametrize("prediction_type", ["epsilon", "v_prediction"])
def test_a_perfect_prediction_tells_clean_and_noise(prediction_type):
    generator = torch.Generator().manual_seed(0)
    clean, noise = (torch.randn(2, 3, 4, 5, generator=generator) for _ in range(2))
    schedule = NoiseSchedule()
    timesteps = torch.tensor([10, 700])
    kept = alphas_cumprod(schedule)[timesteps][:, None, None, None]
    noisy, wanted = add_noise(clean, noise, kept), prediction_target(clean, noise, kept, prediction_type)
    theirs = DDIMScheduler(beta_start=schedule.beta_start, beta_end=schedule.beta_end, beta_schedule=schedule.kind)
    torch.testing.assert_close(noisy, theirs.add_noise(clean, noise, timesteps))
    if prediction_type == "v_prediction":
        torch.testing.assert_close(wanted, theirs.get_velocity(clean, noise, timesteps))
    for found, true in zip(clean_and_noise(noisy, wanted, kept, prediction_type), (clean, noise), strict=True):
        torch.testing.assert_close(found, true, atol=1e-4, rtol=0)
