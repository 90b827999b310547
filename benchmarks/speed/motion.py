"""SSIM of clips: the project's, as it is and compiled, against a loop over scikit-image's."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch._dynamo.exc import TorchDynamoException
from torch._inductor import config as inductor

from livephoto_core.intensity import clip_ssim

from .timing import by_turns, spread

# as a training set is measured: many in a row
CLIPS = 8


def measure_ssim(size: int, frames: int, device: str, rounds: int) -> dict:
    """Clips a second of each over CLIPS in a row, how many times faster than scikit-image ours are, and how far from its values.

    "compiled" is torch.compile's, left out where it finds no compiler.
    """
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(CLIPS, frames, 3, size, size, generator=generator)
    clips = (0.6 * noise.cumsum(1) / torch.arange(1, frames + 1)[:, None, None, None] + 0.4 * noise).to(device)
    pictures = [[picture.permute(1, 2, 0).cpu().numpy() for picture in clip] for clip in clips]

    def loop() -> torch.Tensor:
        pairs = [[structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in pairwise(clip)] for clip in pictures]
        return torch.tensor(pairs).mean(1)

    ours = {"livephoto": clip_ssim, "compiled": torch.compile(clip_ssim)}
    try:
        # the processes that compile in parallel would still be there while others are measured
        with inductor.patch(compile_threads=1):
            ours["compiled"](clips[0])
    except TorchDynamoException:
        del ours["compiled"]
    # one at a time: what is compiled for a batch repeats itself for each of its clips
    timed = {name: (lambda measure=measure: torch.stack([measure(clip) for clip in clips])) for name, measure in ours.items()}
    seconds = by_turns({"scikit-image": loop, **timed}, rounds, device)
    times = {name: spread(values)["median"] for name, values in seconds.items()}
    wanted = loop()
    return {
        "size": size,
        "frames": frames,
        "clips_a_second": {name: CLIPS / time for name, time in times.items()},
        "times_faster": {name: times["scikit-image"] / times[name] for name in ours},
        "difference": {name: float((wanted - measure().cpu()).abs().max()) for name, measure in timed.items()},
    }
