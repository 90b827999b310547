"""Prior inversion: noise that already holds a trace of the photo (paper section 3.3).

Both walks are DDIM inversion, Euler's method on the probability flow from the photo to noise. `invert` counts in timesteps of
a base model, `invert_sigmas` in noise levels, for hosts whose samplers work in sigmas. On the same grid they agree.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from einops import rearrange

from .base import Base
from .config import NoiseSchedule
from .errors import LivePhotoError
from .schedule import add_noise, alphas_cumprod, clean_and_noise

PRIOR_START, PRIOR_END = 0.033, 0.016
# fewer are too coarse, also where a sampler made for few steps takes fewer
LEAST_STEPS = 20


def inversion_steps(sampling_steps: int) -> int:
    """Steps of the inversion for a clip that is sampled in so many: as many, but at least LEAST_STEPS."""
    return max(sampling_steps, LEAST_STEPS)


def inversion_timesteps(schedule: NoiseSchedule, steps: int) -> torch.Tensor:
    """[steps + 1] rising timesteps, from the first to the last.

    Raises:
        LivePhotoError: `steps` is not in 1..timesteps - 1.
    """
    if not 1 <= steps < schedule.timesteps:
        raise LivePhotoError(f"inversion takes 1 to {schedule.timesteps - 1} steps, got {steps}")
    return torch.linspace(0, schedule.timesteps - 1, steps + 1, dtype=torch.float64).round().long()


@torch.no_grad()
def invert(
    base: Base,
    latent: torch.Tensor,
    schedule: NoiseSchedule,
    steps: int,
    text: torch.Tensor,
    progress: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Inv(r0): DDIM inversion of reference latents on the base UNet alone; no adapter may be attached to it.

    Args:
        base: the base model; its prediction type is heeded.
        latent: [B, C, h, w], in the UNet's scale.
        schedule: the noise schedule that gives timesteps their noise; the base's own for a base alone.
        steps: UNet calls, 1..timesteps - 1.
        text: the empty text's embedding, [B or 1, L, D].
        progress: called after each step.

    Returns:
        [B, C, h, w], noise of about unit variance.
    """
    kept = alphas_cumprod(schedule).to(latent.device)
    timesteps = inversion_timesteps(schedule, steps)
    text = text.expand(len(latent), -1, -1)
    x = latent * kept[0].sqrt()
    for now, after in pairwise(timesteps.tolist()):
        output = base.unet(x.to(text.dtype), now, encoder_hidden_states=text).sample.float()
        clean, noise = clean_and_noise(x, output, kept[now], base.prediction_type)
        x = add_noise(clean, noise, kept[after])
        if progress is not None:
            progress()
    return x


def invert_sigmas(
    model: Callable[[torch.Tensor, torch.Tensor], torch.Tensor],
    latent: torch.Tensor,
    sigmas: torch.Tensor,
    progress: Callable[[], object] | None = None,
) -> torch.Tensor:
    """Inv(r0) for models in sigmas.

    Args:
        model: (x [B, C, h, w], sigma []) -> the clean latent that the model sees in x = clean + sigma * noise.
        latent: [B, C, h, w], in the model's scale.
        sigmas: [steps + 1] rising noise levels, the first above 0.
        progress: called after each step.

    Returns:
        [B, C, h, w]: x / sqrt(1 + sigma ** 2) at the last sigma, noise of about unit variance.

    Raises:
        LivePhotoError: sigmas that do not rise from above 0.
    """
    rising = len(sigmas) > 1 and sigmas[0] > 0 and bool((sigmas[1:] > sigmas[:-1]).all())
    if not rising:
        raise LivePhotoError(f"inversion needs two or more sigmas that rise from above 0, got {sigmas.tolist()[:4]}")
    x = latent
    for now, after in pairwise(sigmas):
        x = x + (x - model(x, now)) / now * (after - now)
        if progress is not None:
            progress()
    return x / (1 + sigmas[-1] ** 2).sqrt()


def prior_weights(frames: int, start: float = PRIOR_START, end: float = PRIOR_END) -> torch.Tensor:
    """[F]: how much of the inverted noise each frame gets, falling linearly from `start` to `end`.

    Raises:
        LivePhotoError: a share outside 0..1.
    """
    for value in (start, end):
        if not 0 <= value <= 1:
            raise LivePhotoError(f"the prior's share must lie in 0..1, got {value}: {PRIOR_START} to {PRIOR_END} is usual")
    return torch.linspace(start, end, frames)


def prior_noise(
    noise: torch.Tensor, inverted: torch.Tensor, start: float = PRIOR_START, end: float = PRIOR_END
) -> torch.Tensor:
    """z~_n = a_n Inv(r0) + (1 - a_n) z_n for each frame n.

    Args:
        noise: [B, F, C, h, w], unit variance.
        inverted: [B, C, h, w], from `invert` or `invert_sigmas`.
        start, end: a_n at the first and the last frame, 0..1.

    Returns:
        [B, F, C, h, w].
    """
    share = rearrange(prior_weights(noise.shape[1], start, end).to(noise), "f -> f 1 1 1")
    return share * inverted[:, None].to(noise) + (1 - share) * noise
