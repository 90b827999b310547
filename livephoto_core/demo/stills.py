"""Single frames of the procedural clips, for the parts of the demo base that learn from pictures."""

from __future__ import annotations

import math
from collections.abc import Iterator
from itertools import count

import torch
from torch.utils.data import IterableDataset, get_worker_info

from .clips import ClipSet
from .motions import SPEEDS
from .scenes import render, thing_cover


def _indices(start: int) -> Iterator[int]:
    """The numbers from `start` on, or a worker's share of them."""
    worker = get_worker_info()
    return count(start + worker.id, worker.num_workers) if worker else count(start)


class Stills(IterableDataset):
    """An endless stream of frames [3, S, S] in -1..1: any motion, any speed, half of them mirrored."""

    def __init__(self, clips: ClipSet, start: int = 0):
        self.clips, self.start = clips, start

    def __iter__(self):
        for index in _indices(self.start):
            scene, rng = self.clips.scene(index)
            slowest, fastest = SPEEDS[scene.motion]
            speed = math.exp(rng.uniform(math.log(slowest), math.log(fastest))) if slowest else 0.0
            frames = render(scene, speed, 4, self.clips.size)
            frame = frames[int(rng.integers(4))]
            if rng.random() < 0.5:
                frame = frame.flip(-1)
            yield frame * 2 - 1


def held_out_stills(clips: ClipSet, number: int) -> torch.Tensor:
    """The first frames [number, 3, S, S] in -1..1 of the set's first clips."""
    return torch.cat([render(clips.scene(i)[0], 0.0, 1, clips.size) for i in range(number)]) * 2 - 1


class Sights(IterableDataset):
    """An endless stream of first frames, each with what there is to see in it.

    Items: the frame [3, S, S] in 0..1, the thing's cover of each pixel [S, S] in 0..1, and the thing's place [4]: centre x, y and
    half size in frame units (-1..1 across the frame), and 1 where there is a thing, 0 where all is photograph.
    """

    def __init__(self, clips: ClipSet):
        self.clips = clips

    def __iter__(self):
        for index in _indices(0):
            scene, _ = self.clips.scene(index)
            thing = scene.thing
            # a half size that has a logarithm
            place = (thing.start.x, thing.start.y, thing.start.half, 1.0) if thing else (0.0, 0.0, 1.0, 0.0)
            yield render(scene, 0.0, 1, self.clips.size)[0], thing_cover(scene, self.clips.size), torch.tensor(place)
