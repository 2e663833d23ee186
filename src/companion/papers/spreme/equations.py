"""Equations of a fitted model: as text, in sympy, and held against the truth."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import sympy
from torch import Tensor

from companion.papers.spreme.library import Library


def as_text(library: Library, coefficients: Tensor, precision: int = 3) -> list[str]:
    """Write equations in the style of pysindy: ``x' = -0.498 x + 1.02 x y``.

    Args:
        library: the terms.
        coefficients: shape (n, p), of one environment.
        precision: significant digits.

    Returns:
        One line a state.
    """
    names = library.get_feature_names()
    lines = []
    for state, row in zip(library.names, coefficients.tolist(), strict=True):
        terms = [(value, name) for value, name in zip(row, names, strict=True) if value]
        text = ""
        for value, name in terms:
            sign = ("-" if value < 0 else "") if not text else (" - " if value < 0 else " + ")
            text += f"{sign}{abs(value):.{precision}g}" + ("" if name == "1" else f" {name}")
        lines.append(f"{state}' = {text or '0'}")
    return lines


def as_sympy(library: Library, coefficients: Tensor) -> list[sympy.Expr]:
    """The right-hand sides as sympy expressions, coefficients as floats of full precision.

    Args:
        library: the terms.
        coefficients: shape (n, p), of one environment.
    """
    terms = library.expressions()
    return [
        sympy.Add(*[sympy.Float(v) * term for v, term in zip(row, terms, strict=True) if v])
        for row in coefficients.tolist()
    ]


@dataclass(frozen=True)
class Comparison:
    """How the right-hand side of one state differs from the truth.

    Args:
        missing: terms that only the truth has.
        extra: terms that only the model has.
        errors: relative error of the coefficient of every term that both have.
    """

    missing: tuple[sympy.Expr, ...]
    extra: tuple[sympy.Expr, ...]
    errors: dict[sympy.Expr, float]

    @property
    def exact(self) -> bool:
        """Whether the terms are those of the truth."""
        return not (self.missing or self.extra)


def compare(found: Sequence[sympy.Expr], truth: Sequence[sympy.Expr]) -> list[Comparison]:
    """Align two systems of equations term by term.

    Args:
        found: one expression a state, with numbers as coefficients.
        truth: likewise. Symbols of one name are the same, whatever sympy assumes of them.

    >>> x = sympy.Symbol("x")
    >>> (state,) = compare([2.2 * x + x**2], [2.0 * x])
    >>> state.exact, state.extra, round(state.errors[x], 3)
    (False, (x**2,), 0.1)
    """
    ours_by_name = {s.name: s for e in found for s in sympy.sympify(e).free_symbols}
    out = []
    for ours, theirs in zip(found, truth, strict=True):
        theirs = sympy.sympify(theirs)
        theirs = theirs.xreplace({s: ours_by_name.get(s.name, s) for s in theirs.free_symbols})
        a, b = (sympy.expand(e).as_coefficients_dict() for e in (ours, theirs))
        a, b = ({k: float(v) for k, v in d.items() if v != 0} for d in (a, b))
        errors = {term: abs(a[term] / b[term] - 1) for term in a if term in b}
        out.append(Comparison(tuple(b.keys() - a.keys()), tuple(a.keys() - b.keys()), errors))
    return out
