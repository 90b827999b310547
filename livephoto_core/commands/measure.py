"""`livephoto measure`: the motion of clips as SSIM and level (paper section 3.4), and by the measure of a model's levels."""

import json
from collections.abc import Iterable, Iterator, Sequence
from itertools import pairwise
from pathlib import Path

from torch import Tensor
from tqdm import tqdm

from ..errors import LivePhotoError
from ..intensity import fractional_level, level
from ..measures import MOTION_NAMES, similarity
from ..media import fit_image, read_record, stream_clip


def measure(
    paths: Iterable[str | Path],
    thresholds: Sequence[float] | None,
    size: tuple[int, int] | None = None,
    stride: int = 1,
    by: str = "ssim",
) -> list[dict]:
    """Measure the motion of each clip.

    Levels mean what they meant in training only at the training clips' size and frame stride, so give those of the
    model whose thresholds are used. Videos are streamed: memory does not grow with their length.

    Args:
        paths: videos, animated webp or gif, folders of pictures.
        thresholds: the nine thresholds of a model's config; None: no levels.
        size: (height, width) that frames are cropped to before measuring; None: as they are.
        stride: keep every `stride`-th frame.
        by: the measure that the levels are of, one of config.INTENSITY_MEASURES.

    Returns:
        A dict a clip: path (str), frames (int), stride (int), ssim (float), measure (str, as `by`), motion (float, by that
        measure: 0 is a still clip), level (int or None), fractional_level (float or None), asked (None). Of a clip that
        `livephoto animate` wrote with several levels side by side a dict a level, `asked` being that level (float).

    Raises:
        LivePhotoError: a clip that cannot be read or has fewer than 2 frames or 7 pixels a side, unusable
            thresholds, or a measure whose package is not installed.
    """
    return [
        {**_measure_clip(path, thresholds, size, _frames(path, stride, k, len(levels)), by), "stride": stride, "asked": level}
        for path in map(Path, paths)
        for levels in [_side_by_side(path)]
        for k, level in enumerate(levels)
    ]


def format_table(results: Sequence[dict]) -> str:
    """Lay out the results of `measure` as a text table with a header, one line a clip."""
    # SSIM says it all where the levels are of it
    more = [r["measure"] for r in results[:1] if r["measure"] != "ssim"]
    header = ("clip", "frames", "stride", "SSIM", *(MOTION_NAMES[name] for name in more), "level")
    lines = [header]
    for r in results:
        name = r["path"] if r["asked"] is None else f"{r['path']} at {r['asked']:g}"
        numbers = str(r["frames"]), str(r["stride"]), f"{r['ssim']:.4f}", *(f"{r['motion']:.4g}" for _ in more)
        lines.append((name, *numbers, _level_text(r)))
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join(
        "  ".join([name.ljust(widths[0]), *map(str.rjust, numbers, widths[1:])]).rstrip() for name, *numbers in lines
    )


def format_json(results: Sequence[dict]) -> str:
    """The results of `measure` as a JSON list."""
    return json.dumps(list(results), indent=2)


def _side_by_side(path: Path) -> list[float] | list[None]:
    """The levels that lie side by side in a clip of `livephoto animate`; [None] for any other clip."""
    try:
        record = read_record(path)
    except LivePhotoError:
        # reading its frames says what is wrong
        record = None
    levels = record["settings"].get("intensity") if record else None
    if not (isinstance(levels, list) and levels):
        return [None]
    # each is square; an editor keeps the record of a clip that it cut a part out of
    height, width = next(iter(stream_clip(path))).shape[1:]
    return levels if width == len(levels) * height else [None]


def _frames(path: Path, stride: int, part: int, parts: int) -> Iterator[Tensor]:
    """One of the parts side by side of each frame."""
    return (frame.tensor_split(parts, dim=-1)[part] for frame in stream_clip(path, stride))


def _measure_clip(
    path: Path, thresholds: Sequence[float] | None, size: tuple[int, int] | None, frames: Iterator[Tensor], by: str
) -> dict:
    # short clips are done before a bar would be seen
    frames = tqdm(frames, desc=path.name, unit="frame", delay=2, leave=False)
    if size is not None:
        frames = (fit_image(frame, *size, "crop") for frame in frames)
    try:
        names = dict.fromkeys(("ssim", by))
        pairs = [{name: similarity(a[None], b[None], name).item() for name in names} for a, b in pairwise(frames)]
    except LivePhotoError as error:
        raise error if str(path) in str(error) else LivePhotoError(f"{path}: {error}") from error
    if not pairs:
        raise LivePhotoError(f"{path} has one frame, motion needs 2 or more; give a longer clip or a smaller stride")
    means = {name: sum(pair[name] for pair in pairs) / len(pairs) for name in names}
    return {
        "path": str(path),
        "frames": len(pairs) + 1,
        "ssim": means["ssim"],
        "measure": by,
        "motion": 1 - means[by],
        "level": None if thresholds is None else level(means[by], thresholds),
        "fractional_level": None if thresholds is None else fractional_level(means[by], thresholds),
    }


def _level_text(result: dict) -> str:
    return "-" if result["level"] is None else f"{result['level']} ({result['fractional_level']:.2f})"
