"""Writing a base model as a folder that `base.load_base` reads."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from torch import nn

from .base import Base
from .checkpoint import as_os_error
from .config import NoiseSchedule


def save_base(base: Base, folder: Path) -> None:
    """Write a base that was trained, in diffusers' layout.

    UNet and text encoder become fp16. VAE and image encoder stay exactly what they are, so that clips cached by them go on fitting.

    Raises:
        OSError: a full disk, a folder that cannot be written.
    """
    parts = {
        "vae": base.vae,
        "image_encoder": base.image_encoder,
        "tokenizer": base.tokenizer,
        "scheduler": ddim_scheduler(base.schedule, base.prediction_type),
        "unet": _halved(base.unet, type(base.unet).from_config(base.unet.config)),
        "text_encoder": _halved(base.text_encoder, type(base.text_encoder)(base.text_encoder.config)),
    }
    try:
        for name, part in parts.items():
            if part is not None:
                part.save_pretrained(folder / name)
    except SafetensorError as error:
        raise as_os_error(error) from error


def ddim_scheduler(schedule: NoiseSchedule, prediction_type: str) -> Any:
    """A base's noise schedule as diffusers stores it, the rest as in SD1.5's own file."""
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        num_train_timesteps=schedule.timesteps,
        beta_start=schedule.beta_start,
        beta_end=schedule.beta_end,
        beta_schedule=schedule.kind,
        prediction_type=prediction_type,
        clip_sample=False,
        set_alpha_to_one=False,
        steps_offset=1,
    )


def _halved(part: nn.Module, copy: nn.Module) -> nn.Module:
    """A part's weights as fp16 in an untrained copy of it: the part itself carries an adapter's hooks."""
    copy.load_state_dict(part.state_dict())
    return copy.half()
