"""Bounds that a measured number must keep, as text: "<= 2", "[0.4, 0.8]", "5.4 ± 0.6", "== true".

>>> bound = Bound.parse("[0.4, 0.8]")
>>> bound.holds(0.5), str(bound), round(bound.margin(0.5), 3)
(True, '0.4 to 0.8', 0.1)
>>> str(Bound.parse("(0.4, 0.8]"))
'above 0.4 and at most 0.8'
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass

NUMBER = r"[-+−]?(?:\d+\.?\d*|\.\d+)(?:e[-+]?\d+)?"
SIGNS = {"<=": "at most", "<": "below", ">=": "at least", ">": "above", "==": "exactly"}


@dataclass(frozen=True)
class Bound:
    """An interval of numbers, or one truth value.

    low, high: its ends; infinite where it has none. open_low, open_high: whether an end itself
    is outside. truth: the value wanted of a bool; None for numbers.
    """

    low: float = -math.inf
    high: float = math.inf
    open_low: bool = False
    open_high: bool = False
    truth: bool | None = None

    @classmethod
    def parse(cls, text: object) -> Bound:
        """Read a bound.

        Raises:
            ValueError: for anything else than the forms above, or a bound that nothing or
                everything keeps.
        """
        bound = cls._read(str(text).strip().replace("−", "-"))
        ends = (bound.low, bound.high) if bound else (math.nan,)
        # a stated end beyond 1e308 is read as infinity: everything would keep it
        if bound is None or not (bound.truth is not None or any(map(math.isfinite, ends))):
            raise ValueError(
                f"within = {text!r}: expected such as '<= 2', '> 0', '[0.4, 0.8]', '5.4 ± 0.6' "
                "or '== true', of finite numbers"
            )
        return bound

    @classmethod
    def _read(cls, words: str) -> Bound | None:
        if match := re.fullmatch(r"==\s*(true|false)", words):
            return cls(truth=match[1] == "true")
        if match := re.fullmatch(rf"(<=|<|>=|>|==)\s*({NUMBER})", words):
            sign, value = match[1], float(match[2])
            low = value if sign in (">=", ">", "==") else -math.inf
            high = value if sign in ("<=", "<", "==") else math.inf
            return cls(low, high, sign == ">", sign == "<")
        if match := re.fullmatch(rf"({NUMBER})\s*±\s*({NUMBER})", words):
            centre, half = float(match[1]), float(match[2])
            # 0.7 - 0.2 is not 0.5 in binary: the ends are what a reader would write
            low, high = (float(f"{end:.12g}") for end in (centre - half, centre + half))
            if -math.inf < low < high < math.inf:
                return cls(low, high)
        if match := re.fullmatch(rf"([\[(])\s*({NUMBER})\s*,\s*({NUMBER})\s*([\])])", words):
            low, high = float(match[2]), float(match[3])
            if -math.inf < low < high < math.inf:
                return cls(low, high, match[1] == "(", match[4] == ")")
        return None

    def holds(self, value: float | bool) -> bool:
        """Whether a value keeps the bound; what is not a finite number never does."""
        if self.truth is not None:
            return value is self.truth
        if not math.isfinite(value):
            return False
        above = value > self.low if self.open_low else value >= self.low
        below = value < self.high if self.open_high else value <= self.high
        return above and below

    def margin(self, value: float | bool) -> float:
        """How far a value is from the nearer end, negative outside; 0 for a truth that is met."""
        if self.truth is not None:
            return 0.0 if value is self.truth else -1.0
        return min(value - self.low, self.high - value)

    def __str__(self) -> str:
        if self.truth is not None:
            return "yes" if self.truth else "no"
        if self.low == self.high:
            return f"exactly {stated(self.low)}"
        lower = f"{SIGNS['>' if self.open_low else '>=']} {stated(self.low)}"
        upper = f"{SIGNS['<' if self.open_high else '<=']} {stated(self.high)}"
        if math.isinf(self.low):
            return upper
        if math.isinf(self.high):
            return lower
        if self.open_low or self.open_high:
            return f"{lower} and {upper}"
        return f"{stated(self.low)} to {stated(self.high)}"


def stated(value: float) -> str:
    """A number with all the digits that it was stated with."""
    digits, _, power = f"{value:,.12g}".partition("e")
    return (f"{digits}·10{raised(int(power))}" if power else digits).replace("-", "−")


def raised(power: int) -> str:
    """A power in superscript digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))


def number(value: float | bool) -> str:
    """A number as readers write it: whole ones whole, others with three digits."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if not math.isfinite(value):
        return {math.inf: "∞", -math.inf: "−∞"}.get(value, "not a number")
    if float(value).is_integer() and abs(value) < 1e15:
        text = f"{int(value):,}"
    elif 1e-3 <= abs(value) < 1e6:
        text = f"{value:.3g}" if abs(value) < 999.5 else f"{value:,.0f}"
    else:
        digits, power = f"{value:.1e}".split("e")
        text = f"{digits.removesuffix('.0')}·10{raised(int(power))}"
    return text.replace("-", "−")
