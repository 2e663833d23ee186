"""Numbers of recorded runs in a chapter's prose, put in when its page is made.

A notebook's own numbers come by ``{glue:text}``; those of a run of `companion record` by
``{kept}`paper-gpu snip.error.dense:.2f```: the record, what it recorded, and a format. A name can
also be a claim's quantity (``C7.ratio``), end in a key (``snip.batch[100 at 90 %]``) or in a
factor (``desire.accuracy*100``). Of several values it gives the range, 1.35–1.47.
"""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping
from typing import Any

from companion.runs.record import Run
from companion.runs.records import load_records

ROLE = re.compile(r"\{kept\}`(?P<run>[\w-]+) (?P<name>[^`\[*:]+)(?:\[(?P<key>[^`\]]+)\])?"
                  r"(?:\*(?P<factor>[\d.]+))?(?::(?P<form>[^`]*))?`")  # fmt: skip


def filled(text: str, paper: str) -> str:
    """Prose with its numbers of recorded runs.

    Raises:
        ValueError: naming the chapter, for what no record of it holds.
    """
    if "{kept}" not in text:
        return text
    text = ROLE.sub(lambda found: _number(paper, found), text)
    if "{kept}" in text:
        at = text.index("{kept}")
        raise ValueError(f"{paper}: {text[at : at + 60]!r}: expected {{kept}}`RUN NAME:FORMAT`")
    return text


def _number(paper: str, found: re.Match) -> str:
    runs = _runs(paper)
    name, key = found["name"].strip(), found["key"]
    if (run := runs.get(found["run"])) is None:
        raise ValueError(
            f"{paper}: {found[0]}: it has no record {found['run']!r}, but {', '.join(runs)}"
        )
    value = _value(run, name)
    if key is not None:
        if isinstance(value, Mapping):
            value = value.get(key)
        elif isinstance(value, list) and key.isdigit() and int(key) < len(value):
            value = value[int(key)]
        else:
            value = None
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(isinstance(n, int | float) for n in numbers):
        raise ValueError(
            f"{paper}: {found[0]}: the record has no number of this name, but {value!r}"
        )
    factor = float(found["factor"] or 1)
    ends = [
        format(n * factor if found["factor"] else n, found["form"] or "")
        for n in (min(numbers), max(numbers))
    ]
    low, high = (end.replace("-", "−") for end in ends)
    if low == high:
        return low
    return f"{low} to {high}" if {low[0], high[0]} & {"−", "+"} else f"{low}–{high}"


def _value(run: Run, name: str) -> Any:
    claim, _, quantity = name.partition(".")
    if name not in run.values and claim in run.claims:
        return run.claims[claim].measured.get(quantity)
    return run.values.get(name)


@functools.lru_cache(maxsize=16)
def _runs(paper: str) -> dict[str, Run]:
    return {run.name: run for run in load_records(paper)}
