"""Refusing what ComfyUI 0.3.64 lets through to our nodes: choices that are not in their list, and numbers that are none."""

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
