"""The Sphinx side: the directives, MathJax beside the pages, tidy docstrings."""

from __future__ import annotations

import os
import re
import sys
from contextlib import suppress
from importlib.metadata import PackageNotFoundError
from pathlib import Path
from typing import ClassVar

from docutils import nodes
from docutils.parsers.rst import directives
from sphinx.ext import viewcode
from sphinx.util import logging
from sphinx.util.docutils import SphinxDirective

from companion.book import (
    api,
    assets,
    compare,
    fold,
    frame,
    performance,
    result,
    scoreboard,
    start,
    tables,
)
from companion.book.docstrings import tidy_docstring
from companion.book.pages import page
from companion.book.runs import (
    RECORDED,
    everything,
    papers,
    stored_run,
)
from companion.data.catalogue import catalogue
from companion.files import ROOT, to_json, write_whole
from companion.runs import chapters, record
from companion.runs.curves import draw, draw_runs, read_curves
from companion.runs.fingerprint import assume_unchanged, is_untouched
from companion.runs.record import SCHEMA, Run
from companion.runs.records import load_answers, load_records
from companion.runs.store import kept

logger = logging.getLogger(__name__)


class Papers(SphinxDirective):
    """What came out, and a card a paper."""

    def run(self) -> list[nodes.Node]:
        cards = start.cards(self.env.found_docs)
        return [start.headline(), *self.parse_text_to_nodes(cards)]


class Borrowings(SphinxDirective):
    """The map of what each paper takes from which."""

    def run(self) -> list[nodes.Node]:
        builder, here = self.env.app.builder, self.env.docname
        return [
            start.borrowings(
                self.env.found_docs, lambda page: builder.get_relative_uri(here, page)
            )
        ]


class Scoreboard(SphinxDirective):
    """Every claim of every chapter under every run."""

    def run(self) -> list[nodes.Node]:
        return scoreboard.page(self.env)


class Result(SphinxDirective):
    """What came out of a chapter, for its first screen."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        paper = self.arguments[0]
        return [result.result_box(self.env, paper, _runs(paper), kept(paper))]


class RunIt(SphinxDirective):
    """How to run a chapter, folded; the chapter's set-up is put into it."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        paper = self.arguments[0]
        return [result.run_it(self.env, self.config, paper, _runs(paper))]


class Related(SphinxDirective):
    """Related chapters, with what relates them."""

    required_arguments = 1

    def run(self) -> list[nodes.Node]:
        return result.see_also(self.env, self.arguments[0])


class Environment(SphinxDirective):
    """The packages that the project names, in the versions that the book was built with."""

    def run(self) -> list[nodes.Node]:
        import platform
        from importlib.metadata import requires, version

        names = sorted(
            {
                re.split(r"[^\w.-]", line)[0]
                for line in requires("paper-companion") or ()
                if "test" not in line
            }
        )
        rows = [["Python", platform.python_version()]]
        for name in names:
            with suppress(PackageNotFoundError):  # an extra that is not installed
                rows.append([tables.code(name), version(name)])
        return [tables.table(["Package", "Version"], rows, "packages")]


class Provenance(SphinxDirective):
    """Where each run of each chapter comes from."""

    def run(self) -> list[nodes.Node]:
        out: list = []
        for paper in papers():
            if paper["stem"] in chapters.stems():
                stem = paper["stem"]
                shown: list[Run | record.Sweep] = [*_runs(stem), *load_answers(stem), *kept(stem)]
                link = tables.chapter_link(self.env, paper["title"], paper["stem"])
                line = [link or paper["title"], f" – {len(shown)} runs and sweeps"]
                line += [" ", *tables.stale(*shown)]
                out += [tables.paragraph(*line), fold.folded("Runs", tables.runs_table(shown))]
        return out


class Recorded(SphinxDirective):
    """The recorded runs of a chapter beside its default run and beside the paper.

    A line of the content is a panel of a figure with a line a run, `label: name.of.{x}`, of
    values that runs recorded (`compare.read_points`). `paper` are the paper's values to draw into
    panels, `label: text with {x}` (`compare.paper_points`), several with "; " between. `figures`
    names the runs' figures that are shown, all of them without it.
    """

    required_arguments = 1
    has_content = True
    option_spec: ClassVar = dict.fromkeys(
        ("x", "y", "log", "paper", "caption", "alt", "figures"), directives.unchanged
    )

    def run(self) -> list[nodes.Node]:
        paper = self.arguments[0]
        runs = _runs(paper)
        recorded = runs[1:]
        sweeps = kept(paper)
        try:
            compare.check_names(paper, runs, sweeps)
        except ValueError as error:
            raise self.error(str(error)) from None
        out: list = [node for run in recorded for node in compare.unfinished(run)]
        if recorded or sweeps:
            out += self._figure(paper, runs)
            out += compare.comparisons(paper, [*runs, *sweeps])
        out += compare.measures(paper, runs)
        try:
            wanted = self.options.get("figures", "").split()
            out += compare.figures(paper, recorded, wanted)
        except ValueError as error:
            raise self.error(str(error)) from None
        out += compare.provenances(paper, recorded)
        return [*out, *tables.gpu_note(paper, recorded)]

    def _figure(self, paper: str, runs: list[Run]) -> list:
        wanted = dict(line.rsplit(": ", 1) for line in self.content if line.strip())
        if not wanted:
            return []
        options = dict.fromkeys(self.option_spec, "") | self.options
        methods = {label: compare.read_points(paper, runs, name) for label, name in wanted.items()}
        if lacking := [label for label, lines in methods.items() if not lines]:
            raise self.error(f"no run of {paper} recorded {wanted[lacking[0]]!r}")
        reported = {}
        for each in filter(None, options["paper"].split("; ")):
            label, _, text = each.partition(": ")
            if not (points := compare.paper_points(paper, text, runs[0])):
                raise self.error(f"{paper}: no value of the paper is {text!r}")
            reported[label] = points
        picture = draw_runs(
            methods, options["x"], options["y"], options["log"].split(), reported, _colours(runs)
        )
        return [tables.picture(picture, options["caption"], options["alt"])]


def _runs(paper: str) -> list[Run]:
    return [stored_run(paper), *load_records(paper)]


def _colours(runs: list[Run]) -> dict[str, str]:
    """The colours that a chapter gives its methods, as its default run recorded them."""
    return runs[0].values.get(f"{runs[0].paper}.colours", {})


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

    def run(self) -> list[nodes.Node]:
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
        colours = _colours([stored_run(stem)])
        picture = draw(
            curves, options["x"], options["y"], options["log"].split(), options["mark"], colours
        )
        figure, *told = tables.sweep_nodes(
            run, picture, options["caption"], options["alt"], dots=not options["x"]
        )
        return [figure] if "bare" in self.options else [figure, *told]


class Benchmarks(SphinxDirective):
    """The committed benchmark results: all ratios on one axis, and a table a chapter."""

    def run(self) -> list[nodes.Node]:
        return performance.benchmarks_section(self.env)


class Gpu(SphinxDirective):
    """What a GPU machine has shown: its speed, the benchmarks on it, runs and checks."""

    def run(self) -> list[nodes.Node]:
        return performance.gpu_section(self.env)


class Datasets(SphinxDirective):
    """The data sets as the library knows them."""

    def run(self) -> list[nodes.Node]:
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
    for directive in (
        Papers, Borrowings, Scoreboard, Result, RunIt, Related, Environment, Provenance, Recorded, Sweep, Benchmarks, Gpu,
        Datasets,
    ):  # fmt: skip
        app.add_directive(directive.__name__.lower(), directive)
    fold.register(app)
    frame.register(app)
    app.setup_extension("sphinx.ext.autodoc")
    app.setup_extension("sphinx.ext.napoleon")  # first: it reads sections, ours the rest
    app.connect("build-finished", _finish_assets)
    app.connect("builder-inited", _use_several_cores)
    # sources that a process read and no page shows
    app.connect("env-updated", lambda app, env: viewcode.env_purge_doc(app, env, ""))
    app.connect("builder-inited", _search_prose_only)
    app.connect("builder-inited", lambda app: assume_unchanged(True))
    app.connect("build-finished", lambda app, exception: assume_unchanged(False), priority=900)
    app.connect("html-page-context", _leave_out_scripts, priority=900)
    app.connect("html-page-context", _mend_lists)
    app.connect("build-finished", _write_claims)
    app.connect("autodoc-process-docstring", _tidy)
    app.connect("autodoc-skip-member", _skip_inherited)
    app.connect("source-read", _read_chapter)
    app.connect("source-read", _write_api)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _use_several_cores(app) -> None:
    """Read and write pages in a process per core, four at most: jupyter-book has no option for it.

    Two of the extensions that it loads do not say that they may be read side by side. One numbers
    chapters when all are read, the other concerns LaTeX. The pages are the same.
    """
    if sys.platform == "linux":  # elsewhere a fork of what PyTorch has started may hang
        app.parallel = min(4, len(os.sched_getaffinity(0)))  # each takes some 600 MB
        for name in ("sphinx_multitoc_numbering", "sphinx_jupyterbook_latex"):
            app.extensions[name].parallel_read_safe = True


def _read_chapter(app, docname: str, source: list[str]) -> None:
    folder, _, stem = docname.rpartition("/")
    if folder == "notebooks":
        if not is_untouched(chapters.find(stem)):
            logger.warning("its outputs were edited: make notebooks NB=%s", stem, location=docname)
        source[0] = page(source[0], stem)


def _write_api(app, docname: str, source: list[str]) -> None:
    folder, _, name = docname.rpartition("/")
    if folder == "book/api":
        source[0] = api.page(name)


def _write_claims(app, exception) -> None:
    """Every claim, run and measured quantity beside the pages, as `claims.json`, and the schema
    of its runs and sweeps."""
    if exception is None and app.builder.format == "html":
        write_whole(Path(app.outdir) / "claims.json", to_json(everything()))
        write_whole(Path(app.outdir) / SCHEMA.name, SCHEMA.read_bytes())


def _skip_inherited(app, what, name: str, obj, skip: bool, options) -> bool | None:
    """scikit-learn adds `set_fit_request` and its like, with docstrings of its own site."""
    return True if re.fullmatch(r"set_\w+_request", name) else None


def _tidy(app, what, name, obj, options, lines) -> None:
    lines[:] = tidy_docstring(lines)


def _finish_assets(app, exception) -> None:
    if exception is None and app.builder.format == "html":
        assets.copy_mathjax(Path(app.outdir) / "_static", app.config.mathjax_path)
        assets.trim_icons(Path(app.outdir))
        assets.lighten_figures(Path(app.outdir))
        assets.size_images(Path(app.outdir))
        assets.name_buttons(Path(app.outdir))


def _leave_out_scripts(app, pagename, templatename, context, doctree) -> None:
    """Thebe, which no page offers, and MathJax where a page has no mathematics of its own."""
    unused = ["thebe"]
    whole_book = app.builder.name == "singlehtml"
    if not whole_book and not app.env.get_domain("math").data["has_equations"].get(pagename):
        unused.append("mathjax")  # Sphinx adds it to a page that lists one with mathematics

    def is_unused(asset) -> bool:
        said = f"{getattr(asset, 'filename', asset)} {getattr(asset, 'attributes', '')}".lower()
        return any(name in said for name in unused)

    for kind in ("script_files", "css_files"):
        context[kind] = [asset for asset in context[kind] if not is_unused(asset)]


def _mend_lists(app, pagename, templatename, context, doctree) -> None:
    """Lists that Sphinx and docutils write and screen readers stumble over: a signature over
    several lines is a list of definitions without terms, a bibliography one without items."""
    body = context.get("body") or ""
    context["body"] = re.sub(
        r"<dl>\n((?:<dd>[^\n]*</dd>\n)+)</dl>",
        lambda match: '<span class="sig-lines">' + match[1].replace("dd>", "span>") + "</span>",
        body.replace('<div role="list" class="citation-list">', '<div class="citation-list">'),
    )


def _search_prose_only(app) -> None:
    """Leave code out of the search index: a name in a cell is not what a page is about."""
    builder = app.builder
    if not hasattr(builder, "index_page"):
        return
    index = builder.index_page

    def index_page(pagename, doctree, title) -> None:
        prose = doctree.deepcopy()
        for block in list(prose.findall(nodes.literal_block)):
            block.parent.remove(block)
        index(pagename, prose, title)

    builder.index_page = index_page
