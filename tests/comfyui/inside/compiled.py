"""LivePhoto behind TorchCompileModel as newer ComfyUI compiles: without guards on what it reads from a call's options."""

from __future__ import annotations

from typing import Any

import torch
from comfy_api.torch_helpers import set_torch_compile_wrapper
from kit import apply, case, demo, node, part, prompts, reference, sample


def without_guards_on_options(entries: Any) -> list[bool]:
    return ["transformer_options" not in entry.name for entry in entries]


def compiled(model: Any) -> Any:
    clone = model.clone()
    set_torch_compile_wrapper(clone, "eager", options={"guard_filter_fn": without_guards_on_options})
    return clone


def at_level(level: float) -> Any:
    motion = part("nodes.types").Motion(level)
    return part("nodes.comfy_host").apply(demo().model, demo().livephoto, reference(), motion, 1.0, 1.0)


def in_windows() -> Any:
    return node("LivePhotoContextWindows", model=apply(), length=4, overlap=1, schedule="standard_static", loop=False)[0]


@case
def one_after_the_other() -> dict[str, Any]:
    """The same UNet compiled for one MODEL after another: at two levels, in windows, at the first level again."""
    models = {"strong": (at_level(9.0), 4), "weak": (at_level(2.0), 4), "windows": (in_windows(), 7)}
    found = {name: sample(model, *prompts(), frames=frames, steps=1) for name, (model, frames) in models.items()}
    torch._dynamo.reset()
    for name in (*models, "strong"):
        model, frames = models[name]
        found[f"{name} compiled"] = sample(compiled(model), *prompts(), frames=frames, steps=1)
    return found
