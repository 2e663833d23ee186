"""The recipe of a chapter's section *On your own work*, as its readers copy it."""

import contextlib
import io
import json
import re
import textwrap
from importlib import import_module
from pathlib import Path

ROOT = Path(__file__).parents[1]
HEADING = "## On your own work"


def recipe(paper: str) -> str:
    """The first Python block of the section, which also stands in the package's docstring.

    At most ten lines of code, of at most 88 characters.
    """
    notebook = json.loads((ROOT / "notebooks" / f"{paper}.ipynb").read_text(encoding="utf-8"))
    pages = "\n".join(
        "".join(c["source"]) for c in notebook["cells"] if c["cell_type"] == "markdown"
    )
    assert pages.count(HEADING) == 1, f"{paper}: one section {HEADING!r} is expected"
    blocks = re.findall(r"```python\n(.*?)```", pages.split(HEADING)[1], re.DOTALL)
    assert blocks, f"{paper}: no ```python block under {HEADING!r}"
    code = blocks[0].strip()
    lines = [line for line in code.splitlines() if line.strip() and not line.startswith("#")]
    assert len(lines) <= 10, f"{paper}: {len(lines)} lines of code"
    assert max(map(len, code.splitlines())) <= 88
    docstring = textwrap.dedent(import_module(f"companion.papers.{paper}").__doc__)
    assert textwrap.indent(code, "    ") in docstring, f"{paper}: the docstring has another recipe"
    return code


def run(paper: str, **given: object) -> tuple[dict[str, object], str]:
    """Run the recipe with these names defined before: its names after it, and what it printed."""
    names = dict(given)
    printed = io.StringIO()
    with contextlib.redirect_stdout(printed):
        exec(compile(recipe(paper), f"<recipe of {paper}>", "exec"), names)
    return names, printed.getvalue()
