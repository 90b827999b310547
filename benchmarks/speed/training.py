"""Training: the project's step against a plain loop over diffusers' UNetMotionModel, on the same random weights."""

from __future__ import annotations

from collections.abc import Callable

import torch
from einops import rearrange, repeat

from livephoto_core.conditioning import even_levels
from livephoto_core.config import NoiseSchedule
from livephoto_core.encoding import encode_pictures
from livephoto_core.schedule import add_noise, alphas_cumprod
from livephoto_core.training.config import RunConfig
from livephoto_core.training.model import Batch, TrainingModel
from livephoto_core.training.trainer import make_optimizer

from .systems import (
    TEXT_TOKENS,
    TEXT_WIDTH,
    VOCABULARY,
    Case,
    make_adapter,
    make_motion_unet,
    make_text_encoder,
    make_unet,
    make_vae,
)

TRAININGS = ("plain loop", "plain loop, cached latents", "livephoto")


def _step(optimizer: torch.optim.Optimizer, loss: Callable[[], torch.Tensor]) -> Callable[[], None]:
    def step() -> None:
        loss().backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    return step


def make_training(name: str, case: Case) -> Callable[[], object]:
    """An optimizer step on one clip, as a function without arguments.

    The base is frozen. "plain loop" encodes the clip's frames with the VAE in each step, as public AnimateDiff trainers do, and
    trains the motion modules; "livephoto" reads latents, image tokens and texts as from its cache, and trains all of the adapter
    with the trainer's own optimizer.
    """
    state, adapter = make_unet(case).state_dict(), make_adapter(case)
    side, like = case.size // 8, {"device": case.device, "dtype": case.dtype}
    latents, noise = (torch.randn(1, case.frames, 4, side, side, **like) for _ in range(2))
    ids = torch.randint(3, VOCABULARY, (1, TEXT_TOKENS), device=case.device)
    times = torch.tensor([500], device=case.device)
    if name == "livephoto":
        adapter.requires_grad_(True)
        model = TrainingModel(make_unet(case, state), adapter, None, NoiseSchedule(), "epsilon", freeze_base=True)
        content = adapter.config.content
        rows = content.image_size // content.patch_size
        tokens = torch.randn(1, rows * rows, content.token_width, **like)
        levels = even_levels(5, 1, case.frames).to(case.device)
        text = torch.randn(1, TEXT_TOKENS, TEXT_WIDTH, **like)
        batch = Batch(latents, noise, times, ids, tokens, (rows, rows), levels, None, case.frames, text=text)
        model.to(case.device).train()
        return _step(make_optimizer(model, RunConfig(), torch.device(case.device)), lambda: model(batch).mean())
    unet, text_encoder = make_motion_unet(case, state, adapter).train(), make_text_encoder(case)
    trained = [p for name, p in unet.named_parameters() if ".motion_modules." in name]
    for parameter in trained:
        parameter.requires_grad_(True)
    kept = alphas_cumprod(NoiseSchedule()).to(case.device)[times][:, None, None, None, None]
    frames = torch.rand(case.frames, 3, case.size, case.size, **like)
    vae = None if "cached" in name else make_vae(case)

    def loss() -> torch.Tensor:
        clean = latents
        with torch.no_grad():
            if vae is not None:
                clean = rearrange(encode_pictures(vae, frames), "f c h w -> 1 f c h w").to(latents)
            text = repeat(text_encoder(ids).last_hidden_state, "b l d -> (b f) l d", f=case.frames)
        noisy = add_noise(clean, noise, kept).to(latents)
        output = unet(rearrange(noisy, "b f c h w -> b c f h w"), times, text).sample
        return (rearrange(output, "b c f h w -> b f c h w").float() - noise).square().mean()

    return _step(torch.optim.AdamW(trained), loss)
