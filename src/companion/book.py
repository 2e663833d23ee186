"""The book: its strict build, and the tables that are computed while it is built.

A Sphinx extension with the directives ``{papers}``, ``{scoreboard}``, ``{recorded} STEM``,
``{benchmarks}`` and ``{datasets}``. They read the stored notebooks and the records each time,
so that no table can drift from the runs behind it and nothing generated is committed.

`build` needs the standard library only, so that finding nothing to do takes no time.
"""

from __future__ import annotations

import hashlib
import json
import re
import shutil
import subprocess
import sys
import time
from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
SOURCES = ("_config.yml", "_toc.yml", "index.md", "book", "notebooks", "src/companion")
RECORDED = "book/recorded"  # below ROOT, as Sphinx names files
NO_GPU = "No run on a GPU is recorded yet. This makes one:"


class BuildError(RuntimeError):
    """Raised when the book cannot be built, or only with warnings."""


# ---------------------------------------------------------------- the strict build


def content_hash(root: Path = ROOT) -> str:
    """sha256 over the name and content of every file that the book reads."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(root).as_posix()
            passing = (
                file.suffix == ".part" or "__pycache__" in name or ".ipynb_checkpoints" in name
            )
            if file.is_file() and not passing:
                digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def build(force: bool = False, root: Path = ROOT) -> int:
    """Build the book from a clean folder with every warning an error; say where to open it.

    Does nothing if nothing that the book reads has changed since the last good build.
    Returns 0. Raises BuildError with the warnings if there are any.
    """
    out = root / "_build"
    stamp, start = out / "built-from", out / "html" / "index.html"
    # taken before the build: an edit while it runs makes the next call build again
    content = content_hash(root)
    if not force and start.is_file() and stamp.is_file() and stamp.read_text() == content:
        print(f"the book is up to date: {start.as_uri()}")
        return 0

    script = Path(sys.executable).parent / "jupyter-book"
    if not script.is_file():
        raise BuildError(f"{script} is missing: run `make environment`, or install '.[book]'")
    stamp.unlink(missing_ok=True)
    # Sphinx shows a warning only when it reads the page: an incremental build would hide it
    for name in ("html", ".doctrees", "jupyter_execute"):
        shutil.rmtree(out / name, ignore_errors=True)
    out.mkdir(exist_ok=True)
    began = time.monotonic()
    command = [str(script), "build", str(root), "-W", "-n", "--keep-going"]
    status, lines = _run_with_progress(command, root)
    log = out / "build.log"
    log.write_text("".join(lines), encoding="utf-8")
    if status or not start.is_file():
        wrong = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|Error\b", line)]
        raise BuildError(
            "the book was not built:\n"
            + "".join(wrong or lines[-20:])
            + f"everything it said: {log}"
        )
    stamp.write_text(content)
    print(f"built in {time.monotonic() - began:.0f} s: {start.as_uri()}")
    return 0


def _run_with_progress(command: list[str], root: Path) -> tuple[int, list[str]]:
    """Run a command; return its status and output. On a terminal, one line shows how far it is."""
    live = sys.stdout.isatty()
    print("building the book, strictly ...", end="" if live else "\n", flush=True)
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    ) as process:
        try:
            for line in process.stdout or ():
                line = re.sub(r"\x1b\[[0-9;]*m", "", line)
                lines.append(line)
                if live and (step := re.match(r"(\w[\w ]+)\.\.\. *\[ *(\d+%)\]", line)):
                    print(f"\rbuilding the book: {step[1]} {step[2]}\x1b[K", end="", flush=True)
        except BaseException:
            process.kill()
            raise
    print("\r\x1b[K" if live else "", end="", flush=True)
    return process.returncode, lines


# ---------------------------------------------------------------- what the runs say


@dataclass(frozen=True)
class Run:
    """One run of a chapter, stored in its notebook or recorded, as the book shows it.

    name: its column in the scoreboard. claims: fields of `companion.claims.Claim`, by id.
    seconds: None where it is not known. record: the whole record; empty for the stored run.
    stale: whether the chapter's code has changed since.
    """

    name: str
    profile: str
    claims: dict[str, dict]
    command: str
    seconds: float | None
    stale: bool
    machine: str = ""
    device: str = ""
    date: str = ""
    status: str = "complete"
    record: dict = field(default_factory=dict, repr=False)


def papers() -> list[dict]:
    """The ten papers of book/papers.yml, in order."""
    import yaml

    return yaml.safe_load((ROOT / "book" / "papers.yml").read_text(encoding="utf-8"))


def stored_run(stem: str) -> Run:
    """The run whose outputs the chapter's notebook holds."""
    from companion import notebooks

    path = notebooks.find(stem)
    notebook = notebooks.read(path)
    values = notebooks.recorded_values(notebook)
    about = notebook["metadata"].get("companion", {})
    return Run(
        name="stored",
        profile=str(values.get(f"{stem}.settings", {}).get("profile", "")),
        claims=_by_id(values.get(f"{stem}.claims", [])),
        command=f"companion run {stem}",
        seconds=about.get("seconds"),
        stale=about.get("fingerprint") != notebooks.fingerprint(path),
        machine="a CPU",
        device="cpu",
    )


def recorded_runs(stem: str) -> list[Run]:
    """Every recorded run of a chapter, oldest first."""
    from companion.records import load_records

    runs = []
    for record in load_records(stem):
        where = record.get("provenance", {})
        runs.append(
            Run(
                name=record["name"],
                profile=str(record.get("profile", "")),
                claims=_by_id(record.get("values", {}).get(f"{stem}.claims", [])),
                command=record.get("command", ""),
                seconds=record.get("seconds"),
                stale=record["stale"],
                machine=where.get("hardware", ""),
                device=where.get("device", ""),
                date=where.get("date", ""),
                status=record.get("status", "unfinished"),
                record=record,
            )
        )
    return runs


def _by_id(claims: list[dict]) -> dict[str, dict]:
    return {claim["id"]: claim for claim in claims}


def verdict_counts(run: Run) -> Counter:
    """How many claims of a run have each verdict."""
    return Counter(claim["verdict"] for claim in run.claims.values())


def is_unexpected(claim: dict) -> bool:
    """Whether an asserted claim came out otherwise than specified (as `Claim.failed`)."""
    return claim["asserted"] and claim["holds"] is not claim["expected"]


def gpu_command(stem: str) -> str:
    """The command that records a chapter at the paper's size on a GPU."""
    return f"companion record {stem} --name paper -p profile paper -p device cuda"


def shown_seconds(seconds: float | None) -> str:
    return "not known" if seconds is None else f"{seconds:,.0f} s"


def benchmarks() -> dict[str, dict]:
    """The committed benchmark results by stem; empty where there are none."""
    path = ROOT / RECORDED / "benchmarks.json"
    return json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}


# ---------------------------------------------------------------- nodes


def _paragraph(*parts):
    from docutils import nodes

    return nodes.paragraph("", "", *(nodes.Text(p) if isinstance(p, str) else p for p in parts))


def _code(text: str):
    from docutils import nodes

    return nodes.literal(text, text)


def _shell(text: str):
    from docutils import nodes

    return nodes.literal_block(text, text, language="bash")


def _strong(text: str):
    from docutils import nodes

    return nodes.strong(text, text)


def _link(text: str, url: str):
    from docutils import nodes

    return nodes.reference(text, text, refuri=url, internal=False)


def _pill(text: str, kind: str):
    from docutils import nodes

    return nodes.inline(text, text, classes=["verdict", kind])


def _stale():
    return _pill("stale", "stale")


def _chapter_link(env, text: str, stem: str):
    """A link to a chapter's page, or None if the book has no such page."""
    from docutils import nodes
    from sphinx.addnodes import pending_xref

    name = f"notebooks/{stem}"
    if name not in env.found_docs:
        return None
    return pending_xref(
        "",
        nodes.inline(text, text),
        refdomain="std",
        reftype="doc",
        reftarget=f"/{name}",
        refdoc=env.docname,
        refexplicit=True,
        refwarn=True,
    )


def _table(head: list, rows: list[list], kind: str):
    """A table whose cells are texts, nodes or lists of nodes; its box scrolls when it is wide."""
    from docutils import nodes

    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    lines = [[_entry(cell) for cell in row] for row in [head, *rows]]
    group += nodes.thead("", nodes.row("", *lines[0]))
    group += nodes.tbody("", *(nodes.row("", *line) for line in lines[1:]))
    return nodes.table("", group, classes=["companion", "colwidths-auto", *kind.split()])


def _entry(cell):
    from docutils import nodes

    parts = cell if isinstance(cell, list) else [cell]
    blocks = [
        part if isinstance(part, (nodes.paragraph, nodes.literal_block)) else _paragraph(part)
        for part in parts
        if part != ""
    ]
    return nodes.entry("", *blocks)


def _verdict(claim: dict) -> list:
    """The verdict in words, with what makes it surprising or not."""
    from companion.claims import verdict_class, verdict_text

    text = verdict_text(claim["verdict"], claim["holds"])
    parts = [_pill(text, verdict_class(claim["verdict"]))]
    if is_unexpected(claim):
        parts.append("not as specified")
    elif not claim["expected"] and claim["holds"] is False:
        parts.append("known not to reproduce")
    return parts


def _claim_table(run: Run):
    """The claims of one run: paper, ours, tolerance, verdict."""
    from companion.claims import paper_figure

    head = ["", "Claim", "Paper", "Ours", "Tolerance", "Verdict"]
    rows = [
        [
            claim["id"],
            f"{claim['sentence']} ({claim['source']})",
            paper_figure(claim["paper"], claim["certainty"]),
            claim["ours"],
            claim["tolerance"],
            _verdict(claim),
        ]
        for claim in run.claims.values()
    ]
    return _table(head, rows, "claims")


def _scoreboard_table(runs: list[Run]):
    """All claims of a chapter, the verdicts of its runs beside each other."""
    from companion.claims import paper_figure

    head: list = ["", "Claim", "Paper"]
    for run in runs:
        told = f"profile {run.profile}" if run.profile else ""
        head.append([_strong(run.name), told, *([_stale()] if run.stale else [])])
    known: dict[str, dict] = {}
    for run in runs:
        known = run.claims | known  # the first run that has a claim gives its sentence
    order = sorted(known, key=_natural)
    rows = []
    for id in order:
        claim = known[id]
        row: list = [
            id,
            f"{claim['sentence']} ({claim['source']})",
            paper_figure(claim["paper"], claim["certainty"]),
        ]
        for run in runs:
            if here := run.claims.get(id):
                row.append([*_verdict(here), *([f"ours: {here['ours']}"] if here["ours"] else [])])
            else:
                row.append("not in this run")
        rows.append(row)
    return _table(head, rows, "claims scores")


def _natural(text: str) -> list:
    """Sort key by which C2 comes before C10."""
    return [int(part) if part.isdigit() else part for part in re.split(r"(\d+)", text)]


def _runs_table(runs: list[Run]):
    """What reproduces each run, and what it costs."""
    rows = []
    for run in runs:
        state = [run.status] + (["the code has changed since", _stale()] if run.stale else [])
        where = [run.machine, f"{run.device}, {run.date}" if run.date else ""]
        rows.append(
            [_strong(run.name), [_code(run.command)], shown_seconds(run.seconds), where, state]
        )
    return _table(["Run", "Command", "Cost", "Machine", "State"], rows, "runs")


def _summary_table(env, runs_by_stem: dict[str, list[Run]]):
    """The ten papers, and how many claims of the stored run have each verdict."""
    from companion import claims

    verdicts = (claims.HOLDS, claims.FAILS, claims.REPORTED, claims.NEEDS_PAPER)
    rows: list = []
    total: Counter = Counter()
    for paper in papers():
        stem = paper["stem"]
        if stem not in runs_by_stem:
            rows.append([paper["title"], "no chapter yet", *["–"] * (len(verdicts) + 1)])
            continue
        stored, *recorded = runs_by_stem[stem]
        counts = verdict_counts(stored)
        total += counts
        chapter = [_chapter_link(env, stem, stem) or _code(stem)]
        if stored.stale:
            chapter.append(_stale())
        names = ", ".join(run.name + (" (stale)" if run.stale else "") for run in recorded)
        rows.append(
            [paper["title"], chapter, *(str(counts[v]) for v in verdicts), names or "none"]
        )
    rows.append([_strong("all"), "", *(_strong(str(total[v])) for v in verdicts), ""])
    return _table(["Paper", "Chapter", *verdicts, "recorded runs"], rows, "summary")


def _record_nodes(directive, stem: str, run: Run) -> list:
    """All that the book shows of one recorded run."""
    from docutils import nodes

    title = nodes.rubric("", "", nodes.Text(f"Recorded run: {run.name}"))
    if run.stale:
        title += [nodes.Text(" "), _stale()]
    record, where = run.record, run.record.get("provenance", {})
    commit = where.get("commit", "")
    packages = where.get("packages", {})
    facts: list = [
        ["Machine", [f"{run.machine} ({run.device})"]],
        ["Date", run.date],
        ["Time", shown_seconds(run.seconds)],
        ["Peak memory", _shown_memory(record.get("peak_memory", {}))],
        [
            "Code",
            [
                _paragraph("commit ", _code(commit)) if commit else "commit not known",
                "with changes that were not committed"
                if where.get("changed_since_commit")
                else "",
            ],
        ],
        ["Packages", ", ".join(f"{name} {version}" for name, version in packages.items())],
        [
            "Data",
            [
                _paragraph(f"{name}: sha256 ", _code(checksum))
                for name, checksum in record.get("data", {}).items()
            ]
            or "made or bundled",
        ],
        ["Command", [_code(run.command)]],
    ]
    out: list = [title]
    if run.status != "complete":
        why = f": {record['error']}" if record.get("error") else ""
        out.append(
            nodes.warning("", _paragraph(f"This run is {run.status}{why}. It is no evidence."))
        )
    if run.stale:
        out.append(
            nodes.note(
                "",
                _paragraph(
                    "Stale: the chapter's code or the library below it has changed since this "
                    "run. The command repeats it."
                ),
            )
        )
    out.append(_table(["Run", run.name], facts, "facts"))
    if run.claims:
        out.append(_claim_table(run))
    out += [_record_figure(directive, stem, figure) for figure in run.record.get("figures", [])]
    return out


def _record_figure(directive, stem: str, about: dict):
    from docutils import nodes

    image = nodes.image(
        uri=f"/{RECORDED}/{stem}/{about['file']}", alt=about["alt"] or about["caption"]
    )
    figure = nodes.figure("", image, classes=["recorded"])
    name = nodes.fully_normalize_name(about["name"])
    figure["names"].append(name)
    directive.state.document.note_explicit_target(figure, figure)
    figure += nodes.caption("", about["caption"])
    return figure


def _shown_memory(peak: dict[str, float]) -> str:
    kinds = {"process_mb": "of the process", "gpu_mb": "on the GPU"}
    told = [f"{peak[key]:,.0f} MB {kind}" for key, kind in kinds.items() if key in peak]
    return ", ".join(told) or "not known"


# ---------------------------------------------------------------- docstrings


def tidy_docstring(lines: list[str]) -> list[str]:
    """House docstrings as reStructuredText.

    Signs that would be markup (``*``, ``|``, a closing ``_``) are escaped outside backticks,
    and lines such as ``seed: what it is``, with what is indented below them, become entries of
    a list.
    """
    out: list[str] = []
    inside = False  # of an entry
    for line in lines:
        text = _escape(line)
        if line.lstrip().startswith(">>>") or (out and out[-1].lstrip().startswith(">>>")):
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
    return out


def _escape(line: str) -> str:
    parts = re.split(r"(``.*?``|`[^`]*`)", line)
    return "".join(
        part if part.startswith("`") else re.sub(r"([*|]|(?<=\w)_(?!\w))", r"\\\1", part)
        for part in parts
    )


# ---------------------------------------------------------------- Sphinx


def setup(app):
    """Register the directives, tidy docstrings, and put MathJax beside the pages."""
    from docutils import nodes
    from sphinx.util.docutils import SphinxDirective

    class Papers(SphinxDirective):
        """The ten papers in a sentence each, and which have a chapter."""

        def run(self):
            rows = [
                [
                    [
                        _link(paper["title"], f"https://arxiv.org/abs/{paper['arxiv']}"),
                        paper["venue"],
                    ],
                    paper["sentence"],
                    _chapter_link(self.env, "read it", paper["stem"]) or "no chapter yet",
                ]
                for paper in papers()
            ]
            return [_table(["Paper", "In a sentence", "Chapter"], rows, "papers")]

    class Scoreboard(SphinxDirective):
        """Every claim of every chapter under every run."""

        def run(self):
            from companion import notebooks

            runs = {stem: [stored_run(stem), *recorded_runs(stem)] for stem in notebooks.stems()}
            titles = {paper["stem"]: paper["title"] for paper in papers()}
            order = [stem for stem in titles if stem in runs]
            out: list = [_summary_table(self.env, runs)]
            for stem in order + sorted(runs.keys() - titles.keys()):
                title = titles.get(stem, stem)
                section = nodes.section("", ids=[nodes.make_id(f"scoreboard-{stem}")])
                section += nodes.title("", title)
                if link := _chapter_link(self.env, "The chapter", stem):
                    section += _paragraph(link, " explains what was done.")
                section += _scoreboard_table(runs[stem])
                section += _paragraph("What reproduces these runs, and what it costs:")
                section += _runs_table(runs[stem])
                if not any(run.device == "cuda" for run in runs[stem]):
                    section += [_paragraph(NO_GPU), _shell(gpu_command(stem))]
                out.append(section)
            return out

    class Recorded(SphinxDirective):
        """The recorded runs of one chapter."""

        required_arguments = 1

        def run(self):
            stem = self.arguments[0]
            runs = recorded_runs(stem)
            out = [node for run in runs for node in _record_nodes(self, stem, run)]
            if not any(run.device == "cuda" for run in runs):
                out += [_paragraph(NO_GPU), _shell(gpu_command(stem))]
            return out

    class Benchmarks(SphinxDirective):
        """The committed benchmark results, each against its peer."""

        def run(self):
            found = benchmarks()
            if not found:
                return [
                    _paragraph("No benchmark results are stored yet. `make bench` makes them.")
                ]
            out: list = []
            for stem, result in found.items():
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
                section = nodes.section("", ids=[nodes.make_id(f"performance-{stem}")])
                section += nodes.title("", stem)
                section += _paragraph(_chapter_link(self.env, stem, stem) or _code(stem))
                section += _table(["What", "Against", "Ratio", "Aim", "Note"], rows, "benchmarks")
                section += _paragraph(
                    f"{where.get('hardware', 'machine not known')}, {where.get('date', 'no date')}, "
                    "commit ", _code(where.get("commit", "not known")),
                )  # fmt: skip
                section += _shell(result["command"])
                out.append(section)
            return out

    class Datasets(SphinxDirective):
        """The image sets as the library knows them."""

        def run(self):
            from companion.data import IMAGE_SETS

            rows = [
                [
                    _code(name),
                    source.title,
                    _code(f"{source.where}/") if source.where else "nothing to put anywhere",
                    source.licence,
                    source.get.replace("`", ""),
                ]
                for name, source in IMAGE_SETS.items()
            ]
            head = ["Name", "Set", "Folder below the data root", "Licence", "How to get it"]
            return [_table(head, rows, "datasets")]

    for directive in (Papers, Scoreboard, Recorded, Benchmarks, Datasets):
        app.add_directive(directive.__name__.lower(), directive)
    app.setup_extension("sphinx.ext.autodoc")
    app.connect("build-finished", _copy_mathjax)
    app.connect("autodoc-process-docstring", _tidy)
    return {"parallel_read_safe": True, "parallel_write_safe": True}


def _tidy(app, what, name, obj, options, lines) -> None:
    lines[:] = tidy_docstring(lines)


def _copy_mathjax(app, exception) -> None:
    """Put MathJax, one self-contained file, where `mathjax_path` says.

    The package that carries it is no extension for us: that would copy all of its 100 files
    and overrule `mathjax_path`.
    """
    from importlib.util import find_spec

    if exception is None and app.builder.format == "html":
        package = Path(find_spec("sphinx-mathjax-offline").origin).parent
        target = Path(app.outdir) / "_static" / app.config.mathjax_path
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(package / "static" / app.config.mathjax_path, target)
