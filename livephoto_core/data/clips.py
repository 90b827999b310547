"""What a source of training clips yields, and how a window of frames is cut out of a clip.

A source gives `ClipSample | Skipped` in an order that is always the same; it has a length where that is known without reading the
clips. A clip that cannot be used is skipped by name, it never ends an iteration.
"""

import os
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import LivePhotoError
from ..media import fit_image, stream_clip

POSITIONS = ("centre", "start")
# decoded clips wait in memory, twice as many as there are readers
MOST_READERS = 8
# ffmpeg's names of the containers that are read by PyAV and whose packets are frames.
_COUNTED_CONTAINERS = ("mov,", "matroska,", "avi")


@dataclass(frozen=True)
class ClipSample:
    """A training clip: `frames` [F, 3, S, S], float32, RGB, 0..1, its caption, and its name within the source."""

    frames: Tensor
    caption: str
    name: str


@dataclass(frozen=True)
class Skipped:
    """A clip that was not used: its name within the source and, in one line, why."""

    name: str
    reason: str


Load = Callable[[], ClipSample | Skipped]


class Source(ABC):
    """Clips in an order that is always the same, read a few ahead."""

    @abstractmethod
    def loads(self, count: int) -> Iterator[Load]:
        """A call for each item after the first `count`, which are not decoded; the calls may run at once."""

    def __iter__(self) -> Iterator[ClipSample | Skipped]:
        return self.after(0)

    def after(self, count: int) -> Iterator[ClipSample | Skipped]:
        """What comes after the first `count` items, which are not decoded."""
        return in_order(self.loads(count), min(MOST_READERS, os.cpu_count() or 1))


def in_order(loads: Iterable[Load], threads: int) -> Iterator[ClipSample | Skipped]:
    """What calls give, in their order; up to `threads` of them run at once and as many more wait to be fetched."""
    pending: deque[Future] = deque()
    teams = torch.get_num_threads()
    # one thread of torch's for each of ours: teams of them would get in each other's way
    with ThreadPoolExecutor(threads, initializer=torch.set_num_threads, initargs=(1,)) as pool:
        try:
            for load in loads:
                pending.append(pool.submit(load))
                if len(pending) > 2 * threads:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
            # what the last thread chose would be for all threads that are yet to come
            torch.set_num_threads(teams)


@dataclass(frozen=True)
class Window:
    """What is cut out of every clip: `frames` frames, every `stride`-th one, `size` pixels a side, from `position`.

    Raises:
        LivePhotoError: a number below 1 or an unknown position.
    """

    frames: int
    stride: int
    size: int
    position: str = "centre"

    def __post_init__(self) -> None:
        for name in ("frames", "stride", "size"):
            value = getattr(self, name)
            if value < 1:
                raise LivePhotoError(f"{name} must be 1 or more, got {value}")
        if self.position not in POSITIONS:
            raise LivePhotoError(f"unknown position {self.position!r}; choose one of {', '.join(POSITIONS)}")


def pick_frames(total: int, frames: int, stride: int, position: str) -> range:
    """Which of a clip's `total` frames to take: `frames` of them, evenly spaced.

    Args:
        total: frames in the clip.
        frames: frames wanted.
        stride: distance between them; lowered, down to 1, for a clip too short for it.
        position: "centre" takes the window from the middle of the clip, "start" from its first frame on.

    Raises:
        LivePhotoError: the clip has fewer than `frames` frames.
    """
    if total < frames:
        raise LivePhotoError(f"has {total} frames, {frames} are needed; leave the clip out or train on fewer frames")
    if frames > 1:
        stride = min(stride, (total - 1) // (frames - 1))
    span = (frames - 1) * stride + 1
    start = (total - span) // 2 if position == "centre" else 0
    return range(start, start + span, stride)


def centre_crop(frames: Tensor, size: int) -> Tensor:
    """The middle square of frames [F, 3, H, W], or of one [3, H, W], as [..., 3, size, size].

    The short side is resized to `size` with antialiasing. `animate --fit crop` does the same to a photo, so photos look
    in use as first frames do in training.
    """
    return fit_image(frames, size, size, "crop")


def load_clip(path: str | Path, window: Window) -> Tensor:
    """Read a window of a clip as [F, 3, S, S], 0..1, holding no more than the window in memory.

    A video is decoded up to the last frame needed; an animation or a folder is read twice, to count its frames first.
    A video that ends before its header says gives a window of what there is.

    Raises:
        LivePhotoError: a clip that `media.stream_clip` cannot read, or one with fewer than `window.frames` frames.
    """
    declared = _declared_frames(Path(path))
    frames = _read_window(path, window, declared) if declared >= window.frames else []
    if len(frames) < window.frames:
        frames = _read_window(path, window, sum(1 for _ in stream_clip(path)))
    return torch.stack(frames)


def load_sample(path: str | Path, window: Window, caption: str, name: str) -> ClipSample | Skipped:
    """Read a window of the clip at `path`, or tell why it cannot be read; `name` stands for the path in the reason."""
    try:
        return ClipSample(load_clip(path, window), caption, name)
    except LivePhotoError as error:
        reason = str(error).replace(str(path), name)
    except Exception as error:
        # Decoders raise anything at all on broken files, and one such file must not end days of training.
        reason = f"cannot be read ({type(error).__name__}: {error})"
    return Skipped(name, " ".join(reason.split()))


def readable_clips(source: Iterable[ClipSample | Skipped], skipped: list[Skipped]) -> Iterator[ClipSample]:
    """Yield a source's clips and append to `skipped` those that could not be used.

    Raises:
        LivePhotoError: at the end, if there was not one usable clip.
    """
    found = False
    for item in source:
        if isinstance(item, Skipped):
            skipped.append(item)
        else:
            found = True
            yield item
    if not found:
        first = f"; the first, {skipped[0].name}: {skipped[0].reason}" if skipped else ""
        raise LivePhotoError(f"none of {len(skipped)} clips can be used{first}")


def report(skipped: Sequence[Skipped]) -> str:
    """Clips skipped, counted and then named with the reason, one a line."""
    if not skipped:
        return "no clip skipped"
    count = "1 clip" if len(skipped) == 1 else f"{len(skipped)} clips"
    return "\n".join([f"{count} skipped:", *(f"  {item.name}: {item.reason}" for item in skipped)])


def _read_window(path: str | Path, window: Window, total: int) -> list[Tensor]:
    chosen = pick_frames(total, window.frames, window.stride, window.position)
    return [centre_crop(frame, window.size) for frame in stream_clip(path, chosen.step, chosen.start, chosen.stop)]


def _declared_frames(path: Path) -> int:
    """How many frames a video says it has; 0 where only decoding it all can tell."""
    import av

    if not path.is_file():
        return 0
    try:
        # Local files only: a playlist must not make ffmpeg fetch anything.
        options = {"protocol_whitelist": "file"}
        with av.open(str(path), metadata_errors="replace", container_options=options) as container:
            if not container.format.name.startswith(_COUNTED_CONTAINERS) or not container.streams.video:
                return 0
            stream = container.streams.video[0]
            return stream.frames or sum(packet.size > 0 for packet in container.demux(stream))
    except (av.FFmpegError, OSError, ValueError):
        # Reading the clip tells what is wrong with it.
        return 0
