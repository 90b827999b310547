"""The noise levels of LivePhoto-Wan2.1's sampler, and the timesteps that its model sees for them."""

from __future__ import annotations

import torch

SHIFT = 5.0
# what the timestep is rounded to before it is cut to a whole number; the official run is in bfloat16
ROUNDINGS = {"bfloat16": torch.bfloat16, "float32": torch.float32}


def wan_sigmas(steps: int, shift: float = SHIFT) -> torch.Tensor:
    """The noise levels [steps + 1] between the steps, from 1 down to 0.

    In float32 as the official scheduler: a last bit less makes timestep 875 into 874.
    """
    even = torch.linspace(1, 0, steps + 1, dtype=torch.float32)[:-1]
    return torch.cat([shift * even / (1 + (shift - 1) * even), torch.zeros(1)])


def model_timesteps(timesteps: torch.Tensor, rounding: torch.dtype) -> torch.Tensor:
    """Timesteps 0..1000 as the official pipeline hands them to the model: rounded to a dtype, then cut to whole numbers."""
    return timesteps.to(rounding).to(torch.float32).trunc()


def frame_timesteps(timesteps: torch.Tensor, noisy: torch.Tensor) -> torch.Tensor:
    """Timesteps [B] for frames of which some hold less noise [K, T], 0 (clean) to 1 -> [B, T]; B is a multiple of K."""
    return timesteps[:, None] * noisy.to(timesteps).repeat(len(timesteps) // len(noisy), 1)
