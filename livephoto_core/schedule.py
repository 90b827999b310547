"""The noise schedule in the forms that samplers ask for, and the arithmetic between clean latents, noise and predictions.

`kept` is everywhere the share of signal power left, `alphas_cumprod` at the timesteps, shaped to multiply the latents.
"""

from __future__ import annotations

import torch

from .config import NoiseSchedule


def betas(schedule: NoiseSchedule) -> torch.Tensor:
    """[timesteps], float64."""
    low, high, steps = schedule.beta_start, schedule.beta_end, schedule.timesteps
    if schedule.kind == "linear":
        return torch.linspace(low, high, steps, dtype=torch.float64)
    return torch.linspace(low**0.5, high**0.5, steps, dtype=torch.float64) ** 2


def alphas_cumprod(schedule: NoiseSchedule) -> torch.Tensor:
    """[timesteps], float32: the share of signal power left at each timestep."""
    return torch.cumprod(1 - betas(schedule), 0).float()


def sigmas(schedule: NoiseSchedule) -> torch.Tensor:
    """[timesteps], float32: noise over signal, sqrt((1 - a) / a), as samplers in sigmas count it."""
    kept = torch.cumprod(1 - betas(schedule), 0)
    return ((1 - kept) / kept).sqrt().float()


def add_noise(clean: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """x = sqrt(kept) clean + sqrt(1 - kept) noise: [...] latents of any shape, as `clean`."""
    return kept.sqrt() * clean + (1 - kept).sqrt() * noise


def implied_noise(x: torch.Tensor, clean: torch.Tensor, kept: torch.Tensor) -> torch.Tensor:
    """The noise [...] with which `clean` would have become x = add_noise(clean, noise, kept)."""
    return (x - kept.sqrt() * clean) / (1 - kept).sqrt()


def prediction_target(clean: torch.Tensor, noise: torch.Tensor, kept: torch.Tensor, prediction_type: str) -> torch.Tensor:
    """What a model is to predict, [...] as `clean`: the noise, or v = sqrt(kept) noise - sqrt(1 - kept) clean.

    Args:
        prediction_type: "epsilon" or "v_prediction".
    """
    if prediction_type == "v_prediction":
        return kept.sqrt() * noise - (1 - kept).sqrt() * clean
    return noise


def clean_and_noise(
    x: torch.Tensor, output: torch.Tensor, kept: torch.Tensor, prediction_type: str
) -> tuple[torch.Tensor, torch.Tensor]:
    """The clean latents and the noise, both [...] as `x`, that a model's output tells of x = add_noise(clean, noise, kept)."""
    signal, spread = kept.sqrt(), (1 - kept).sqrt()
    if prediction_type == "v_prediction":
        return signal * x - spread * output, signal * output + spread * x
    return (x - spread * output) / signal, output
