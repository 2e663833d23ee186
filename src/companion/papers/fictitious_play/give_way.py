"""Two people in a doorway: a game in which one has to give way.

Both choose left or right in a common frame and pay c if they choose the same. The soft best
response to an opponent who goes left with probability p' is p = σ(c (1 - 2p')).
"""

from __future__ import annotations

import math

import numpy as np
from scipy.optimize import brentq
from scipy.special import expit

from companion.checks import whole


def soft_response(other: np.ndarray | float, cost: float) -> np.ndarray | float:
    """σ(c (1 - 2p')): how often to go left against somebody who does with probability p'."""
    return expit(cost * (1 - 2 * np.asarray(other)))


def equilibria(cost: float) -> list[tuple[float, float]]:
    """All equilibria (p, p') of the give-way game, the symmetric one first.

    For c > 2 there are two more, in which one gives way: p = σ(c (2p - 1)), p' = 1 - p.

    Args:
        cost: c, of choosing the same side.

    >>> len(equilibria(1.9)), len(equilibria(2.1))
    (1, 3)
    """
    if cost <= 2:
        return [(0.5, 0.5)]
    # just above c = 2 the root leaves 1/2 as sqrt(3 (c - 2) / 8)
    if cost - 2 < 1e-6:  # where rounding hides the sign that brentq looks for
        high = 0.5 + math.sqrt(3 * (cost - 2) / 8)
    else:
        low = 0.5 + 0.25 * min(1.0, np.sqrt(cost - 2)) * 1e-2
        high = brentq(lambda p: expit(cost * (2 * p - 1)) - p, low, 1.0, xtol=1e-14)
    return [(0.5, 0.5), (high, 1 - high), (1 - high, high)]


def play_give_way(
    cost: float, start: tuple[float, float], rounds: int, *, average: bool
) -> np.ndarray:
    """Beliefs under simultaneous responses.

    Args:
        cost: c, of choosing the same side.
        start: first beliefs (p, p'), 0 to 1.
        rounds: at least 0.
        average: over all rounds so far, or respond to the last one.

    Returns:
        An array of shape (rounds + 1, 2).

    Raises:
        ValueError: for a negative number of rounds.
    """
    whole(0, rounds=rounds)
    beliefs = [np.array(start, dtype=float)]
    for k in range(1, rounds + 1):
        now = beliefs[-1]
        rate = 1 / (k + 1) if average else 1.0
        beliefs.append(now + rate * (soft_response(now[::-1], cost) - now))
    return np.stack(beliefs)
