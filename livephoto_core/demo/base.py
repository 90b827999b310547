"""The demo's base: a UNet in SD1.5's layout, made small, and its start from stills."""

from __future__ import annotations

import math

import torch
from diffusers import DDIMScheduler, UNet2DConditionModel
from tqdm import tqdm
from transformers import CLIPTextModel

from ..base_write import ddim_scheduler
from ..config import AdapterConfig, ContentShape, MotionShape, NoiseSchedule, ReweightShape
from ..diffusers_host import base_shape
from ..schedule import add_noise, alphas_cumprod, prediction_target
from ..training.cache import CachedClips
from .vae import LATENT_CHANNELS

TEXT_WIDTH = 96
SCHEDULE = NoiseSchedule("scaled_linear")
PREDICTION = "v_prediction"


def new_unet(size: int = 64) -> UNet2DConditionModel:
    """The untrained UNet for latents [N, 12, S/4, S/4]."""
    return UNet2DConditionModel(
        sample_size=size // 4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock2D", "CrossAttnDownBlock2D", "DownBlock2D"),
        up_block_types=("UpBlock2D", "CrossAttnUpBlock2D", "CrossAttnUpBlock2D"),
        block_out_channels=(48, 96, 128),
        layers_per_block=1,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=2,
        norm_num_groups=8,
    )


def new_scheduler() -> DDIMScheduler:
    """SD1.5's noise schedule, predicting v: at high noise eps hardly teaches a small model anything."""
    return ddim_scheduler(SCHEDULE, PREDICTION)


def adapter_config(unet: UNet2DConditionModel, frames: int = 16, size: int = 64) -> AdapterConfig:
    """The demo adapter's config."""
    return AdapterConfig(
        base=base_shape(unet),
        motion=MotionShape(heads=2, attention_blocks=1, max_frames=32),
        content=content_shape(size),
        reweight=ReweightShape(layers=3, heads=4),
        schedule=SCHEDULE,
        frames=frames,
        size=size,
        frame_stride=1,
    )


def content_shape(size: int = 64) -> ContentShape:
    """The demo adapter's image branch, onto the demo's patch encoder."""
    return ContentShape(encoder="demo", image_size=size, patch_size=4, token_width=96, width=96, heads=4, head_width=32)


def train_on_stills(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    clips: CachedClips,
    text_ids: torch.Tensor,
    empty_ids: torch.Tensor,
    first_clip: int,
    steps: int,
    batch: int,
    rate: float = 1e-3,
) -> None:
    """Text-to-image on single frames of the cached clips from `first_clip` on, v-prediction, text dropped at 0.15.

    `text_ids` are the captions' token ids [clips, 77], `empty_ids` those of the empty text [77].
    """
    generator = torch.Generator().manual_seed(0)
    alphas = alphas_cumprod(SCHEDULE)
    parameters = [*unet.parameters(), *text_encoder.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    bar = tqdm(range(steps), desc="stills")
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = rate * min(1.0, (step + 1) / 50) * (0.2 + 0.8 * 0.5 * (1 + math.cos(math.pi * step / steps)))
        # neighbours in the cache share a shard, so that a step opens one file
        first = int(torch.randint(first_clip, len(clips) - batch + 1, (1,), generator=generator))
        chosen = list(range(first, first + batch))
        frames = clips.latents(chosen)
        latents = frames[torch.arange(batch), torch.randint(frames.shape[1], (batch,), generator=generator)]
        noise = torch.randn(latents.shape, generator=generator)
        parts = torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)
        timesteps = (parts / batch * SCHEDULE.timesteps).long()
        kept = alphas[timesteps][:, None, None, None]
        drop = torch.rand(batch, generator=generator) < 0.15
        ids = torch.where(drop[:, None], empty_ids[None], text_ids[chosen])
        output = unet(add_noise(latents, noise, kept), timesteps, text_encoder(ids).last_hidden_state).sample
        loss = (output - prediction_target(latents, noise, kept, PREDICTION)).square().mean()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        bar.set_postfix(loss=f"{loss.item():.3f}")
