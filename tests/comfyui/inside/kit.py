"""What the scripts share: the pack as ComfyUI loads it, the demo as its nodes give it, sampling, and recording of UNet calls."""

from __future__ import annotations

import asyncio
import functools
import importlib
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.model_patcher
import comfy.patcher_extension
import comfy.sample
import comfy.supported_models
import folder_paths
import torch

import nodes

PACK = "ComfyUI-LivePhoto"
FRAMES = 4
LEVEL = 6.0
CASES: dict[str, Callable[[], dict]] = {}


def case(function: Callable[[], dict]) -> Callable[[], dict]:
    """Marks a function that run.py calls."""
    CASES[function.__name__] = function
    return function


def refused(function: Callable[[], Any]) -> dict[str, Any]:
    """How a call fails: the error's kind (None if it does not) and message."""
    try:
        function()
    except Exception as error:
        return {"kind": type(error).__name__, "message": str(error)}
    return {"kind": None, "message": ""}


@functools.cache
def pack() -> ModuleType:
    """The pack, loaded by ComfyUI from its custom_nodes."""
    path = str(Path(folder_paths.get_folder_paths("custom_nodes")[0]) / PACK)
    if not asyncio.run(nodes.load_custom_node(path)):
        raise RuntimeError("IMPORT FAILED, see the log")
    return sys.modules[path.replace(".", "_x_")]


def part(name: str) -> ModuleType:
    """A module of the pack, such as "nodes.types"."""
    return importlib.import_module(f"{pack().__name__}.{name}")


@functools.cache
def demo() -> SimpleNamespace:
    """What Load LivePhoto Demo gives."""
    names = "model", "clip", "vae", "clip_vision", "livephoto"
    return SimpleNamespace(**dict(zip(names, node("LivePhotoDemoLoader"), strict=True)))


def node(name: str, **inputs: Any) -> tuple:
    """The outputs of one of the pack's nodes."""
    pack()
    return nodes.NODE_CLASS_MAPPINGS[name].execute(**inputs).result


def defaults(name: str) -> dict[str, Any]:
    """The inputs of one of the pack's nodes that a user finds set."""
    pack()
    inputs = nodes.NODE_CLASS_MAPPINGS[name].define_schema().inputs
    return {entry.id: entry.default for entry in inputs if getattr(entry, "default", None) is not None}


def photos(count: int = 1) -> torch.Tensor:
    """Different photos [count, 64, 64, 3] of eight bits."""
    generator = torch.Generator().manual_seed(0)
    return (torch.rand(count, 64, 64, 3, generator=generator) * 255).round() / 255


def reference(count: int = 1) -> Any:
    """So many photos, encoded by the demo's VAE and CLIP_VISION."""
    tokens = demo().clip_vision.encode_image(photos(count)).last_hidden_state[:, 1:]
    side = round(tokens.shape[1] ** 0.5)
    return part("nodes.types").Reference(demo().vae.encode(photos(count)), tokens, (side, side))


def apply(
    model: Any = None, livephoto: Any = None, count: int = 1, image_strength: float = 1.0, motion_strength: float = 1.0
) -> Any:
    """The demo's MODEL, or another, with LivePhoto at LEVEL."""
    motion = part("nodes.types").Motion(LEVEL)
    return part("nodes.comfy_host").apply(
        model or demo().model, livephoto or demo().livephoto, reference(count), motion, image_strength, motion_strength
    )


@functools.cache
def text(prompt: str) -> list:
    """CONDITIONING of a prompt."""
    return nodes.CLIPTextEncode().encode(demo().clip, prompt)[0]


def sample(
    model: Any,
    positive: list,
    negative: list,
    frames: int = FRAMES,
    steps: int = 2,
    cfg: float = 2.0,
    size: int = 16,
    callback: Callable | None = None,
    sampler: str = "euler",
) -> torch.Tensor:
    """Latents out of KSampler's code on the scheduler "normal", from noise of seed 0."""
    empty = torch.zeros(frames, model.model.latent_format.latent_channels, size, size)
    noise = comfy.sample.prepare_noise(empty, 0)
    # what ComfyUI returns is made in inference mode; a copy can be kept and changed
    return comfy.sample.sample(
        model, noise, steps, cfg, sampler, "normal", positive, negative, empty, callback=callback, disable_pbar=True, seed=0
    ).clone()


def prompts() -> tuple[list, list]:
    """A positive and a negative CONDITIONING."""
    return text("camera pans left, zooming in"), text("still")


def recorded(model: Any) -> tuple[Any, list[dict]]:
    """A clone of a MODEL, and the list that will hold what its UNet was given and gave back."""
    calls: list[dict] = []

    def wrapper(executor: Any, x: torch.Tensor, steps: Any, context: Any, y: Any, control: Any, options: dict, **kwargs: Any):
        given = {"x": x.clone(), "t": steps.clone(), "context": context.clone(), "chunks": list(options["cond_or_uncond"])}
        given["window"] = options.get("context_window")
        # the UNet takes these lists apart
        given["control"] = [part.clone() for name in ("output", "middle") for part in (control or {}).get(name, ())]
        out = executor(x, steps, context, y, control, options, **kwargs)
        calls.append({**given, "out": out.clone()})
        return out

    clone = model.clone()
    clone.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "recorder", wrapper)
    return clone, calls


def recording(calls: list[dict], photo: Any, model: Any = None) -> dict[str, Any]:
    """Recorded calls of the demo's MODEL, or another, as a case's result, with what else they were conditioned on."""
    found: dict[str, Any] = {"chunks": [call["chunks"] for call in calls]}
    for number, call in enumerate(calls):
        found |= {f"call{number}/{name}": call[name] for name in ("x", "t", "context", "out")}
        found |= {f"call{number}/control{place}": part for place, part in enumerate(call["control"])}
    latent = (model or demo().model).model.process_latent_in(photo.latent)
    return {**found, "latent": latent, "tokens": photo.tokens, "grid": list(photo.grid), "level": LEVEL}


def run_recorded(model: Any, positive: list, negative: list, count: int = 1, **settings: Any) -> dict[str, Any]:
    """Sample a MODEL, and return its UNet calls and the latents."""
    clone, calls = recorded(model)
    latents = sample(clone, positive, negative, **settings)
    return {**recording(calls, reference(count)), "latents": latents}


def fill(module: torch.nn.Module, seed: int = 0) -> torch.nn.Module:
    """Random weights: ComfyUI's layers start uninitialised."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in module.parameters():
        # the fan-in, but for matrices without rows
        scale = max(1, parameter.numel() // max(1, len(parameter))) ** -0.5 if parameter.ndim > 1 else 0.3
        parameter.data.copy_(torch.randn(parameter.shape, generator=generator) * scale)
    return module


def unet_settings(context: int, **more: Any) -> dict[str, Any]:
    """A small UNetModel of two levels, 32 and 64 channels."""
    return {
        "image_size": 32,
        "in_channels": 4,
        "out_channels": 4,
        "model_channels": 32,
        "channel_mult": [1, 2],
        "num_res_blocks": [1, 1],
        "transformer_depth": [1, 0],
        "transformer_depth_output": [1, 1, 0, 0],
        "transformer_depth_middle": 1,
        "num_heads": 4,
        "num_head_channels": -1,
        "use_spatial_transformer": True,
        "context_dim": context,
        "use_linear_in_transformer": False,
        "adm_in_channels": None,
        "use_temporal_attention": False,
        "legacy": False,
        **more,
    }


def patcher(config: Any) -> Any:
    """A MODEL with random weights of one of ComfyUI's supported kinds, in float32 on the CPU."""
    config.set_inference_dtype(torch.float32, None)
    model = config.get_model({}, "", device="cpu")
    fill(model.diffusion_model)
    cpu = torch.device("cpu")
    return comfy.model_patcher.ModelPatcher(model, load_device=cpu, offload_device=cpu)


class TinyConfig(comfy.supported_models.SD15):
    """SD1.5 of few channels."""

    unet_extra_config: dict = {}  # noqa: RUF012


TINY_CONTEXT = 24


def tiny_model() -> Any:
    """A random MODEL of SD1.5's kind that needs nothing of the pack."""
    return patcher(TinyConfig(unet_settings(TINY_CONTEXT)))


def tiny_prompts() -> tuple[list, list]:
    """CONDITIONING for `tiny_model`."""
    generator = torch.Generator().manual_seed(3)
    found = torch.randn(2, 77, TINY_CONTEXT, generator=generator)
    return [[found[:1], {}]], [[found[1:], {}]]
