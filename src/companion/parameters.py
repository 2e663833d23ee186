"""Check a notebook's parameters before anything else runs.

The cell tagged ``parameters`` states names, types and defaults; the cell after it calls
`check_parameters` with ranges and presets. Together they are the only statement of what a
notebook takes: papermill, ``companion run`` and sweeps all go through them.
"""

from __future__ import annotations

import ast
import difflib
import math
import sys
import typing
from dataclasses import dataclass, field

# Parameters that change where a run happens, not what it computes.
PLACES = frozenset({"device", "data_root"})


class ParameterError(ValueError):
    """Raised for all bad parameters of a notebook at once, in one line."""


@dataclass(frozen=True)
class Settings:
    """The parameter values of one run.

    values: every parameter after the preset was applied.
    defaults: what the profile alone would have given.
    profile:  name of the preset ("" where the notebook has none).
    """

    values: dict[str, object]
    defaults: dict[str, object] = field(repr=False)
    profile: str = ""

    @property
    def changed(self) -> set[str]:
        """Names whose value differs from the profile's."""
        return {k for k, v in self.values.items() if v != self.defaults[k]}


def check_parameters(
    *, profiles: dict[str, dict[str, object]] | None = None, **rules: object
) -> Settings:
    """Validate the caller's parameters, apply its profile, print and return the result.

    Reads the annotated assignments of the calling notebook (``name: type = value``) and writes
    the resolved values back to them. A rule is a list of choices, an inclusive ``(low, high)``
    pair with None for no bound, or an interval such as ``"[0, 1)"`` or ``"(0, inf)"``. For a
    list parameter it holds for every element.

    profiles: presets by name. The first must repeat the defaults of every parameter that any
      other preset changes; a parameter that was set by hand (a papermill value, or anything
      that differs from the default) keeps its value whatever the profile says.

    Raises ParameterError naming every bad parameter, its value and what is allowed.
    """
    space = sys._getframe(1).f_globals
    types = {k: t for k, t in _annotations(space).items() if not k.startswith("_")}
    values = {name: space[name] for name in types if name in space}
    given = _set_by_hand(space)
    problems = [
        f"unknown parameter {name!r}{_did_you_mean(name, types)}"
        for name in sorted(given - types.keys())
        if not name.startswith("PAPERMILL_")
    ]
    problems += [
        f"check_parameters has a rule for {name!r}, which is no parameter"
        for name in rules.keys() - types.keys()
    ]

    defaults = dict(values)
    profile = str(values.get("profile", ""))
    base = next(iter(profiles.values())) if profiles else {}
    if profiles:
        if profile not in profiles:
            hint = _did_you_mean(profile, profiles)
            problems.append(f"profile = {profile!r}: expected one of {_listed(profiles)}{hint}")
        elif unknown := {name for preset in profiles.values() for name in preset} - base.keys():
            problems.append(f"the first profile does not give {_listed(sorted(unknown))}")
        elif unknown := base.keys() - values.keys():
            problems.append(f"the profiles set {_listed(sorted(unknown))}, which is no parameter")
        else:
            preset = base | profiles[profile]
            defaults |= preset
            for name, value in preset.items():
                if name not in given and values[name] == base[name]:
                    values[name] = value
    # what a preset gives is the default even where the value was set by hand, and a profile is
    # never a change to itself; any other value is one unless it is the annotated cell's own
    for name in (given & types.keys()) - {"profile"} - base.keys():
        defaults[name] = _annotated_default(space, name, defaults[name])

    problems += [
        p
        for name, value in values.items()
        if (p := _problem(name, value, types[name], rules.get(name)))
    ]
    if problems:
        raise ParameterError("; ".join(problems))
    for name, value in values.items():  # an int given for a float is one
        values[name] = space[name] = float(value) if types[name] is float else value
    settings = Settings(values, defaults, profile)
    print(_summary(settings, space))
    return settings


def _summary(settings: Settings, space: dict) -> str:
    """The values in use, as far as they differ from what the parameters cell shows."""
    head = f"profile {settings.profile!r}: " if settings.profile else ""
    lines = [
        f"  {name} = {value!r}" + ("   (changed)" if name in settings.changed else "")
        for name, value in settings.values.items()
        if name != "profile" and value != _annotated_default(space, name, None)
    ]
    return "\n".join([head + ("all values as above" if not lines else "as above, but"), *lines])


def _annotations(space: dict) -> dict[str, object]:
    """The notebook's annotated names with their types; strings (future import) resolved."""
    plain = {"int": int, "float": float, "str": str, "bool": bool, "list": list}
    found = space.get("__annotations__", {})
    return {k: eval(t, dict(plain)) if isinstance(t, str) else t for k, t in found.items()}


def _cells(space: dict) -> list[str]:
    """Sources of the cells run so far (IPython's ``In``, or that of an exported script)."""
    return space.get("In", [])


def _set_by_hand(space: dict) -> set[str]:
    """Names that papermill's injected cell sets (it always begins with this comment)."""
    return {
        target.id
        for source in _cells(space)
        if source.startswith("# Parameters\n")
        for statement in ast.parse(source).body
        if isinstance(statement, ast.Assign)
        for target in statement.targets
        if isinstance(target, ast.Name)
    }


def _annotated_default(space: dict, name: str, otherwise: object) -> object:
    """The literal that the annotated cell gives a name, before papermill replaced it."""
    for source in _cells(space):
        if f"{name}:" in source:
            for statement in ast.parse(source).body:
                if isinstance(statement, ast.AnnAssign) and statement.target.id == name:
                    return ast.literal_eval(statement.value)
    return otherwise


def _problem(name: str, value: object, kind: object, rule: object) -> str | None:
    """One line that says what is wrong with a value, or None."""
    origin = typing.get_origin(kind) or kind
    if origin is list:
        if not isinstance(value, list):
            return f"{name} = {value!r}: expected a list (papermill: -y '{{{name}: [..]}}'), got {_type(value)}"
        (inner,) = typing.get_args(kind) or (object,)
        for item in value:
            if problem := _problem(name, item, inner, rule):
                return problem.replace(
                    f"{name} = {item!r}", f"{name} = {value!r}: element {item!r}", 1
                )
        return None
    ok = isinstance(value, origin) or (origin is float and isinstance(value, int))
    if origin is not object and (not ok or (isinstance(value, bool) and origin is not bool)):
        hint = f" (papermill: -y '{{{name}: true}}')" if origin is bool else ""
        return f"{name} = {value!r}: expected {origin.__name__}{hint}, got {_type(value)}"
    if isinstance(value, float) and not math.isfinite(value):
        return f"{name} = {value!r}: expected a finite number"
    if isinstance(rule, list):
        if value not in rule:
            return (
                f"{name} = {value!r}: expected one of {_listed(rule)}{_did_you_mean(value, rule)}"
            )
    elif rule is not None and not _inside(value, *(bounds := _interval(rule))):
        return f"{name} = {value!r}: expected a value in {_shown(bounds)}"
    return None


def _interval(rule: object) -> tuple[float, float, bool, bool]:
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
    return f"{opening}{low:g}, {high:g}{closing}"


def _type(value: object) -> str:
    return type(value).__name__


def _listed(choices: object) -> str:
    return ", ".join(repr(choice) for choice in choices)


def _did_you_mean(name: object, known: object) -> str:
    close = difflib.get_close_matches(str(name), [str(k) for k in known], n=1)
    return f" (did you mean {close[0]!r}?)" if close else ""
