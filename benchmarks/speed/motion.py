"""SSIM of clips: the project's against a loop over scikit-image's."""

from __future__ import annotations

from itertools import pairwise

import torch

from livephoto_core.intensity import clip_ssim

from .timing import by_turns, spread


def measure_ssim(size: int, frames: int, device: str, rounds: int) -> dict:
    """Clips a second of both, their ratio, and the largest difference of a clip's value."""
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(frames, 3, size, size, generator=generator)
    clip = (0.6 * noise.cumsum(0) / torch.arange(1, frames + 1)[:, None, None, None] + 0.4 * noise).to(device)
    pictures = [picture.permute(1, 2, 0).cpu().numpy() for picture in clip]

    def loop() -> float:
        values = [float(structural_similarity(a, b, channel_axis=-1, data_range=1.0)) for a, b in pairwise(pictures)]
        return sum(values) / len(values)

    seconds = by_turns({"scikit-image": loop, "livephoto": lambda: clip_ssim(clip)}, rounds, device)
    times = {name: spread(values) for name, values in seconds.items()}
    return {
        "size": size,
        "frames": frames,
        "clips_a_second": {name: 1 / value["median"] for name, value in times.items()},
        "times_faster": times["scikit-image"]["median"] / times["livephoto"]["median"],
        "difference": abs(loop() - float(clip_ssim(clip))),
    }
