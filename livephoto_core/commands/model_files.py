"""Which files a model's name on the command line stands for, and loading them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from ..config import AdapterConfig
from ..errors import LivePhotoError, first_line

DEMO = "demo"
PRECISIONS = {"fp32": "float32", "bf16": "bfloat16", "fp16": "float16"}
AUTO = "auto"
DEMO_FOLDER = Path(__file__).parent.parent / "demo" / "weights"


@dataclass(frozen=True)
class ModelFiles:
    """Files of a model: adapter checkpoint and base, and what stands in for parts of the base or is added to it.

    `adapter` is "demo" or a checkpoint; the demo brings its base along. `precision` is one of PRECISIONS: `precision_for` gives one
    for what is asked for.
    """

    adapter: str | Path = DEMO
    base: str | Path | None = None
    image_encoder: str | Path | None = None
    tokenizer: str | Path | None = None
    loras: Sequence[str | Path] = ()
    lora_strength: float = 1.0
    precision: str = "fp32"

    @property
    def adapter_path(self) -> Path:
        """The checkpoint's path.

        Raises:
            LivePhotoError: the demo is asked for and did not come with this installation.
        """
        if self.adapter != DEMO:
            return Path(self.adapter)
        path = DEMO_FOLDER / "adapter.safetensors"
        if not path.is_file():
            raise LivePhotoError(f"the demo model is not in this installation ({path}): install it whole, or give --model FILE")
        return path

    @property
    def base_path(self) -> Path:
        """The base model's path.

        Raises:
            LivePhotoError: none was given for a checkpoint other than the demo's.
        """
        if self.base is not None:
            return Path(self.base)
        if self.adapter == DEMO:
            return DEMO_FOLDER
        raise LivePhotoError(
            f"{self.adapter} needs a base model: give --base with an SD1.5 folder in diffusers' layout or a single-file checkpoint"
        )


def default_device() -> str:
    """Where a model runs if nothing else is asked for."""
    import torch

    return "cuda" if torch.cuda.is_available() else "cpu"


def precision_for(asked: str, device: str) -> str:
    """The precision that is asked for; for AUTO bf16 where the device is a CPU that calculates in it by itself, else fp32."""
    import torch

    if asked != AUTO:
        return asked
    # older torch does not tell
    known = getattr(torch.cpu, "get_capabilities", dict)()
    native = known.get("avx512_bf16") or known.get("amx_bf16")
    return "bf16" if device == "cpu" and native else "fp32"


def check_device(device: str) -> None:
    """Refuse a device that is not there, before the long work.

    Raises:
        LivePhotoError: torch cannot use it.
    """
    import torch

    try:
        torch.zeros(1, device=device)
    except (RuntimeError, AssertionError) as error:
        raise _unusable(device, error) from error


def _unusable(device: str, error: Exception) -> LivePhotoError:
    return LivePhotoError(f"cannot use the device {device!r} ({first_line(error)}): try --device cpu")


def read_model_config(files: ModelFiles) -> AdapterConfig:
    """The checkpoint's config alone.

    Raises:
        LivePhotoError: as checkpoint.read_config.
    """
    from ..checkpoint import read_config

    return read_config(files.adapter_path)


def is_demo(config: AdapterConfig) -> bool:
    """Whether a checkpoint is of the demo's kind, the one that ships or one trained further."""
    return config.content.encoder == DEMO


def load_model_base(files: ModelFiles):
    """The base model with its LoRAs, on the CPU.

    Raises:
        LivePhotoError: as base.load_base and lora.apply_lora.
    """
    from ..base import load_base
    from ..lora import apply_lora

    base = load_base(files.base_path, files.image_encoder, files.tokenizer)
    for lora in files.loras:
        apply_lora(base, lora, files.lora_strength)
    return base


def load_model(files: ModelFiles, device: str):
    """The whole model as a pipeline.LivePhoto on a device.

    Raises:
        LivePhotoError: a missing, damaged or unfitting file, a device that is not there, or a precision that it lacks.
    """
    import torch

    from ..checkpoint import load_adapter
    from ..pipeline import LivePhoto

    if files.precision not in PRECISIONS or (files.precision == "fp16" and device == "cpu"):
        known = ", ".join(name for name in PRECISIONS if name != "fp16" or device != "cpu")
        raise LivePhotoError(f"the precision {files.precision!r} is not for the device {device!r}: choose one of {known}")
    dtype = getattr(torch, PRECISIONS[files.precision])
    adapter = load_adapter(files.adapter_path)
    base = load_model_base(files)
    try:
        return LivePhoto(base.to(device, dtype), adapter.to(device, dtype))
    except torch.cuda.OutOfMemoryError:
        # the device is there; the command knows what takes less memory
        raise
    except (RuntimeError, AssertionError) as error:
        raise _unusable(device, error) from error
