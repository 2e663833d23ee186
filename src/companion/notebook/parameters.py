"""Check a notebook's parameters before anything else runs.

The cell tagged ``parameters`` states names, types and defaults; the cell after it calls
`check_parameters` with ranges and presets. Together they are the only statement of what a
notebook takes: papermill, ``companion run`` and sweeps all go through them.
"""

from __future__ import annotations

import ast
import difflib
import functools
import keyword
import math
import os
import re
import sys
import typing
from collections.abc import Collection, Iterable
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from companion.notebook.outside import OUTSIDE, PATHS

# Parameters that change where a run happens, not what it computes.
PLACES = frozenset({"device", "data_root"})

# What holds for these names in every notebook. Some generators take 32 bits, and the seeds that
# a run counts up from the first must fit too.
ALWAYS: dict[str, Any] = {
    "seed": (0, 2**32 - 1000),
    "n_seeds": (1, 500),
}
DEVICES = ("auto", "cpu", "cuda", "mps")  # or one of several, such as cuda:1


class ParameterError(ValueError):
    """Raised for all bad parameters of a notebook at once, in one line."""


@dataclass(frozen=True)
class Settings:
    """The parameter values of one run.

    values: every parameter after the preset was applied.
    defaults: what the profile alone would have given.
    profile:  name of the preset ("" where the notebook has none).
    """

    values: dict[str, Any]
    defaults: dict[str, Any] = field(repr=False)
    profile: str = ""

    @property
    def changed(self) -> set[str]:
        """Names whose value differs from the profile's."""
        return {k for k, v in self.values.items() if v != self.defaults[k]}


def check_parameters(
    space: dict[str, Any],
    *,
    profiles: dict[str, dict[str, Any]] | None = None,
    may_be_empty: Iterable[str] = (),
    **rules: object,
) -> Settings:
    """Validate a notebook's parameters, apply its profile, print and return the result.

    Args:
        space: the notebook's `globals()`. Its annotated assignments (``name: type = value``) are
            the parameters, their defaults literals; the resolved values are written back to it, a
            path's ~ as the home folder, while `Settings` have it as it was given.
        profiles: presets by name, each with what it changes; the first changes nothing. A value
            that papermill set (or a cell that begins with ``# Parameters``) wins over a
            profile's; one that was edited in the parameters cell does not, as nobody can tell
            it from a default.
        may_be_empty: list parameters that may be ``[]``. No list holds a value twice.
        rules: by parameter a list of choices, an inclusive ``(low, high)`` pair with None for no
            bound, an interval such as ``"[0, 1)"`` or ``"(0, inf)"``, or, for a name outside the
            notebook, a key of `OUTSIDE`. For a list parameter it holds for every element.
            `ALWAYS` holds the rules of names that mean the same everywhere.

    Raises:
        ParameterError: naming every bad parameter, its value and what is allowed. What depends
            on several parameters is for `require`, after this.
    """
    cells = space.get("In", [])  # IPython's sources of the cells run so far, or a script's
    types = declared(_annotations(space, cells))
    values = {name: space[name] for name in types if name in space}
    given = _set_by_hand(cells)
    problems = unknown(sorted(n for n in given if not n.startswith("PAPERMILL_")), types)
    problems += [
        f"check_parameters has a rule for {name!r}, which is no parameter"
        for name in sorted((rules.keys() | set(may_be_empty)) - types.keys())
    ]

    stated = _stated(cells)
    if any(cells):  # else nobody can tell a default from what was set
        problems += [
            f"{name}: its default must be a literal, such as 300 and not 60 * 5"
            for name in values
            if name not in stated
        ]
    stated = values | stated
    defaults = {name: stated[name] for name in values}
    profile = str(values.get("profile", ""))
    if profiles and profile not in profiles:
        hint = _did_you_mean(profile, profiles)
        problems.append(f"profile = {told(profile)}: expected one of {_listed(profiles)}{hint}")
    elif profiles:
        preset = {"profile": profile} | profiles[profile]
        if others := preset.keys() - values.keys():
            problems.append(f"the profiles set {_listed(sorted(others))}, which is no parameter")
        else:
            defaults |= preset
            values |= {name: value for name, value in preset.items() if name not in given}

    rules = ALWAYS | rules
    here = space.get("HERE", True)  # False: checked on another machine than the run's
    for name, value in values.items():
        rule = rules.get(name)
        if isinstance(rule, str) and rule in OUTSIDE and not here:
            rule = None
        if wrong := _wrong(name, value, types[name], rule, name in set(may_be_empty)):
            problems.append(f"{name} = {told(value)}: {wrong}")
    if problems:
        more = f"; and {len(problems) - 20} more" if len(problems) > 20 else ""
        raise ParameterError("; ".join(problems[:20]) + more)
    for name, value in values.items():  # an int given for a float is one
        values[name] = space[name] = float(value) if types[name] is float else value
        if here and rules.get(name) in PATHS and isinstance(value, str):  # as it was checked
            space[name] = os.path.expanduser(value)
    settings = Settings(values, defaults, profile)
    print(_summary(settings, stated))
    return settings


def require(condition: object, message: str) -> None:
    """Raise ParameterError with the message, which names the parameters, unless the condition
    holds. For what depends on several of them; stands in the cell of `check_parameters`."""
    if not condition:
        raise ParameterError(message)


def literal(name: str, value: object) -> str:
    """The source text of a value, for a cell that sets a parameter to it.

    Raises ParameterError for a name that is no identifier and for a value that Python has no
    literal for: neither may be code.
    """
    problem = f"{told(name)} is no parameter: expected a name"
    if isinstance(name, str) and name.isidentifier() and not keyword.iskeyword(name):
        problem = f"{name} = {told(value)}: expected a finite number, a text, true, false or a list of these"
        try:
            if ast.literal_eval(repr(value)) == value:
                return repr(value)
        except (ValueError, SyntaxError, MemoryError, RecursionError):
            pass
    raise ParameterError(problem)


def declared(annotations: dict[str, Any]) -> dict[str, Any]:
    """Type by parameter, of annotations that are types or, as in a source, text."""
    return {
        name: _declared(kind) if isinstance(kind, str) else kind
        for name, kind in annotations.items()
        if not name.startswith("_")
    }


@functools.lru_cache(maxsize=64)
def _declared(text: str) -> object:
    plain = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
    return eval(text, {"__builtins__": {}} | plain)


def unknown(names: Iterable[object], known: Collection[str]) -> list[str]:
    """A line for each name that is not known."""
    return [
        f"unknown parameter {told(name)}{_did_you_mean(name, known)}"
        for name in names
        if name not in known
    ]


def _summary(settings: Settings, stated: dict[str, Any]) -> str:
    """The values in use, as far as they differ from what the parameters cell shows."""
    head = f"profile {settings.profile!r}: " if settings.profile else ""
    lines = [
        f"  {name} = {value!r}" + ("   (changed)" if name in settings.changed else "")
        for name, value in settings.values.items()
        if name != "profile" and (value != stated[name] or name in settings.changed)
    ]
    return "\n".join([head + ("all values as above" if not lines else "as above, but"), *lines])


INJECTED = "# Parameters\n"  # begins the cell that papermill injects


def _set_by_hand(cells: list[str]) -> set[str]:
    """Names that papermill's injected cell sets."""
    return {
        target.id
        for source in cells
        if source.startswith(INJECTED)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _annotations(space: dict[str, Any], cells: list[str]) -> dict[str, Any]:
    """The annotation of each name that has one."""
    at_hand = space.get("__annotations__", {})
    if sys.version_info < (3, 14):
        return at_hand
    # since then a function gives them, of the code that ran last: in IPython a statement
    found: dict[str, Any] = {}
    for source in cells:
        for name, kind, _ in _annotated(source):
            if name in space:
                found[name] = eval(kind, space)
    annotate = space.get("__annotate__")
    return found | (annotate(1) if annotate else {}) | at_hand  # 1: annotationlib.Format.VALUE


def _stated(cells: list[str]) -> dict[str, Any]:
    """The defaults: literals of the annotated assignments, before papermill replaced them."""
    found: dict[str, Any] = {}
    for source in cells:
        found = literals(source) | found  # of two, the first is the default
    return found


def literals(source: str) -> dict[str, Any]:
    """The value of each annotated assignment of a cell that has a literal one."""
    found: dict[str, Any] = {}
    for name, _, value in reversed(_annotated(source)):  # of two, the first is the default
        with suppress(ValueError, TypeError):  # no literal: no parameter
            if value is not None:
                found[name] = ast.literal_eval(value)
    return found


@functools.lru_cache(maxsize=64)  # a sweep checks one cell thousands of times
def _annotated(source: str) -> list[tuple[str, str, ast.expr | None]]:
    """Name, annotation and value of a cell's annotated assignments.

    Values are nodes, as a list that is shared may change.
    """
    try:
        body = ast.parse(source).body if ":" in source else []
    except SyntaxError:  # a cell with a magic
        body = []
    return [
        (statement.target.id, ast.unparse(statement.annotation), statement.value)
        for statement in body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    ]


def _wrong(name: str, value: Any, kind: Any, rule: Any, may_be_empty: bool = False) -> str | None:
    """What is wrong with a value, and what is allowed; or None."""
    origin = typing.get_origin(kind) or kind
    if origin is list:
        if not isinstance(value, list):
            return f"expected a list (papermill: -y '{{{name}: [..]}}'), got {_type(value)}"
        (inner,) = typing.get_args(kind) or (object,)
        for item in value:
            if wrong := _wrong(name, item, inner, rule):
                return f"element {told(item)}: {wrong}"
        if not value and not may_be_empty:
            return "expected at least one element"
        for item in value:
            if isinstance(item, (list, dict, set)):
                return f"element {told(item)}: expected a number, a text, true or false"
        if len(set(value)) < len(value):
            twice = next(item for item in value if value.count(item) > 1)
            return f"holds {told(twice)} twice"
        return None
    ok = isinstance(value, origin) or (origin is float and isinstance(value, int))
    if origin is not object and (not ok or (isinstance(value, bool) and origin is not bool)):
        hint = f" (papermill: -y '{{{name}: true}}')" if origin is bool else ""
        return f"expected {origin.__name__}{hint}, got {_type(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return "expected a finite number"
    if isinstance(value, int) and abs(value) >= 2**63:
        return "expected a number of 64 bits"
    if isinstance(value, str) and (len(value) > 4096 or _UNPRINTABLE.search(value)):
        return "expected one line of at most 4096 characters"
    if name == "device" and not re.fullmatch(rf"({'|'.join(DEVICES)})(:\d{{1,3}})?", value):
        return f"expected one of {_listed(DEVICES)}{_did_you_mean(value, DEVICES)}"
    if isinstance(rule, list):
        return (
            None
            if value in rule
            else f"expected one of {_listed(rule)}{_did_you_mean(value, rule)}"
        )
    if isinstance(rule, str) and rule in OUTSIDE:
        return OUTSIDE[rule](value) if value else None
    if rule is not None and not _inside(value, *(bounds := _interval(rule))):
        return f"expected a value in {_shown(bounds)}"
    return None


# control characters, line separators, and halves of characters that no file can hold
_UNPRINTABLE = re.compile("[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")


def _interval(rule: Any) -> tuple[float, float, bool, bool]:
    """(low, high, low is open, high is open) of a tuple or of a string such as "[0, 1)"."""
    if isinstance(rule, str):
        low, high = (float(part) for part in rule[1:-1].split(","))
        return low, high, rule[0] == "(", rule[-1] == ")"
    low, high = rule
    return -math.inf if low is None else low, math.inf if high is None else high, False, False


def _inside(value: float, low: float, high: float, low_open: bool, high_open: bool) -> bool:
    return (low < value if low_open else low <= value) and (
        value < high if high_open else value <= high
    )


def _shown(bounds: tuple[float, float, bool, bool]) -> str:
    low, high, low_open, high_open = bounds
    opening = "(" if low_open or low == -math.inf else "["
    closing = ")" if high_open or high == math.inf else "]"
    return f"{opening}{low:.10g}, {high:.10g}{closing}"


def told(value: object) -> str:
    """A value for a message of one line: no longer than is of use."""
    try:
        text = repr(value)
    except (ValueError, RecursionError):  # thousands of digits, or of brackets
        return f"(a huge {_type(value)})"
    return text if len(text) <= 200 else text[:190] + "..."


def _type(value: object) -> str:
    return type(value).__name__


def _listed(choices: Iterable[object]) -> str:
    return ", ".join(repr(choice) for choice in choices)


def _did_you_mean(name: object, known: Iterable[object]) -> str:
    close = difflib.get_close_matches(str(name)[:99], [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
