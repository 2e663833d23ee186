"""S2: sequentially thresholded least squares, with one decision for all environments."""

from __future__ import annotations

import torch
from torch import Tensor

from companion.checks import at_least
from companion.papers.spreme.derivative import Gram

ROUNDS = 20  # as pysindy's STLSQ


def solve(gram: Gram, support: Tensor, ridge: float = 0.0) -> Tensor:
    """Least squares on a support.

    Columns that depend on each other share their coefficient (the solution of least norm).

    Args:
        gram: the problems of E environments.
        support: boolean (or coefficients, for the terms that are not zero), broadcastable to
            (..., E, n, p).
        ridge: on columns scaled to unit mean square over all environments.

    Returns:
        Coefficients of shape (..., E, n, p), zero off the support.
    """
    G, c = gram.G[..., None, :, :], gram.c
    square = torch.diagonal(gram.G, dim1=-2, dim2=-1)
    mean = square.mean(-2, keepdim=True)
    inverse = torch.where(mean > 0, mean.rsqrt(), 0)[..., None, :]  # (..., 1, 1, p)
    keep = support.bool().to(G.dtype) * (gram.q[..., None] > 0)
    weight = keep * inverse * (square > 0)[..., None, :]  # (..., E, n, p)
    within = weight != 0
    most, p = int(within.sum(-1).max()) if within.numel() else 0, weight.shape[-1]
    few = 2 * most <= p
    if few:  # a smaller problem: the columns that are in come first
        first = within.byte().argsort(dim=-1, descending=True, stable=True)[..., :most]
        weight, c = weight.gather(-1, first), c.expand_as(weight).gather(-1, first)
        G = G.expand(*first.shape[:-1], p, p).gather(-2, first[..., None].expand(*first.shape, p))
        G = G.gather(-1, first[..., None, :].expand(*first.shape, most))
    system = weight[..., :, None] * G * weight[..., None, :]
    # the diagonal of a column that is out, or always zero, is one: its coefficient is zero
    idle = (weight == 0).to(G.dtype)
    system = system + torch.diag_embed(idle + ridge * (1 - idle))
    # by each environment's own columns: a small one is no dependent one
    size = torch.diagonal(system, dim1=-2, dim2=-1)
    own = torch.where(size > 0, size.rsqrt(), 0)
    system = own[..., :, None] * system * own[..., None, :]
    target = (own * weight * c)[..., None]
    factor, info = torch.linalg.cholesky_ex(system)
    solution = torch.cholesky_solve(target, factor)
    # dependent columns may pass with a pivot of mere round-off
    bad = (info != 0) | (torch.diagonal(factor, dim1=-2, dim2=-1) < 1e-6).any(-1)
    if bad.any():
        solution[bad] = torch.linalg.pinv(system[bad], rtol=1e-13, hermitian=True) @ target[bad]
    found = solution[..., 0] * own * weight
    return found.new_zeros(within.shape).scatter(-1, first, found) if few else found


def group_stlsq(
    gram: Gram, threshold: float, ridge: float = 1e-6, *, shared: bool = True
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Drop terms whose coefficients are small, refit, and so on until none is dropped.

    A term is small if the root mean square of its raw coefficients over the environments is below
    the threshold.

    Args:
        gram: the problems of E environments.
        threshold: on raw coefficients, at least 0.
        ridge: on scaled columns, at least 0.
        shared: False looks at each environment by itself, which is pysindy's STLSQ on every
            environment at once.

    Returns:
        Coefficients (..., E, n, p) of a last fit without ridge; the support (..., n, p) or, not
        shared, (..., E, n, p); and the support after every round.

    Raises:
        ValueError: for a threshold or ridge below 0.
    """
    path = thresholded(gram, threshold, ridge, shared=shared)
    support = path[-1]
    return solve(gram, support[..., None, :, :] if shared else support), support, path


def thresholded(
    gram: Gram, threshold: float, ridge: float, *, shared: bool, full: Tensor | None = None
) -> list[Tensor]:
    """The supports of `group_stlsq`: all terms, and what is left after every round.

    Args:
        gram: as `group_stlsq`.
        threshold: as `group_stlsq`.
        ridge: as `group_stlsq`.
        shared: as `group_stlsq`.
        full: the coefficients of all terms at this ridge, for several thresholds on one problem.

    Raises:
        ValueError: as `group_stlsq`.
    """
    at_least(0, threshold=threshold, ridge=ridge)
    support = torch.ones_like(gram.c[..., 0, :, :] if shared else gram.c, dtype=torch.bool)
    coefficients = solve(gram, torch.ones_like(gram.c), ridge) if full is None else full
    path = [support]
    for _ in range(ROUNDS):
        size = coefficients.abs()
        if shared:  # eq. (7.4)
            size = coefficients.square().mean(-3).sqrt()
        kept = support & (size >= threshold) & (size > 0)
        path.append(kept)
        if torch.equal(kept, support):
            break
        support = kept
        coefficients = solve(gram, support[..., None, :, :] if shared else support, ridge)
    return path
