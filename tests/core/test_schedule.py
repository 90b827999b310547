import pytest
import torch
from diffusers import DDIMScheduler

from livephoto_core.config import NoiseSchedule
from livephoto_core.schedule import alphas_cumprod, betas, sigmas


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
