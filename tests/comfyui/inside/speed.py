"""Seconds of UNet calls by turns: the plain image model, motion modules alone, the whole of LivePhoto. Random weights.

What to measure comes in LIVEPHOTO_SPEED, as benchmarks/speed/comfyui.py writes it.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sample
import comfy.supported_models
import torch
from kit import case, part

LEVELS = 4


class RandomConfig(comfy.supported_models.SD15):
    """SD1.5 of any widths."""

    unet_extra_config: dict = {"num_heads": 8, "num_head_channels": -1}  # noqa: RUF012


def fill(module: torch.nn.Module) -> torch.nn.Module:
    """Random weights, drawn once and repeated."""
    draw = torch.randn(1_000_003, generator=torch.Generator().manual_seed(0))
    for tensor in module.parameters():
        scale = max(1, tensor.numel() // max(1, len(tensor))) ** -0.5 if tensor.ndim > 1 else 0.1
        for piece in tensor.data.view(-1).split(len(draw)):
            piece.copy_(draw[: len(piece)] * scale)
    return module


def patcher(module: torch.nn.Module) -> Any:
    offload = comfy.model_management.unet_offload_device()
    device = comfy.model_management.get_torch_device()
    return comfy.model_patcher.ModelPatcher(module, load_device=device, offload_device=offload)


def random_model(channels: list[int], dtype: torch.dtype) -> Any:
    """A MODEL of SD1.5's kind."""
    settings = {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": channels[0],
        "channel_mult": [width // channels[0] for width in channels],
        "num_res_blocks": [2] * LEVELS,
        "transformer_depth": [1] * 6 + [0] * 2,
        "transformer_depth_output": [1] * 9 + [0] * 3,
        "transformer_depth_middle": 1,
        "num_heads": 8,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "context_dim": 768,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
    }
    config = RandomConfig(settings)
    config.set_inference_dtype(dtype, None)
    model = config.get_model({}, "", device=comfy.model_management.unet_offload_device())
    fill(model.diffusion_model)
    return patcher(model)


def timed(model: Any, seconds: list[float]) -> Any:
    """A clone of a MODEL that notes how long each call takes."""

    def call(apply_model: Callable, call: dict) -> torch.Tensor:
        _wait()
        start = time.perf_counter()
        out = apply_model(call["input"], call["timestep"], **call["c"])
        _wait()
        seconds.append(time.perf_counter() - start)
        return out

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    return clone


def _wait() -> None:
    if comfy.model_management.get_torch_device().type == "cuda":
        torch.cuda.synchronize()


@case
def steps() -> dict[str, Any]:
    asked = json.loads(os.environ["LIVEPHOTO_SPEED"])
    channels, frames, side = asked["channels"], asked["frames"], asked["size"] // 8
    dtype = getattr(torch, asked["precision"])
    config, adapters, types = part("livephoto_core.config"), part("livephoto_core.model.adapter"), part("nodes.types")
    settings = config.AdapterConfig(base=config.BaseShape(block_channels=tuple(channels)), frames=frames, size=asked["size"])
    rows = settings.content.image_size // settings.content.patch_size
    tokens = torch.randn(1, rows * rows, settings.content.token_width)
    reference = types.Reference(torch.randn(1, 4, side, side), tokens, (rows, rows))
    plain = random_model(channels, dtype)

    def applied(parts: Any) -> Any:
        adapter = fill(adapters.LivePhotoAdapter(replace(settings, parts=parts), comfy.ops.manual_cast).to(dtype))
        loaded = types.LoadedModel(patcher(adapter), "random")
        return part("nodes.comfy_host").apply(plain, loaded, reference, types.Motion(5.0), 1.0, 1.0)

    whole, motion = applied(config.Parts()), applied(config.Parts(content=False))
    # what is left without content attention, less the stem
    del motion.model_options["transformer_options"]["patches"]["input_block_patch"]
    seconds: dict[str, list[float]] = {"plain": [], "motion": [], "livephoto": []}
    models = {name: timed(model, seconds[name]) for name, model in zip(seconds, (plain, motion, whole), strict=True)}
    words = [[torch.randn(frames, 77, 768), {}]]
    for _ in range(asked["rounds"] + 1):
        for model in models.values():
            latents = torch.zeros(frames, 4, side, side)
            noise = comfy.sample.prepare_noise(latents, 0)
            common = (noise, 2, asked["cfg"], "euler", "normal", words, words, latents)
            comfy.sample.sample(model, *common, disable_pbar=True, seed=0)
    # the second call of each sampling: the photo's keys and values are computed in the first
    return {name: found[3::2] for name, found in seconds.items()}
