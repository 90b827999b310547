"""Long clips in context windows: what UNet and stem are given in each, on this ComfyUI's handler and on a newer one's interface."""

from __future__ import annotations

import functools
import importlib.util
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import comfy.context_windows as stock
import comfy.latent_formats
import comfy.patcher_extension
import comfy.sample
import torch
from kit import apply, case, defaults, demo, node, part, photos, prompts, recorded, refused, sample

FRAMES, SIZE = 48, 8
STATIC = [list(range(start, start + 16)) for start in (0, 12, 24, 32)]


@functools.cache
def motion() -> Any:
    """A level of its own for each frame."""

    @dataclass(frozen=True)
    class Ramp(part("nodes.types").Motion):
        def levels(self, clips: int, frames: int) -> torch.Tensor:
            return torch.linspace(1, 10, frames).expand(clips, frames)

    return Ramp(5.0)


@functools.cache
def reference() -> Any:
    """A photo of 32x32 pixels."""
    tokens = demo().clip_vision.encode_image(photos()).last_hidden_state[:, 1:]
    return part("nodes.types").Reference(demo().vae.encode(photos()[:, :32, :32]), tokens, (16, 16))


def applied() -> Any:
    return part("nodes.comfy_host").apply(demo().model, demo().livephoto, reference(), motion(), 1.0, 1.0)


def weighed(frames: int = FRAMES) -> list:
    """The positive text with a row for each frame, each different."""
    [[embedding, options]] = prompts()[0]
    rows = embedding * torch.linspace(0.5, 1.5, frames)[:, None, None]
    return [[rows, options]]


def windowed(model: Any, schedule: str = "standard_static", loop: bool = False, length: int = 16) -> Any:
    return node("LivePhotoContextWindows", model=model, length=length, overlap=4, schedule=schedule, loop=loop)[0]


def watched(model: Any, positive: list, **settings: Any) -> dict[str, Any]:
    """Sample 48 frames; for each UNet call its window, its input, its text, and what the stem was given."""
    stems: list[torch.Tensor] = []
    handle = demo().livephoto.adapter.stem.register_forward_pre_hook(lambda _, args: stems.append(args[0].clone()))
    clone, calls = recorded(model)
    try:
        latents = sample(clone, positive, prompts()[1], frames=FRAMES, size=SIZE, **settings)
    finally:
        handle.remove()
    noise = comfy.sample.prepare_noise(torch.zeros_like(latents), 0)
    rows = {"text": positive[0][0], "negative": prompts()[1][0][0]}
    found = {"latents": latents, "noise": noise, **rows, "steps": [float(call["t"][0]) for call in calls]}
    found |= {"windows": [call["window"].index_list for call in calls], "chunks": [call["chunks"] for call in calls]}
    found["before"] = [getattr(call["window"], "causal_anchor_index", None) for call in calls]
    for number, (call, stem) in enumerate(zip(calls, stems, strict=True)):
        found |= {f"call{number}/x": call["x"], f"call{number}/context": call["context"], f"call{number}/stem": stem}
    return found


@case
def standard_static() -> dict[str, Any]:
    return watched(windowed(applied()), weighed(), steps=1)


@case
def looped_uniform() -> dict[str, Any]:
    return watched(windowed(applied(), "looped_uniform", loop=True), weighed())


@case
def standard_uniform() -> dict[str, Any]:
    return watched(windowed(applied(), "standard_uniform"), weighed())


@case
def as_the_node_is_set() -> dict[str, Any]:
    model = node("LivePhotoContextWindows", model=applied(), **defaults("LivePhotoContextWindows"))[0]
    return {**watched(model, weighed(), steps=3), **defaults("LivePhotoContextWindows")}


@case
def alternating_windows_of_many_lengths() -> dict[str, Any]:
    """The first frame and the frames of each window at two steps, by the clip's frames, length and overlap."""
    cut, found = part("nodes.windows").alternating_windows, {}
    settings = [(frames, 16, 2) for frames in (17, 24, 33, 48, 64, 100, 128, 1024)]
    settings += [(frames, length, overlap) for length in (2, 3, 5, 8) for overlap in range(length) for frames in range(1, 40)]
    for numbers in settings:
        steps = [cut(*numbers, step) for step in (0, 1)]
        if any(window != list(range(window[0], window[0] + len(window))) for windows in steps for window in windows):
            raise AssertionError(f"gaps at {numbers}: {steps}")
        found[" ".join(map(str, numbers))] = [[(window[0], len(window)) for window in windows] for windows in steps]
    return {"windows": found}


@case
def alternating_windows_between_two_steps() -> dict[str, Any]:
    return watched(windowed(applied(), "standard_alternating"), prompts()[0], sampler="dpm_2", cfg=1.0)


@case
def reweighted_text() -> dict[str, Any]:
    """Out of Re-weight Motion Text itself."""
    inputs = {"conditioning": prompts()[0], "livephoto_model": demo().livephoto}
    positive = node("LivePhotoTextReweight", **inputs, frames=FRAMES, strength=1.0)[0]
    return watched(windowed(applied()), positive, steps=1, cfg=1.0)


@case
def text_of_one_row() -> dict[str, Any]:
    return watched(windowed(applied()), prompts()[0], steps=1)


@case
def calls_between_two_steps() -> dict[str, Any]:
    return watched(windowed(applied(), "looped_uniform", loop=True), prompts()[0], sampler="dpm_2", cfg=1.0)


@case
def what_other_packs_are_told() -> dict[str, Any]:
    """In the windows, where Advanced-ControlNet and IPAdapter look; and without windows."""
    told = []

    def look(h: torch.Tensor, options: dict) -> torch.Tensor:
        if options["block"] == ("input", 0):
            told.append(options.get("ad_params"))
        return h

    for frames, model in ((FRAMES, windowed(applied())), (16, applied())):
        model.set_model_input_block_patch(look)
        sample(model, *prompts(), frames=frames, size=SIZE, steps=1, cfg=1.0)
    return {"told": told}


@case
def windows_of_animatediff_evolved() -> dict[str, Any]:
    """As that pack gives them: the UNet called for each, which frames they are in the options."""
    stems, windows = [], STATIC

    def cut(executor: Any, x: torch.Tensor, steps: Any, context: Any, y: Any, control: Any, options: dict, **kwargs: Any):
        out = torch.zeros_like(x)
        for window in windows:
            told = {"sub_idxs": window, "context_length": 16, "full_length": len(x)}
            given = x[window], steps[window], context[window], y, control, {**options, "ad_params": told}
            out[window] = executor(*given, **kwargs)
        return out

    model = demo().model.clone()
    model.add_wrapper_with_key(comfy.patcher_extension.WrappersMP.DIFFUSION_MODEL, "evolved", cut)
    model = part("nodes.comfy_host").apply(model, demo().livephoto, reference(), motion(), 1.0, 1.0)
    handle = demo().livephoto.adapter.stem.register_forward_pre_hook(lambda _, args: stems.append(args[0].clone()))
    try:
        sample(model, *prompts(), frames=FRAMES, size=SIZE, steps=1, cfg=1.0)
    finally:
        handle.remove()
    return {"windows": windows, **{f"stem{number}": stem for number, stem in enumerate(stems)}}


@case
def a_video_model() -> dict[str, Any]:
    model = demo().model.clone()
    model.model = SimpleNamespace(latent_format=comfy.latent_formats.Wan21())
    return refused(lambda: windowed(model))


@case
def a_clip_of_one_window() -> dict[str, Any]:
    inputs = weighed(16), prompts()[1]
    found = {"windowed": sample(windowed(applied()), *inputs, frames=16, size=SIZE, steps=1)}
    return {**found, "plain": sample(applied(), *inputs, frames=16, size=SIZE, steps=1)}


@case
def two_photos() -> dict[str, Any]:
    """Under windows as a user finds the node set, whose frames are no multiple of the photos."""
    model = node("LivePhotoContextWindows", model=apply(count=2), **defaults("LivePhotoContextWindows"))[0]
    return refused(lambda: sample(model, *prompts(), frames=FRAMES))


@case
def two_long_photos() -> dict[str, Any]:
    return refused(lambda: sample(apply(count=2), *prompts(), frames=80))


@case
def rows_of_a_window_only() -> dict[str, Any]:
    return refused(lambda: sample(windowed(applied()), weighed(16), prompts()[1], frames=FRAMES, size=SIZE))


@case
def windows_too_long() -> dict[str, Any]:
    return refused(lambda: sample(windowed(applied(), length=40), weighed(), prompts()[1], frames=FRAMES, size=SIZE))


@case
def a_loop_of_windows_that_do_not_loop() -> dict[str, Any]:
    return refused(lambda: windowed(applied(), "standard_uniform", loop=True))


@case
def windows_that_tell_no_length() -> dict[str, Any]:
    """ComfyUI's own of frames in the batch, mended so that it finds its step."""

    class Mended(stock.IndexListContextHandler):
        def set_step(self, timestep: torch.Tensor, model_options: dict[str, Any]) -> None:
            super().set_step(timestep[0], model_options)

    model = windowed(applied())
    schedule = stock.get_matching_context_schedule("standard_static")
    fuse = stock.get_matching_fuse_method(stock.ContextFuseMethods.PYRAMID)
    model.model_options["context_handler"] = Mended(schedule, fuse, 16, 4, dim=0)
    return refused(lambda: sample(model, *prompts(), frames=FRAMES, size=SIZE, steps=1))


class NewerWindow(stock.IndexListContextWindow):
    """As in newer ComfyUI: it knows the clip's length, and may take the frame before it along."""

    def __init__(self, index_list: list[int], dim: int = 0, total_frames: int = 0):
        super().__init__(index_list, dim=dim)
        self.total_frames = total_frames
        self.center_ratio = (min(index_list) + max(index_list)) / (2 * total_frames)

    def get_tensor(self, full: torch.Tensor, device: Any = None, dim: int | None = None, retain_index_list: Any = ()):
        before = getattr(self, "causal_anchor_index", None)
        if before is None or len(full) == 1:
            return super().get_tensor(full, device, dim)
        return full[[before, *self.index_list]].to(device)


class NewerHandler(stock.IndexListContextHandler):
    """As in newer ComfyUI: more arguments, its own kind of windows, and by default a frame more in each of them."""

    def __init__(
        self,
        *,
        freenoise: bool = False,
        cond_retain_index_list: str = "",
        split_conds_to_windows: bool = False,
        latent_retain_index_list: str = "",
        causal_window_fix: bool = True,
        **known: Any,
    ):
        super().__init__(**known)
        self.causal_window_fix = causal_window_fix

    def set_step(self, timestep: torch.Tensor, model_options: dict[str, Any]) -> None:
        super().set_step(timestep[0], model_options)

    def get_context_windows(self, model: Any, x_in: torch.Tensor, model_options: dict[str, Any]) -> list[NewerWindow]:
        windows = super().get_context_windows(model, x_in, model_options)
        return [NewerWindow(window.index_list, dim=self.dim, total_frames=len(x_in)) for window in windows]

    def evaluate_context_windows(self, function: Callable, model: Any, x: Any, conds: Any, step: Any, numbered: list, *args: Any):
        results = []
        for number, window in numbered:
            first = window.index_list[0]
            if self.causal_window_fix and first > 0:
                window.causal_anchor_index = first - 1
            [result] = super().evaluate_context_windows(function, model, x, conds, step, [(number, window)], *args)
            skip = int(self.causal_window_fix and first > 0)
            results.append(result._replace(sub_conds_out=[out[skip:] for out in result.sub_conds_out]))
        return results


@functools.cache
def newer() -> ModuleType:
    """nodes/windows.py as it is imported where ComfyUI's classes are the newer ones."""
    here = part("nodes.windows")
    spec = importlib.util.spec_from_file_location(f"{here.__package__}.newer_windows", Path(here.__file__))
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    own = stock.IndexListContextHandler, stock.IndexListContextWindow
    stock.IndexListContextHandler, stock.IndexListContextWindow = NewerHandler, NewerWindow
    try:
        spec.loader.exec_module(module)
    finally:
        stock.IndexListContextHandler, stock.IndexListContextWindow = own
    return module


def windowed_newer(schedule: str = "standard_static") -> Any:
    return newer().LivePhotoContextWindows.execute(applied(), 16, 4, schedule, False).result[0]


@case
def newer_comfyui() -> dict[str, Any]:
    model = windowed_newer()
    kinds = [kind.__name__ for kind in type(model.model_options["context_handler"]).__mro__[:3]]
    return {**watched(model, weighed(), steps=1), "kinds": kinds}


@case
def newer_comfyui_alternating() -> dict[str, Any]:
    return watched(windowed_newer("standard_alternating"), weighed())


@case
def the_frame_before_each_window() -> dict[str, Any]:
    """Another pack may leave newer ComfyUI's default on."""
    model = windowed_newer()
    model.model_options["context_handler"].causal_window_fix = True
    return watched(model, weighed(), steps=1)
