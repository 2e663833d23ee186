"""Checks of arguments: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from numbers import Integral


def whole(least: int, **values: object) -> None:
    """Raise ValueError for what is not a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} = {value!r}: expected a whole number, at least {least}")


def at_least(least: float, **values: float) -> None:
    """Raise ValueError for what is not a finite number of at least `least`."""
    for name, value in values.items():
        if not (math.isfinite(value) and value >= least):
            raise ValueError(f"{name} = {value!r}: expected a finite number, at least {least}")


def above(least: float, **values: float) -> None:
    """Raise ValueError for what is not a finite number above `least`."""
    for name, value in values.items():
        if not (math.isfinite(value) and value > least):
            raise ValueError(f"{name} = {value!r}: expected a finite number above {least}")
