"""Checks of arguments: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral

import torch


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


def one_of(allowed: Iterable[object], **values: object) -> None:
    """Raise ValueError for what is none of the allowed values."""
    for name, value in values.items():
        if value not in allowed:
            raise ValueError(
                f"{name} = {value!r}: expected one of {', '.join(map(repr, allowed))}"
            )


def generators(**values: object) -> None:
    """Raise ValueError for what is neither a `torch.Generator` of the CPU nor None.

    An int would be a seed: it is not taken, because two calls with it would draw the same.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not isinstance(value, torch.Generator):
            raise ValueError(
                f"{name} = {value!r}: expected a torch.Generator, "
                f"such as torch.Generator().manual_seed(0)"
            )
        if value.device.type != "cpu":
            raise ValueError(f"{name}: on {value.device}, expected a torch.Generator of the CPU")


def images(*, empty: bool = False, **values: object) -> None:
    """Raise ValueError for what is no batch of images, (images, channels, height, width).

    empty: whether a batch without images will do.
    """
    for name, value in values.items():
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) != 4 or (not empty and not shape[0]):
            what = f"shape {shape}" if hasattr(value, "shape") else type(value).__name__
            hint = "; one image is x[None]" if len(shape) == 3 else ""
            raise ValueError(
                f"{name}: {what}, expected (images, channels, height, width)"
                + ("" if empty else ", at least one image") + hint
            )  # fmt: skip
