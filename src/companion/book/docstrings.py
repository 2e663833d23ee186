"""House docstrings as reStructuredText, for the API page."""

from __future__ import annotations

import math
import re

EMPHASIS = r"(?<![\w*])\*[A-Za-z](?:[\w -]*\w)?\*(?![\w*])"  # words, and no product


def tidy_docstring(lines: list[str]) -> list[str]:
    """House docstrings as reStructuredText.

    Signs that would be markup (``*``, ``|``, a closing ``_``) are escaped outside of backticks,
    *emphasis*, code and directives, and lines such as ``seed: what it is``, with what is indented
    below them, become entries of a list.
    """
    out: list[str] = []
    inside = False  # of an entry
    literal = math.inf  # how far lines of a literal block are indented, at least
    for line in lines:
        indent = len(line) - len(line.lstrip())
        if line.strip() and indent < literal:
            literal = math.inf
        text = _escape(line)
        after_prompt = out and out[-1].lstrip().startswith(">>>")
        if indent >= literal or after_prompt or line.lstrip().startswith((">>>", ".. ")):
            out.append(line)
        elif entry := re.match(r"((?:\w+)(?:, \w+)*):\s+(\S.*)", text):
            if out and out[-1] and not inside:
                out.append("")
            names = ", ".join(f"``{name}``" for name in entry[1].replace("\\", "").split(", "))
            out.append(f"- {names}: {entry[2]}")
            inside = True
        elif inside and line.startswith(" "):
            out.append(f"  {text.strip()}")
        else:
            if inside and line.strip() and out[-1]:
                out.append("")
            inside = inside and not line.strip()
            out.append(text)
        if line.endswith("::"):
            literal = indent + 1
    return out


def _escape(line: str) -> str:
    parts = re.split(rf"(``.*?``|`[^`]*`|{EMPHASIS})", line)
    return "".join(
        part if i % 2 else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part)
        for i, part in enumerate(parts)
    )
