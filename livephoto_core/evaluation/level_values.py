"""What a level from 1 to 10 is in the terms of a system that has another knob for the strength of motion."""

from __future__ import annotations

import math

from ..errors import LivePhotoError
from ..intensity import LEVELS


def level_values(text: str | None) -> list[float]:
    """The knob's values at level 1 to 10, written with commas between; the levels themselves for None.

    Raises:
        LivePhotoError: not ten numbers.
    """
    if text is None:
        return [float(level) for level in range(1, LEVELS + 1)]
    try:
        values = [float(part) for part in text.split(",")]
    except ValueError:
        values = []
    if len(values) != LEVELS or not all(map(math.isfinite, values)):
        raise LivePhotoError(f"--level-values takes ten numbers with commas between, for level 1 to 10, got {text!r}")
    return values


def plain_number(value: float) -> int | float:
    """An int where the value is whole: some programs refuse 3.0 for 3."""
    return int(value) if value == int(value) else value
