"""Numbers of recorded runs in a chapter's prose, put in when its page is made.

A notebook's own numbers come by ``{glue:text}``; those of a run of `companion record` by
``{kept}`paper-gpu snip.error.dense:.2f```: the record, what it recorded, and a format. A name can
also be a claim's quantity (``C7.ratio``), end in a key (``snip.batch[100 at 90 %]``), in keys below
each other (``masked_kd.times[ViT-S/98/ms]``) or in a factor (``desire.accuracy*100``). Of several
values it gives the range, 1.35–1.47.

A column of a kept sweep is named likewise, of all its runs or of those with a parameter's value:
``{kept}`weight-decay snip.error.dense[weight_decay=0]:.2f```; in how many of its runs a claim held,
and of how many, are ``{kept}`seeds C7.held``` and ``{kept}`seeds C7.of```. The default run is
``default``. The kept answer to an exercise (`companion record CHAPTER --exercise 4`) is ``exercise-4``;
of what its code printed, ``printed[2/3]`` is the third number of the second line.
"""

from __future__ import annotations

import csv
import functools
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from companion.book.runs import stored_run
from companion.runs import chapters
from companion.runs.exercises import answers
from companion.runs.record import CURRENT, EARLIER, STALE, Held, Run
from companion.runs.records import FOLDER, load_answers, load_records
from companion.runs.store import kept

ROLE = re.compile(r"\{kept\}`(?P<run>[\w-]+) (?P<name>[^`\[*:]+)(?:\[(?P<key>[^`\]]+)\])?"
                  r"(?:\*(?P<factor>[\d.]+))?(?::(?P<form>[^`]*))?`")  # fmt: skip


def filled(text: str, paper: str) -> str:
    """Prose with its numbers of recorded runs.

    Raises:
        ValueError: naming the chapter, for what no record of it holds.
    """
    if "{kept}" not in text:
        return text

    def number(found: re.Match) -> str:
        try:
            return _number(paper, found)
        except (ValueError, TypeError, IndexError) as error:
            raise ValueError(f"{paper}: {found[0]}: {error}") from None

    text = ROLE.sub(number, text)
    if "{kept}" in text:
        at = text.index("{kept}")
        raise ValueError(f"{paper}: {text[at : at + 60]!r}: expected {{kept}}`RUN NAME:FORMAT`")
    return text


PRINTED = {
    CURRENT: "",
    EARLIER: ", with the library of an earlier commit",
    STALE: ", before the chapter's code changed",
}


def printed(text: str, paper: str) -> str:
    """Prose in which what an answer's code printed stands below it, where a run of it is kept.

    Raises ValueError where the code has changed since it was run.
    """
    if "```python" not in text:
        return text
    runs = {run.name: run for run in load_answers(paper)}
    for label, answer in answers(chapters.find(paper)).items():
        run, block = runs.get(f"exercise-{label}"), f"```python\n{answer.code}```"
        if run is None or not answer.code or block not in text:
            continue
        if run.values.get("code") != answer.said:
            raise ValueError(f"{paper}: the code of exercise {label} has changed: {run.command}")
        lines = "\n".join(run.values["printed"])
        since = PRINTED[run.code]
        text = text.replace(block, f"{block}\n\nIt prints{since}:\n\n```text\n{lines}\n```")
    return text


def _number(paper: str, found: re.Match) -> str:
    runs, sweeps = _runs(paper), _sweeps(paper)
    name, key = found["name"].strip(), found["key"]
    value: Any
    claim, _, count = name.partition(".")
    if found["run"] in sweeps and count in ("held", "of"):
        value = getattr(_held(paper, found["run"]).get(claim), count, None)
    elif found["run"] in sweeps:
        value = _column(sweeps[found["run"]], name, key)
    elif found["run"] in runs:
        value = _value(runs[found["run"]], name, key)
    else:
        raise ValueError(f"no record {found['run']!r}, but {', '.join([*runs, *sweeps])}")
    numbers = value if isinstance(value, list) else [value]
    if not numbers or not all(type(n) in (int, float) and math.isfinite(n) for n in numbers):
        raise ValueError(f"no number of this name, but {value!r}")
    factor = float(found["factor"] or 1)
    ends = [
        format(n * factor if found["factor"] else n, found["form"] or "")
        for n in (min(numbers), max(numbers))
    ]
    low, high = (end.replace("-", "−") for end in ends)
    if low == high:
        return low
    return f"{low} to {high}" if {low[0], high[0]} & {"−", "+"} else f"{low}–{high}"


def _column(rows: list[dict[str, str]], name: str, key: str | None) -> list[float]:
    """A sweep's column, of the runs that the key `PARAMETER=VALUE` picks."""
    parameter, said, wanted = (key or "").partition("=")
    if name not in rows[0] or (key and not (said and parameter in rows[0])):
        raise ValueError(f"no such column; it has {', '.join(rows[0])}")
    picked = [row for row in rows if not key or _same(row[parameter], wanted)]
    return [float(row[name]) for row in picked]  # also refuses a run that lacks the value


def _same(one: str, other: str) -> bool:
    with suppress(ValueError):
        return float(one) == float(other)
    return one == other


def _value(run: Run, name: str, key: str | None) -> Any:
    claim, _, quantity = name.partition(".")
    value = run.values.get(name)
    if name not in run.values and claim in run.claims:
        value = run.claims[claim].measured.get(quantity)
    if key is None:
        return value
    if name == "printed" and isinstance(value, list):
        line, number = (int(part) - 1 for part in key.split("/"))
        if line < 0 or number < 0:
            raise ValueError("lines and numbers are counted from 1")
        return _numbers(value[line])[number]
    for part in [key] if isinstance(value, Mapping) and key in value else key.split("/"):
        if isinstance(value, Mapping):
            value = value.get(part)
        elif isinstance(value, list) and part.isdigit() and int(part) < len(value):
            value = value[int(part)]
        else:
            return None
    return value


def _numbers(line: str) -> list[float]:
    return [float(number) for number in re.findall(r"-?\d+(?:\.\d+)?(?:e[+-]?\d+)?", line)]


def _held(paper: str, name: str) -> Mapping[str, Held]:
    return next(sweep.claims for sweep in kept(paper) if sweep.name == name)


@functools.lru_cache(maxsize=16)
def _runs(paper: str) -> dict[str, Run]:
    recorded = {run.name: run for run in [*load_records(paper), *load_answers(paper)]}
    return {"default": stored_run(paper)} | recorded


@functools.lru_cache(maxsize=16)
def _sweeps(paper: str) -> dict[str, list[dict[str, str]]]:
    found = {}
    for sweep in kept(paper):
        with (FOLDER / paper / "sweeps" / f"{sweep.name}.csv").open(
            encoding="utf-8", newline=""
        ) as file:
            found[sweep.name] = list(csv.DictReader(file))
    return found
