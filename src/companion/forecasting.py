"""How good a forecast of paths is, and how paths are drawn over a scene.

Shapes: a path is (..., steps, 2), samples of it are (..., samples, steps, 2); the leading axes
are scenes and agents. Lengths are in the unit of the positions, usually metres. A position that
is NaN, such as of an agent who is not forecast, makes every measure that it enters NaN: leave
such agents out first.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor, nn

from companion.checks import boolean
from companion.data.files import open_picture
from companion.data.trajectories import Tracks
from companion.figures import COLOURS


def constant_velocity(past: Tensor, steps: int) -> Tensor:
    """Go on as in the last seen step.

    Args:
        past: shape (..., obs, 2), at least two steps.
        steps: how many to go, at least 1.

    Returns:
        Shape (..., steps, 2).

    Raises:
        ValueError: for fewer than two seen steps or less than one to go.

    >>> constant_velocity(torch.tensor([[0.0, 0.0], [1.0, 0.5]]), 2).tolist()
    [[2.0, 1.0], [3.0, 1.5]]
    """
    if past.ndim < 2 or past.shape[-1] != 2:
        raise ValueError(f"past {tuple(past.shape)}: expected (..., steps, 2)")
    if past.shape[-2] < 2:
        raise ValueError(f"past: {past.shape[-2]} step(s) seen, expected at least 2")
    if steps < 1:
        raise ValueError(f"steps = {steps!r}: expected at least 1")
    ahead = torch.arange(1, steps + 1, dtype=past.dtype, device=past.device)
    last = past[..., -1:, :]
    return last + ahead[:, None] * (last - past[..., -2:-1, :])


def displacement(path: Tensor, truth: Tensor) -> Tensor:
    """Distance at every step.

    Args:
        path: shape (..., steps, 2).
        truth: of as many steps; its leading axes broadcast.

    Returns:
        Shape (..., steps).

    Raises:
        ValueError: for another number of steps, for none, and for positions of integers alone.
    """
    if path.ndim < 2 or path.shape[-1] != 2 or path.shape[-2:] != truth.shape[-2:]:
        raise ValueError(
            f"path, truth {tuple(path.shape)}, {tuple(truth.shape)}: expected (..., steps, 2) of "
            "as many steps"
        )
    if not path.shape[-2]:
        raise ValueError(f"path {tuple(path.shape)}: expected at least one step")
    _floating(path=path, truth=truth)
    return (path - truth).norm(dim=-1)


def _floating(**positions: Tensor) -> None:
    """Raise ValueError for positions of integers alone: they have no mean and no norm."""
    if not any(value.is_floating_point() for value in positions.values()):
        each = ", ".join(str(value.dtype) for value in positions.values())
        raise ValueError(f"{', '.join(positions)}: {each}, expected floating-point positions")


def ade(path: Tensor, truth: Tensor) -> Tensor:
    """Average displacement error of each path, shape (...); arguments as in `displacement`.

    Raises:
        ValueError: as `displacement`.

    >>> ade(torch.zeros(3, 2), torch.tensor([[3.0, 4.0], [0.0, 0.0], [0.0, 1.0]])).item()
    2.0
    """
    return displacement(path, truth).mean(-1)


def fde(path: Tensor, truth: Tensor) -> Tensor:
    """Displacement error of each path at its last step, shape (...).

    Raises:
        ValueError: as `displacement`.
    """
    return displacement(path, truth)[..., -1]


def _one_truth(samples: Tensor, truth: Tensor) -> Tensor:
    """The truth with an axis for the samples, of which each has to be a path of it."""
    if samples.ndim < 3 or (*samples.shape[:-3], *samples.shape[-2:]) != tuple(truth.shape):
        raise ValueError(
            f"samples, truth {tuple(samples.shape)}, {tuple(truth.shape)}: expected "
            "(..., samples, steps, 2) and (..., steps, 2)"
        )
    if not samples.shape[-3]:
        raise ValueError(f"samples {tuple(samples.shape)}: expected at least one sample")
    return truth[..., None, :, :]


def min_ade(samples: Tensor, truth: Tensor) -> Tensor:
    """Average displacement error of the best sample of each agent.

    Every agent picks its own best, so the picked ones need not belong together.

    Args:
        samples: shape (..., samples, steps, 2).
        truth: shape (..., steps, 2).

    Returns:
        Shape (...).

    Raises:
        ValueError: for shapes that disagree.
    """
    return ade(samples, _one_truth(samples, truth)).amin(-1)


def min_fde(samples: Tensor, truth: Tensor) -> Tensor:
    """Last displacement error of the sample that ends nearest; arguments as in `min_ade`.

    Raises:
        ValueError: for shapes that disagree.
    """
    return fde(samples, _one_truth(samples, truth)).amin(-1)


def miss_rate(samples: Tensor, truth: Tensor, radius: float = 2.0) -> Tensor:
    """Fraction of agents none of whose samples ends within a radius of the truth.

    Args:
        samples: shape (..., samples, steps, 2).
        truth: shape (..., steps, 2).
        radius: in the unit of the positions.

    Returns:
        A number from 0 to 1; NaN if an agent's distance is.

    Raises:
        ValueError: for shapes that disagree, and for no agent.
    """
    error = min_fde(samples, truth)
    return _share(error > radius, error.to(samples.dtype), samples=samples)


def _share(hits: Tensor, values: Tensor, **given: Tensor) -> Tensor:
    """The fraction of hits among values; a comparison with NaN is none."""
    for name, tensor in given.items():
        if not values.numel():
            raise ValueError(f"{name} {tuple(tensor.shape)}: nothing to take a fraction of")
    return hits.to(values.dtype).masked_fill(values.isnan(), torch.nan).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values where a boolean mask of their shape is True.

    Raises:
        ValueError: for another mask, and if it is True nowhere.
    """
    boolean(values.shape, mask=mask)
    if not mask.any():
        raise ValueError("mask: it is True nowhere, so there is nothing to take the mean of")
    return values[mask].mean()


def nearest_distance(
    paths: Tensor, mask: Tensor | None = None, *, between_steps: bool = False
) -> Tensor:
    """How close each two agents come at the same time.

    Args:
        paths: shape (..., agents, steps, 2).
        mask: boolean, shape (..., agents), who is there; all by default.
        between_steps: also between the steps, where all walk straight.

    Returns:
        Shape (..., agents, agents); infinite on the diagonal and for pairs that the mask leaves
        out.

    Raises:
        ValueError: for a mask that is not boolean, for no step, and for integers.
    """
    if paths.ndim < 3 or paths.shape[-1] != 2 or not paths.shape[-2]:
        raise ValueError(
            f"paths {tuple(paths.shape)}: expected (..., agents, steps, 2), at least one step"
        )
    _floating(paths=paths)
    apart = paths[..., :, None, :, :] - paths[..., None, :, :, :]
    shortest = apart.norm(dim=-1).amin(-1)
    if between_steps and paths.shape[-2] > 1:
        before, step = apart[..., :-1, :], apart.diff(dim=-2)
        # the point of each segment that is nearest to the origin
        square = step.square().sum(-1)
        along = -(before * step).sum(-1) / square.where(square > 0, 1)
        nearest = (before + along.clamp(0, 1)[..., None] * step).norm(dim=-1)
        shortest = shortest.minimum(nearest.amin(-1))
    alone = torch.eye(paths.shape[-3], dtype=torch.bool, device=paths.device)
    shortest = shortest.masked_fill(alone, torch.inf)
    if mask is not None:
        boolean(mask=mask)
        pair = mask[..., :, None] & mask[..., None, :]
        shortest = shortest.masked_fill(~pair, torch.inf)
    return shortest


def collision_rate(
    paths: Tensor, radius: float, mask: Tensor | None = None, *, between_steps: bool = False
) -> Tensor:
    """Fraction of scenes in which some two agents come nearer than a radius.

    Args:
        paths: shape (..., agents, steps, 2); all leading axes (scenes, samples) are counted.
        radius: in the unit of the positions.
        mask: boolean, shape (..., agents), who is there; all by default.
        between_steps: also between the steps, where all walk straight.

    Returns:
        A number from 0 to 1; a scene with nobody has no collision. NaN if a position of somebody
        who is there is.

    Raises:
        ValueError: for a mask that is not boolean, for no scene and for no step.

    >>> head_on = torch.tensor([[[0.0, 0], [2, 0]], [[2.0, 0], [0, 0]]])
    >>> collision_rate(head_on, 0.5).item(), collision_rate(head_on, 0.5, between_steps=True).item()
    (0.0, 1.0)
    """
    nearest = nearest_distance(paths, mask, between_steps=between_steps).flatten(-2)
    nearest = nn.functional.pad(nearest, (0, 1), value=torch.inf).amin(-1)  # of nobody: infinite
    return _share(nearest < radius, nearest, paths=paths)


def modified_hausdorff(first: Tensor, second: Tensor) -> Tensor:
    """Modified Hausdorff distance of two paths, as sets of points.

    Args:
        first: shape (..., n, 2).
        second: shape (..., m, 2).

    Returns:
        The larger of the two mean distances from a point of one to the nearest of the other,
        shape (...).

    Raises:
        ValueError: for a path without points, points of other than two coordinates, and integers
            alone.

    References:
        Dubuisson and Jain (1994), d22 and f2.
    """
    for name, path in (("first", first), ("second", second)):
        if path.ndim < 2 or not path.shape[-2] or path.shape[-1] != 2:
            raise ValueError(
                f"{name} {tuple(path.shape)}: expected (..., points, 2), at least one"
            )
    _floating(first=first, second=second)
    dtype = torch.promote_types(first.dtype, second.dtype)
    first, second = first.to(dtype), second.to(dtype)
    # not by a matrix product, which for more than 25 points would lose half of the digits
    apart = torch.cdist(first, second, compute_mode="donot_use_mm_for_euclid_dist")
    return torch.maximum(apart.amin(-1).mean(-1), apart.amin(-2).mean(-1))


def plot_paths(
    axes: Axes,
    paths: Tensor | np.ndarray,
    *,
    colour: str | Sequence[str] = "blue",
    **style: Any,
) -> None:
    """Draw paths as lines that end in a dot.

    Args:
        axes: to draw on.
        paths: shape (n, steps, 2).
        colour: one for all, or one each: names of `companion.figures.COLOURS` or anything that
            matplotlib takes.
        style: of the lines, as matplotlib's `plot` takes it.

    Raises:
        ValueError: for another number of colours.
    """
    paths = np.asarray(paths)
    colours = [colour] * len(paths) if isinstance(colour, str) else list(colour)
    if len(colours) != len(paths):
        raise ValueError(f"colour: {len(colours)} for {len(paths)} paths")
    style = {"linewidth": 1.2, **style}
    for path, name in zip(paths, colours, strict=True):
        shade = COLOURS.get(name, name)
        axes.plot(*path.T, color=shade, solid_capstyle="round", **style)
        axes.plot(*path[-1], "o", color=shade, markersize=2.5, alpha=style.get("alpha"))


def plot_tracks(axes: Axes, tracks: Tracks, *, steps: tuple[int, int] | None = None) -> None:
    """Draw tracks over the reference picture (in pixels), or over metres without one.

    Args:
        axes: to draw on.
        tracks: of one scene.
        steps: first and one past the last step to draw; None draws all.
    """
    shown = tracks if steps is None else tracks.between(*steps)
    over = tracks.picture is not None and tracks.to_pixels is not None
    if over:
        axes.imshow(_picture(tracks), alpha=0.55)
    names = [name for name in COLOURS if name not in ("black", "grey")]
    for number, agent in enumerate(shown.agents.tolist()):
        _, path = shown.of(agent)
        path = shown.pixels(path) if over else path
        plot_paths(axes, path[None], colour=names[number % len(names)])
    axes.set_aspect("equal")
    unit = "px" if over else tracks.unit
    axes.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})")


def _picture(tracks: Tracks) -> np.ndarray:
    assert tracks.picture is not None  # as the caller has made sure
    return np.asarray(open_picture(tracks.picture, "L").convert("RGB"))
