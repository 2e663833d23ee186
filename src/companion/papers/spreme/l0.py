"""S3: the best subset of terms, by exhaustive search, for all environments together."""

from __future__ import annotations

import itertools
import math
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import threshold

from companion.checks import at_least, whole
from companion.papers.spreme.derivative import Gram

MOST = 20_000_000  # subsets of one size that a search may meet
CACHE = 2**19  # numbers of a piece on the CPU, in arrays of 1 MB
DEPENDENT = 1e-13  # a column with less than this of itself left adds nothing


def subsets(p: int, k: int) -> Tensor:
    """All subsets of k of p columns, shape (C, k), in lexicographic order; the caller's to write to.

    Raises:
        ValueError: for negative numbers and where there are too many to search.

    >>> subsets(3, 2).tolist()
    [[0, 1], [0, 2], [1, 2]]
    """
    return all_subsets(p, k).clone()


@lru_cache(maxsize=16)
def all_subsets(p: int, k: int) -> Tensor:
    """`subsets` as the searches share them: not to be written to.

    Raises:
        ValueError: as `subsets`.
    """
    whole(0, p=p, k=k)
    count = math.comb(p, k)
    if count > MOST:
        raise ValueError(f"max_terms = {k}: {count:,} subsets of {p} terms, at most {MOST:,}")
    flat = itertools.chain.from_iterable(itertools.combinations(range(p), k))
    return torch.from_numpy(np.fromiter(flat, np.int64, count * k).reshape(count, k))


def residuals(gram: Gram, chosen: Tensor) -> Tensor:
    """What each subset leaves of the targets, rho(S) / q.

    A Cholesky factorisation of every k by k problem, one entry of all of them at a time. Columns
    that depend on earlier ones of their subset add nothing.

    Args:
        gram: the problems of E environments.
        chosen: shape (C, k), columns.

    Returns:
        Shape (..., E, n, C), 1 where q is 0.
    """
    scale = torch.diagonal(gram.G, dim1=-2, dim2=-1).clamp_min(0).sqrt()
    inverse = torch.where(scale > 0, 1 / scale, 0)
    G = (inverse[..., :, None] * gram.G * inverse[..., None, :]).flatten(-2)
    size = torch.where(gram.q > 0, gram.q.sqrt(), 1)
    c = gram.c * inverse[..., None, :] / size[..., None]
    p = scale.shape[-1]
    columns = chosen.to(G.device).T

    def pick(values: Tensor, places: Tensor) -> Tensor:
        """values[..., places], which takes several times as long."""
        return values.gather(-1, places.expand(*values.shape[:-1], -1))

    # in place: fresh memory costs more than what is computed in it
    left = torch.ones((*c.shape[:-1], len(chosen)), dtype=G.dtype, device=G.device)
    factor: list[list[Tensor]] = []  # rows, without the first diagonal entry, which is 1
    solved: list[Tensor] = []
    for a, column in enumerate(columns):
        row: list[Tensor] = []
        target = pick(c, column)
        if a:
            rest = torch.ones((*G.shape[:-1], len(chosen)), dtype=G.dtype, device=G.device)
        for b in range(a):
            entry = pick(G, columns[b] * p + column)
            for m in range(b):
                entry.addcmul_(row[m], factor[b][m], value=-1)
            if b:
                entry.mul_(factor[b][b])
            row.append(entry)
            rest.addcmul_(entry, entry, value=-1)
            target.addcmul_(entry[..., None, :], solved[b], value=-1)
        if a:
            # the inverse of the diagonal entry; none for a column that depends on others
            row.append(threshold(rest, DEPENDENT, math.inf, inplace=True).rsqrt_())
            target.mul_(row[a][..., None, :])
        factor.append(row)
        solved.append(target)
        left.addcmul_(target, target, value=-1)  # rho(S) / q, column by column
    return torch.where(gram.q[..., None] > 0, left.clamp_min_(0), 1)


def effective_samples(gram: Gram) -> Tensor:
    """Independent rows of each environment, (E,): readings over the window, at least 3."""
    return (gram.samples / gram.window).clamp_min(3)


def scores(gram: Gram, chosen: Tensor, epsilon: float = 1e-4) -> Tensor:
    """Each environment's share of the criterion for given subsets.

    The criterion of several environments is the sum of their shares, so that a search over subsets
    of environments computes this once.

    Args:
        gram: the problems of E environments.
        chosen: shape (C, k), columns.
        epsilon: fraction of a target's energy that is attributed to quadrature.

    Returns:
        Shape (..., E, n, C).
    """
    return criterion(gram, residuals(gram, chosen), chosen.shape[1], epsilon)


def criterion(gram: Gram, rho: Tensor, k: int, epsilon: float) -> Tensor:
    """`scores` of subsets of k columns from what they leave of the targets, rho (..., E, n, C)."""
    M = effective_samples(gram)[:, None, None]
    penalty = k * M.log()
    # rho is over q
    return M * torch.log(rho + epsilon) + penalty  # eq. (7.3)


def best_subsets(
    gram: Gram, max_terms: int = 3, epsilon: float = 1e-4, *, shared: bool = True
) -> list[tuple[Tensor, Tensor]]:
    """Find the best subset of every size, for every state by itself.

    Args:
        gram: the problems of E environments.
        max_terms: largest size, at least 0.
        epsilon: as in `scores`, at least 0.
        shared: one subset for all environments; else each environment has its own.

    Returns:
        For k = 0, 1, ...: columns (..., n, k) or (..., E, n, k), and the criterion without the
        last dimension.

    Raises:
        ValueError: for a negative max_terms or one with too many subsets.
    """
    whole(0, max_terms=max_terms)
    at_least(0, epsilon=epsilon)
    E, n, p = gram.c.shape[-3:]
    lead = gram.c.shape[:-3]
    flat = Gram(
        gram.G.reshape(-1, E, p, p), gram.c.reshape(-1, E, n, p), gram.q.reshape(-1, E, n),
        gram.samples, gram.window,
    )  # fmt: skip
    most = CACHE if flat.G.device.type == "cpu" else 16 * CACHE  # fewer launches
    shape = (*lead, n) if shared else (*lead, E, n)
    found = []
    for k in range(min(max_terms, p) + 1):
        every = all_subsets(p, k)
        # as much of the batch, then of the subsets, as fits
        cases = max(1, most // (4 * E * n * len(every)))
        some = max(1, most // (4 * E * n * cases))
        columns, values = [], []
        for first in range(0, len(flat.q), cases):
            part = slice(first, first + cases)
            piece = Gram(flat.G[part], flat.c[part], flat.q[part], flat.samples, flat.window)
            best: Tensor | None = None
            for chosen in every.split(some):
                rho = residuals(piece, chosen)
                # of one environment the criterion is least where the residual is
                share = criterion(piece, rho, k, epsilon).sum(-3) if shared else rho
                value, place = share.min(-1)
                which = chosen.to(place.device)[place]
                if best is None:
                    best, kept = value, which
                else:
                    kept = torch.where((value < best)[..., None], which, kept)
                    best = torch.minimum(value, best)
            assert best is not None  # there is a subset of every size
            columns.append(kept)
            values.append(
                best if shared else criterion(piece, best[..., None], k, epsilon)[..., 0]
            )
        found.append((torch.cat(columns).reshape(*shape, k), torch.cat(values).reshape(shape)))
    return found


def select(path: list[tuple[Tensor, Tensor]], p: int) -> tuple[Tensor, Tensor]:
    """Choose the size of least criterion.

    Args:
        path: as `best_subsets` returns it.
        p: number of terms.

    Returns:
        The support, boolean (..., p), and its criterion (...).
    """
    criterion = torch.stack([value for _, value in path], -1)
    best, size = criterion.min(-1)
    support = torch.zeros((*best.shape, p), dtype=torch.bool, device=best.device)
    for k, (columns, _) in enumerate(path):
        chosen = torch.zeros_like(support).scatter_(-1, columns, True)
        support |= chosen & (size == k)[..., None]
    return support, best
