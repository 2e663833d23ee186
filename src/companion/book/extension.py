"""The Sphinx side: the directives, MathJax beside the pages, tidy docstrings."""

from __future__ import annotations

import json
import shutil
from importlib.util import find_spec
from pathlib import Path
from typing import ClassVar

from docutils.parsers.rst import directives
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from companion.book import api, scoreboard, start, tables
from companion.book.docstrings import tidy_docstring
from companion.book.runs import (
    RECORDED,
    benchmarks,
    everything,
    papers,
    stored_run,
)
from companion.data.catalogue import catalogue
from companion.files import ROOT, to_json, write_whole
from companion.notebook.checking import Table
from companion.notebook.claims import load_claims
from companion.runs import chapters
from companion.runs.curves import draw, read_curves
from companion.runs.fingerprint import is_untouched
from companion.runs.record import Run
from companion.runs.records import load_records
from companion.runs.store import kept

logger = logging.getLogger(__name__)


class Papers(SphinxDirective):
    """What came out, and a card a paper."""

    def run(self):
        cards = start.cards(self.env.found_docs)
        return [start.headline(), *self.parse_text_to_nodes(cards)]


class Borrowings(SphinxDirective):
    """The map of what each paper takes from which."""

    def run(self):
        builder, here = self.env.app.builder, self.env.docname
        return [
            start.borrowings(
                self.env.found_docs, lambda page: builder.get_relative_uri(here, page)
            )
        ]


class Scoreboard(SphinxDirective):
    """Every claim of every chapter under every run."""

    def run(self):
        return scoreboard.page(self.env)


class Recorded(SphinxDirective):
    """What the profiles of one chapter cost, and its recorded runs."""

    required_arguments = 1

    def run(self):
        stem = self.arguments[0]
        runs = load_records(stem)
        document = self.state.document
        return [
            *tables.cost_table(stem, [stored_run(stem), *runs]),
            *(node for run in runs for node in tables.record_nodes(document, stem, run)),
            *tables.gpu_note(stem, runs),
        ]


class Sweep(SphinxDirective):
    """A kept sweep of a chapter: its curves, how often each claim held, and its command.

    A line of the content is a curve, `label: column` (`companion.runs.curves.read_curves`).
    `bare` leaves out all but the figure, for a second one of the same sweep.
    """

    required_arguments = 2  # stem, name
    has_content = True
    option_spec: ClassVar = {
        "bare": directives.flag,
        **dict.fromkeys(
            ("x", "y", "across", "log", "mark", "caption", "alt"), directives.unchanged
        ),
    }

    def run(self):
        stem, name = self.arguments
        run = next((run for run in kept(stem) if run.name == name), None)
        if run is None:
            raise self.error(f"{stem} has no kept sweep {name!r}")
        wanted = dict(line.rsplit(": ", 1) for line in self.content if line.strip())
        options = dict.fromkeys(self.option_spec, "") | self.options
        table = ROOT / RECORDED / stem / "sweeps" / f"{name}.csv"
        self.env.note_dependency(str(table))
        try:
            curves = read_curves(table, wanted, options["across"])
        except ValueError as error:
            raise self.error(str(error)) from None
        picture = draw(curves, options["x"], options["y"], options["log"].split(), options["mark"])
        figure, *told = tables.sweep_nodes(run, picture, options["caption"], options["alt"])
        return [figure] if "bare" in self.options else [figure, *told]


class Benchmarks(SphinxDirective):
    """The committed benchmark results, each against its peer."""

    def run(self):
        found = benchmarks()
        if not found:
            return [tables.marked("No benchmark results are stored yet. `make bench` makes them.")]
        titles = {paper["stem"]: paper["title"] for paper in papers()} | {"sweep": "Sweeps"}
        out: list = []
        for stem in sorted(found, key=list(titles).index):
            result = found[stem]
            where = result.get("provenance", {})
            rows = [
                [
                    row["what"],
                    row["against"],
                    f"{row['ratio']:.3g}",
                    row["aim"],
                    row.get("note", ""),
                ]
                for row in result["rows"]
            ]
            out.append(
                tables.section(
                    titles.get(stem, stem),
                    f"performance-{stem}",
                    tables.table(["What", "Against", "Ratio", "Aim", "Note"], rows, "benchmarks"),
                    tables.paragraph(
                        f"{where.get('hardware', 'machine not known')}, "
                        f"{where.get('date', 'no date')}, commit ",
                        tables.code(where.get("commit") or "not known"),
                    ),
                    tables.shell(result["command"]),
                    *map(tables.paragraph, result.get("conclusions", [])),
                )
            )
        return out


class Datasets(SphinxDirective):
    """The data sets as the library knows them."""

    def run(self):
        rows = [
            [
                tables.code(name),
                source.title,
                tables.code(f"{source.where}/") if source.where else "nothing to put anywhere",
                source.licence,
                tables.marked(source.get),
            ]
            for name, source in catalogue().items()
        ]
        head = ["Name", "Set", "Folder below the data root", "Licence", "How to get it"]
        return [tables.table(head, rows, "datasets")]


def register(app) -> dict[str, bool]:
    """Make the directives known, and connect what is done around the pages."""
    for directive in (Papers, Borrowings, Scoreboard, Recorded, Sweep, Benchmarks, Datasets):
        app.add_directive(directive.__name__.lower(), directive)
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")  # first: it reads sections, ours the rest
    app.connect("build-finished", _copy_mathjax)
    app.connect("build-finished", _write_claims)
    app.connect("autodoc-process-docstring", _tidy)
    app.connect("source-read", _derive_tables)
    app.connect("source-read", _write_api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _derive_tables(app, docname: str, source: list[str]) -> None:
    folder, _, stem = docname.rpartition("/")
    if folder == "notebooks":
        if not is_untouched(chapters.find(stem)):
            logger.warning("its outputs were edited: make notebooks NB=%s", stem, location=docname)
        source[0] = derive_tables(source[0], stem)


def _write_api(app, docname: str, source: list[str]) -> None:
    folder, _, name = docname.rpartition("/")
    if folder == "book/api":
        source[0] = api.page(name)


def derive_tables(text: str, stem: str) -> str:
    """A notebook whose claims table is made anew from the claims that it recorded."""
    notebook = json.loads(text)
    run = Run.of_values(stem, "stored", chapters.recorded_values(notebook))
    shown = Table(load_claims(stem), run.claims.values())._repr_html_()
    for cell in chapters.code_cells(notebook):
        for output in cell["outputs"]:
            stored = "".join(output.get("data", {}).get("text/html", ""))
            if stored.startswith('<table class="claims">'):
                output["data"]["text/html"] = shown
    return json.dumps(notebook)


def _write_claims(app, exception) -> None:
    """Every claim, run and measured quantity beside the pages, as `claims.json`."""
    if exception is None and app.builder.format == "html":
        write_whole(Path(app.outdir) / "claims.json", to_json(everything()))


def _tidy(app, what, name, obj, options, lines) -> None:
    lines[:] = tidy_docstring(lines)


def _copy_mathjax(app, exception) -> None:
    """Put MathJax, one self-contained file, where `mathjax_path` says.

    The package that carries it is no extension for us: that would copy all of its 100 files
    and overrule `mathjax_path`.
    """
    if exception is None and app.builder.format == "html":
        package = Path(find_spec("sphinx-mathjax-offline").origin).parent
        target = Path(app.outdir) / "_static" / app.config.mathjax_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / "static" / app.config.mathjax_path, target)
