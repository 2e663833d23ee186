"""How good a forecast of paths is, and how paths are drawn over a scene.

Shapes: a path is (..., steps, 2), samples of it are (..., samples, steps, 2); the leading axes
are scenes and agents. Lengths are in the unit of the positions, usually metres.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from matplotlib.axes import Axes
from torch import Tensor

from companion.data.files import open_picture
from companion.data.trajectories import Tracks
from companion.figures import COLOURS


def constant_velocity(past: Tensor, steps: int) -> Tensor:
    """Go on as in the last seen step: past (..., obs, 2) to a path (..., steps, 2).

    Raises ValueError for fewer than two seen steps or less than one to go.
    """
    if past.shape[-2] < 2:
        raise ValueError(f"past: {past.shape[-2]} step(s) seen, expected at least 2")
    if steps < 1:
        raise ValueError(f"steps = {steps!r}: expected at least 1")
    ahead = torch.arange(1, steps + 1, dtype=past.dtype, device=past.device)
    last = past[..., -1:, :]
    return last + ahead[:, None] * (last - past[..., -2:-1, :])


def displacement(path: Tensor, truth: Tensor) -> Tensor:
    """Distance at every step: (..., steps)."""
    return (path - truth).norm(dim=-1)


def ade(path: Tensor, truth: Tensor) -> Tensor:
    """Average displacement error of each path: (...)."""
    return displacement(path, truth).mean(-1)


def fde(path: Tensor, truth: Tensor) -> Tensor:
    """Displacement error of each path at its last step: (...)."""
    return displacement(path[..., -1, :], truth[..., -1, :])


def min_ade(samples: Tensor, truth: Tensor) -> Tensor:
    """Average displacement error of the best sample of each agent: (...).

    Every agent picks its own best, so the picked ones need not belong together.
    """
    return ade(samples, truth[..., None, :, :]).amin(-1)


def min_fde(samples: Tensor, truth: Tensor) -> Tensor:
    """Last displacement error of the sample that ends nearest: (...)."""
    return fde(samples, truth[..., None, :, :]).amin(-1)


def miss_rate(samples: Tensor, truth: Tensor, radius: float = 2.0) -> Tensor:
    """Share of agents none of whose samples ends within `radius` of the truth: a number."""
    return (min_fde(samples, truth) > radius).to(samples.dtype).mean()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of the values (scenes, agents) where the mask is True.

    Raises ValueError if it is True nowhere.
    """
    if not mask.any():
        raise ValueError("mask: it is True nowhere, so there is nothing to take the mean of")
    return values[mask].mean()


def nearest_distance(
    paths: Tensor, mask: Tensor | None = None, *, between_steps: bool = False
) -> Tensor:
    """How close each two agents come at the same time: (..., agents, agents).

    paths: (..., agents, steps, 2). Infinite on the diagonal and for pairs that the mask
    (..., agents) leaves out. between_steps: also between the steps, where all walk straight.
    """
    apart = paths[..., :, None, :, :] - paths[..., None, :, :, :]
    shortest = apart.norm(dim=-1).amin(-1)
    if between_steps and paths.shape[-2] > 1:
        before, step = apart[..., :-1, :], apart.diff(dim=-2)
        # the point of each segment that is nearest to the origin
        along = -(before * step).sum(-1) / step.square().sum(-1).clamp_min(1e-12)
        nearest = (before + along.clamp(0, 1)[..., None] * step).norm(dim=-1)
        shortest = shortest.minimum(nearest.amin(-1))
    alone = torch.eye(paths.shape[-3], dtype=torch.bool, device=paths.device)
    shortest = shortest.masked_fill(alone, torch.inf)
    if mask is not None:
        pair = mask[..., :, None] & mask[..., None, :]
        shortest = shortest.masked_fill(~pair, torch.inf)
    return shortest


def collision_rate(
    paths: Tensor, radius: float, mask: Tensor | None = None, *, between_steps: bool = False
) -> Tensor:
    """Share of scenes in which some two agents come nearer than `radius`: a number.

    paths: (..., agents, steps, 2), all leading axes (scenes, samples) are counted.
    mask and between_steps: as in `nearest_distance`.
    """
    nearest = nearest_distance(paths, mask, between_steps=between_steps)
    return (nearest.flatten(-2).amin(-1) < radius).to(paths.dtype).mean()


def modified_hausdorff(first: Tensor, second: Tensor) -> Tensor:
    """Modified Hausdorff distance of two paths, as sets of points (Dubuisson and Jain, 1994).

    first: (..., n, 2), second: (..., m, 2). The larger of the two mean distances from a point
    of one to the nearest of the other: (...).
    """
    apart = torch.cdist(first, second)
    return torch.maximum(apart.amin(-1).mean(-1), apart.amin(-2).mean(-1))


def plot_paths(
    axes: Axes,
    paths: Tensor | np.ndarray,
    *,
    colour: str | Sequence[str] = "blue",
    **style: object,
) -> None:
    """Draw paths (n, steps, 2) as lines that end in a dot; one colour, or one each.

    Colours are names of `companion.figures.COLOURS` or anything that matplotlib takes.
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
    """Draw the tracks over the reference picture (in pixels), or over metres without one.

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
    unit = "pixel" if over or tracks.unit == "px" else "m"
    axes.set(xlabel=f"x ({unit})", ylabel=f"y ({unit})")


def _picture(tracks: Tracks) -> np.ndarray:
    return np.asarray(open_picture(tracks.picture, "L").convert("RGB"))
