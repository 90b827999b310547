"""LivePhoto as a system for MotionBench: the demo model, or a checkpoint on its base."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from ..commands.model_files import ModelFiles
from .demo_report import load_measured
from .generate import BatchSampling
from .systems import Request, System


def livephoto_system(files: ModelFiles, device: str, sampling: BatchSampling, batch: int) -> System:
    """A LivePhoto with its own levels and its own VAE as the limit; clip i has the noise of its seed, whatever the batch.

    Raises:
        LivePhotoError: a missing or damaged file, or a checkpoint without level thresholds.
    """
    model, config = load_measured(files, device, sampling)

    def animate(requests: Sequence[Request]) -> list[torch.Tensor]:
        photos = torch.stack([request.photo for request in requests])
        levels, seeds = [request.level for request in requests], [request.seed for request in requests]
        return list(model.generate(photos, [request.text for request in requests], levels, seeds))

    return System(
        f"LivePhoto {Path(files.adapter).stem}",
        animate,
        config.size,
        model.thresholds,
        config.intensity_measure,
        model.round_trip,
        config.intensity_from,
        batch,
    )
