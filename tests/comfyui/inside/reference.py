"""Encode Reference Photo by itself."""

from __future__ import annotations

import json
import tempfile
from pathlib import Path
from typing import Any

import comfy.clip_vision
import torch
from kit import case, demo, node, refused

import nodes


def encoded(width: int, height: int, fit: str, **look: Any) -> dict[str, Any]:
    """Tokens and picture of a smooth photo, three times as wide as it is high."""
    generator = torch.Generator().manual_seed(4)
    coarse = torch.rand(1, 3, 5, 15, generator=generator)
    photo = torch.nn.functional.interpolate(coarse, size=(64, 192), mode="bilinear").movedim(1, -1)
    if "crop" in look:
        look = {"clip_vision_output": nodes.CLIPVisionEncode().encode(demo().clip_vision, photo, look["crop"])[0]}
    reference, picture, latent = node(
        "LivePhotoReferenceEncode", image=photo, vae=demo().vae, width=width, height=height, fit=fit, frames=4, **look
    )
    return {"tokens": reference.tokens, "picture": picture, "latent": latent["samples"]}


def by_encoder(width: int, height: int, fit: str) -> dict[str, Any]:
    return encoded(width, height, fit, clip_vision=demo().clip_vision)


@case
def stock_encoder() -> dict[str, Any]:
    """What a CLIP_VISION of ComfyUI's own has, and the demo's."""
    config = {
        "model_type": "dinov2",
        "hidden_size": 32,
        "num_attention_heads": 2,
        "num_hidden_layers": 1,
        "layer_norm_eps": 1e-6,
        "use_swiglu_ffn": False,
    }
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "config.json")
        path.write_text(json.dumps(config))
        stock = comfy.clip_vision.ClipVisionModel(str(path))
    return {"stock": sorted(vars(stock)), "demo": sorted(vars(demo().clip_vision))}


@case
def tall_crop() -> dict[str, Any]:
    return by_encoder(64, 96, "crop")


@case
def tall_pad() -> dict[str, Any]:
    return by_encoder(64, 96, "pad")


@case
def square_crop() -> dict[str, Any]:
    return by_encoder(64, 64, "crop")


@case
def square_crop_by_output() -> dict[str, Any]:
    return encoded(64, 64, "crop", crop="center")


@case
def stretch() -> dict[str, Any]:
    return by_encoder(64, 96, "stretch")


@case
def stretch_by_output() -> dict[str, Any]:
    return encoded(64, 96, "stretch", crop="none")


@case
def own_shape() -> dict[str, Any]:
    return by_encoder(96, 32, "crop")


@case
def own_shape_by_output() -> dict[str, Any]:
    return encoded(96, 32, "crop", crop="none")


@case
def sizes() -> dict[str, Any]:
    """Sizes of which a VAE would cut a part, as they may come by a wire."""
    return {"66x64": refused(lambda: by_encoder(66, 64, "crop")), "64x500": refused(lambda: by_encoder(64, 500, "crop"))}
