"""A LivePhoto checkpoint: one safetensors file with the adapter's tensors and its config in the metadata.

Names, shapes and family are checked from the file's header, before anything is built or read.
"""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import nn

from .config import AdapterConfig, from_json, to_json
from .errors import LivePhotoError, first_line
from .files import atomic_path
from .model.adapter import LivePhotoAdapter

CONFIG_KEY = "livephoto"
# Kinds of `looks_like` that are LivePhoto's own, given in the wrong place.
ADAPTER, WAN_BASE = "a LivePhoto adapter", "a LivePhoto-Wan2.1 base file"

# What a wrong file probably is, by parts of its tensors' names; the first row of which all parts occur.
_LOOKS = (
    (ADAPTER, ("stem.conv.", "motion.down_blocks.")),
    (WAN_BASE, ("text_reweight.cross_attn_", "patch_embedding.")),
    ("a Stable Diffusion XL base model", ("conditioner.embedders.",)),
    ("a Stable Diffusion v1 base model", ("model.diffusion_model.input_blocks.", "cond_stage_model.")),
    ("a Wan video model", ("blocks.0.self_attn.q.", "patch_embedding.")),
    ("a LoRA", (".lora_",)),
    ("a LoRA", ("lora_unet_",)),
    ("an AnimateDiff motion module", ("motion_modules.0.temporal_transformer.",)),
    ("a ControlNet", ("control_model.",)),
    ("an IP-Adapter", ("ip_adapter.",)),
    ("a diffusers UNet", ("conv_in.", "down_blocks.0.", "time_embedding.")),
    ("a VAE", ("decoder.conv_in.",)),
    ("a text encoder", ("text_model.",)),
    ("an image encoder", ("patch_embedding",)),
)
_FLOATS = ("F16", "BF16", "F32", "F64")
_FIX = "give a file that LivePhoto's training wrote"
_NAMED = 3


def save_adapter(
    adapter: LivePhotoAdapter,
    path: str | os.PathLike,
    extra_metadata: Mapping[str, str] | None = None,
    dtype: torch.dtype = torch.float16,
) -> None:
    """Write the adapter with its config; the file appears whole or not at all.

    Weights are stored in `dtype`, position tables as they are. `extra_metadata` is text beside the config.

    Raises:
        LivePhotoError: a weight that `dtype` cannot hold, or the file cannot be written.
    """
    weights = dict(adapter.named_parameters())
    tensors = {name: tensor.detach().to("cpu", copy=True) for name, tensor in adapter.state_dict().items()}
    for name in weights.keys() & tensors.keys():
        tensors[name] = tensors[name].to(dtype)
        if not torch.isfinite(tensors[name]).all():
            raise LivePhotoError(
                f"{name} has values that are not finite in {dtype}: save as float32; if that fails too, the training diverged"
            )
    save_tensors(tensors, path, {**(extra_metadata or {}), CONFIG_KEY: to_json(adapter.config)})


def save_tensors(tensors: Mapping[str, torch.Tensor], path: str | os.PathLike, metadata: Mapping[str, str]) -> None:
    """Write a safetensors file whole or not at all.

    Raises:
        LivePhotoError: the file cannot be written (no such folder, no permission, a full disk).
    """
    with atomic_path(path) as temporary:
        try:
            save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, temporary, dict(metadata))
            _sort_metadata(temporary)
        except SafetensorError as error:
            raise as_os_error(error) from error


def _sort_metadata(path: Path) -> None:
    """Put a safetensors file's metadata in order: the library writes them in a random one, and equal files are equal bytes."""
    with open(path, "r+b") as file:
        length = int.from_bytes(file.read(8), "little")
        header = json.loads(file.read(length))
        ordered = {**header, "__metadata__": dict(sorted(header["__metadata__"].items()))} if "__metadata__" in header else header
        text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
        file.seek(8)
        # spaces at the end are the format's own padding
        file.write(text.ljust(length))


def load_adapter(path: str | os.PathLike, operations: Any = nn, dtype: torch.dtype | None = torch.float32) -> LivePhotoAdapter:
    """The adapter in a checkpoint, on the CPU, in eval mode.

    Args:
        path: the checkpoint.
        operations: what makes the layers, see LivePhotoAdapter.
        dtype: of weights and tables; None keeps what is stored.

    Raises:
        LivePhotoError: the file is missing, incomplete, no LivePhoto checkpoint, of another family or version, or a tensor
            is missing, unexpected or misshapen.
    """
    with opened(path) as file:
        config = _config(file, path)
        _check_tensors(file, path, expected_shapes(config))
        # On the meta device no weight is drawn only to be overwritten.
        with torch.device("meta"):
            adapter = LivePhotoAdapter(config, operations)
        # A copy: tensors still bound to the file would change with it, and keep it open.
        tensors = {name: file.get_tensor(name).to("cpu", dtype, copy=True) for name in file.keys()}  # noqa: SIM118
    adapter.load_state_dict(tensors, assign=True)
    return adapter.eval()


def read_config(path: str | os.PathLike) -> AdapterConfig:
    """The config of a checkpoint, from the file's header alone.

    Raises:
        LivePhotoError: as `load_adapter`, but the tensors are not checked.
    """
    with opened(path) as file:
        return _config(file, path)


def read_metadata(path: str | os.PathLike) -> dict[str, str]:
    """All text that was stored beside a checkpoint's config.

    Raises:
        LivePhotoError: as `read_config`.
    """
    with opened(path) as file:
        _config(file, path)
        return {key: text for key, text in file.metadata().items() if key != CONFIG_KEY}


def expected_shapes(config: AdapterConfig) -> dict[str, tuple[int, ...]]:
    """Every tensor of an adapter with this config and its shape; nothing is allocated.

    Raises:
        LivePhotoError: the config's numbers do not go together.
    """
    try:
        with torch.device("meta"):
            adapter = LivePhotoAdapter(config)
    except (ValueError, RuntimeError) as error:
        raise LivePhotoError(f"no adapter can be built from the checkpoint's config: {first_line(error)}") from error
    return {name: tuple(tensor.shape) for name, tensor in adapter.state_dict().items()}


@contextmanager
def opened(path: str | os.PathLike) -> Iterator[Any]:
    """A safetensors file as `safe_open` gives it.

    Raises:
        LivePhotoError: missing, unreadable, incomplete, or not a safetensors file.
    """
    path = Path(path)
    if not path.is_file():
        state = "is a folder" if path.is_dir() else "does not exist"
        raise LivePhotoError(f"{path} {state}: give the path of a .safetensors file")
    try:
        file = safe_open(path, framework="pt")
    except OSError as error:
        raise LivePhotoError(f"cannot read {path}: {error.strerror or first_line(error)}; check its permissions") from error
    except SafetensorError as error:
        raise LivePhotoError(_why_unreadable(path, error)) from error
    with file:
        yield file


def looks_like(names: Collection[str]) -> str:
    """What kind of file has tensors of these names, for an error message: "a LoRA", or "" if unknown."""
    for kind, parts in _LOOKS:
        if all(any(part in name for name in names) for part in parts):
            return kind
    return ""


def _config(file: Any, path: str | os.PathLike) -> AdapterConfig:
    text = (file.metadata() or {}).get(CONFIG_KEY)
    if text is None:
        kind = looks_like(file.keys())
        if kind == ADAPTER:
            raise LivePhotoError(
                f"{path} holds {kind} without its config, as tools that drop metadata leave it: "
                "give the file that LivePhoto's training wrote"
            )
        fix = "in ComfyUI put it in models/diffusion_models and use Load LivePhoto-Wan2.1" if kind == WAN_BASE else _FIX
        raise LivePhotoError(f"{path} is not a LivePhoto checkpoint{f', it looks like {kind}' if kind else ''}: {fix}")
    try:
        return from_json(text)
    except LivePhotoError as error:
        raise LivePhotoError(f"{path}: {error}") from error


def _check_tensors(file: Any, path: str | os.PathLike, expected: Mapping[str, tuple[int, ...]]) -> None:
    found = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    wrong = {
        "missing": [f"{name} {list(shape)}" for name, shape in expected.items() if name not in found],
        "unexpected": [f"{name} {found[name].get_shape()}" for name in found if name not in expected],
        "misshapen": [
            f"{name} {found[name].get_shape()}, expected {list(shape)}"
            for name, shape in expected.items()
            if name in found and tuple(found[name].get_shape()) != shape
        ],
        "not floating point": [f"{name} {part.get_dtype()}" for name, part in found.items() if part.get_dtype() not in _FLOATS],
    }
    causes = [f"{len(names)} {what}: {_some(names)}" for what, names in wrong.items() if names]
    if causes:
        raise LivePhotoError(
            f"the tensors of {path} do not match its config; {'; '.join(causes)}; the file is damaged, get it again"
        )


def _some(names: list[str]) -> str:
    shown = ", ".join(sorted(names)[:_NAMED])
    return shown if len(names) <= _NAMED else f"{shown} and {len(names) - _NAMED} more"


def _why_unreadable(path: Path, error: SafetensorError) -> str:
    with open(path, "rb") as file:
        start = file.read(9)
    size = path.stat().st_size
    # A safetensors file: eight bytes with the length of its header, then the header, which is JSON.
    if len(start) < 9 and size == len(start):
        return f"{path} has only {size} bytes: it is incomplete, get it again"
    if start[8:9] == b"{":
        return f"{path} is incomplete or damaged ({size} bytes; {first_line(error)}): get it again"
    return f"{path} is not a safetensors file ({first_line(error)}): give the path of a .safetensors file"


def as_os_error(error: SafetensorError) -> OSError:
    """What the system said when safetensors could not write a file."""
    # The only trace of the cause is the system's error number in the text.
    number = re.search(r"os error (\d+)|code: (\d+)", str(error))
    code = int(number[1] or number[2]) if number else errno.EIO
    return OSError(code, os.strerror(code))
