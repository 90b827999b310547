"""Many clips at a time out of a LivePhoto, each as `LivePhoto.animate` makes it alone."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, repeat

from ..conditioning import ClipCondition
from ..encoding import adapter_tokens, decode, encode_photo, encode_text
from ..errors import LivePhotoError
from ..inversion import PRIOR_END, PRIOR_START, inversion_steps, invert, prior_noise
from ..pipeline import SAMPLERS, LivePhoto, check_cfg, check_sampler, guidance_scales

# photos [B, 3, S, S], texts, levels, seeds -> clips [B, F, 3, S, S] in 0..1 on the CPU
Generate = Callable[[torch.Tensor, Sequence[str], Sequence[float], Sequence[int]], torch.Tensor]


@dataclass(frozen=True)
class BatchSampling:
    """How to sample: as the settings of the same names of `pipeline.Settings`."""

    steps: int = 20
    cfg: float = 1.0
    min_cfg: float | None = None
    prior_start: float = PRIOR_START
    prior_end: float = PRIOR_END
    sampler: str = SAMPLERS[0]

    def __post_init__(self) -> None:
        if self.steps < 1:
            raise LivePhotoError(f"steps must be 1 or more, got {self.steps}: 20 is usual")
        check_sampler(self.sampler, self.steps)
        check_cfg(self.min_cfg, self.cfg)


def batch_generator(model: LivePhoto, sampling: BatchSampling) -> Generate:
    """A function that makes clips in one batch; clip i has the noise of seed i, whatever else is in the batch."""

    @torch.no_grad()
    def generate(photos: torch.Tensor, texts: Sequence[str], levels: Sequence[float], seeds: Sequence[int]) -> torch.Tensor:
        base, adapter = model.base, model.adapter
        config = adapter.config
        latent = encode_photo(base, photos)
        tokens, grid = adapter_tokens(base.image_encoder, photos, config)
        wanted = repeat(torch.tensor(levels, dtype=torch.float32), "b -> b f", f=config.frames).to(base.device)
        condition = ClipCondition(latent, tokens, grid, wanted)
        shape = (1, config.frames, *latent.shape[1:])
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        noise = torch.cat([torch.randn(shape, generator=generator) for generator in generators]).to(latent)
        if sampling.prior_start > 0 or sampling.prior_end > 0:
            inverted = invert(base, latent, base.schedule, inversion_steps(sampling.steps), encode_text(base, [""]))
            noise = prior_noise(noise, inverted, sampling.prior_start, sampling.prior_end)
        branches = 1 if sampling.cfg == 1 else 2
        text = encode_text(base, [*[""] * len(texts) * (branches - 1), *texts])
        text = model.host.weigh(text, adapter.reweight(text, config.frames))
        model.host.image_strength = model.host.motion_strength = 1.0
        scales = guidance_scales(sampling.min_cfg, sampling.cfg, config.frames)
        x = model.denoise(noise, condition, text, sampling.steps, scales, sampling.sampler, generators)
        frames = decode(base, rearrange(x, "b f c h w -> (b f) c h w"))
        return rearrange(frames, "(b f) c h w -> b f c h w", b=len(x)).cpu()

    return generate
