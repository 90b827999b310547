"""A diffusers pipeline out of a local folder as a system for MotionBench, such as PIA, AnimateDiff or Stable Video Diffusion."""

from __future__ import annotations

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from einops import rearrange
from safetensors import SafetensorError

from ..errors import LivePhotoError, first_line
from .level_values import plain_number
from .suite import FRAMES
from .systems import System, one_by_one


def diffusers_system(
    folder: str | Path, size: int, device: str, level_input: str | None, level_values: Sequence[float], inputs: dict[str, Any]
) -> System:
    """A pipeline in diffusers' layout; nothing is fetched, and weights are read from safetensors alone.

    The pipeline is called with the photo as `image`, the text as `prompt`, the seed's generator, `num_frames` and the size, each
    if it takes it: one without `image` makes its own picture, and the photo's figures say so.

    Args:
        folder: with a model_index.json.
        size: side of the photo and the clip, in pixels.
        device: where it runs.
        level_input: the input that sets how strongly it moves, such as `motion_scale` or `motion_bucket_id`; None: it has none.
        level_values: that input at level 1 to 10.
        inputs: further inputs, such as {"num_inference_steps": 25}.

    Raises:
        LivePhotoError: no pipeline in the folder, one that cannot be loaded, or an input that it does not take.
    """
    pipeline = _load(Path(folder), device)
    known = set(inspect.signature(pipeline.__call__).parameters)
    for name in (*inputs, *([] if level_input is None else [level_input])):
        if name not in known:
            raise LivePhotoError(f"{type(pipeline).__name__} has no input {name!r}: its inputs are {', '.join(sorted(known))}")

    def animate(photo: torch.Tensor, text: str, level: int, seed: int) -> torch.Tensor:
        given = {
            "image": _picture(photo),
            "prompt": text,
            "generator": torch.Generator().manual_seed(seed),
            "num_frames": FRAMES,
            "height": photo.shape[-2],
            "width": photo.shape[-1],
            "output_type": "np",
        }
        given = {name: value for name, value in given.items() if name in known} | inputs
        if level_input is not None:
            given[level_input] = plain_number(level_values[level - 1])
        try:
            made = pipeline(**given)
        except (TypeError, ValueError, RuntimeError) as error:
            raise LivePhotoError(f"{type(pipeline).__name__} failed ({first_line(error)}): see --size and --inputs") from error
        if not hasattr(made, "frames"):
            raise LivePhotoError(f"{type(pipeline).__name__} makes no clips: give a pipeline that returns frames")
        if not isinstance(made.frames[0], np.ndarray):
            raise LivePhotoError(f"{type(pipeline).__name__} returns no arrays: leave output_type out of --inputs")
        return rearrange(torch.from_numpy(made.frames[0]), "f h w c -> f c h w")

    return System(f"{type(pipeline).__name__} {Path(folder).name}", one_by_one(animate), size)


def _load(folder: Path, device: str) -> Any:
    from diffusers import DiffusionPipeline

    if not (folder / "model_index.json").is_file():
        raise LivePhotoError(f"{folder} is no diffusers pipeline: give a folder with a model_index.json")
    try:
        pipeline = DiffusionPipeline.from_pretrained(folder, local_files_only=True, use_safetensors=True).to(device)
    except (OSError, ValueError, RuntimeError, AttributeError, ImportError, SafetensorError) as error:
        raise LivePhotoError(f"cannot load the pipeline in {folder} ({first_line(error)}): check that it is whole") from error
    pipeline.set_progress_bar_config(disable=True)
    return pipeline


def _picture(photo: torch.Tensor) -> Any:
    from PIL import Image

    return Image.fromarray((rearrange(photo, "c h w -> h w c") * 255).round().byte().numpy())
