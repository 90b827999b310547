"""LivePhoto-Wan2.1 on ComfyUI's own Wan2.1 model: a clean first frame with a timestep of its own, and the guidance.

ComfyUI's model takes a timestep a frame already; what it lacks for Wan2.1 is someone to give them. Two wrappers do: one remembers
which frames a sampling keeps clean, one turns the timestep of the clip into those of its frames. The rest is ComfyUI's.
"""

from __future__ import annotations

import math
from typing import Any

import comfy.samplers
import torch
from comfy.patcher_extension import WrappersMP
from einops import reduce

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.wan_schedule import frame_timesteps, model_timesteps

KEY = "livephoto_wan"


def noisy_frames(mask: torch.Tensor) -> torch.Tensor:
    """A noise mask [B, C, T, h, w] -> how noisy each frame is [B, T]: 0 where all of it is kept, 1 where some of it is new."""
    return reduce(mask, "b c t h w -> b t", "max")


def keep_clean(latent_image: torch.Tensor, **_: Any) -> torch.Tensor:
    """In place of a Wan2.1 model's `scale_latent_inpaint`: kept frames stay as they are, where ComfyUI would noise them anew."""
    return latent_image


def apply(model: Any, rounding: torch.dtype) -> Any:
    """A clone of a Wan2.1 MODEL that samples as LivePhoto-Wan2.1 does; `rounding` as in `model_timesteps`."""

    def remember(executor: Any, guider: Any, sigmas: Any, extra: dict, callback: Any, noise: Any, latent: Any, mask: Any, *more):
        if mask is None:
            return executor(guider, sigmas, extra, callback, noise, latent, mask, *more)
        # a copy made for this sampling alone
        extra["model_options"]["transformer_options"][KEY] = noisy_frames(mask)
        # not as an object patch: of a method ComfyUI keeps one that keeps the model in memory
        guider.inner_model.scale_latent_inpaint = keep_clean
        try:
            out = executor(guider, sigmas, extra, callback, noise, latent, mask, *more)
        finally:
            del guider.inner_model.scale_latent_inpaint
        # a sampler that stops above sigma 0 gives back kept frames with noise; only those: ComfyUI has blended what the mask halves
        return torch.where(mask == 0, latent, out)

    def tell(executor: Any, x: Any, t: Any, c_concat: Any, c_crossattn: Any, control: Any, transformer_options: dict, **kwargs):
        # newer ComfyUI compiles a model without looking whether its options are the same: a text beside them says so
        kwargs[KEY] = str(KEY in transformer_options)
        return executor(x, t, c_concat, c_crossattn, control, transformer_options, **kwargs)

    def spread(executor: Any, x: Any, timesteps: Any, context: Any, clip: Any, joined: Any, options: dict, **more: Any):
        # looked at: what compiled code never looks at, it is not compiled anew for
        len(more.pop(KEY, ""))
        if (noisy := options.get(KEY)) is not None:
            if noisy.shape[1] != x.shape[2]:
                raise LivePhotoError(
                    f"the model was given {x.shape[2]} latent frames of a clip of {noisy.shape[1]}: LivePhoto-Wan2.1 takes clips "
                    "whole, take the context windows out"
                )
            timesteps = frame_timesteps(timesteps, noisy)
        return executor(x, model_timesteps(timesteps, rounding), context, clip, joined, options, **more)

    patched = model.clone()
    patched.add_wrapper_with_key(WrappersMP.SAMPLER_SAMPLE, KEY, remember)
    patched.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, tell)
    patched.add_wrapper_with_key(WrappersMP.DIFFUSION_MODEL, KEY, spread)
    return patched


def is_applied(model: Any) -> bool:
    """Whether a MODEL went through `apply`."""
    return bool(model.get_wrappers(WrappersMP.DIFFUSION_MODEL, KEY))


class WanGuider(comfy.samplers.CFGGuider):
    """The official guidance: negative + cfg * (positive - negative) + cfg * (positive - empty); at cfg 1 positive alone."""

    def set_branches(self, positive: list, negative: list, empty: list) -> None:
        """The three CONDITIONINGs: the prompt at its level, and the negative text and the prompt at none."""
        self.inner_set_conds({"positive": positive, "negative": negative, "empty": empty})

    def predict_noise(self, x: torch.Tensor, timestep: Any, model_options: dict | None = None, seed: int | None = None):
        """The denoised latents [B, C, T, h, w]; the formula holds for them as for velocities, both are linear in one another."""
        options = {} if model_options is None else model_options
        if math.isclose(self.cfg, 1.0):
            return super().predict_noise(x, timestep, options, seed)
        conds = [self.conds[name] for name in ("positive", "negative", "empty")]
        positive, negative, empty = comfy.samplers.calc_cond_batch(self.inner_model, conds, x, timestep, options)
        # from here on as `sampling_function`: what others hang on ComfyUI's formula sees the whole guidance
        outputs = [2 * positive - empty, negative]
        for function in options.get("sampler_pre_cfg_function", []):
            outputs = function(
                {
                    "conds": conds[:2],
                    "conds_out": outputs,
                    "cond_scale": self.cfg,
                    "timestep": timestep,
                    "input": x,
                    "sigma": timestep,
                    "model": self.inner_model,
                    "model_options": options,
                }
            )
        return comfy.samplers.cfg_function(
            self.inner_model,
            outputs[0],
            outputs[1],
            self.cfg,
            x,
            timestep,
            model_options=options,
            cond=conds[0],
            uncond=conds[1],
        )
