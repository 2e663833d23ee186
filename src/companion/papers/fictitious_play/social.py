"""How the expected places of others enter a pedestrian's reward."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

CUT = 3.0  # a Gaussian ends after this many standard deviations along each axis


def smooth(maps: Tensor, sigma_m: float, cell_m: float) -> Tensor:
    """Correlate maps with a Gaussian of peak 1, a side at a time.

    The Gaussian is cut off `CUT` standard deviations away along each axis; beyond the border there is
    nothing.

    Args:
        maps: shape (..., H, W).
        sigma_m: standard deviation, metres, above 0.
        cell_m: side of a cell, metres.

    Raises:
        ValueError: for a width that is not above 0.
    """
    if not sigma_m > 0:
        raise ValueError(f"sigma_m = {sigma_m!r}: expected a length above 0")
    rows, columns = (_band(size, sigma_m / cell_m).to(maps) for size in maps.shape[-2:])
    return rows @ (maps @ columns)


def _band(size: int, sigma: float) -> Tensor:
    places = torch.arange(size, dtype=torch.float64)
    gap = (places[:, None] - places).abs() / sigma
    return torch.where(gap <= CUT, torch.exp(-0.5 * gap**2), 0.0)


def expected_others(D: Tensor, pair_mask: Tensor) -> Tensor:
    """Σ_j M_ij D_j for every agent i and step.

    Args:
        D: occupancies of shape (T + 1, N, H, W).
        pair_mask: shape (N, N), true or 1 where agent j matters to agent i.

    Returns:
        The shape of D.

    Raises:
        ValueError: for a mask of another shape.
    """
    if tuple(pair_mask.shape) != (D.shape[1], D.shape[1]):
        raise ValueError(
            f"pair_mask {tuple(pair_mask.shape)}: expected {(D.shape[1],) * 2} for these maps"
        )
    # scenes are blocks of the mask, so nearly all of it is zero
    links = pair_mask.to(D).to_sparse()
    flat = D.transpose(0, 1).flatten(1)
    steps, agents, *size = D.shape
    return torch.sparse.mm(links, flat).view(agents, steps, *size).transpose(0, 1)


def social_features(
    D: Tensor, pair_mask: Tensor, sigmas_m: Sequence[float], *, cell_m: float
) -> Tensor:
    """Nearness of others where and when a step ends, φ_{i,t,m} = Σ_j M_ij G_m * D_{j,t+1}.

    Args:
        D: occupancies of shape (T + 1, N, H, W).
        pair_mask: shape (N, N), true or 1 where agent j matters to agent i.
        sigmas_m: widths of the M Gaussians, metres.
        cell_m: side of a cell, metres.

    Returns:
        Shape (T, N, M, H, W): entry t belongs to the reward of the step that ends at t + 1.

    Raises:
        ValueError: for a mask of another shape, and widths that are not above 0.
    """
    others = expected_others(D, pair_mask)[1:]
    near = [
        smooth(others, sigma, cell_m)  # eq. (8.4)
        for sigma in sigmas_m
    ]
    return torch.stack(near, 2)


def at_cells(grid_shape: Sequence[int], cells: Tensor, dtype: torch.dtype) -> Tensor:
    """Occupancies of agents that are known to be at cells; one off the grid occupies nothing.

    Args:
        grid_shape: (H, W).
        cells: shape (T + 1, N, 2).
        dtype: of the maps.

    Returns:
        Shape (T + 1, N, H, W).
    """
    steps, agents, _ = cells.shape
    maps = torch.zeros(steps, agents, *grid_shape, dtype=dtype, device=cells.device)
    size = torch.tensor(grid_shape, device=cells.device)
    inside = ((cells >= 0) & (cells < size)).all(-1)
    when, who = inside.nonzero(as_tuple=True)
    maps[when, who, cells[inside][:, 0], cells[inside][:, 1]] = 1
    return maps


def social_cost(weights: Sequence[float], sigmas_m: Sequence[float]) -> float:
    """Repulsion integrated over the plane, 2π Σ_m w_m σ_m².

    Args:
        weights: w_m, nats.
        sigmas_m: as many widths, metres.

    Returns:
        In nats m².

    >>> round(social_cost([4.0, 1.0], [0.35, 0.9]), 3)
    8.168
    """
    return 2 * torch.pi * sum(w * s**2 for w, s in zip(weights, sigmas_m, strict=True))
