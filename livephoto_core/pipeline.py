"""Photo, text and level in, a clip out: LivePhoto without any other program."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange, repeat

from .base import Base
from .conditioning import ClipCondition, even_levels
from .config import AdapterConfig, NoiseSchedule, check_prediction, noise_shares
from .diffusers_host import DiffusersHost
from .encoding import adapter_tokens, decode, encode_photo, encode_text, overlong_text, text_length
from .errors import LivePhotoError
from .intensity import check_level
from .inversion import PRIOR_END, PRIOR_START, inversion_steps, invert, prior_noise, prior_weights
from .media import FITS, fit_image
from .model.adapter import LivePhotoAdapter
from .noise import share_noise
from .schedule import betas

MIN_SIZE, MAX_SIZE = 16, 2048
SAMPLERS = ("dpmpp_2m", "lcm")
# of the distillation: LCM samples at some of these
LCM_STEPS = 50
Progress = Callable[[int, int], object]


@dataclass(frozen=True)
class Settings:
    """What a clip is made from, beside the photo.

    `frames` and `size` (pixels a side) of None mean the checkpoint's. `cfg` 1 samples without guidance, in half the time.
    `min_cfg` is the first frame's guidance, from where it rises evenly to `cfg` in the last: 1 leaves the photo unguided;
    None means `cfg` in every frame.
    `sampler` is "dpmpp_2m", or "lcm" for 4 to 8 steps of a base with an LCM-LoRA (arXiv 2311.05556).
    `prior_start` and `prior_end` are the shares of the inverted photo in the first and the last frame's noise; both 0: none. The
    inversion takes `steps`, at least 20.
    `reweight`, `image_strength` and `motion_strength` are 1 as trained, 0 is off.
    """

    text: str
    intensity: float = 5.0
    frames: int | None = None
    steps: int = 20
    cfg: float = 4.0
    min_cfg: float | None = None
    seed: int = 0
    size: int | None = None
    fit: str = "crop"
    negative: str = ""
    prior_start: float = PRIOR_START
    prior_end: float = PRIOR_END
    reweight: float = 1.0
    image_strength: float = 1.0
    motion_strength: float = 1.0
    sampler: str = SAMPLERS[0]


def complete(settings: Settings, config: AdapterConfig) -> Settings:
    """The settings with the checkpoint's frames and size filled in, all checked.

    Raises:
        LivePhotoError: a value out of its range, with the range.
    """
    settings = replace(
        settings,
        intensity=check_level(settings.intensity),
        frames=config.frames if settings.frames is None else settings.frames,
        size=config.size if settings.size is None else settings.size,
    )
    if not settings.text.strip():
        raise LivePhotoError("the text is empty: say what moves, such as 'camera pans left'")
    if not 2 <= settings.frames <= config.motion.max_frames:
        raise LivePhotoError(f"a clip has 2 to {config.motion.max_frames} frames with this model, got {settings.frames}")
    if settings.size % 8 or not MIN_SIZE <= settings.size <= MAX_SIZE:
        near = min(MAX_SIZE, max(MIN_SIZE, round(settings.size / 8) * 8))
        raise LivePhotoError(f"the size must be a multiple of 8 from {MIN_SIZE} to {MAX_SIZE}, got {settings.size}: try {near}")
    if settings.fit not in FITS:
        raise LivePhotoError(f"unknown fit {settings.fit!r}; choose one of {', '.join(FITS)}")
    if not 1 <= settings.steps < config.schedule.timesteps:
        raise LivePhotoError(f"steps must be 1 to {config.schedule.timesteps - 1}, got {settings.steps}: 20 is usual")
    check_sampler(settings.sampler, settings.steps)
    if not 0 <= settings.seed < 2**63:
        raise LivePhotoError(f"the seed must be 0 to {2**63 - 1}, got {settings.seed}")
    check_cfg(settings.min_cfg, settings.cfg)
    for name in ("reweight", "image_strength", "motion_strength"):
        if not math.isfinite(getattr(settings, name)):
            raise LivePhotoError(f"{name} must be a number, got {getattr(settings, name)}: 1 is as trained")
    prior_weights(settings.frames, settings.prior_start, settings.prior_end)
    return settings


def check_cfg(min_cfg: float | None, cfg: float) -> None:
    """Refuse guidance below 1 or not finite, and a first frame's that is not from 1 to the last frame's.

    Raises:
        LivePhotoError: names the value.
    """
    if not (math.isfinite(cfg) and cfg >= 1):
        raise LivePhotoError(f"cfg must be a number from 1, got {cfg}: 1 is without guidance")
    if min_cfg is not None and not 1 <= min_cfg <= cfg:
        raise LivePhotoError(f"min_cfg, the first frame's guidance, must be from 1 to cfg ({cfg:g}), got {min_cfg:g}")


def guidance_scales(min_cfg: float | None, cfg: float, frames: int) -> torch.Tensor:
    """Each frame's guidance [F], evenly from `min_cfg` to `cfg`; all of them `cfg` where `min_cfg` is None."""
    return torch.linspace(cfg if min_cfg is None else min_cfg, cfg, frames)


def check_sampler(name: str, steps: int) -> None:
    """Refuse a sampler that is not there, or more steps than it has.

    Raises:
        LivePhotoError: names the samplers, or the most steps.
    """
    if name not in SAMPLERS:
        raise LivePhotoError(f"unknown sampler {name!r}; choose one of {', '.join(SAMPLERS)}")
    if name == "lcm" and steps > LCM_STEPS:
        raise LivePhotoError(f"the lcm sampler takes 1 to {LCM_STEPS} steps, got {steps}: 4 to 8 are usual")


class LivePhoto:
    """An adapter on a base model.

    Raises:
        LivePhotoError: the adapter was not made for this base.
    """

    def __init__(self, base: Base, adapter: LivePhotoAdapter):
        check_prediction(adapter.config, base.prediction_type, "take the base that it was trained on")
        self.base, self.adapter = base, adapter
        self.host = DiffusersHost(base.unet, adapter)

    @torch.no_grad()
    def animate(self, photo: torch.Tensor, settings: Settings, progress: Progress | None = None) -> torch.Tensor:
        """A clip of the photo.

        The noise is drawn on the CPU from the seed, so one machine gives the same clip again. The base's hooks are taken off again
        at the end, whatever happens.

        Args:
            photo: [3, H, W], 0..1.
            settings: see Settings.
            progress: called with (steps done, steps in all).

        Returns:
            [F, 3, size, size], 0..1, on the CPU.

        Raises:
            LivePhotoError: a setting out of its range, a text that is empty or too long, or no image encoder where
                the adapter needs one.
        """
        base, config = self.base, self.adapter.config
        settings = complete(settings, config)
        self._check_texts(settings)
        picture = fit_image(photo, settings.size, settings.size, settings.fit)[None].clamp(0, 1)
        latent = encode_photo(base, picture)
        tokens, grid = adapter_tokens(base.image_encoder, picture, config)
        levels = even_levels(settings.intensity, 1, settings.frames).to(base.device)
        condition = ClipCondition(latent, tokens, grid, levels)
        tick = _counter(progress, settings.steps + (inversion_steps(settings.steps) if _has_prior(settings) else 0))
        generator = torch.Generator().manual_seed(settings.seed)
        noise = self._noise(latent, settings, generator, tick)
        self.host.image_strength, self.host.motion_strength = settings.image_strength, settings.motion_strength
        text = self._text(settings)
        scales = guidance_scales(settings.min_cfg, settings.cfg, settings.frames)
        latents = self.denoise(noise, condition, text, settings.steps, scales, settings.sampler, [generator], tick)
        return decode(base, rearrange(latents, "b f c h w -> (b f) c h w")).cpu()

    def _check_texts(self, settings: Settings) -> None:
        for text in (settings.text, settings.negative):
            if lost := overlong_text(self.base, text):
                shown = lost if len(lost) <= 40 else f"{lost[:40]}..."
                raise LivePhotoError(
                    f"the text has {len(text.split())} words, the text encoder reads {text_length(self.base)} tokens and would "
                    f"lose {shown!r}: shorten the text"
                )

    def _noise(
        self, latent: torch.Tensor, settings: Settings, generator: torch.Generator, tick: Callable[[], object]
    ) -> torch.Tensor:
        noise = torch.randn(1, settings.frames, *latent.shape[1:], generator=generator).to(latent)
        if not _has_prior(settings):
            return noise
        # alone, the base knows only its own schedule
        empty = encode_text(self.base, [""])
        inverted = invert(self.base, latent, self.base.schedule, inversion_steps(settings.steps), empty, tick)
        return prior_noise(noise, inverted, settings.prior_start, settings.prior_end)

    def _text(self, settings: Settings) -> torch.Tensor:
        """[(branches frames), L, D]: the text, or with guidance the negative text and the text."""
        texts = [settings.text] if settings.cfg == 1 else [settings.negative, settings.text]
        text = encode_text(self.base, texts)
        return self.host.weigh(text, self.adapter.reweight(text, settings.frames), settings.reweight)

    @torch.no_grad()
    def denoise(
        self,
        noise: torch.Tensor,
        condition: ClipCondition,
        text: torch.Tensor,
        steps: int,
        scales: torch.Tensor,
        sampler: str,
        generators: list[torch.Generator],
        tick: Callable[[], object] = lambda: None,
    ) -> torch.Tensor:
        """The UNet's calls of a sampling, with the strengths that the host has.

        Args:
            noise: [B, F, C, h, w], float32, each frame's own; what the checkpoint's frames have in common is made so here.
            condition: of the B clips.
            text: [(B f), L, D], or with guidance the negative texts and the texts [(2 B f), L, D].
            scales: each frame's guidance [F], as of `guidance_scales`; without negative texts not looked at.
            steps, sampler: as in Settings.
            generators: one a clip, for samplers that add noise as they go.
            tick: called after each step.

        Returns:
            latents [B, F, C, h, w], float32.
        """
        branches = len(text) // condition.levels.numel()
        solver = make_sampler(sampler, self.adapter.config.schedule, self.base.prediction_type)
        solver.set_timesteps(steps)
        scales = rearrange(scales, "f -> f 1 1 1").to(noise)
        x = share_noise(noise, noise_shares(self.adapter.config, condition.levels))
        with self.host, self.host.conditioned(condition.repeated(branches)):
            for timestep in solver.timesteps:
                batch = repeat(x, "b f c h w -> (t b f) c h w", t=branches).to(text.dtype)
                output = self.base.unet(batch, timestep.to(batch.device), encoder_hidden_states=text).sample.float()
                output = rearrange(output, "(t b f) c h w -> t b f c h w", t=branches, b=len(x))
                output = output[0] if branches == 1 else output[0] + scales * (output[1] - output[0])
                x = solver.step(output, timestep, x, generator=generators).prev_sample
                tick()
        return x


def make_sampler(name: str, schedule: NoiseSchedule, prediction_type: str) -> Any:
    """A sampler of SAMPLERS on a checkpoint's noise schedule with a base's prediction type, as diffusers' own scheduler.

    "dpmpp_2m" is DPM-Solver++ (2M), "lcm" that of latent consistency models.
    """
    from diffusers import DPMSolverMultistepScheduler, LCMScheduler

    common = {
        "num_train_timesteps": schedule.timesteps,
        "trained_betas": betas(schedule).float().numpy(),
        "prediction_type": prediction_type,
    }
    if name == "lcm":
        return LCMScheduler(**common, original_inference_steps=LCM_STEPS)
    return DPMSolverMultistepScheduler(**common, algorithm_type="dpmsolver++", solver_order=2)


def _has_prior(settings: Settings) -> bool:
    return settings.prior_start > 0 or settings.prior_end > 0


def _counter(progress: Progress | None, total: int) -> Callable[[], None]:
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    return tick
