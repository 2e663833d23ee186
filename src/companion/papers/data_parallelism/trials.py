"""Trials: quasi-random points in the space of an optimiser's metaparameters."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

SCALES = ("log", "reverse_log", "linear", "integer")
OPTIMIZERS = ("sgd", "momentum", "nesterov")

Space = Mapping[str, tuple[float, float, str]]  # name -> (low, high, scale)


def sobol_points(n: int, dims: int) -> Tensor:
    """The first n unscrambled Sobol points without the zero point, (n, dims), float64.

    The first point is 0.5 in every dimension.

    Raises:
        ValueError: for a number below 1.
    """
    if n < 1:
        raise ValueError(f"n = {n!r}: expected at least one trial")
    engine = torch.quasirandom.SobolEngine(dims)
    return engine.draw(n + 1, dtype=torch.float64)[1:]


def sobol_trials(space: Space, n: int) -> dict[str, Tensor]:
    """n quasi-random values of every metaparameter, each a float64 vector.

    Args:
        space: name -> (low, high, scale). Scales map u in [0, 1]: "log" evenly in the logarithm;
            "reverse_log" evenly in log(1 - value), from `high` at u = 0 to `low` at u = 1 (for
            momenta near 1); "linear"; "integer" as linear, then cut to a whole number.

    Raises:
        ValueError: for an unknown scale or bounds that it does not allow.

    Examples:
        >>> sobol_trials({"lr": (1e-3, 10.0, "log")}, 3)["lr"]
        tensor([0.1000, 1.0000, 0.0100], dtype=torch.float64)
    """
    columns = sobol_points(n, len(space)).unbind(1)
    return {
        name: _mapped(u, name, *bounds)
        for u, (name, bounds) in zip(columns, space.items(), strict=True)
    }


def _mapped(u: Tensor, name: str, low: float, high: float, scale: str) -> Tensor:
    if scale not in SCALES:
        raise ValueError(f"{name}: scale = {scale!r}: expected one of {', '.join(SCALES)}")
    if not low < high:
        raise ValueError(f"{name}: expected low < high, got {low!r} and {high!r}")
    if (scale == "log" and low <= 0) or (scale == "reverse_log" and high >= 1):
        allowed = "low > 0" if scale == "log" else "high < 1"
        raise ValueError(f"{name}: scale {scale!r} needs {allowed}, got {low!r} and {high!r}")
    if scale == "log":
        return 10 ** (math.log10(low) + u * math.log10(high / low))
    if scale == "reverse_log":
        return 1 - 10 ** (math.log10(1 - high) + u * math.log10((1 - low) / (1 - high)))
    value = low + u * (high - low)
    return value.trunc() if scale == "integer" else value


def search_space(
    optimizer: str, lr_range: Sequence[float] = (1e-4, 1.0), max_steps: int = 100_000
) -> dict[str, tuple[float, float, str]]:
    """What the paper searches for each optimiser.

    "sgd": the learning rate. "momentum": also the momentum. "nesterov": also a linear decay,
    whose length lies between 30 and 60 % of the budget (30,000 to 60,000 of 100,000 steps).

    Raises:
        ValueError: for an unknown optimiser or a range that is none.
    """
    if optimizer not in OPTIMIZERS:
        raise ValueError(f"optimizer = {optimizer!r}: expected one of {', '.join(OPTIMIZERS)}")
    if len(lr_range) != 2 or not 0 < lr_range[0] < lr_range[1] < math.inf:
        raise ValueError(f"lr_range = {list(lr_range)!r}: expected two numbers, 0 < low < high")
    space: dict[str, tuple[float, float, str]] = {"lr": (lr_range[0], lr_range[1], "log")}
    if optimizer != "sgd":
        space["momentum"] = (0.9, 0.9999, "reverse_log")
    if optimizer == "nesterov":
        space["decay_steps"] = (0.3 * max_steps, 0.6 * max_steps, "integer")
        space["decay_factor"] = (1e-4, 1e-1, "log")
    return space
