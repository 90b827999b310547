"""Loading LivePhoto-Wan2.1: the authors' base file and LoRA, onto ComfyUI's own Wan2.1 model."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.model_management
import comfy.model_patcher
import comfy.ops
import comfy.sd
import folder_paths
import torch
from comfy_api.latest import io, ui

from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.model.wan_text import WanTextModule
from ..livephoto_core.wan_files import LowRank, WanWeights, merged, read_wan, read_wan_lora, text_module
from ..livephoto_core.wan_schedule import ROUNDINGS
from . import wan_host
from .checks import check_choice, check_numbers
from .loaders import file_state

FOLDER, LORAS = "diffusion_models", "loras"
NO_LORA = "none"
STRENGTH = 1.2


@dataclass(frozen=True)
class WanText:
    """LivePhoto-Wan2.1's text module in ComfyUI's memory management: `patcher` is a ModelPatcher whose model is the module."""

    patcher: Any

    @property
    def module(self) -> WanTextModule:
        return self.patcher.model


WanTextType = io.Custom("LIVEPHOTO_WAN_TEXT")


def path_of(folder: str, name: str) -> Path:
    """The path of a file in one of ComfyUI's model folders.

    Raises:
        LivePhotoError: there is none of this name.
    """
    path = folder_paths.get_full_path(folder, name)
    if path is None:
        raise LivePhotoError(f"models/{folder} has no file {name}: put it there, reload ComfyUI's page and choose it again")
    return Path(path)


def load(base: Path, lora: Path | None, strength: float, rounding: torch.dtype) -> tuple[Any, WanText]:
    """The MODEL and the text module out of the released files; `strength` counts for both parts of the LoRA.

    Raises:
        LivePhotoError: a file that is missing, damaged, or not what it should be; see `read_wan` and `read_wan_lora`.
    """
    weights = read_wan(base)
    shapes = {name: tuple(tensor.shape) for part in (weights.wan, weights.text) for name, tensor in part.items()}
    changes = {} if lora is None else read_wan_lora(lora, shapes)
    text = text_module(merged(weights.text, changes, strength), comfy.ops.manual_cast)
    model = plain_model(weights, str(base))
    patch(model, {layer: change for layer, change in changes.items() if f"{layer}.weight" in weights.wan}, strength)
    patcher = comfy.model_patcher.ModelPatcher(
        text,
        load_device=comfy.model_management.get_torch_device(),
        offload_device=comfy.model_management.unet_offload_device(),
    )
    return wan_host.apply(model, rounding), WanText(patcher)


def plain_model(weights: WanWeights, base: str, **options: Any) -> Any:
    """ComfyUI's own MODEL of the Wan2.1 in a base file; `options` go to ComfyUI's loader."""
    # ComfyUI empties the dict that it is given
    model = comfy.sd.load_diffusion_model_state_dict(dict(weights.wan), **options)
    # newer versions of ComfyUI load it anew by this, for TorchCompileModel, hooks on texts and several GPUs
    model.cached_patcher_init = load_again, (base,)
    return model


def load_again(base: str, **options: Any) -> Any:
    """The MODEL of `plain_model` once more; newer versions of ComfyUI give `disable_dynamic`."""
    return plain_model(read_wan(base), base, **options)


def patch(model: Any, changes: dict[str, LowRank], strength: float) -> None:
    """Add changes to a MODEL as ComfyUI's own LoRA patches; without an alpha it does not divide by the rank."""
    keys = {layer: f"diffusion_model.{layer}.weight" for layer in changes}
    tensors = {f"{layer}.lora_up.weight": change.up for layer, change in changes.items()}
    tensors |= {f"{layer}.lora_down.weight": change.down for layer, change in changes.items()}
    model.add_patches(comfy.lora.load_lora(tensors, keys), strength)


def report(text: WanText) -> str:
    """A line on whether the motion level can do anything."""
    warmup, gate = float(text.module.text_reweight.warmup), float(text.module.text_reweight.gate())
    effect = "the motion level acts" if gate > 0 else "the gate is shut, so the motion level does nothing with this file"
    return f"warmup {warmup:.3f}, gate {gate:.2f}: {effect}"


class LivePhotoWanLoader(io.ComfyNode):
    """The released files as MODEL and text module."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoWanLoader",
            display_name="Load LivePhoto-Wan2.1",
            category="LivePhoto/Wan2.1",
            description="Loads the authors' LivePhoto-Wan2.1: base.safetensors and lora.safetensors of their release.",
            inputs=[
                io.Combo.Input(
                    "model_name",
                    options=folder_paths.get_filename_list(FOLDER),
                    tooltip="base.safetensors of the release, in models/diffusion_models.",
                ),
                io.Combo.Input(
                    "lora_name",
                    options=[NO_LORA, *folder_paths.get_filename_list(LORAS)],
                    tooltip="lora.safetensors of the release, in models/loras; none leaves it out.",
                ),
                io.Float.Input(
                    "lora_strength",
                    default=STRENGTH,
                    min=-10.0,
                    max=10.0,
                    step=0.05,
                    round=0.001,
                    tooltip="How much the LoRA counts; the authors use 1.2.",
                ),
                io.Combo.Input(
                    "timesteps",
                    options=list(ROUNDINGS),
                    default=next(iter(ROUNDINGS)),
                    tooltip="How timesteps are rounded: bfloat16 as in the authors' code, float32 closer to the schedule.",
                ),
            ],
            outputs=[
                io.Model.Output(tooltip="For LivePhoto Guider (Wan); LoRAs for Wan2.1 may come in between."),
                WanTextType.Output(display_name="wan_text", tooltip="For Motion Intensity (Wan)."),
            ],
            hidden=[io.Hidden.unique_id],
        )

    @classmethod
    def fingerprint_inputs(cls, model_name: str | None, lora_name: str | None, **_: object) -> str:
        """Another one when a file was replaced; a name that comes by a wire is None here."""
        names = ((FOLDER, model_name), (LORAS, lora_name))
        return " ".join(file_state(folder_paths.get_full_path(folder, name) if name else None) for folder, name in names)

    @classmethod
    def execute(cls, model_name: str, lora_name: str, lora_strength: float, timesteps: str) -> io.NodeOutput:
        check_choice("timesteps", timesteps, ROUNDINGS)
        check_numbers(lora_strength=lora_strength)
        lora = None if lora_name == NO_LORA else path_of(LORAS, lora_name)
        model, text = load(path_of(FOLDER, model_name), lora, lora_strength, ROUNDINGS[timesteps])
        said = report(text)
        if not text.module.text_reweight.gate() > 0:
            logging.warning("%s: %s", model_name, said)
        if cls.hidden is not None:
            from server import PromptServer

            PromptServer.instance.send_progress_text(said, cls.hidden.unique_id)
        return io.NodeOutput(model, text, ui=ui.PreviewText(said))
