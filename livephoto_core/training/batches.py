"""Which clips, which noise and which timesteps a step sees: a pure function of the seed and the step.

Nothing here has a state to save, so a resumed run sees what the unbroken run would have seen, and two processes see together
what one process sees at twice the batch.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

import torch

from ..conditioning import even_levels
from ..intensity import level
from ..noise import share_noise
from .cache import CachedClips
from .model import Batch
from .texts import CachedTexts

Item, Made = TypeVar("Item"), TypeVar("Made")


def one_ahead(make: Callable[[Item], Made], items: Iterable[Item]) -> Iterator[Made]:
    """make(item) for each item in order, the next being made in a background thread while one is used."""
    with ThreadPoolExecutor(1) as pool:
        waiting: deque[Future[Made]] = deque()
        for item in items:
            waiting.append(pool.submit(make, item))
            if len(waiting) > 1:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


def _generator(*numbers: int) -> torch.Generator:
    seed = 0
    for number in numbers:
        # a mixing step of splitmix64, so that neighbouring seeds and positions share nothing
        seed = (seed ^ (number + 0x9E3779B97F4A7C15)) * 0xBF58476D1CE4E5B9 & 0xFFFFFFFFFFFFFFFF
        seed ^= seed >> 31
    return torch.Generator().manual_seed(seed & 0x7FFFFFFFFFFFFFFF)


def clip_order(clips: int, seed: int, epoch: int) -> torch.Tensor:
    """The order [clips] of an epoch."""
    return torch.randperm(clips, generator=_generator(seed, 1, epoch))


def drawn_timesteps(step: int, batch: int, timesteps: int, seed: int, shift: float = 1.0) -> torch.Tensor:
    """Stratified timesteps [batch]: one from each of `batch` equal parts of the schedule, in random order.

    A `shift` above 1 moves them towards the noisy end, t -> s t / (1 + (s - 1) t) (Stable Diffusion 3, arXiv 2403.03206, eq. 23).
    """
    generator = _generator(seed, 2, step)
    share = (torch.randperm(batch, generator=generator) + torch.rand(batch, generator=generator)) / batch
    share = shift * share / (1 + (shift - 1) * share)
    return (share * timesteps).long().clamp(max=timesteps - 1)


def drawn_share(position: int, most: float, seed: int) -> float:
    """What a clip's frames have of their noise in common: `most` for half of the clips, nothing for a fifth, the others in between.

    Those tell the model of other noise too: that of samplers which add each frame's own as they go, or that somebody brings along.
    """
    kind, share = torch.rand(2, generator=_generator(seed, 7, position)).tolist()
    return most if kind < 0.5 else most * share * (kind < 0.8)


def drawn_noise(position: int, shape: tuple[int, ...], share: float, has_first: bool, seed: int) -> torch.Tensor:
    """A clip's noise [F, C, h, w], sharing so much of the clip's first frame's, whether that frame is among them or not."""
    noise = torch.randn(shape, generator=_generator(seed, 4, position))
    if has_first:
        return share_noise(noise[None], share)[0]
    first = torch.randn(1, *shape[1:], generator=_generator(seed, 8, position))
    return share_noise(torch.cat([first, noise])[None], share)[0, 1:]


def drawn_places(step: int, length: int, count: int, seed: int) -> torch.Tensor | None:
    """`count` of a clip's frame numbers in order; None for all."""
    if count in (0, length):
        return None
    return torch.randperm(length, generator=_generator(seed, 3, step))[:count].sort().values


class Batches:
    """Batches out of cached clips.

    indices: the clips to train on, by their place in `clips`.
    text_ids: the captions' token ids [clips, 77]; empty_ids: those of the empty text [77], which replaces a share `text_drop`.
    texts: the same texts encoded, the empty one last; None where the text encoder trains too.
    thresholds: nine values of what `clips.ssims` are, see `intensity.level`.
    batch: clips of a step, over all processes and accumulated parts.
    frames_per_clip: how many frames of a clip a step trains on, 0 for all.
    timesteps: of the noise schedule; timestep_shift: see `drawn_timesteps`. shared_noise: the most that `drawn_share` draws, for
    clips of any level: where noise hardly differs, what moves shows through it, and the text need not be read. pure_noise: the
    share of clips that are unseen at the last timestep. own_guesses: of the others, the share whose noisy latents are made of the
    model's own guess, in the noisier half of the timesteps: below it, what is still to be mended of a guess is no small correction.
    unguessed: clips, as in `indices`, for which there are no guesses.
    level_of: the level of a clip, of its similarity and the thresholds.
    """

    def __init__(
        self,
        clips: CachedClips,
        indices: list[int],
        text_ids: torch.Tensor,
        empty_ids: torch.Tensor,
        thresholds: tuple[float, ...],
        batch: int,
        seed: int,
        text_drop: float,
        frames_per_clip: int = 0,
        timesteps: int = 1000,
        timestep_shift: float = 1.0,
        shared_noise: float = 0.0,
        pure_noise: float = 0.0,
        own_guesses: float = 0.0,
        unguessed: frozenset[int] = frozenset(),
        texts: CachedTexts | None = None,
        level_of: Callable[[float, Sequence[float]], float] = level,
    ):
        self.clips, self.indices = clips, indices
        self.text_ids, self.empty_ids = text_ids, empty_ids
        self.thresholds, self.batch, self.seed = thresholds, batch, seed
        self.text_drop, self.frames_per_clip = text_drop, frames_per_clip
        self.timesteps, self.timestep_shift = timesteps, timestep_shift
        self.shared_noise, self.pure_noise = shared_noise, pure_noise
        self.own_guesses, self.unguessed = own_guesses, unguessed
        self.texts, self.level_of = texts, level_of
        self._epoch, self._order = -1, torch.empty(0)

    def _picked(self, position: int) -> int:
        """The clip at a position of the endless stream of epochs."""
        epoch, place = divmod(position, len(self.indices))
        if epoch != self._epoch:
            self._epoch, self._order = epoch, clip_order(len(self.indices), self.seed, epoch)
        return self.indices[int(self._order[place])]

    def _chosen(self, positions: list[int], kind: int, share: float) -> torch.Tensor:
        """Which clips [B] of those at positions of the stream of epochs are of a share of all, by random numbers of a kind."""
        return torch.tensor([float(torch.rand((), generator=_generator(self.seed, kind, p))) < share for p in positions])

    def _levels(self, indices: list[int], length: int) -> torch.Tensor:
        """The level of each frame [B, length] of clips."""
        return torch.cat([even_levels(self.level_of(float(self.clips.ssims[i]), self.thresholds), 1, length) for i in indices])

    def step(self, step: int, rows: range | None = None) -> Batch:
        """The batch of an optimizer step; `rows` picks this process's (or this accumulated part's) share of it."""
        rows = rows or range(self.batch)
        positions = [step * self.batch + r for r in rows]
        indices = [self._picked(p) for p in positions]
        timesteps = drawn_timesteps(step, self.batch, self.timesteps, self.seed, self.timestep_shift)[list(rows)]
        unseen = self._chosen(positions, 9, self.pure_noise)
        told = torch.tensor([index not in self.unguessed for index in indices])
        guessed = self._chosen(positions, 10, self.own_guesses) & ~unseen & told
        timesteps = torch.where(guessed, (self.timesteps + timesteps) // 2, timesteps).masked_fill(unseen, self.timesteps - 1)
        latents = self.clips.latents(indices)
        length = latents.shape[1]
        places = drawn_places(step, length, self.frames_per_clip, self.seed)
        shape = (len(places) if places is not None else length, *latents.shape[2:])
        has_first = places is None or int(places[0]) == 0
        levels = self._levels(indices, length)
        noise = [drawn_noise(p, shape, drawn_share(p, self.shared_noise, self.seed), has_first, self.seed) for p in positions]
        drops = self._chosen(positions, 5, self.text_drop).tolist()
        # the empty text comes behind the captions
        texts = [len(self.text_ids) if dropped else index for dropped, index in zip(drops, indices, strict=True)]
        return Batch(
            latents=latents,
            noise=torch.stack(noise),
            timesteps=timesteps,
            text_ids=torch.stack([self.text_ids[row] if row < len(self.text_ids) else self.empty_ids for row in texts]),
            tokens=self.clips.tokens(indices),
            grid=self.clips.grid,
            levels=levels if places is None else levels[:, places],
            places=places,
            length=length,
            unseen=unseen,
            guessed=guessed,
            text=None if self.texts is None else self.texts.of(texts),
        )

    # torch cannot stack the cache's halves under a CPU's bfloat16
    @torch.autocast("cpu", enabled=False)
    def fixed(self, indices: list[int], timestep: int) -> Batch:
        """Whole clips, by their place in the cache, under their texts at one timestep; a clip's noise never changes."""
        latents = self.clips.latents(indices)
        length = latents.shape[1]
        noise = torch.stack([torch.randn(latents.shape[1:], generator=_generator(self.seed, 6, i)) for i in indices])
        levels = self._levels(indices, length)
        return Batch(
            latents=latents,
            noise=share_noise(noise, self.shared_noise),
            timesteps=torch.full((len(indices),), timestep),
            text_ids=self.text_ids[indices],
            tokens=self.clips.tokens(indices),
            grid=self.clips.grid,
            levels=levels,
            places=None,
            length=length,
            text=None if self.texts is None else self.texts.of(indices),
        )
