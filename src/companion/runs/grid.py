"""The combinations of a grid of parameters, each checked by the chapter's own rules."""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import io
import itertools
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from companion.runs import chapters

MOST_RUNS = 100_000  # of one sweep


@dataclass(frozen=True)
class Point:
    """One point of the grid.

    given: the parameter values, as they are passed to the notebook.
    """

    stem: str
    given: dict[str, Any]

    @property
    def id(self) -> str:
        """The same for the same notebook and values, whatever grid they come from."""
        return hashlib.sha256(_text([self.stem, self.given]).encode()).hexdigest()[:16]


def expand(
    path: Path,
    grid: dict[str, Sequence[object]],
    fixed: dict[str, Any] | None = None,
    *,
    here: bool = False,
) -> list[Point]:
    """All combinations of a grid, each checked by the notebook's own rules.

    grid: values to try, by parameter. fixed: values of other parameters, the same in all runs.
    A run has the values as the check cell leaves them, so that 1 and 1.0 are one value of a
    float parameter. here: the runs would be on this machine, as in `chapters.validate`.
    Raises ValueError for an empty or doubled axis, for more than MOST_RUNS combinations, and for
    a parameter that is no parameter of the notebook or is also fixed, and ParameterError, with
    all that is wrong, for a value that the notebook would refuse.
    """
    fixed = fixed or {}
    for name, axis in grid.items():
        if not isinstance(axis, (list, tuple)) or not axis:
            raise ValueError(
                f"-g {name}: expected a list of values such as '[0, 1, 2]', got {axis!r}"
            )
    count = math.prod(map(len, grid.values()))
    if count > MOST_RUNS:
        raise ValueError(f"-g: {count:,} combinations, more than {MOST_RUNS:,}: take fewer values")
    both = grid.keys() & fixed.keys()
    if both:
        raise ValueError(f"-g {', '.join(sorted(both))}: also given by -p or -f")
    combinations = [
        fixed | dict(zip(grid, values, strict=True))
        for values in itertools.product(*grid.values())
    ]
    notebook, known = chapters.read(path), chapters.declared(path)
    for name in combinations[0]:
        if name not in known:
            if why := chapters.misplaced(chapters.code_cells(notebook), name):
                raise ValueError(f"{name!r} is no parameter of {path.name}: {why}")
            near = difflib.get_close_matches(name, known, 1)
            hint = f" (did you mean {near[0]!r}?)" if near else ""
            raise ValueError(
                f"{name!r} is no parameter of {path.name}{hint}; it has "
                f"{', '.join(known) or 'none'}"
            )
    runs: dict[str, Point] = {}
    with contextlib.redirect_stdout(io.StringIO()):  # each check prints what it settled on
        for given in combinations:
            settled = chapters.check(notebook, str(path), given, here=here)
            run = Point(path.stem, {name: settled[name] for name in given})
            runs.setdefault(run.id, run)
    if len(runs) < count:
        for name, axis in grid.items():
            texts = {_text(run.given[name]) for run in runs.values()}
            if len(texts) < len(axis):
                raise ValueError(f"-g {name}: {axis!r} holds a value twice")
    return list(runs.values())


def _text(value: object) -> str:
    """The same for equal values: 1 and 1.0 are, 1 and true are not."""

    def plain(value: object) -> object:
        if isinstance(value, dict):
            return {str(key): plain(item) for key, item in value.items()}
        if isinstance(value, (list, tuple)):
            return [plain(item) for item in value]
        return int(value) if isinstance(value, float) and value.is_integer() else value

    return json.dumps(plain(value), sort_keys=True, default=repr)
