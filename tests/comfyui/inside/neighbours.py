"""LivePhoto beside other packs' patches, stock patches and LoRAs, each before and after Apply LivePhoto."""

from __future__ import annotations

from typing import Any

import torch
from comfy.ldm.modules.attention import optimized_attention
from comfy_extras.nodes_freelunch import FreeU_V2
from kit import apply, case, demo, part, prompts, refused, run_recorded, sample

import nodes

SCALE, SHIFT = 1.1, 0.1
PICTURE_TOKENS = 4


def neighbour(model: Any) -> Any:
    """As another pack does it: the text scaled before each text cross-attention, its output shifted."""
    clone = model.clone()
    clone.set_model_attn2_patch(lambda hidden, context, value, options: (hidden, context * SCALE, value * SCALE))
    clone.set_model_attn2_output_patch(lambda output, options: output + SHIFT)
    return clone


def ipadapter(model: Any, weight: float) -> Any:
    """As IPAdapters do it: in place of a text cross-attention one onto text and one onto a picture's keys and values."""

    def both(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, options: dict) -> torch.Tensor:
        picture = torch.randn(2, PICTURE_TOKENS, q.shape[-1], generator=torch.Generator().manual_seed(9)).to(q)
        keys, values = (part.expand(len(q), -1, -1) for part in picture)
        heads = options["n_heads"]
        return optimized_attention(q, k, v, heads) + weight * optimized_attention(q, keys, values, heads)

    clone = model.clone()
    clone.set_model_attn2_replace(both, "middle", 0)
    return clone


def couple(model: Any) -> Any:
    """As regional prompts do it: a row more for each region in a text cross-attention, brought together behind it."""
    clone = model.clone()
    clone.set_model_attn2_patch(lambda *given: tuple(torch.cat([part, part]) for part in given[:3]))
    clone.set_model_attn2_output_patch(lambda output, options: sum(output.chunk(2)) / 2)
    return clone


def past_wrappers(model: Any) -> Any:
    """As DeepCache does it: the UNet's own parts called in place of the UNet."""

    def call(_: Any, given: dict) -> torch.Tensor:
        unet, options = model.model.diffusion_model, given["c"]["transformer_options"]
        return unet._forward(given["input"], given["timestep"], given["c"]["c_crossattn"], transformer_options=options)

    clone = model.clone()
    clone.set_model_unet_function_wrapper(call)
    return clone


def freeu(model: Any) -> Any:
    return FreeU_V2().patch(model, 1.3, 1.4, 0.9, 0.2)[0]


def lora(model: Any) -> Any:
    return nodes.LoraLoaderModelOnly().load_lora_model_only(model, "style.safetensors", 0.8)[0]


def adapters(model: Any) -> list:
    return [patcher.model for patcher in model.get_additional_models()]


@case
def alone() -> dict[str, Any]:
    return {"latents": sample(apply(), *prompts())}


@case
def neighbour_before() -> dict[str, Any]:
    return run_recorded(apply(neighbour(demo().model)), *prompts())


@case
def neighbour_after() -> dict[str, Any]:
    return run_recorded(neighbour(apply()), *prompts())


@case
def couple_before() -> dict[str, Any]:
    return {"latents": sample(apply(couple(demo().model)), *prompts())}


@case
def couple_after() -> dict[str, Any]:
    return {"latents": sample(couple(apply()), *prompts())}


@case
def calls_past_wrappers() -> dict[str, Any]:
    return refused(lambda: sample(past_wrappers(apply()), *prompts()))


@case
def on_another_unet() -> dict[str, Any]:
    """A clone on a UNet of its own, as newer ComfyUI makes one for LoRAs on conditioning, while the first is still in use."""
    model = apply()
    expected = sample(model, *prompts())
    clone = model.clone()
    clone.model = part("nodes.demo_model").load_model().model
    return {"expected": expected, "latents": sample(clone, *prompts()), "again": sample(model, *prompts())}


@case
def ipadapter_before() -> dict[str, Any]:
    return run_recorded(apply(ipadapter(demo().model, 80.0)), *prompts())


@case
def ipadapter_after() -> dict[str, Any]:
    return {"latents": sample(ipadapter(apply(), 80.0), *prompts())}


@case
def ipadapter_of_no_weight() -> dict[str, Any]:
    return {"latents": sample(ipadapter(apply(), 0.0), *prompts())}


@case
def freeu_before() -> dict[str, Any]:
    return {"latents": sample(apply(freeu(demo().model)), *prompts())}


@case
def freeu_after() -> dict[str, Any]:
    return {"latents": sample(freeu(apply()), *prompts())}


@case
def freeu_without_livephoto() -> dict[str, Any]:
    return {"latents": sample(freeu(demo().model), *prompts())}


@case
def lora_before() -> dict[str, Any]:
    return run_recorded(apply(lora(demo().model)), *prompts())


@case
def lora_after() -> dict[str, Any]:
    return run_recorded(lora(apply()), *prompts())


@case
def lora_taken_off_again() -> dict[str, Any]:
    model = apply()
    sample(lora(model), *prompts(), steps=1)
    return {"latents": sample(model, *prompts())}


@case
def clones() -> dict[str, Any]:
    """What a LoRA node's clone, one of its clones, and one made while the UNet is in use, hold of the adapter."""
    model = apply()
    made = [lora(model), lora(model).clone()]
    sample(model, *prompts(), steps=1, callback=lambda *_: made.append(model.clone()))
    return {"same": all(adapters(clone) == [demo().livephoto.adapter] for clone in made), "count": len(made)}
