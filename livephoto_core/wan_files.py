"""The released files of LivePhoto-Wan2.1: base.safetensors, which is split into Wan2.1 and the text module, and lora.safetensors.

Names and shapes are checked from the file's header before anything is read.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from .checkpoint import ADAPTER, WAN_BASE, looks_like, opened
from .errors import LivePhotoError
from .model.wan_text import TEXT_WIDTH, WanTextModule

_log = logging.getLogger(__name__)

_TEXT_PREFIXES = ("motion_intensity_embed.", "text_reweight.")
_LATENT_CHANNELS, _PATCH, _FREQUENCIES, _MODULATIONS = 16, (1, 2, 2), 256, 6
_FLOATS = ("F16", "BF16", "F32")
_NAMED = 3
_FIX = "get base.safetensors of the LivePhoto-Wan2.1 release"
_LORA_KEY = re.compile(
    r"(?:diffusion_model\.)?(?P<layer>.+)\.(?P<part>lora_A|lora_B|lora_down|lora_up)(?:\.[^.]+)?\.weight"
)
_PARTS = {"lora_A": "down", "lora_down": "down", "lora_B": "up", "lora_up": "up"}

Shapes = Mapping[str, tuple[int, ...]]


@dataclass(frozen=True)
class WanSize:
    """Width, feed-forward width and blocks of a Wan2.1 model; the defaults are the released one's, 1.3B."""

    width: int = 1536
    feed_forward: int = 8960
    blocks: int = 30


@dataclass(frozen=True)
class WanWeights:
    """The two parts of base.safetensors: Wan2.1's own tensors, still in the file, and the text module's, copied out of it."""

    wan: dict[str, torch.Tensor]
    text: dict[str, torch.Tensor]


@dataclass(frozen=True)
class LowRank:
    """A change of a layer's weight: up [out, r] @ down [r, in]."""

    up: torch.Tensor
    down: torch.Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        """(out, in) of the layer."""
        return *self.up.shape[:1], *self.down.shape[1:]


def text_shapes() -> dict[str, tuple[int, ...]]:
    """The names and shapes of the 28 tensors that LivePhoto adds to Wan2.1."""
    with torch.device("meta"):
        return {name: tuple(tensor.shape) for name, tensor in WanTextModule().state_dict().items()}


def wan_shapes(size: WanSize) -> dict[str, tuple[int, ...]]:
    """The names and shapes of a Wan2.1 text-to-video model: 15 tensors and 27 a block."""
    width, found = size.width, {}

    def linear(name: str, outputs: int, inputs: int) -> None:
        found.update({f"{name}.weight": (outputs, inputs), f"{name}.bias": (outputs,)})

    found["patch_embedding.weight"] = (width, _LATENT_CHANNELS, *_PATCH)
    found["patch_embedding.bias"] = (width,)
    linear("text_embedding.0", width, TEXT_WIDTH)
    linear("text_embedding.2", width, width)
    linear("time_embedding.0", width, _FREQUENCIES)
    linear("time_embedding.2", width, width)
    linear("time_projection.1", _MODULATIONS * width, width)
    for number in range(size.blocks):
        block = f"blocks.{number}"
        found[f"{block}.modulation"] = (1, _MODULATIONS, width)
        for attention in (f"{block}.self_attn", f"{block}.cross_attn"):
            for name in "qkvo":
                linear(f"{attention}.{name}", width, width)
            found.update({f"{attention}.norm_q.weight": (width,), f"{attention}.norm_k.weight": (width,)})
        found.update({f"{block}.norm3.weight": (width,), f"{block}.norm3.bias": (width,)})
        linear(f"{block}.ffn.0", size.feed_forward, width)
        linear(f"{block}.ffn.2", width, size.feed_forward)
    linear("head.head", _LATENT_CHANNELS * _PATCH[1] * _PATCH[2], width)
    found["head.modulation"] = (1, 2, width)
    return found


def read_wan(path: str | os.PathLike) -> WanWeights:
    """The tensors of a LivePhoto-Wan2.1 base file.

    Raises:
        LivePhotoError: missing, damaged, plain Wan2.1 or something else, or a tensor of either part is missing, unexpected,
            misshapen or not floating point; named.
    """
    with opened(path) as file:
        check_wan_file({name: file.get_slice(name) for name in file.keys()}, path)  # noqa: SIM118
        names = {name: name.startswith(_TEXT_PREFIXES) for name in file.keys()}  # noqa: SIM118
        wan = {name: file.get_tensor(name) for name, text in names.items() if not text}
        return WanWeights(wan, {name: file.get_tensor(name).clone() for name, text in names.items() if text})


def check_wan_file(header: Mapping[str, Any], path: str | os.PathLike) -> None:
    """Check a base file by its header {name: safetensors slice}.

    Raises:
        LivePhotoError: as `read_wan`.
    """
    shapes = {name: tuple(part.get_shape()) for name, part in header.items()}
    if not any(name.startswith(_TEXT_PREFIXES) for name in shapes):
        raise LivePhotoError(_not_livephoto(shapes, path))
    causes = differences(shapes, {**wan_shapes(_size(shapes)), **text_shapes()})
    strange = [f"{name} {part.get_dtype()}" for name, part in header.items() if part.get_dtype() not in _FLOATS]
    # Wan2.1's own tensors are ComfyUI's to read, in whatever dtype
    causes += _listed("not F16, BF16 or F32", [name for name in strange if name.startswith(_TEXT_PREFIXES)])
    if causes:
        raise LivePhotoError(f"{path} is not a whole LivePhoto-Wan2.1 base file; {'; '.join(causes)}: get base.safetensors again")


def differences(found: Shapes, expected: Shapes) -> list[str]:
    """What is wrong with names and shapes, a phrase for each kind of fault, with the names."""
    return [
        *_listed("missing", [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found]),
        *_listed("unexpected", [f"{name} {list(shape)}" for name, shape in found.items() if name not in expected]),
        *_listed(
            "misshapen",
            [
                f"{name} {list(found[name])}, expected {list(shape)}"
                for name, shape in expected.items()
                if name in found and found[name] != shape
            ],
        ),
    ]


def text_module(tensors: Mapping[str, torch.Tensor], operations: Any = nn) -> WanTextModule:
    """The text module with the tensors of `WanWeights.text`, in eval mode; `operations` as in WanTextModule."""
    # on the meta device no weight is drawn only to be overwritten
    with torch.device("meta"):
        module = WanTextModule(operations)
    module.load_state_dict(tensors, assign=True)
    return module.eval().requires_grad_(False)


def read_wan_lora(path: str | os.PathLike, shapes: Shapes) -> dict[str, LowRank]:
    """The changes that a LoRA file makes to a base file with tensors of these shapes, by layer.

    Raises:
        LivePhotoError: missing, damaged, or as `read_low_rank`.
    """
    with opened(path) as file:
        return read_low_rank({name: file.get_tensor(name) for name in file.keys()}, shapes, Path(path).name)  # noqa: SIM118


def read_low_rank(tensors: Mapping[str, torch.Tensor], shapes: Shapes, name: str) -> dict[str, LowRank]:
    """The changes that a LoRA makes, by layer: "blocks.0.ffn.2", "text_reweight.cross_attn_0.q".

    Args:
        tensors: of the file; LAYER.lora_A[.ADAPTER].weight and lora_B, or lora_down and lora_up, with or without
            "diffusion_model." in front. All others are left out, as the official code does, with a warning unless it is `.alpha`.
        shapes: of the base file's tensors.
        name: of the file, for messages.

    Raises:
        LivePhotoError: no plain LoRA, half of a pair, or a layer that the base lacks or has in another shape.
    """
    halves: dict[str, dict[str, torch.Tensor]] = {}
    others, twice = [], []
    for key, tensor in tensors.items():
        match = _LORA_KEY.fullmatch(key)
        if match is None:
            others += [] if key.endswith(".alpha") else [key]
            continue
        pair, part = halves.setdefault(match["layer"], {}), _PARTS[match["part"]]
        if part in pair:
            twice.append(match["layer"])
        pair[part] = tensor
    if others and not halves:
        raise LivePhotoError(
            f"{name} holds {others[0]}, which is no part of a plain LoRA: choose lora.safetensors of the LivePhoto-Wan2.1 release"
        )
    weights = {layer: shapes.get(f"{layer}.weight", ()) for layer in halves}
    strangers = [layer for layer, shape in weights.items() if len(shape) != 2]
    if len(strangers) == len(halves):
        seen = f" ({strangers[0]}, for example)" if strangers else ""
        raise LivePhotoError(
            f"{name} matches nothing in LivePhoto-Wan2.1{seen}: choose lora.safetensors of the LivePhoto-Wan2.1 release"
        )
    lone = [layer for layer, pair in halves.items() if len(pair) != 2]
    pairs = {layer: LowRank(**pair) for layer, pair in halves.items() if len(pair) == 2}
    misshapen = [
        f"{layer} {list(pair.shape)}, expected {list(weights[layer])}"
        for layer, pair in pairs.items()
        if layer not in strangers and (pair.shape != weights[layer] or pair.up.shape[1:] != pair.down.shape[:1])
    ]
    causes = _listed("no linear layer of the base", strangers) + _listed("without its other half", lone)
    causes += _listed("misshapen", misshapen) + _listed("given twice", twice)
    if causes:
        raise LivePhotoError(
            f"{name} does not fit the base file; {'; '.join(causes)}: choose lora.safetensors of the LivePhoto-Wan2.1 release"
        )
    if others:
        _log.warning("%s: tensors that are no part of a plain LoRA are left out: %d, %s for example", name, len(others), others[0])
    return pairs


def merged(weights: Mapping[str, torch.Tensor], changes: Mapping[str, LowRank], strength: float) -> dict[str, torch.Tensor]:
    """The weights with W + strength * up @ down where a change names their layer, in the dtype they had.

    The rank does not divide it, unlike in most LoRA code.
    """
    found = dict(weights)
    for layer, change in changes.items():
        if (weight := weights.get(f"{layer}.weight")) is not None:
            found[f"{layer}.weight"] = (weight.float() + strength * change.up.float() @ change.down.float()).to(weight)
    return found


def _size(shapes: Shapes) -> WanSize:
    numbers = {int(match[1]) for name in shapes if (match := re.match(r"blocks\.(\d+)\.", name))}
    released = WanSize()
    width = (shapes.get("head.modulation") or (released.width,))[-1]
    feed_forward = (shapes.get("blocks.0.ffn.0.weight") or (released.feed_forward,))[0]
    return WanSize(width, feed_forward, len(numbers) or released.blocks)


def _not_livephoto(shapes: Shapes, path: str | os.PathLike) -> str:
    kind = looks_like(shapes.keys())
    if kind == "a Wan video model":
        return f"{path}: this is plain Wan2.1, not LivePhoto-Wan2.1: it lacks the text module; {_FIX}"
    if kind == WAN_BASE:
        return (
            f"{path}: another tool has put a prefix before the names of this LivePhoto-Wan2.1 base file "
            f"({next(iter(shapes))}, for example); {_FIX}"
        )
    fix = "put it in models/livephoto and use Load LivePhoto Model" if kind == ADAPTER else _FIX
    return f"{path} is not LivePhoto-Wan2.1{f', it looks like {kind}' if kind else ''}: {fix}"


def _listed(what: str, names: list[str]) -> list[str]:
    if not names:
        return []
    more = f" and {len(names) - _NAMED} more" if len(names) > _NAMED else ""
    return [f"{len(names)} {what}: {', '.join(sorted(names)[:_NAMED])}{more}"]
