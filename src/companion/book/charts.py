"""Small charts of the book as numbers for templates: marks on one axis, and the map of papers.

The templates beside this module draw them as HTML and SVG in the page's own colours, so that they
follow the theme, and their text keeps its size on a phone.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

from matplotlib.ticker import LogLocator, MaxNLocator

from companion.book.evidence import STANDINGS, Row, reported_range
from companion.notebook.bounds import Bound, number
from companion.notebook.claims import Quantity, Reported

MARGIN = 0.05  # of the axis, beyond the outermost mark
RATIO = 60  # of the largest to the smallest number, above which an axis is logarithmic


@dataclass(frozen=True)
class Axis:
    """An axis over some numbers, logarithmic where they are positive and far apart."""

    low: float
    high: float
    log: bool

    @classmethod
    def over(cls, numbers: Iterable[float], *, log: bool | None = None) -> Axis:
        """The axis that shows all numbers, with a margin.

        log: logarithmic or not; by the numbers if None.

        Raises:
            ValueError: for no numbers, one that is not finite, or log = True and one not above 0.
        """
        low, high = min(numbers := list(numbers)), max(numbers)
        if not all(map(math.isfinite, numbers)):
            raise ValueError(f"numbers = {numbers}: expected finite ones")
        if log and low <= 0:
            raise ValueError(f"numbers = {numbers}: expected ones above 0 on a logarithmic axis")
        log = (low > 0 and high / low > RATIO) if log is None else log
        if log:
            low, high = math.log10(low), math.log10(high)
        room = MARGIN * (high - low)
        if low - room == low or high + room == high:  # equal, or but for the rounding
            room = abs(low) / 2 or 1.0
        return cls(low - room, high + room, log)

    def at(self, value: float) -> float:
        """Where a number lies, in per cent from the left; infinity at the edges."""
        if self.log:
            value = math.log10(value) if value > 0 else -math.inf
        share = (min(max(value, self.low), self.high) - self.low) / (self.high - self.low)
        return round(100 * share, 2)

    def ticks(self) -> list[tuple[float, str]]:
        """Some round numbers with their places."""
        low, high = (10**self.low, 10**self.high) if self.log else (self.low, self.high)
        if self.log and high / low > 10:  # below, powers of ten would be one tick or none
            subs = (1.0,) if high / low > 100 else (1.0, 2.0, 5.0)
            found = LogLocator(subs=subs, numticks=6).tick_values(low, high)
            inside = [tick for tick in found if low <= tick <= high]
        else:
            found = MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]).tick_values(low, high)
            # 0.30000000000000004 is 0.3
            inside = [float(f"{t:.10g}") for t in found if low <= t <= high]
        return [(self.at(tick), number(tick)) for tick in inside]


@dataclass(frozen=True)
class Mark:
    """Something on an axis: kind is a CSS class. left, width: in per cent. dots: single values."""

    kind: str
    left: float
    width: float
    text: str
    dots: tuple[float, ...] = ()


@dataclass(frozen=True)
class Strip:
    """One quantity of a claim on one axis: bounds as bands, the paper, and every run."""

    row: Row
    quantity: Quantity
    reported: tuple[Reported, ...]
    axis: Axis
    marks: tuple[Mark, ...]
    ours: tuple[tuple[str, str, str], ...]  # run, its value in words, CSS class
    bounds: tuple[str, ...]

    @property
    def words(self) -> str:
        """All that the marks show, as text."""
        return "; ".join(mark.text for mark in self.marks)


def strips(row: Row) -> list[Strip]:
    """The quantities of a claim that are numbers and were measured."""
    found = (_strip(row, quantity) for quantity in row.claim.quantities.values())
    return [strip for strip in found if strip]


def _strip(row: Row, quantity: Quantity) -> Strip | None:
    measured = [
        (cell, one)
        for cell in row.cells
        for one in cell.measured
        if one.quantity is quantity and one.values
    ]
    if quantity.is_truth or not measured:
        return None
    paper = [
        (told, ends)
        for told in row.claim.reported
        if told.quantity == quantity.name and (ends := reported_range(told))
    ]
    bounds = list(dict.fromkeys(bound for _, one in measured for bound in one.bounds))
    limits = [end for bound in bounds for end in (bound.low, bound.high) if math.isfinite(end)]
    ours = [value for _, one in measured for value in one.values]
    axis = Axis.over([*limits, *ours, *(end for _, two in paper for end in two)])

    def mark(kind: str, low: float, high: float, text: str, dots: Iterable[float] = ()) -> Mark:
        left, right = axis.at(low), axis.at(high)
        return Mark(kind, left, round(right - left, 2), text, tuple(map(axis.at, dots)))

    unit = f" {quantity.unit}" if quantity.unit else ""
    marks = [
        mark(_band(bound), bound.low, bound.high, f"bound: {bound}{unit}") for bound in bounds
    ]
    for told, two in paper:
        exact = [] if isinstance(told.value, str) else [told.value]
        marks.append(mark("paper", *two, f"the paper: {told}", exact))
    for cell, one in measured:
        kind = f"{cell.lane} {STANDINGS[cell.outcome]}"
        low, high = min(one.values), max(one.values)
        marks.append(mark(kind, low, high, f"{cell.run}: {one.shown}", one.values))
    return Strip(
        row,
        quantity,
        tuple(told for told, _ in paper),
        axis,
        tuple(marks),
        tuple((cell.run, one.shown, STANDINGS[cell.outcome]) for cell, one in measured),
        tuple(f"{bound}{unit}" for bound in bounds),
    )


def _band(bound: Bound) -> str:
    """A band with a line at each end that the bound has."""
    ends = {"low": bound.low, "high": bound.high}
    return " ".join(["band", *(name for name, end in ends.items() if math.isfinite(end))])
