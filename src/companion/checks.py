"""Checks of arguments: one line that names the argument, its value and what is allowed."""

from __future__ import annotations

import math
from collections.abc import Callable, Collection
from numbers import Integral
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:  # importing torch takes seconds
    from torch import Tensor


def whole(least: int, **values: object) -> None:
    """Raise ValueError for what is not a whole number of at least `least`."""
    for name, value in values.items():
        if not isinstance(value, Integral) or isinstance(value, bool) or value < least:
            raise ValueError(f"{name} = {value!r}: expected a whole number, at least {least}")


def seeds(bits: int = 63, **values: Any) -> None:
    """Raise ValueError for what is no collection of seeds, whole numbers of so many bits."""
    for name, given in values.items():
        if not isinstance(given, Collection) or isinstance(given, (str, bytes)):
            raise ValueError(f"{name} = {given!r}: expected a list of whole numbers")
        for seed in given:
            fine = isinstance(seed, Integral) and not isinstance(seed, bool)
            if not fine or int(seed).bit_length() > bits:
                raise ValueError(
                    f"{name} = {list(given)!r}: element {seed!r}: expected a whole number of at "
                    f"most {bits} bits"
                )


def number(allows: Callable[[Any], bool], expected: str, **values: Any) -> None:
    """Raise ValueError, which says what was expected, for what is not a finite number that is
    allowed, whatever its type.
    """
    for name, value in values.items():
        try:
            fine = math.isfinite(value) and allows(value)
        except (TypeError, ValueError, RuntimeError, OverflowError):  # of text, None, arrays, ...
            fine = False
        if not fine:
            raise ValueError(f"{name} = {value!r}: expected {expected}")


def at_least(least: float, **values: Any) -> None:
    """Raise ValueError for what is not a finite number of at least `least`."""
    number(lambda value: value >= least, f"a finite number, at least {least}", **values)


def above(least: float, **values: Any) -> None:
    """Raise ValueError for what is not a finite number above `least`."""
    number(lambda value: value > least, f"a finite number above {least}", **values)


def fraction(**values: Any) -> None:
    """Raise ValueError for what is not a number in [0, 1)."""
    number(lambda value: 0 <= value < 1, "a number in [0, 1)", **values)


def one_of(allowed: Collection[object], **values: object) -> None:
    """Raise ValueError for what is none of the allowed values."""
    for name, value in values.items():
        try:
            known = value in allowed
        except (TypeError, ValueError, RuntimeError):  # lists are no keys, arrays no truth
            known = False
        if not known:
            raise ValueError(
                f"{name} = {value!r}: expected one of {', '.join(map(repr, allowed))}"
            )


def random_source(**values: Any) -> None:
    """Raise ValueError for what is no torch.Generator, such as the number of a seed."""
    import torch

    for name, value in values.items():
        if not isinstance(value, torch.Generator):
            raise ValueError(
                f"{name} = {value!r}: expected a torch.Generator, such as "
                "torch.Generator().manual_seed(0)"
            )


def tensors(**values: object) -> None:
    """Raise ValueError for what is no tensor, such as an array of NumPy."""
    import torch

    for name, value in values.items():
        if not isinstance(value, torch.Tensor):
            kind = type(value).__name__
            how = f": torch.from_numpy({name})" if kind == "ndarray" else ""
            raise ValueError(f"{name}: {kind}, expected a tensor{how}")


_tensors = tensors  # where arguments have that name


def tensor_of_labels(**values: object) -> None:
    """Raise ValueError for labels that are no tensor, such as a list or a column of a table."""
    import torch

    for name, labels in values.items():
        if not isinstance(labels, torch.Tensor):
            raise ValueError(
                f"{name}: {type(labels).__name__}, expected a tensor of labels: "
                f"torch.tensor(numpy.asarray({name}))"
            )


def one_dtype(**tensors: Tensor) -> None:
    """Raise ValueError unless all are tensors of one floating dtype."""
    _tensors(**tensors)
    kinds = {tensor.dtype for tensor in tensors.values()}
    if len(kinds) > 1 or not next(iter(kinds)).is_floating_point:
        each = ", ".join(str(tensor.dtype) for tensor in tensors.values())
        raise ValueError(f"{', '.join(tensors)} = {each}: expected one floating dtype")


def boolean(shape: tuple[int, ...] | None = None, **masks: Tensor) -> None:
    """Raise ValueError for a mask that is not boolean, or not of a shape."""
    for name, mask in masks.items():
        kind = str(getattr(mask, "dtype", type(mask).__name__))
        if kind != "torch.bool":
            raise ValueError(f"{name}: {kind}, expected a boolean mask")
        if shape is not None and tuple(mask.shape) != tuple(shape):
            raise ValueError(f"{name} {tuple(mask.shape)}: expected the shape {tuple(shape)}")


def images(*, empty: bool = False, **values: object) -> None:
    """Raise ValueError for what is no batch of images, a tensor (images, channels, height, width).

    empty: whether a batch without images will do.
    """
    for name, value in values.items():
        if hasattr(value, "shape"):
            tensors(**{name: value})
        shape = tuple(getattr(value, "shape", ()))
        if len(shape) != 4 or (not empty and not shape[0]):
            what = f"shape {shape}" if hasattr(value, "shape") else type(value).__name__
            hint = "; one image is x[None]" if len(shape) == 3 else ""
            raise ValueError(
                f"{name}: {what}, expected (images, channels, height, width)"
                + ("" if empty else ", at least one image") + hint
            )  # fmt: skip


def generators(**values: Any) -> None:
    """Raise ValueError for what is neither a `torch.Generator` of the CPU nor None.

    An int would be a seed: it is not taken, because two calls with it would draw the same.
    """
    given = {name: value for name, value in values.items() if value is not None}
    random_source(**given)
    for name, value in given.items():
        if value.device.type != "cpu":
            raise ValueError(f"{name}: on {value.device}, expected a torch.Generator of the CPU")
