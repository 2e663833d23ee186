"""What the answers to a chapter's exercises run, as its notebook states it.

An answer runs `companion run CHAPTER -p NAME VALUE ...`, or a block of Python after the chapter's own
cells. `companion record CHAPTER --exercise 4` keeps the result, so that its numbers are not typed.
"""

from __future__ import annotations

import argparse
import hashlib
import re
import shlex
import string
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from companion.runs import chapters, given

_EXERCISE = re.compile(r"^\*\*(\d+)\. ", re.MULTILINE)
_ANSWER = re.compile(r"<summary>Answer</summary>(.*?)</details>", re.DOTALL)
_RUN = re.compile(
    r"`companion run (?P<stem>\w+)(?P<options>[^`]*)`|^```python\n(?P<code>.*?)^```$",
    re.DOTALL | re.MULTILINE,
)


@dataclass(frozen=True)
class Answer:
    """One run of an answer. given: its parameters. code: what follows the cells, or ""."""

    given: dict[str, Any] = field(default_factory=dict)
    code: str = ""

    @property
    def said(self) -> str:
        """The sha256 of the code, to tell whether a kept result is that of this code."""
        return hashlib.sha256(self.code.encode()).hexdigest()

    def kept(self, stem: str, recorded: dict[str, Any]) -> dict[str, Any]:
        """What is kept of all that a run recorded: of code that follows the cells, its lines."""
        if not self.code:
            return recorded
        names = (f"{stem}.settings", "printed")
        return {name: recorded[name] for name in names} | {"code": self.said}


def answers(path: Path) -> dict[str, Answer]:
    """The runs of a chapter's answers by label: the exercise's number, then 4b, 4c, ..."""
    found = {}
    kinds = chapters.declared(path)
    for number, answer in texts(path).items():
        runs = [run for run in _RUN.finditer(answer) if run["code"] or run["stem"] == path.stem]
        for run, letter in zip(runs, ["", *string.ascii_lowercase[1:]], strict=False):
            values = _options(run["options"] or "", kinds)
            found[number + letter] = Answer(values, run["code"] or "")
    return found


def texts(path: Path) -> dict[str, str]:
    """The text of each answer of a chapter, by the exercise's number."""
    source = "\n\n".join(
        cell["source"] for cell in chapters.read(path)["cells"] if cell["cell_type"] == "markdown"
    )
    section = f"\n{source}".partition("\n## Exercises\n")[2]
    parts = _EXERCISE.split(section.partition("\n## ")[0])[1:]
    found = zip(parts[::2], map(_ANSWER.search, parts[1::2]), strict=True)
    return {number: answer[1] for number, answer in found if answer}


def _options(text: str, kinds: dict[str, Any]) -> dict[str, Any]:
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("-p", nargs=2, action="append", default=[])
    options = parser.parse_args(shlex.split(text)).p
    return {name: given.argument(value, kinds.get(name, object)) for name, value in options}
