"""The patched UNet's calls in ComfyUI's sampling, recorded for the diffusers host; and whole samplings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import folder_paths
import torch
from kit import FRAMES, apply, case, demo, node, part, photos, prompts, recording, reference, run_recorded, sample, text

import nodes


@case
def parts() -> dict[str, Any]:
    """Text encoder, VAE and patch encoder."""
    photo = reference()
    return {
        "text": text("camera pans left, zooming in")[0][0],
        "latent": demo().model.model.process_latent_in(photo.latent),
        "picture": demo().vae.decode(photo.latent).movedim(-1, 1),
        "tokens": photo.tokens,
        "photo": photos().movedim(-1, 1),
    }


@case
def one_cond() -> dict[str, Any]:
    return run_recorded(apply(), *prompts(), cfg=1.0)


@case
def two_conds() -> dict[str, Any]:
    return run_recorded(apply(), *prompts())


@case
def two_conds_the_other_way_round() -> dict[str, Any]:
    """Another pack may order the conds as it likes."""

    def swap(apply_model: Any, call: dict) -> torch.Tensor:
        def halves(value: torch.Tensor) -> torch.Tensor:
            return torch.cat(value.chunk(2)[::-1])

        options = {**call["c"]["transformer_options"], "cond_or_uncond": call["cond_or_uncond"][::-1]}
        conds = {"c_crossattn": halves(call["c"]["c_crossattn"]), "transformer_options": options}
        return halves(apply_model(halves(call["input"]), call["timestep"], **conds))

    model = apply()
    model.set_model_unet_function_wrapper(swap)
    return run_recorded(model, *prompts())


@case
def conds_apart() -> dict[str, Any]:
    """Where memory is short, ComfyUI calls the UNet for each cond."""
    model = apply()
    was = model.model.memory_usage_factor
    model.model.memory_usage_factor = 1e12
    try:
        return run_recorded(model, *prompts())
    finally:
        model.model.memory_usage_factor = was


@case
def two_photos() -> dict[str, Any]:
    return run_recorded(apply(count=2), *prompts(), count=2, frames=2 * FRAMES)


@case
def other_strengths() -> dict[str, Any]:
    return run_recorded(apply(image_strength=0.6, motion_strength=1.3), *prompts())


@case
def no_strength() -> dict[str, Any]:
    return run_recorded(apply(image_strength=0.0, motion_strength=0.0), *prompts())


@case
def most_frames() -> dict[str, Any]:
    return run_recorded(apply(), *prompts(), frames=demo().livephoto.config.motion.max_frames, steps=1, cfg=1.0)


@case
def without_parts() -> dict[str, Any]:
    path = folder_paths.get_full_path_or_raise("livephoto", "bare.safetensors")
    bare = part("nodes.loaders").load(Path(path))
    positive, negative = prompts()
    weighed = node("LivePhotoTextReweight", conditioning=positive, livephoto_model=bare, frames=FRAMES, strength=1.0)[0]
    found = run_recorded(apply(livephoto=bare), positive, negative)
    return {**found, "text": positive[0][0], "weighed": weighed[0][0]}


@case
def weighted_words() -> dict[str, Any]:
    plain, weighted = text("camera pans left"), text("camera (pans left:1.3)")
    return {**run_recorded(apply(), weighted, prompts()[1]), "difference": (plain[0][0] - weighted[0][0]).abs().max().item()}


@case
def long_prompt() -> dict[str, Any]:
    return run_recorded(apply(), text("camera pans left, zooming in, " * 30), prompts()[1])


@case
def combined_conds() -> dict[str, Any]:
    both = nodes.ConditioningCombine().combine(prompts()[0], text("flickering light"))[0]
    return run_recorded(apply(), both, prompts()[1])


@case
def cond_for_some_steps() -> dict[str, Any]:
    late = nodes.ConditioningSetTimestepRange().set_range(text("flickering light"), 0.5, 1.0)[0]
    return run_recorded(apply(), nodes.ConditioningCombine().combine(prompts()[0], late)[0], prompts()[1])


@case
def masked_cond() -> dict[str, Any]:
    mask = torch.zeros(1, 64, 64)
    mask[..., :32] = 1
    masked = nodes.ConditioningSetMask().append(text("flickering light"), mask, "default", 1.0)[0]
    return run_recorded(apply(), nodes.ConditioningCombine().combine(prompts()[0], masked)[0], prompts()[1])


def whole_sampling(livephoto: Any = None) -> dict[str, Any]:
    """Four steps, and the noise levels that they went through."""
    model = apply(livephoto=livephoto)
    steps = []
    latents = sample(model, *prompts(), steps=4, callback=lambda step, denoised, x, total: steps.append(x.clone()))
    found = {"positive": prompts()[0][0][0], "negative": prompts()[1][0][0], "latents": latents}
    found |= {"start": torch.randn(steps[0].shape, generator=torch.manual_seed(0)), "frames": FRAMES, "cfg": 2.0}
    for name, owner in {"patched": model, "base": demo().model}.items():
        found[f"sigmas of {name}"] = owner.get_model_object("model_sampling").sigmas
    return {**recording([], reference()), **found}


@case
def euler() -> dict[str, Any]:
    return whole_sampling()


@case
def euler_on_linear_betas() -> dict[str, Any]:
    before = sample(demo().model, *prompts())
    path = folder_paths.get_full_path_or_raise("livephoto", "linear.safetensors")
    found = whole_sampling(part("nodes.loaders").load(Path(path)))
    return {**found, "base before": before, "base after": sample(demo().model, *prompts())}
