"""The noise schedule in the forms that samplers ask for."""

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
