"""Candidate terms: their values, names and symbols, in pysindy's order."""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property, partial

import sympy
import torch
from torch import Tensor

from companion.checks import whole

MOST = 100_000  # monomials


@dataclass(frozen=True)
class Term:
    """A candidate term that is no monomial.

    Args:
        name: maps the states' names to the term's.
        values: maps states of shape (..., n) to values of shape (...).
        symbol: maps the states' symbols to an expression.
    """

    name: Callable[[Sequence[str]], str]
    values: Callable[[Tensor], Tensor]
    symbol: Callable[[Sequence[sympy.Symbol]], sympy.Expr]


def sine(*states: int) -> Term:
    """The sine of one state, or of the sum of several.

    Args:
        states: their indices, from 0.

    Raises:
        ValueError: for none, or one below 0; where the term is used, for one that is not there.

    >>> Library(2, 1, [sine(0), sine(0, 1)], ["x", "y"]).get_feature_names()
    ['1', 'x', 'y', 'sin(x)', 'sin(x+y)']
    """
    if not states or min(states) < 0:
        raise ValueError(f"states = {list(states)}: expected indices from 0, at least one")
    # functions of the module: a model with this term can be pickled
    return Term(
        partial(_sine_name, states), partial(_sine_values, states), partial(_sine_symbol, states)
    )


def _check_states(states: Sequence[int], n: int) -> None:
    if max(states) >= n:
        raise ValueError(f"sine of state {max(states)}: there are {n} states, from 0")


def _sine_name(states: Sequence[int], names: Sequence[str]) -> str:
    _check_states(states, len(names))
    return f"sin({'+'.join(names[i] for i in states)})"


def _sine_values(states: Sequence[int], x: Tensor) -> Tensor:
    _check_states(states, x.shape[-1])
    return torch.sin(x[..., list(states)].sum(-1))


def _sine_symbol(states: Sequence[int], symbols: Sequence[sympy.Symbol]) -> sympy.Expr:
    return sympy.sin(sympy.Add(*[symbols[i] for i in states]))


class Library:
    """All monomials of n states up to a degree, then further terms.

    Order and names are those of pysindy's PolynomialLibrary followed by a CustomLibrary.

    Args:
        n: number of states, at least 1.
        degree: highest total degree, at least 0.
        extra: terms after the monomials.
        names: of the states; x0, x1, ... by default.

    Raises:
        ValueError: for numbers out of range, over 100,000 monomials and a wrong number of names.

    >>> library = Library(2, 2, names=["x", "y"])
    >>> library.get_feature_names()
    ['1', 'x', 'y', 'x^2', 'x y', 'y^2']
    >>> library(torch.tensor([2.0, 3.0])).tolist()
    [1.0, 2.0, 3.0, 4.0, 6.0, 9.0]
    """

    def __init__(
        self, n: int, degree: int = 5, extra: Iterable[Term] = (), names: Sequence[str] = ()
    ) -> None:
        whole(1, n=n)
        whole(0, degree=degree)
        if math.comb(n + degree, degree) > MOST:
            raise ValueError(
                f"degree = {degree}: {math.comb(n + degree, degree):,} monomials of {n} states, "
                f"expected at most {MOST:,}"
            )
        if names and len(names) != n:
            raise ValueError(f"names = {list(names)}: expected {n} names, one a state")
        self.n, self.degree, self.extra = n, degree, tuple(extra)
        self.names = list(names) or [f"x{i}" for i in range(n)]
        # the states that a monomial multiplies, with repetition: () is the constant
        self.monomials = [
            states
            for total in range(degree + 1)
            for states in itertools.combinations_with_replacement(range(n), total)
        ]

    @property
    def p(self) -> int:
        """Number of terms."""
        return len(self.monomials) + len(self.extra)

    @cached_property
    def exponents(self) -> Tensor:
        """(monomials, n): how often each monomial multiplies each state."""
        rows = [[states.count(i) for i in range(self.n)] for states in self.monomials]
        return torch.tensor(rows)

    @cached_property
    def _steps(self) -> list[tuple[list[int], list[int]]]:
        """By degree from 2: each monomial's parent among those of one degree less, its new state."""
        steps = []
        for total in range(2, self.degree + 1):
            before = [m for m in self.monomials if len(m) == total - 1]
            new = [m for m in self.monomials if len(m) == total]
            steps.append(([before.index(m[:-1]) for m in new], [m[-1] for m in new]))
        return steps

    def __call__(self, x: Tensor) -> Tensor:
        """Values of all terms.

        Args:
            x: states of shape (..., n).

        Returns:
            Shape (..., p).

        Raises:
            ValueError: for another number of states.
        """
        if x.shape[-1] != self.n:
            raise ValueError(f"x: shape {tuple(x.shape)}, expected (..., {self.n})")
        blocks = [torch.ones_like(x[..., :1]), x] if self.degree else [torch.ones_like(x[..., :1])]
        for parents, states in self._steps:
            blocks.append(blocks[-1][..., parents] * x[..., states])
        return torch.cat([*blocks, *[term.values(x)[..., None] for term in self.extra]], -1)

    def some(self, columns: Sequence[int]) -> Callable[[Tensor], Tensor]:
        """A function that computes only some columns.

        A roll-out of a sparse model spends its time here.

        Args:
            columns: ascending.

        Returns:
            A function from (..., n) to (..., len(columns)).

        Raises:
            ValueError: for columns that do not ascend or are out of range.
        """
        if sorted(columns) != list(columns) or not set(columns) <= set(range(self.p)):
            raise ValueError(f"columns = {list(columns)}: expected ascending, 0 to {self.p - 1}")
        powers = self.exponents[[c for c in columns if c < len(self.monomials)]]
        rest = [self.extra[c - len(self.monomials)] for c in columns if c >= len(self.monomials)]
        highest = int(powers.max()) if len(powers) else 0
        # entry (state, power) of the flattened table of powers
        places = powers + torch.arange(self.n) * (highest + 1)

        def evaluate(x: Tensor) -> Tensor:
            steps = [torch.ones_like(x)]
            for _ in range(highest):
                steps.append(steps[-1] * x)
            flat = torch.stack(steps, -1).flatten(-2)
            values = flat[..., places.to(x.device)].prod(-1)
            if rest:
                values = torch.cat([values, torch.stack([t.values(x) for t in rest], -1)], -1)
            return values

        return evaluate

    def get_feature_names(self, input_features: Sequence[str] | None = None) -> list[str]:
        """Names of the terms, as pysindy's method of the same name gives them.

        Args:
            input_features: names of the n states; None takes `names`.

        Raises:
            ValueError: for another number of names.
        """
        names = list(input_features) if input_features is not None else self.names
        if len(names) != self.n:
            raise ValueError(f"input_features = {names}: expected {self.n} names, one a state")
        terms = []
        for states in self.monomials:
            powers = [(names[i], states.count(i)) for i in sorted(set(states))]
            terms.append(" ".join(v if k == 1 else f"{v}^{k}" for v, k in powers) or "1")
        return terms + [term.name(names) for term in self.extra]

    def symbols(self) -> list[sympy.Symbol]:
        """The states as real sympy symbols."""
        return [sympy.Symbol(name, real=True) for name in self.names]

    def expressions(self) -> list[sympy.Expr]:
        """The terms as sympy expressions of `symbols`."""
        states = self.symbols()
        monomials = [sympy.Mul(*[states[i] for i in which]) for which in self.monomials]
        return monomials + [term.symbol(states) for term in self.extra]
