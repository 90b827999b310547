"""Single frames of the procedural clips, for the parts of the demo base that learn from pictures."""

from __future__ import annotations

import math

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .clips import ClipSet
from .motions import SPEEDS
from .scenes import render


class Stills(IterableDataset):
    """An endless stream of frames [3, S, S] in -1..1: any motion, any speed, half of them mirrored."""

    def __init__(self, clips: ClipSet, start: int = 0):
        self.clips, self.start = clips, start

    def __iter__(self):
        worker = get_worker_info()
        step, index = (worker.num_workers, self.start + worker.id) if worker else (1, self.start)
        while True:
            scene, rng = self.clips.scene(index)
            slowest, fastest = SPEEDS[scene.motion]
            speed = math.exp(rng.uniform(math.log(slowest), math.log(fastest))) if slowest else 0.0
            frames = render(scene, speed, 4, self.clips.size)
            frame = frames[int(rng.integers(4))]
            if rng.random() < 0.5:
                frame = frame.flip(-1)
            yield frame * 2 - 1
            index += step


def held_out_stills(clips: ClipSet, count: int) -> torch.Tensor:
    """The first frames [count, 3, S, S] in -1..1 of the set's first clips."""
    return torch.cat([render(clips.scene(i)[0], 0.0, 1, clips.size) for i in range(count)]) * 2 - 1
