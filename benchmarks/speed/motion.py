"""SSIM of clips: the project's, as it is and as it compiles itself for many, against a loop over scikit-image's."""

from __future__ import annotations

from itertools import pairwise

import torch

from livephoto_core.intensity import ManyClipsSsim, clip_ssim

from .timing import by_turns, spread

CLIPS = 8


def measure_ssim(size: int, frames: int, device: str, rounds: int) -> dict:
    """Clips a second of each over CLIPS in a row, how many times faster than scikit-image ours are, and how far from its values.

    "compiled", on a CPU, is the one for many clips, after it compiled; where no compiler is found it is the other again.
    """
    from skimage.metrics import structural_similarity

    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(CLIPS, frames, 3, size, size, generator=generator)
    clips = (0.6 * noise.cumsum(1) / torch.arange(1, frames + 1)[:, None, None, None] + 0.4 * noise).to(device)
    pictures = [[picture.permute(1, 2, 0).cpu().numpy() for picture in clip] for clip in clips]

    def loop() -> torch.Tensor:
        pairs = [[structural_similarity(a, b, channel_axis=-1, data_range=1.0) for a, b in pairwise(clip)] for clip in pictures]
        return torch.tensor(pairs).mean(1)

    ours = {"livephoto": clip_ssim}
    if torch.device(device).type == "cpu":
        ours["compiled"] = ManyClipsSsim(after=0)
    # one at a time, as a training set is measured
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
