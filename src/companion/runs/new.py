"""A new chapter: module, claims, notebook, test, bibliography entry and contents line.

What is written passes the tests as it stands, and is then replaced piece by piece.
"""

from __future__ import annotations

import json
import keyword
import re
from pathlib import Path
from typing import Any

from companion.files import ROOT, write_whole

MODULE = '''"""{title}: the method."""

from __future__ import annotations

import torch

__all__ = ["running_mean"]


def running_mean(values: torch.Tensor) -> torch.Tensor:
    """Average all values up to each.

    Args:
        values: tensor of shape (steps,).

    Returns:
        Tensor of shape (steps,).
    """
    counts = torch.arange(1, len(values) + 1, dtype=values.dtype, device=values.device)
    return values.cumsum(0) / counts
'''

CLAIMS = """\
# What the paper claims, what this chapter checks besides, and the bounds, fixed before the run.

C1:
  says: The last running mean is the mean of all values.
  kind: derivation
  where: definition
  quantities:
    gap: {is: largest difference, within: "<= 1e-6"}
  depends: []
  settled: {on: DATE, before_looking: true}
"""

TEST = '''"""{title}."""

import torch

from companion.papers import {paper}


def test_the_mean_of_equal_values_stays():
    assert torch.equal({paper}.running_mean(torch.full((5,), 2.0)), torch.full((5,), 2.0))
'''

BIBLIOGRAPHY = """
@misc{{{cite},
  title = {{{{{title}}}}},
  author = {{{authors}}},
  year = {{{year}}},
  eprint = {{{arxiv}}},
  archiveprefix = {{arXiv}}
}}
"""

ENTRY = """\
- stem: {paper}
  title: {quoted}
  venue: arXiv {year}
  arxiv: "{arxiv}"
  cite: {cite}
  sentence: >-
    What this paper found, in one sentence.
"""

CELLS: list[tuple[str, str, list[str]]] = [
    (
        "markdown",
        """# {title}

{authors}: *{title}*, {year}, [arXiv {arxiv}](https://arxiv.org/abs/{arxiv})""",
        [],
    ),
    (
        "markdown",
        """What the paper claims. What this page shows. What came out: the claims and their verdicts are [below](#results).

With other settings: `companion run {paper} -p steps 200`.""",
        [],
    ),
    (
        "code",
        """\
profile: str = "quick"  # quick or long: a preset
dataset: str = "made"  # made
data_root: str = ""  # of the data sets; empty: $COMPANION_DATA or the cache
steps: int = 50  # values, 2 to 100,000
seed: int = 0  # of the values
device: str = "auto"  # auto, cpu, cuda or mps""",
        ["parameters"],
    ),
    (
        "code",
        """\
from companion.notebook import check_parameters

settings = check_parameters(
    globals(),
    profiles={{"quick": {{}}, "long": {{"steps": 1000}}}},
    dataset=["made"],
    steps=(2, 100_000),
)""",
        ["remove-input"],
    ),
    (
        "code",
        """\
import matplotlib.pyplot as plt
import torch

from companion.device import pick_device
from companion.figures import show_source, use_style
from companion.notebook import Claims
from companion.papers import {paper}

use_style()
claims = Claims("{paper}", settings)""",
        ["hide-input"],
    ),
    ("markdown", "## The idea\n\n{{cite:t}}`{cite}` average.", []),
    ("code", "show_source({paper}.running_mean)", []),
    ("markdown", "## The experiment", []),
    (
        "code",
        """\
values = torch.rand(steps, generator=torch.Generator().manual_seed(seed))
values = values.to(pick_device(device))
means = {paper}.running_mean(values).cpu()
plt.plot(means)
plt.xlabel("values")
plt.ylabel("mean so far")
plt.show()""",
        ["FIGURE"],
    ),
    (
        "code",
        """claims.check("C1", gap=(means[-1] - values.mean().cpu()).abs())""",
        ["nbval-check-output"],
    ),
    ("markdown", "## Results", []),
    ("code", "claims.table()", []),
    ("markdown", "## At the paper's size\n\n```{{recorded}} {paper}\n```", []),
    ("markdown", "## Departures from the paper\n\nNone.", []),
    (
        "markdown",
        "## Exercises\n\n- `companion run {paper} -p seed 7`: what else would you change?",
        [],
    ),
    ("markdown", "## Sources\n\n{{cite:t}}`{cite}`.", []),
    ("code", "claims.settle()", ["remove-cell"]),
]


API = """# API: {paper}

Made from the docstrings when the book is built: see `companion.book.api`.
"""

# what the cells of the example call something
TAKEN = frozenset(
    [
        "check_parameters",
        "claims",
        "companion",
        "data_root",
        "dataset",
        "device",
        "means",
        "pick_device",
        "plt",
        "profile",
        "seed",
        "settings",
        "show_source",
        "steps",
        "torch",
        "use_style",
        "values",
    ]
)


def new_paper(
    paper: str,
    title: str = "A title",
    authors: str = "First Author and Second Author",
    arxiv: str = "0000.00000",
    year: int | None = None,
    root: Path = ROOT,
) -> list[Path]:
    """Write all files of a new chapter; what was written or added to, in order.

    Args:
        authors: as BibTeX separates them, by "and".
        year: of publication; None for that of the arXiv number.

    Raises:
        ValueError: for a name that is no module's, a paper that is there, or a text that
            BibTeX or Python could read as more than text; nothing is written then.
    """
    name = re.fullmatch(r"[a-z][a-z0-9_]{1,40}", paper)
    if not name or keyword.iskeyword(paper) or paper in TAKEN:
        raise ValueError(f"paper = {paper!r}: expected a module's name, such as lottery_ticket")
    for key, value in (("title", title), ("authors", authors)):
        if not value.isprintable() or not value.strip() or set(value) & set('{}\\"%#&$@'):
            raise ValueError(f'{key} = {value!r}: expected one line without any of {{}}\\"%#&$@')
    if any(part.count(",") > 2 for part in authors.split(" and ")):
        raise ValueError(f"authors = {authors!r}: expected names with 'and' between them")
    if not re.fullmatch(r"[0-9]{4}\.[0-9]{4,5}", arxiv):
        raise ValueError(f"arxiv = {arxiv!r}: expected such as 1810.02340")
    year = 2000 + int(arxiv[:2]) if year is None else year
    package, notebook = root / "src/companion/papers" / paper, root / f"notebooks/{paper}.ipynb"
    test, page = root / f"tests/test_{paper}.py", root / f"book/api/{paper}.md"
    for there in (package, notebook, test, page):
        if there.exists():
            raise ValueError(f"paper = {paper!r}: {there.relative_to(root)} is there already")
    about = {
        "paper": paper, "title": title, "authors": authors, "year": year, "arxiv": arxiv,
        "cite": f"{paper}{year}", "quoted": json.dumps(title, ensure_ascii=False),
    }  # fmt: skip
    import datetime

    today = datetime.date.today().isoformat()
    written = {
        package / "__init__.py": MODULE.format(**about),
        package / "claims.yaml": CLAIMS.replace("DATE", today),
        notebook: json.dumps(_notebook(about), indent=1, ensure_ascii=False) + "\n",
        test: TEST.format(**about),
        page: API.format(**about),
    }
    for path, more in (
        (root / "book/references.bib", BIBLIOGRAPHY.format(**about)),
        (root / "book/papers.yml", ENTRY.format(**about)),
    ):
        written[path] = path.read_text(encoding="utf-8").rstrip("\n") + "\n" + more
    contents = root / "_toc.yml"
    written[contents] = _listed(contents.read_text(encoding="utf-8"), paper)
    for path, text in written.items():
        write_whole(path, text)
    return list(written)


def _listed(contents: str, paper: str) -> str:
    """The table of contents with one chapter more, after the last one."""
    lines = contents.splitlines()
    last = max(i for i, line in enumerate(lines) if "file: notebooks/" in line)
    indent = lines[last][: lines[last].index("- file")]
    return (
        "\n".join([*lines[: last + 1], f"{indent}- file: notebooks/{paper}", *lines[last + 1 :]])
        + "\n"
    )


def _notebook(about: dict[str, Any]) -> dict:
    cells = []
    for number, (kind, source, tags) in enumerate(CELLS, 1):
        metadata: dict[str, Any] = {"tags": tags} if tags else {}
        if tags == ["FIGURE"]:
            name = f"fig-{str(about['paper']).replace('_', '-')}-means"
            metadata = {
                "mystnb": {
                    "figure": {"name": name, "caption": "The mean so far settles."},
                    "image": {"alt": "A line that wavers less and less"},
                }
            }
        cell: dict[str, Any] = {
            "cell_type": kind,
            "id": f"{about['paper']}-{number:02}",
            "metadata": metadata,
            "source": source.format(**about).splitlines(keepends=True),
        }
        if kind == "code":
            cell |= {"execution_count": None, "outputs": []}
        cells.append(cell)
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    metadata = {"kernelspec": kernel, "language_info": {"name": "python"}}
    return {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
