"""A chapter's notebook as its page: what is folded, what is left out, what stands first.

The notebook stays as it is, in a front end and as a download. The page shows the method and its
results: its opening figure and the result come before the parameters; set-up, plotting code and
checks are folded; a verdict is made anew from what the run recorded, and links to its row.
"""

from __future__ import annotations

import copy
import html
import json
import re
from collections import Counter
from collections.abc import Mapping

from companion.book.html import render
from companion.book.kept import filled, printed
from companion.notebook.checking import (
    NOT_REPRODUCED,
    NOT_RUN,
    REPRODUCED,
    Badge,
    Verdict,
    css,
    table_row,
)
from companion.notebook.claims import Claim, load_claims
from companion.runs import chapters
from companion.runs.record import Run

OPENING = "opening"  # tag of the cell whose output opens the page
RUN_IT = "run-it"  # of what stands in the fold of that name; set here
BADGE = '<div class="claim-badge'
TABLE = '<table class="claims">'
MARGIN = re.compile(r"([\d,.]+) % (inside|outside) the bound")
NUMBER = re.compile(r"(?<=\| )(-?)(\d[\d,.]*|inf)(%?)(?= \|)")  # alone in a cell of a table
ASIDE = re.compile(r"### (.+)\n+<!-- aside -->\n")


def page(text: str, paper: str) -> str:
    """A notebook's JSON as the book reads it."""
    notebook = derive(json.loads(text), paper)
    cells = notebook["cells"]
    for cell in chapters.code_cells(notebook):
        _fold(cell)
        _drop_residue(cell)
        for output in cell["outputs"]:
            if table := output.get("data", {}).get("text/markdown"):
                output["data"]["text/markdown"] = NUMBER.sub(_typeset, "".join(table))
    for cell in cells:
        if cell["cell_type"] == "markdown":
            cell["source"] = filled(printed("".join(cell["source"]), paper), paper)
    _relate(cells, paper)
    _fold_asides(cells)
    start = next((i for i, c in enumerate(cells) if "parameters" in chapters.tags(c)), None)
    if start is None:
        return json.dumps(notebook)
    while start > 2 and cells[start - 1]["cell_type"] == "markdown":  # how to run it
        start -= 1
    end = next((i for i, c in enumerate(cells) if i > start and _is_heading(c)), len(cells))
    for cell in cells[start:end]:
        if "parameters" in chapters.tags(cell):
            _tag(cell, "remove-cell")  # the table of parameters says the same, and more
    notebook["cells"] = [
        *cells[:start],
        *_opening(cells, paper),
        _directive(f"{{result}} {paper}", f"{paper}-result"),
        _directive(f"{{runit}} {paper}", f"{paper}-run-it"),
        *cells[start:],
    ]
    return json.dumps(notebook)


def derive(notebook: dict, paper: str) -> dict:
    """A notebook whose verdicts are made anew from the claims that it recorded.

    The paper's claims come first, our own checks in a fold below them. Each row of the tables has
    an address and a link to the scoreboard, which has the claim under all runs; each badge has a
    link to its row.
    """
    run = Run.of_values(paper, "stored", chapters.recorded_values(notebook))
    stated = load_claims(paper)
    table = _claims(stated, run)
    for cell in chapters.code_cells(notebook):
        for output in cell["outputs"]:
            stored = "".join(output.get("data", {}).get("text/html", ""))
            if stored.startswith(TABLE):
                output["data"]["text/html"] = table
            elif stored.startswith(BADGE):
                found = re.search(r"\b(C\d+[a-z]?)</b>", stored)
                assert found is not None  # a badge begins with its claim
                id = found[1]
                if id in stated and id in run.claims:
                    shown = MARGIN.sub(_in_words, Badge(stated[id], run.claims[id])._repr_html_())
                    if run.claims[id].outcome == NOT_RUN:  # its bounds are in the table
                        shown = re.sub(r" <small>.*</small>", "", shown, flags=re.DOTALL)
                    link = f' <a href="#claim-{id}">details of {id}</a></div>'
                    output["data"]["text/html"] = shown.removesuffix("</div>") + link
    return notebook


def _claims(stated: Mapping[str, Claim], run: Run) -> str:
    """The table of the paper's claims and, folded, that of our own checks."""
    mine, own = (
        [
            v
            for v in run.claims.values()
            if v.id in stated and (stated[v.id].kind == "paper") == paper
        ]
        for paper in (True, False)
    )
    if not mine:
        return _table(stated, own, run.paper)
    if not own:
        return _table(stated, mine, run.paper)
    outcomes = Counter(verdict.outcome for verdict in own)
    kinds = [kind for kind in (NOT_REPRODUCED, NOT_RUN, REPRODUCED) if outcomes[kind]]
    said = ", ".join(f"{outcomes[kind]} {kind}" for kind in kinds)
    return (
        f'{_table(stated, mine, run.paper)}<details class="fold"><summary>Our own checks: {said}'
        f"</summary>{_table(stated, own, run.paper)}</details>"
    )


def _table(stated: Mapping[str, Claim], verdicts: list[Verdict], paper: str) -> str:
    """A claim a group of rows: its sentence, below it the paper's values and ours."""
    rows = [
        {
            "id": verdict.id,
            "says": says,
            "paper": _source_once([str(value) for value in stated[verdict.id].reported]),
            "ours": ours.split("\n"),
            "verdict": MARGIN.sub(_in_words, outcome),
            "css": css(verdict.outcome),
        }
        for verdict in verdicts
        for _, says, _, ours, outcome in [table_row(stated[verdict.id], verdict)]
    ]
    return render("claims.html", rows=rows, paper=paper)


def _in_words(margin: re.Match) -> str:
    """A margin whose number says little in words: next to the bound, or farther than its scale."""
    share = float(margin[1].replace(",", ""))
    near = "just" if share < 0.5 else "far" if share >= 100 else ""
    return f"{near} {margin[2]} the bound" if near else margin[0]


def _source_once(values: list[str]) -> list[str]:
    """The paper's values; a source that all of them have, in brackets behind each, stands once."""
    if len(values) < 2:
        return values
    source = values[0][values[0].rfind(" (") :]
    if source.count("(") != source.count(")") or not all(v.endswith(source) for v in values):
        return values
    return [*(value.removesuffix(source) for value in values), f"all from {source[2:-1]}"]


def _relate(cells: list[dict], paper: str) -> None:
    """Put links to related chapters before the sources, where the notebook has none."""
    prose = [cell for cell in cells if cell["cell_type"] == "markdown"]
    if any("```{related}" in "".join(cell["source"]) for cell in prose):
        return
    for cell in prose:
        before, sources, after = "".join(cell["source"]).partition("## Sources\n")
        if sources:
            links = f"## See also\n\n```{{related}} {paper}\n```\n\n"
            cell["source"] = before + links + sources + after


def _fold_asides(cells: list[dict]) -> None:
    """Fold each section marked as an aside, up to the next heading.

    The mark is a line `<!-- aside -->` below the heading, which a front end does not show.
    """
    inside = False
    for cell in cells:
        if cell["cell_type"] != "markdown":
            continue
        parts = re.split(r"^(?=#{2,3} )", "".join(cell["source"]), flags=re.MULTILINE)
        for place, part in enumerate(parts):
            marked = ASIDE.match(part)
            if marked:
                part = (
                    f'<details class="fold aside"><summary>{html.escape(marked[1])}</summary>'
                    f"\n\n{part[marked.end() :]}"
                )
            if inside and (marked or part.startswith("##")):
                part = f"</details>\n\n{part}"
                inside = False
            inside = inside or bool(marked)
            parts[place] = part
        cell["source"] = "".join(parts)
    if inside:
        raise ValueError("an aside is not followed by a heading")


def _fold(cell: dict) -> None:
    """Fold the code of a figure or a check; leave out that which only shows the library's."""
    tags = chapters.tags(cell)
    if re.fullmatch(r"show_source\([^\n]*\)|claims\.table\(\)", "".join(cell["source"]).strip()):
        return _tag(cell, "remove-input")
    figure = "figure" in cell["metadata"].get("mystnb", {})
    badge = "claims.check(" in "".join(cell["source"])
    if (figure or badge) and not {"remove-input", "remove-cell", "hide-cell"} & {*tags}:
        _tag(cell, "hide-input")
    if {"hide-input", "hide-cell"} & {*chapters.tags(cell)}:
        said = "Code of the figure" if figure else "Code of the check" if badge else "Code"
        if "hide-cell" in chapters.tags(cell):
            table = any("text/markdown" in output.get("data", {}) for output in cell["outputs"])
            said = "Figure and its code" if figure else "Table and its code" if table else said
        options = cell["metadata"].setdefault("mystnb", {})
        said = options.get("code_prompt_show", said)  # a cell may name its own
        options |= {"code_prompt_show": said, "code_prompt_hide": said}
    return None


def _drop_residue(cell: dict) -> None:
    """Leave out what progress left behind, and what a check printed beside its verdict."""
    badge = any(BADGE in "".join(_html(output)) for output in cell["outputs"])
    cell["outputs"] = [
        output
        for output in cell["outputs"]
        if not (badge and output["output_type"] == "stream")
        and not (
            output["output_type"] == "display_data"
            and set(output["data"]) == {"text/plain"}
            and not output.get("metadata")
        )
    ]


def _typeset(number: re.Match) -> str:
    """A number as the prose has it: a minus sign, a space before %, ∞."""
    minus, digits, percent = number.groups()
    return "−" * bool(minus) + ("∞" if digits == "inf" else digits) + " %" * bool(percent)


def _opening(cells: list[dict], paper: str) -> list[dict]:
    """The output of the opening cell, to stand first; where it was made, its code is left."""
    for cell in cells:
        if OPENING in chapters.tags(cell) and cell["outputs"]:
            first = copy.deepcopy(cell) | {"source": "# opens the page", "id": f"{paper}-opening"}
            first["metadata"]["tags"] = ["remove-input", OPENING]
            cell["outputs"] = []
            cell["metadata"]["tags"] = [t for t in chapters.tags(cell) if t != OPENING]
            cell["metadata"]["mystnb"].pop("figure", None)  # its name is taken
            return [first]
    return []


def _directive(said: str, id: str) -> dict:
    return {
        "cell_type": "markdown",
        "id": id.replace("_", "-"),
        "metadata": {},
        "source": f"```{said}\n```",
    }


def _is_heading(cell: dict) -> bool:
    return cell["cell_type"] == "markdown" and "".join(cell["source"]).startswith("## ")


def _tag(cell: dict, tag: str) -> None:
    cell["metadata"]["tags"] = [*dict.fromkeys([*chapters.tags(cell), tag])]


def _html(output: dict) -> str:
    return output.get("data", {}).get("text/html", "")


def parameter_rows(source: str) -> list[tuple[str, str, str]]:
    """Name, default and meaning of each parameter, as its cell states them."""
    rows = []
    for line in source.splitlines():
        if found := re.match(r"(\w+): [^=]+= (.+?)\s+#\s*(.+)$", line):
            rows.append((found[1], found[2], found[3]))
    return rows
