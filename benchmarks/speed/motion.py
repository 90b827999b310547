"""SSIM of clips: the project's, as it is and compiled, against a loop over scikit-image's."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch._dynamo.exc import BackendCompilerFailed

from livephoto_core.intensity import clip_ssim

from .timing import by_turns, spread


def measure_ssim(size: int, frames: int, device: str, rounds: int) -> dict:
    """Clips a second of each, how many times faster than scikit-image ours are, and how far from its value.

    "compiled" is torch.compile's, left out where it finds no compiler.
    """
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(frames, 3, size, size, generator=generator)
    clip = (0.6 * noise.cumsum(0) / torch.arange(1, frames + 1)[:, None, None, None] + 0.4 * noise).to(device)
    pictures = [picture.permute(1, 2, 0).cpu().numpy() for picture in clip]

    def loop() -> float:
        values = [float(structural_similarity(a, b, channel_axis=-1, data_range=1.0)) for a, b in pairwise(pictures)]
        return sum(values) / len(values)

    ours = {"livephoto": clip_ssim, "compiled": torch.compile(clip_ssim)}
    try:
        ours["compiled"](clip)
    except BackendCompilerFailed:
        del ours["compiled"]
    timed = {name: (lambda measure=measure: measure(clip)) for name, measure in ours.items()}
    seconds = by_turns({"scikit-image": loop, **timed}, rounds, device)
    times = {name: spread(values)["median"] for name, values in seconds.items()}
    return {
        "size": size,
        "frames": frames,
        "clips_a_second": {name: 1 / time for name, time in times.items()},
        "times_faster": {name: times["scikit-image"] / times[name] for name in ours},
        "difference": {name: abs(loop() - float(measure(clip))) for name, measure in ours.items()},
    }
