"""Named values that a run leaves: for prose, the scoreboard and sweeps."""

from __future__ import annotations

import json
import os
from pathlib import Path

from companion.files import to_json, write_whole

TARGET = "COMPANION_RECORD"  # names the file of the record that is being made, if there is one


class Recorded:
    """A named value as a notebook output that ``{glue:text}`` can show in prose."""

    def __init__(self, name: str, value: object) -> None:
        self.name, self.value = name, value

    def _repr_mimebundle_(self, include=None, exclude=None):
        # MyST-NB's glue format: prose shows the plain text, our tools read the JSON
        data = {"text/plain": repr(self.value)}
        if not isinstance(self.value, (str, int, float)):
            data = {"application/json": self.value, "text/plain": self.name}
        return data, {"scrapbook": {"name": self.name, "mime_prefix": ""}}


def record(name: str, value: object) -> None:
    """Record a value under a name: for prose, for the scoreboard, for sweeps.

    In a notebook it becomes an output of the cell (tag the cell ``remove-cell``). In a run
    started by ``companion record`` it goes into the record's file at once, so that a run that
    is cut off keeps what it had.
    """
    value = json.loads(to_json(value))
    if target := os.environ.get(TARGET):
        _keep(Path(target), name, value)
    elif not display(Recorded(name, value)):
        print(f"{name} = {value!r}")


def _keep(path: Path, name: str, value: object) -> None:
    kept = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    kept.setdefault("values", {})[name] = value
    write_whole(path, to_json(kept))


def display(shown: object) -> bool:
    """Show an object as an output; False in a plain Python, where nothing can be shown."""
    try:
        from IPython import get_ipython
        from IPython.display import display
    except ImportError:  # a machine without Jupyter
        return False
    if get_ipython() is None:
        return False
    display(shown)
    return True
