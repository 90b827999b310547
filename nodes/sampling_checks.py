"""What is checked before the patched MODEL samples: noise schedule, number of frames, texts and ControlNets."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import chain
from typing import Any

import comfy.controlnet
import comfy.model_sampling
import torch
from torch import nn

from ..livephoto_core.config import AdapterConfig, NoiseSchedule, check_prediction
from ..livephoto_core.errors import LivePhotoError
from ..livephoto_core.schedule import sigmas
from .text import FRAMES
from .types import Reference


def check_predicted(sampling: nn.Module, config: AdapterConfig) -> None:
    """Refuse a model_sampling that reads the UNet's output as something else than the checkpoint's base predicts.

    Raises:
        LivePhotoError: names both and the node that may have set it.
    """
    kinds = {"v_prediction": comfy.model_sampling.V_PREDICTION, "x0": comfy.model_sampling.X0, "epsilon": comfy.model_sampling.EPS}
    found = next((name for name, kind in kinds.items() if isinstance(sampling, kind)), type(sampling).__name__)
    setting = "eps" if config.prediction_type == "epsilon" else config.prediction_type
    node = f"ModelSamplingDiscrete, set to {setting}, before Apply LivePhoto"
    check_prediction(config, found, f"load the base that it was trained on; if this is it, put {node}")


def check_schedule(sampling: nn.Module, schedule: NoiseSchedule) -> None:
    """Refuse to sample on another noise schedule than the checkpoint's: the clip would be washed out and flicker.

    Compared half-way, where a zero terminal SNR changes little.

    Raises:
        LivePhotoError: names both noise levels and the node that may have set it.
    """
    middle = schedule.timesteps // 2
    wanted, found = float(sigmas(schedule)[middle]), float(sampling.sigma(torch.tensor(float(middle))))
    if not 0.85 < found / wanted < 1.18:
        raise LivePhotoError(
            f"the MODEL samples on another noise schedule (sigma {found:.2f} half-way) than the LivePhoto checkpoint's "
            f"({wanted:.2f}): put ModelSamplingDiscrete before Apply LivePhoto, and use no other such node"
        )


def check_texts(conds: dict[str, list[dict]], batch: int, clips: int, width: int) -> None:
    """Refuse texts that do not go with a latent of `batch` frames for so many clips: ComfyUI repeats or cuts rows to fit.

    Args:
        conds: a guider's, by name.
        batch: frames of all clips.
        clips: one a photo.
        width: of the base's text embeddings.

    Raises:
        LivePhotoError: a text of another width, or with rows for another number of frames.
    """
    frames = batch // clips
    texts = ((name, cond) for name, entries in conds.items() for cond in entries if "cross_attn" in cond)
    for name, cond in texts:
        text = cond["cross_attn"]
        if text.shape[-1] != width:
            raise LivePhotoError(
                f"the {name} text is {text.shape[-1]} wide, the LivePhoto checkpoint needs {width}: encode it with the MODEL's CLIP"
            )
        rows = cond.get(FRAMES, frames) if len(text) in (1, frames, batch) else len(text)
        if rows != frames:
            raise LivePhotoError(
                f"the {name} text has rows for {rows} frames, the clip has {frames}: set the frames of Re-weight Motion Text "
                f"to {frames}, or the batch size of the latent to {rows * clips}"
            )


def check_same_photos(applied: Reference, given: Reference) -> None:
    """Refuse other photos than those that the MODEL animates: the noise would be another's, or of another number of clips.

    Raises:
        LivePhotoError: names how many each has.
    """
    if applied.latent.shape != given.latent.shape or not torch.equal(applied.latent, given.latent):
        found = (f"{len(reference.latent)} photo{'s' * (len(reference.latent) > 1)}" for reference in (given, applied))
        raise LivePhotoError(
            "LivePhoto Sampler has another reference ({}) than Apply LivePhoto ({}): connect the same one to both".format(*found)
        )


def check_hints(conds: dict[str, list[dict]], batch: int, clips: int) -> None:
    """Refuse a ControlNet whose hints do not go with a latent of `batch` frames: ComfyUI would begin them again.

    Raises:
        LivePhotoError: neither one hint, nor one a frame of a clip or of all clips, nor more.
    """
    frames = batch // clips
    for name, entries in conds.items():
        for control in chain.from_iterable(stock_controls(cond.get("control")) for cond in entries):
            hints = control.cond_hint_original
            if hints is not None and len(hints) < batch and len(hints) not in (1, frames):
                fix = f"one picture or {frames}" if clips == 1 else f"one picture, {frames} for all clips alike, or {batch}"
                raise LivePhotoError(
                    f"the ControlNet of the {name} text has {len(hints)} pictures for {clips} clip{'s' * (clips > 1)} of {frames} "
                    f"frames: give it {fix}"
                )


def stock_controls(control: Any) -> Iterator[Any]:
    """ComfyUI's own ControlNets in a chain; those of other packs deal out their hints themselves."""
    while control is not None:
        if type(control).__module__ == comfy.controlnet.__name__:
            yield control
        control = control.previous_controlnet


def frames_of(batch: int, clips: int) -> int:
    """Frames of each of so many clips in a latent's batch.

    Raises:
        LivePhotoError: the batch is not made of whole clips, or a clip has no second frame.
    """
    frames, rest = divmod(batch, clips)
    if rest:
        raise LivePhotoError(
            f"the latent has {batch} frames for {clips} photos: make its batch a multiple of the photos, such as 16 each"
        )
    if frames < 2:
        raise LivePhotoError(
            f"the latent has 1 frame{' a photo' * (clips > 1)}, a clip at least 2: set the batch size of Empty Latent Image to "
            f"{16 * clips}"
        )
    return frames
