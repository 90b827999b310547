"""Clips longer than the model takes at once, in overlapping windows."""

from __future__ import annotations

import copy
import math
from typing import Any

import comfy.context_windows
import comfy.controlnet
import comfy.patcher_extension
import torch
from comfy_api.latest import io

from ..livephoto_core.errors import LivePhotoError
from .checks import check_choice
from .sampling_checks import stock_controls

LOOPED = "looped_uniform"
ALTERNATING = "standard_alternating"
SCHEDULES = (ALTERNATING, "standard_static", "standard_uniform", LOOPED)
# of a latent format: height and width, no time
FRAMES_IN_BATCH = 2


def alternating_windows(frames: int, length: int, overlap: int, step: int) -> list[list[int]]:
    """Few and even windows that lie up to half a window elsewhere at the next step, so that their joins do not stay in one place.

    One at an end is shorter, at even steps the last, at odd ones the first. Together they have frames + overlap * (windows - 1)
    frames at every step. Overlaps of almost a window leave no room to alternate.

    Args:
        frames: of the clip, at least 1.
        length: the most frames of a window, at least 2.
        overlap: frames that neighbours share, 0 to length - 1.
        step: of the sampling, at least 0.

    Returns:
        The frames of each window, in order; one window of a clip that is no longer than `length`.
    """
    if frames <= length:
        return [list(range(frames))]
    stride = length - overlap
    # a quarter of a window more than fits, or clips that fill their windows would have no room to alternate
    count = math.ceil((frames - overlap + stride // 4) / stride)
    evaluated = frames + overlap * (count - 1)
    longest = min(length, math.ceil((evaluated + stride // 2) / count))
    first = longest - min(stride // 2, count * longest - evaluated)
    # where the windows would end if they lay one after the other without a frame in common
    ends = [first + (evaluated - first) * number // (count - 1) for number in range(count)]
    spans = enumerate(zip([0, *ends[:-1]], ends, strict=True))
    windows = [range(start - overlap * number, end - overlap * number) for number, (start, end) in spans]
    return [list(window) for window in windows] if step % 2 else [_mirrored(window, frames) for window in reversed(windows)]


def _mirrored(window: range, frames: int) -> list[int]:
    """The places of a window in a clip of so many frames, seen from the clip's end."""
    return [frames - 1 - place for place in reversed(window)]


def _schedule(name: str) -> comfy.context_windows.ContextSchedule:
    """One of SCHEDULES, for a handler."""
    if name != ALTERNATING:
        return comfy.context_windows.get_matching_context_schedule(name)
    return comfy.context_windows.ContextSchedule(name, _alternate)


def _alternate(frames: int, handler: Any, _: dict[str, Any]) -> list[list[int]]:
    """`alternating_windows` as a handler asks for them at its step."""
    return alternating_windows(frames, handler.context_length, handler.context_overlap, handler._step)


class Window(comfy.context_windows.IndexListContextWindow):
    """A window over the batch dimension that knows how long the whole clip is; newer ComfyUI's own does too."""

    def __init__(self, index_list: list[int], total_frames: int):
        # assigned, not passed: the constructors of ComfyUI's versions differ
        self.index_list, self.context_length, self.dim, self.total_frames = index_list, len(index_list), 0, total_frames


def places_of(window: Any) -> list[int]:
    """Which frames of the clip a UNet call for a window has."""
    # newer ComfyUI may put the frame before a window in front of it
    before = getattr(window, "causal_anchor_index", None)
    return list(window.index_list) if before is None or before < 0 else [before, *window.index_list]


class Handler(comfy.context_windows.IndexListContextHandler):
    """ComfyUI's handler for frames in the batch dimension."""

    def set_step(self, timestep: torch.Tensor, model_options: dict[str, Any]) -> None:
        # every frame has the same timestep; ComfyUI 0.3.64 compares all of them with all sigmas, and fails at those between two
        # steps, where samplers such as dpmpp_sde call the model too
        sigmas = model_options["transformer_options"]["sample_sigmas"]
        matches = torch.nonzero(torch.isclose(sigmas, timestep[0].to(sigmas.dtype), rtol=1e-4))
        if len(matches):
            self._step = int(matches[0])

    def get_context_windows(self, model: Any, x_in: torch.Tensor, model_options: dict[str, Any]) -> list[Window]:
        windows = super().get_context_windows(model, x_in, model_options)
        return [w if getattr(w, "total_frames", 0) else Window(w.index_list, len(x_in)) for w in windows]

    def get_resized_cond(self, cond_in: list[dict] | None, x_in: torch.Tensor, window: Window, *args: Any, **kwargs: Any):
        """The conds of a window: ComfyUI's own, and the window's rows of a text and hints of a ControlNet with one a frame."""
        resized = super().get_resized_cond(cond_in, x_in, window, *args, **kwargs)
        for original, cut in zip(cond_in or [], resized or [], strict=True):
            for name, value in original.get("model_conds", {}).items():
                rows = getattr(value, "cond", None)
                if isinstance(rows, torch.Tensor) and len(rows) == len(x_in):
                    cut["model_conds"][name] = value._copy_with(window.get_tensor(rows))
            if "control" in cut:
                cut["control"] = _control_of(cut["control"], window, len(x_in))
        return resized


def _control_of(control: Any, window: Window, frames: int) -> Any:
    """A ControlNet with the hints of a window's frames, if it has one a frame; ComfyUI itself gives each window the first ones.

    Raises:
        LivePhotoError: one that is behind another pack's.
    """
    # other packs' own look into what `tell_other_packs` says
    if control is None or type(control).__module__ != comfy.controlnet.__name__:
        _check_behind(control, frames)
        return control
    # the same object for all conds of a window, or ComfyUI calls the UNet for each of them
    made = window.__dict__.setdefault("controls", {})
    if id(control) not in made:
        cut = copy.copy(control)
        cut.previous_controlnet = _control_of(control.previous_controlnet, window, frames)
        hints = control.cond_hint_original
        # of more hints than frames the first ones count, as in ComfyUI
        if hints is not None and len(hints) >= frames:
            cut.cond_hint_original, cut.cond_hint = window.get_tensor(hints[:frames]), None
        made[id(control)] = cut
    return made[id(control)]


def _check_behind(control: Any, frames: int) -> None:
    """Refuse a ControlNet of ComfyUI's own with a hint a frame behind another pack's, which cannot be copied.

    Raises:
        LivePhotoError: there is one.
    """
    hints = [stock.cond_hint_original for stock in stock_controls(control)]
    if any(pictures is not None and len(pictures) >= frames for pictures in hints):
        raise LivePhotoError(
            "in context windows a ControlNet of ComfyUI's own with a picture a frame must not come before another pack's: "
            "apply it behind the other's, or use one kind"
        )


def tell_other_packs(
    _: Any, model: Any, x_in: torch.Tensor, conds: Any, timestep: Any, options: dict, number: int, window: Any, *more: Any
) -> None:
    """Say which frames a window has where Advanced-ControlNet and IPAdapter look for it: as AnimateDiff-Evolved does."""
    places = places_of(window)
    options["transformer_options"]["ad_params"] = {
        "sub_idxs": places,
        "context_length": len(places),
        "full_length": len(x_in),
    }


class LivePhotoContextWindows(io.ComfyNode):
    """Sampling in windows."""

    @classmethod
    def define_schema(cls) -> io.Schema:
        return io.Schema(
            node_id="LivePhotoContextWindows",
            display_name="LivePhoto Context Windows",
            category="LivePhoto",
            description="Samples clips longer than 16 frames in overlapping windows; put it behind Apply LivePhoto.",
            inputs=[
                io.Model.Input("model", tooltip="From Apply LivePhoto."),
                io.Int.Input(
                    "length", default=16, min=2, max=256, tooltip="Frames of a window: as many as the model was trained on."
                ),
                io.Int.Input(
                    "overlap", default=2, min=0, max=255, tooltip="Frames that neighbouring windows share, less than length."
                ),
                io.Combo.Input(
                    "schedule",
                    options=list(SCHEDULES),
                    default=SCHEDULES[0],
                    tooltip="Alternating: few and even windows, which lie up to half a window elsewhere at every other step. "
                    "Static: the same windows at every step; only an overlap of 4 or more hides their seams. "
                    "Uniform: they shift with the steps. Looped: the end is joined to the beginning too.",
                ),
                io.Boolean.Input(
                    "loop",
                    default=False,
                    tooltip="One more window over the join where the frames do not divide evenly; only with looped_uniform.",
                ),
            ],
            outputs=[io.Model.Output(tooltip="For any sampler; give it a latent of as many frames as you want.")],
        )

    @classmethod
    def execute(cls, model: Any, length: int, overlap: int, schedule: str, loop: bool) -> io.NodeOutput:
        if overlap >= length:
            raise LivePhotoError(f"overlap is {overlap}, a window's length {length}: make the overlap less")
        check_choice("schedule", schedule, SCHEDULES)
        if loop and schedule != LOOPED:
            raise LivePhotoError(f"loop does nothing with {schedule}: set schedule to {LOOPED}, or switch loop off")
        if model.model.latent_format.latent_dimensions != FRAMES_IN_BATCH:
            raise LivePhotoError(
                "LivePhoto Context Windows cuts clips whose frames lie in the batch, as SD1.5's do; "
                f"{type(model.model).__name__} is a video model: take the node out (LivePhoto-Wan2.1 takes clips whole)"
            )
        handler = Handler(
            context_schedule=_schedule(schedule),
            fuse_method=comfy.context_windows.get_matching_fuse_method(comfy.context_windows.ContextFuseMethods.PYRAMID),
            context_length=length,
            context_overlap=overlap,
            context_stride=1,
            closed_loop=loop,
            dim=0,
        )
        # newer ComfyUI would put a frame more into each window than the model was trained on
        handler.causal_window_fix = False
        comfy.patcher_extension.add_callback(
            comfy.context_windows.IndexListCallbacks.EVALUATE_CONTEXT_WINDOWS, tell_other_packs, handler.callbacks
        )
        patched = model.clone()
        patched.model_options["context_handler"] = handler
        comfy.context_windows.create_prepare_sampling_wrapper(patched)
        return io.NodeOutput(patched)
