"""Refusing what ComfyUI 0.3.64 lets through to our nodes: choices not in their list, numbers that are none, sizes between steps."""

from __future__ import annotations

import math
from collections.abc import Iterable

from ..livephoto_core.errors import LivePhotoError

_SHOWN = 12


def check_choice(name: str, value: str, choices: Iterable[str]) -> None:
    """Refuse a value that is none of the choices.

    Raises:
        LivePhotoError: names the input, the value and the first of the choices.
    """
    choices = list(choices)
    if value not in choices:
        shown = ", ".join(choices[:_SHOWN]) + (" ..." if len(choices) > _SHOWN else "")
        raise LivePhotoError(f"{name} is {value!r}: choose one of {shown}")


def check_numbers(**values: float) -> None:
    """Refuse nan, which is neither below a smallest nor above a largest value.

    Raises:
        LivePhotoError: names the input and the value.
    """
    for name, value in values.items():
        if not math.isfinite(value):
            raise LivePhotoError(f"{name} is {value}: give a number")


def check_size(width: int, height: int, step: int) -> None:
    """Refuse a size of which a VAE or a model would cut a part.

    Raises:
        LivePhotoError: names the value and the nearest that goes.
    """
    for name, value in (("width", width), ("height", height)):
        if value % step:
            raise LivePhotoError(f"{name} is {value}, which is no multiple of {step}: take {max(1, round(value / step)) * step}")
