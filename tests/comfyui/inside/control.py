"""A ControlNet of random weights, made of ComfyUI's own classes for the demo's UNet, beside LivePhoto."""

from __future__ import annotations

import functools
from typing import Any

import comfy.cldm.cldm
import comfy.controlnet
import torch
from kit import FRAMES, apply, case, demo, fill, node, part, photos, prompts, recorded, recording, reference, refused, sample

import nodes

STRENGTH, LONG = 0.5, 24


@functools.cache
def controlnet() -> comfy.controlnet.ControlNet:
    model, base = part("nodes.demo_model"), demo().livephoto.config.base
    settings = {name: value for name, value in demo().model.model.model_config.unet_config.items() if name != "out_channels"}
    layers = {"operations": model._operations(base.norm_groups), "dtype": torch.float32, "device": "cpu"}
    network = comfy.cldm.cldm.ControlNet(**{**settings, **layers}, hint_channels=3)
    return comfy.controlnet.ControlNet(fill(network, 7), load_device=torch.device("cpu"))


def controlled(hints: torch.Tensor) -> tuple[list, list]:
    """The prompts with a ControlNet that sees these pictures."""
    return nodes.ControlNetApplyAdvanced().apply_controlnet(*prompts(), controlnet(), hints, STRENGTH, 0.0, 1.0)


@case
def a_hint_a_frame() -> dict[str, Any]:
    clone, calls = recorded(apply())
    latents = sample(clone, *controlled(photos(FRAMES)))
    return {**recording(calls, reference()), "latents": latents}


@case
def alone() -> dict[str, Any]:
    return {"latents": sample(apply(), *prompts())}


@case
def alone_afterwards() -> dict[str, Any]:
    sample(apply(), *controlled(photos(1)), steps=1)
    return {"latents": sample(apply(), *prompts())}


@case
def hints_for_fewer_frames() -> dict[str, Any]:
    return refused(lambda: sample(apply(), *controlled(photos(3))))


@case
def a_hint_a_photo() -> dict[str, Any]:
    return refused(lambda: sample(apply(count=2), *controlled(photos(2)), frames=2 * FRAMES))


@case
def hints_for_both_photos() -> dict[str, Any]:
    """The same of each frame for both clips, then one a frame of each: equal where they are the same pictures."""
    model, pictures = apply(count=2), photos(FRAMES)
    found = [sample(model, *controlled(hints), frames=2 * FRAMES, steps=1) for hints in (pictures, torch.cat([pictures, pictures]))]
    return {"alike": found[0], "each": found[1]}


def in_windows(hints: torch.Tensor) -> dict[str, Any]:
    """What the ControlNet sees in each window: the brightness of its hints."""
    seen = []

    def look(_: Any, args: tuple, given: dict) -> None:
        seen.append(given["hint"][:, 0, 0, 0].tolist())

    handle = controlnet().control_model.register_forward_pre_hook(look, with_kwargs=True)
    model = node("LivePhotoContextWindows", model=apply(), length=16, overlap=4, schedule="standard_static", loop=False)[0]
    clone, calls = recorded(model)
    try:
        sample(clone, *controlled(hints), frames=LONG, steps=1)
    finally:
        handle.remove()
    return {"seen": seen, "windows": [call["window"].index_list for call in calls], "chunks": [call["chunks"] for call in calls]}


@case
def a_hint_a_frame_in_windows() -> dict[str, Any]:
    return in_windows((torch.arange(LONG) / LONG)[:, None, None, None].expand(-1, 32, 32, 3))


@case
def more_hints_than_frames_in_windows() -> dict[str, Any]:
    return in_windows((torch.arange(LONG + 5) / LONG)[:, None, None, None].expand(-1, 32, 32, 3))


@case
def a_hint_for_all_in_windows() -> dict[str, Any]:
    return in_windows(torch.full((1, 32, 32, 3), 0.25))


class Foreign(comfy.controlnet.ControlBase):
    """Another pack's, which changes nothing itself."""

    def get_control(self, *given: Any) -> dict:
        return self.previous_controlnet.get_control(*given)


@case
def behind_another_packs_in_windows() -> dict[str, Any]:
    foreign = Foreign()
    foreign.set_previous_controlnet(controlled(photos(LONG))[0][0][1]["control"])
    conds = [[[embedding, {**options, "control": foreign}]] for [[embedding, options]] in prompts()]
    model = node("LivePhotoContextWindows", model=apply(), length=16, overlap=4, schedule="standard_static", loop=False)[0]
    return refused(lambda: sample(model, *conds, frames=LONG, steps=1))
