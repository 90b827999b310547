"""LoRA files of the SD1.5 family, in kohya's or diffusers' naming, added into a base model's weights."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import torch
from safetensors import safe_open
from torch import nn

from .base import Base, read_tensors
from .config import BaseShape
from .errors import LivePhotoError, first_line

# endings of the names, and which part of a low-rank pair they hold
_PARTS = {
    ".lora_down.weight": "down",
    ".lora_up.weight": "up",
    ".lora_A.weight": "down",
    ".lora_B.weight": "up",
    ".lora.down.weight": "down",
    ".lora.up.weight": "up",
    "_lora.down.weight": "down",
    "_lora.up.weight": "up",
    ".lora_linear_layer.down.weight": "down",
    ".lora_linear_layer.up.weight": "up",
    ".alpha": "alpha",
}
_OWNERS = {"unet.": "lora_unet_", "text_encoder.": "lora_te_"}
# where diffusers keeps PEFT's settings in a .safetensors file, in place of an alpha beside each pair
_SETTINGS_KEY = "lora_adapter_metadata"


@torch.no_grad()
def apply_lora(base: Base, path: str | Path, strength: float = 1.0) -> int:
    """Add a LoRA to the UNet's and the text encoder's weights: W + strength * alpha / rank * up @ down.

    Args:
        base: changed in place.
        path: a .safetensors file, or one of tensors alone that torch reads.
        strength: 1 is as trained.

    Returns:
        The number of layers changed.

    Raises:
        LivePhotoError: no LoRA, one of another family or kind, or a layer that the base lacks; the base is then as it was.
    """
    path = Path(path)
    if not path.is_file():
        raise LivePhotoError(f"there is no LoRA file at {path}: check the path")
    if not math.isfinite(strength):
        raise LivePhotoError(f"the LoRA strength must be a number, got {strength}: 1 is as trained")
    layers = _layers(base)
    updates = []
    for name, parts in _pairs(path, read_tensors(path)).items():
        layer = layers.get(name)
        if layer is None:
            raise LivePhotoError(f"the base model has no layer {name} as {path} asks for: {_fitting(base)}")
        updates.append((layer.weight, strength * _difference(path, name, parts, layer.weight, _fitting(base))))
    for weight, difference in updates:
        weight.add_(difference)
    return len(updates)


def _pairs(path: Path, tensors: dict[str, torch.Tensor]) -> dict[str, dict[str, torch.Tensor]]:
    """The parts of each low-rank pair, by the layer's name in kohya's way of writing."""
    pairs: dict[str, dict[str, torch.Tensor]] = {}
    settings = _settings(path)
    for key, value in tensors.items():
        ending = next((ending for ending in _PARTS if key.endswith(ending)), None)
        if ending is None:
            raise LivePhotoError(
                f"{path} holds {key}, which is no part of a plain LoRA (LoHa, LoKr and DoRA are not read): give a LoRA of "
                "down and up matrices"
            )
        name, part = key.removesuffix(ending), _PARTS[ending]
        pair = pairs.setdefault(_layer_name(name), {})
        pair[part] = value
        if part == "down" and settings:
            pair.setdefault("alpha", torch.tensor(_alpha(path, settings, name, len(value))))
    if any(name.startswith(("lora_te1_", "lora_te2_")) for name in pairs):
        raise LivePhotoError(f"{path} is a LoRA for SDXL: use one for SD1.5")
    if not pairs:
        raise LivePhotoError(f"{path} holds no tensors: it is no LoRA")
    return pairs


def _settings(path: Path) -> dict:
    """PEFT's settings of the training, {"unet.r": 4, "unet.lora_alpha": 8, ...}, where diffusers left them in a file."""
    if path.suffix.lower() != ".safetensors":
        return {}
    with safe_open(path, "pt") as file:
        text = (file.metadata() or {}).get(_SETTINGS_KEY, "{}")
    try:
        return dict(json.loads(text))
    except (ValueError, TypeError) as error:
        raise LivePhotoError(f"cannot read the settings in {path} ({first_line(error)}): get the file again") from error


def _alpha(path: Path, settings: dict, name: str, rank: int) -> float:
    """The alpha of one layer, as PEFT finds it: by its name, else of all; its rank, so that nothing is scaled, if none is said."""
    owner, _, layer = name.partition(".")
    try:
        by_name = settings.get(f"{owner}.alpha_pattern") or {}
        usual = settings.get(f"{owner}.lora_alpha", rank)
        alpha = float(next((by_name[key] for key in by_name if re.fullmatch(rf"(.*\.)?({key})", layer)), usual))
    except (ValueError, TypeError, AttributeError, re.error) as error:
        raise LivePhotoError(f"cannot read alpha from the settings in {path} ({first_line(error)}): get the file again") from error
    # rank-stabilised LoRAs are scaled by alpha / sqrt(rank)
    return alpha * math.sqrt(rank) if settings.get(f"{owner}.use_rslora") else alpha


def _fitting(base: Base) -> str:
    """Which LoRAs go with a base, as the end of an error."""
    width, wanted = base.unet.config.block_out_channels[0], BaseShape().block_channels[0]
    if width == wanted:
        return "use a LoRA for SD1.5"
    return f"this base has {width} channels (the demo's is as small), SD1.5 {wanted}: give --base and --model of SD1.5"


def _layer_name(name: str) -> str:
    """A layer's name as kohya writes it: lora_unet_down_blocks_0_..., lora_te_text_model_encoder_..."""
    for prefix, owner in _OWNERS.items():
        if name.startswith(prefix):
            name = owner + name.removeprefix(prefix).replace(".processor", "").replace(".", "_")
            if owner == "lora_te_":
                # older diffusers named the text encoder's projections as the UNet's
                for ours, theirs in {"to_q": "q_proj", "to_k": "k_proj", "to_v": "v_proj", "to_out": "out_proj"}.items():
                    name = name.removesuffix(ours) + theirs if name.endswith(ours) else name
    return f"{name}_0" if name.endswith("_to_out") else name


def _layers(base: Base) -> dict[str, nn.Module]:
    layers = {}
    for owner, model in (("lora_unet_", base.unet), ("lora_te_text_model_", base.text_encoder)):
        for name, module in model.named_modules():
            if isinstance(module, (nn.Linear, nn.Conv2d)):
                # newer transformers dropped the level "text_model"
                layers[owner + name.removeprefix("text_model.").replace(".", "_")] = module
    return layers


def _difference(path: Path, name: str, parts: dict[str, torch.Tensor], weight: torch.Tensor, fix: str) -> torch.Tensor:
    if "down" not in parts or "up" not in parts:
        raise LivePhotoError(f"{path} lacks the {'up' if 'down' in parts else 'down'} matrix of {name}: get the file again")
    down, up = (parts[part].float().flatten(1) for part in ("down", "up"))
    if up.shape[1] != len(down) or len(up) * down.shape[1] != weight.numel() or len(up) != len(weight):
        raise LivePhotoError(
            f"{name} in {path} is {len(up)}x{down.shape[1]}, the base model's layer {list(weight.shape)}: {fix}"
        )
    scale = float(parts["alpha"]) / len(down) if "alpha" in parts else 1.0
    return (scale * up @ down).reshape(weight.shape).to(weight)
