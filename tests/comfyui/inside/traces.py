"""What LivePhoto leaves in the base MODEL and in memory: nothing, whatever happened in between."""

from __future__ import annotations

import copy
import functools
import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import comfy.model_management
import comfy.model_patcher
import comfy.supported_models
import folder_paths
import torch
from kit import (
    FRAMES,
    apply,
    case,
    demo,
    node,
    part,
    patcher,
    prompts,
    reference,
    refused,
    sample,
    text,
    tiny_model,
    tiny_prompts,
    unet_settings,
)

import nodes

TOKENS = 12


@functools.cache
def baseline() -> torch.Tensor:
    """What the demo's MODEL gives by itself."""
    return sample(demo().model, *prompts())


def state(model: Any) -> dict[str, Any]:
    """Every trace that a patch could leave in a MODEL and its UNet."""
    hooks = sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in model.model.modules())
    held = {
        "options": {name: value for name, value in model.model_options.items() if name != "transformer_options"},
        "transformer_options": model.model_options["transformer_options"],
        "wrappers": model.wrappers,
        "callbacks": model.callbacks,
        "injections": model.injections,
        "additional": model.additional_models,
        "objects": model.object_patches,
        "backups": model.object_patches_backup,
        "weights": model.backup,
    }
    return {"hooks": hooks, "injected": model.is_injected, **{name: len(value) for name, value in held.items()}}


def clean(model: Any) -> bool:
    return not any(state(model).values())


@functools.cache
def tiny_livephoto() -> Any:
    return part("nodes.loaders").load(Path(folder_paths.get_full_path_or_raise("livephoto", "tiny.safetensors")))


def apply_tiny(model: Any) -> Any:
    generator, types = torch.Generator().manual_seed(4), part("nodes.types")
    reference = types.Reference(
        torch.randn(1, 4, 16, 16, generator=generator), torch.randn(1, 4, TOKENS, generator=generator), (2, 2)
    )
    return part("nodes.comfy_host").apply(model, tiny_livephoto(), reference, types.Motion(5), 1.0, 1.0)


@case
def tiny() -> dict[str, Any]:
    """The MODEL that inside/plain.py samples without the pack."""
    model = tiny_model()
    found = {"before": sample(model, *tiny_prompts())}
    patched = apply_tiny(model)
    found["applied"] = sample(model, *tiny_prompts())
    found["patched"] = sample(patched, *tiny_prompts())
    found["after"] = sample(model, *tiny_prompts())
    return {**found, "clean": clean(model)}


@case
def base_again() -> dict[str, Any]:
    before, untouched = baseline(), clean(demo().model)
    weights = {name: value.clone() for name, value in demo().model.model.state_dict().items()}
    sample(apply(), *prompts())
    after = sample(demo().model, *prompts())
    same = all(torch.equal(value, weights[name]) for name, value in demo().model.model.state_dict().items())
    return {"before": before, "after": after, "clean": untouched and clean(demo().model), "same weights": same}


@case
def names_while_in_use() -> dict[str, Any]:
    model, seen = apply(), []
    before = list(model.model.state_dict())

    def look(*_: Any) -> None:
        seen.append(list(model.model.state_dict()) == before and list(model.model_state_dict()) == before)

    looked_at = sample(model, *prompts(), callback=look)
    return {"same": seen, "looked at": looked_at, "left alone": sample(model, *prompts())}


@case
def clones() -> dict[str, Any]:
    """After clones and copies of a MODEL's options there is one adapter in memory, as before."""
    kind = part("livephoto_core.model.adapter").LivePhotoAdapter

    def count() -> int:
        gc.collect()
        return sum(isinstance(thing, kind) for thing in gc.get_objects())

    before, model = count(), apply()
    kept = [model.clone(), model.clone().clone(), copy.deepcopy(model.model_options)]
    held = [clone.get_additional_models()[0].model is demo().livephoto.adapter for clone in kept[:2]]
    return {"held": held, "more": count() - before}


@case
def another_model_in_between() -> dict[str, Any]:
    model, other = apply(), apply(image_strength=0.3)
    first = sample(model, *prompts())
    others = [sample(other, *prompts()), sample(apply_tiny(tiny_model()), *tiny_prompts()), sample(demo().model, *prompts())]
    return {"first": first, "other": others[0], "second": sample(model, *prompts())}


@case
def clone_dropped_while_in_use() -> dict[str, Any]:
    """A clone made of a MODEL in use believes that it is injected: it ejects when it goes, and injects when it is read."""
    model = apply()
    before = sample(model, *prompts())

    def drop(*_: Any) -> None:
        clone = model.clone()
        clone.model_state_dict()
        del clone
        gc.collect()

    after = sample(model, *prompts(), callback=drop)
    base = sample(demo().model, *prompts())
    return {"before": before, "after": after, "base": base, "baseline": baseline(), "clean": clean(demo().model)}


@case
def cancelled() -> dict[str, Any]:
    model = apply()
    before = sample(model, *prompts())

    def cancel(*_: Any) -> None:
        raise comfy.model_management.InterruptProcessingException

    try:
        sample(model, *prompts(), callback=cancel)
    except comfy.model_management.InterruptProcessingException:
        stopped = True
    base = sample(demo().model, *prompts())
    return {"stopped": stopped, "base": base, "baseline": baseline(), "before": before, "after": sample(model, *prompts())}


@case
def photo_keys_and_values() -> dict[str, Any]:
    """How often they were computed in each of two samplings, and then with two clones by turns."""
    adapter, count = demo().livephoto.adapter, []
    compute = type(adapter).photo_keys_values
    adapter.photo_keys_values = lambda *args: count.append(1) or compute(adapter, *args)
    try:
        model, found = apply(), []
        clones, latents = [model.clone(), model.clone()], []
        for sampled in (model, model, *clones, *clones):
            count.clear()
            latents.append(sample(sampled, *prompts(), steps=4))
            found.append(len(count))
    finally:
        del adapter.photo_keys_values
    return {"counts": found, "latents": torch.stack(latents)}


def loaded() -> list:
    return [entry.model for entry in comfy.model_management.loaded_models()]


@case
def memory() -> dict[str, Any]:
    model, adapter, seen = apply(), demo().livephoto.adapter, []
    sample(model, *prompts(), steps=1, callback=lambda *_: seen.append(loaded().count(adapter)))
    after = loaded().count(adapter)
    comfy.model_management.unload_all_models()
    hooks = state(demo().model)["hooks"]
    return {"during": seen, "after": after, "unloaded": len(loaded()), "hooks": hooks}


class ScarceMemory(comfy.model_patcher.ModelPatcher):
    """A device that holds a part of the weights only, as under --lowvram: the rest is cast when a layer is called."""

    def partially_load(self, device: Any, extra_memory: int = 0, force_patch_weights: bool = False) -> int:
        return super().partially_load(device, self.model_size() // 3, force_patch_weights)


@case
def partly_loaded() -> dict[str, Any]:
    livephoto = part("nodes.loaders").load(Path(part("nodes.demo_model").FOLDER / "adapter.safetensors"))
    whole = sample(apply(livephoto=livephoto), *prompts())
    comfy.model_management.unload_all_models()
    adapter, cpu = livephoto.adapter, torch.device("cpu")
    scarce = replace(livephoto, patcher=ScarceMemory(adapter, load_device=cpu, offload_device=cpu))
    lowvram = []
    partly = sample(apply(livephoto=scarce), *prompts(), callback=lambda *_: lowvram.append(adapter.model_lowvram))
    share = adapter.model_loaded_weight_memory / livephoto.patcher.model_size()
    comfy.model_management.unload_all_models()
    # what ComfyUI leaves on the CPU then, for a layer to cast: nothing else may be used by itself
    loose = [
        name
        for name, module in adapter.named_modules()
        if next(module.parameters(recurse=False), None) is not None and not hasattr(module, "comfy_cast_weights")
    ]
    return {"lowvram": lowvram, "share": share, "same": torch.equal(whole, partly), "loose": loose}


@case
def dropped() -> dict[str, Any]:
    """A checkpoint that nobody holds any more is gone, though it was just used."""
    livephoto = part("nodes.loaders").load(Path(part("nodes.demo_model").FOLDER / "adapter.safetensors"))
    model = apply(livephoto=livephoto)
    sample(model, *prompts(), steps=1)
    adapter = weakref.ref(livephoto.adapter)
    del livephoto, model
    gc.collect()
    return {"gone": adapter() is None, "hooks": state(demo().model)["hooks"]}


def refused_cleanly(function: Callable[[], Any]) -> dict[str, Any]:
    """How a call fails, and whether the demo's MODEL is as before."""
    baseline()
    found = refused(function)
    same = torch.equal(sample(demo().model, *prompts()), baseline())
    return {**found, "same": same and clean(demo().model)}


@case
def another_size() -> dict[str, Any]:
    return refused_cleanly(lambda: sample(apply(), *prompts(), size=8))


@case
def one_frame() -> dict[str, Any]:
    return refused_cleanly(lambda: sample(apply(), *prompts(), frames=1))


@case
def too_many_frames() -> dict[str, Any]:
    return refused_cleanly(lambda: sample(apply(), *prompts(), frames=demo().livephoto.config.motion.max_frames + 1))


@case
def frames_of_half_a_photo() -> dict[str, Any]:
    return refused_cleanly(lambda: sample(apply(count=2), *prompts(), frames=FRAMES + 1))


@case
def area() -> dict[str, Any]:
    cut = nodes.ConditioningSetArea().append(text("flickering light"), 64, 64, 0, 0, 1.0)[0]
    return refused_cleanly(lambda: sample(apply(), cut, prompts()[1]))


@case
def applied_twice() -> dict[str, Any]:
    return refused_cleanly(lambda: apply(apply()))


@case
def text_for_other_frames() -> dict[str, Any]:
    positive, negative = prompts()
    rows = [[positive[0][0].expand(FRAMES - 1, -1, -1), {}]]
    return refused_cleanly(lambda: sample(apply(), rows, negative))


@case
def text_of_one_long_clip_for_two() -> dict[str, Any]:
    """As many rows as the latent has frames, of which each photo gets half."""
    livephoto = demo().livephoto
    rows = node("LivePhotoTextReweight", conditioning=prompts()[0], livephoto_model=livephoto, frames=2 * FRAMES, strength=1.0)[0]
    return refused_cleanly(lambda: sample(apply(count=2), rows, prompts()[1], frames=2 * FRAMES))


@case
def text_of_another_width() -> dict[str, Any]:
    return refused_cleanly(lambda: sample(apply(), prompts()[0], [[torch.zeros(1, 77, 768), {}]]))


def text_a_frame(count: int) -> dict[str, Any]:
    """Two clips under a text with so many different rows."""
    positive, negative = prompts()
    rows = [[positive[0][0] * torch.linspace(0.5, 1.5, count)[:, None, None], {}]]
    return {"latents": sample(apply(count=2), rows, negative, frames=2 * FRAMES, steps=1), "text": rows[0][0]}


@case
def text_a_frame_of_each_clip() -> dict[str, Any]:
    return text_a_frame(FRAMES)


@case
def text_a_frame_of_all_clips() -> dict[str, Any]:
    """The same rows, given for each clip."""
    rows = [[text_a_frame(FRAMES)["text"].repeat(2, 1, 1), {}]]
    return {"latents": sample(apply(count=2), rows, prompts()[1], frames=2 * FRAMES, steps=1)}


def with_reference(photo: Any) -> Any:
    motion = part("nodes.types").Motion(5)
    return part("nodes.comfy_host").apply(demo().model, demo().livephoto, photo, motion, 1.0, 1.0)


@case
def photo_of_a_wider_encoder() -> dict[str, Any]:
    tokens = torch.zeros(1, 1369, 1024)
    return refused_cleanly(lambda: with_reference(replace(reference(), tokens=tokens, grid=(37, 37))))


@case
def photo_of_other_patches() -> dict[str, Any]:
    tokens = torch.zeros(1, 1369, demo().livephoto.config.content.token_width)
    return refused_cleanly(lambda: with_reference(replace(reference(), tokens=tokens, grid=(37, 37))))


@case
def photo_of_another_vae() -> dict[str, Any]:
    return refused_cleanly(lambda: with_reference(replace(reference(), latent=torch.zeros(1, 4, 8, 8))))


@case
def inversion_under_a_text_a_frame() -> dict[str, Any]:
    rows = [[text("")[0][0].expand(FRAMES, -1, -1), {}]]
    inputs = {"model": demo().model, "empty_text": rows, "reference": reference(), "steps": 1}
    return refused_cleanly(lambda: node("LivePhotoPriorInversion", **inputs))


@case
def inversion_under_a_text_of_another_width() -> dict[str, Any]:
    inputs = {"model": demo().model, "empty_text": [[torch.zeros(1, 77, 768), {}]], "reference": reference(), "steps": 1}
    return refused_cleanly(lambda: node("LivePhotoPriorInversion", **inputs))


@case
def inversion_of_another_vaes_photo() -> dict[str, Any]:
    photo = replace(reference(), latent=torch.zeros(1, 4, 8, 8))
    inputs = {"model": demo().model, "empty_text": text(""), "reference": photo, "steps": 1}
    return refused_cleanly(lambda: node("LivePhotoPriorInversion", **inputs))


def refused_model(model: Any, livephoto: Any, *inputs: torch.Tensor) -> dict[str, Any]:
    """How Apply LivePhoto refuses a MODEL, and whether its network then gives the same."""
    network = model.model.diffusion_model
    before = network(*inputs)
    found = refused_cleanly(lambda: apply(model, livephoto))
    return {**found, "same": found["same"] and torch.equal(network(*inputs), before) and clean(model)}


def full_size_livephoto() -> Any:
    """SD1.5's checkpoint without its gigabytes."""
    core, cpu = part("livephoto_core.model.adapter"), torch.device("cpu")
    with torch.device("meta"):
        adapter = core.LivePhotoAdapter(part("livephoto_core.config").AdapterConfig())
    loader = part("nodes.loaders")
    return loader.LoadedModel(comfy.model_patcher.ModelPatcher(adapter, load_device=cpu, offload_device=cpu), "full")


class SmallSDXL(comfy.supported_models.SDXL):
    """SDXL of few channels."""

    unet_extra_config: dict = {}  # noqa: RUF012


@case
def sdxl() -> dict[str, Any]:
    settings = unet_settings(2048, adm_in_channels=8, num_classes="sequential", use_linear_in_transformer=True)
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 2048), torch.randn(1, 8)
    return refused_model(patcher(SmallSDXL(settings)), full_size_livephoto(), *inputs)


@case
def wan() -> dict[str, Any]:
    settings = {"image_model": "wan2.1", "model_type": "t2v", "dim": 96, "ffn_dim": 64, "num_heads": 2, "num_layers": 1}
    settings["text_dim"] = 32
    inputs = torch.randn(1, 16, 1, 8, 8), torch.tensor([500.0]), torch.randn(1, 5, 32)
    return refused_model(patcher(comfy.supported_models.WAN21_T2V(settings)), full_size_livephoto(), *inputs)


@case
def another_base() -> dict[str, Any]:
    inputs = torch.randn(1, 4, 16, 16), torch.tensor([500.0]), torch.randn(1, 77, 24)
    return refused_model(tiny_model(), demo().livephoto, *inputs)
