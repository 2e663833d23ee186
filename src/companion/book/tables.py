"""The book's tables as docutils nodes."""

from __future__ import annotations

import base64
from collections.abc import Mapping

from docutils import nodes
from sphinx.addnodes import pending_xref

from companion.book.evidence import OLDER, SINCE
from companion.book.fold import folded
from companion.book.runs import (
    gpu_command,
    shown_seconds,
    shown_time,
)
from companion.runs.gpu_jobs import jobs_of
from companion.runs.record import DONE, EARLIER, STALE, Held, Run, Sweep


def paragraph(*parts) -> nodes.paragraph:
    return nodes.paragraph("", "", *(nodes.Text(p) if isinstance(p, str) else p for p in parts))


def code(text: str) -> nodes.literal:
    return nodes.literal(text, text)


def marked(text: str) -> nodes.paragraph:
    """A paragraph in which what stands between backticks is code."""
    parts = text.split("`")
    return paragraph(*(code(part) if i % 2 else part for i, part in enumerate(parts)))


def shell(text: str) -> nodes.literal_block:
    return nodes.literal_block(text, text, language="bash")


def strong(text: str) -> nodes.strong:
    return nodes.strong(text, text)


def link(text: str, url: str) -> nodes.reference:
    return nodes.reference(text, text, refuri=url, internal=False)


def pill(text: str, kind: str) -> nodes.inline:
    return nodes.inline(text, text, classes=["verdict", kind])


def older(run: Run | Sweep) -> list[nodes.Node]:
    """A pill if the code of a run or sweep has changed since."""
    return [pill(OLDER[run.code], run.code)] if run.code in OLDER else []


def stale(*kept: Run | Sweep) -> list[nodes.Node]:
    """A pill where it would be in the way of reading, if the results may be others now."""
    return [pill(OLDER[STALE], STALE)] if any(run.code == STALE for run in kept) else []


def chapter_link(env, text: str, stem: str) -> pending_xref | None:
    """A link to a chapter's page, or None if the book has no such page."""
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


def table(head: list, rows: list[list], kind: str) -> nodes.table:
    """A table whose cells are texts, nodes or lists of nodes; its box scrolls when it is wide."""
    group = nodes.tgroup("", cols=len(head))
    group += [nodes.colspec(colwidth=1) for _ in head]
    lines = [[_entry(cell) for cell in row] for row in [head, *rows]]
    group += nodes.thead("", nodes.row("", *lines[0]))
    group += nodes.tbody("", *(nodes.row("", *line) for line in lines[1:]))
    return nodes.table("", group, classes=["companion", "colwidths-auto", *kind.split()])


def _entry(cell) -> nodes.entry:
    parts = cell if isinstance(cell, list) else [cell]
    blocks = [
        part if isinstance(part, (nodes.paragraph, nodes.literal_block)) else paragraph(part)
        for part in parts
        if part != ""
    ]
    return nodes.entry("", *blocks)


def runs_table(runs: list[Run | Sweep]) -> nodes.table:
    """What reproduces each run, and what it costs."""
    rows = []
    for run in runs:
        state = [_status(run), *older(run)]
        at = run.provenance
        where = [
            at.get("hardware", ""),
            f"{at.get('device')}, {at['date']}" if "date" in at else "",
        ]
        rows.append(
            [strong(run.name), [code(run.command)], shown_seconds(run.seconds), where, state]
        )
    return table(["Run", "Command", "Cost", "Machine", "State"], rows, "runs")


def _status(run: Run | Sweep) -> str:
    return f"{run.runs} runs" if isinstance(run, Sweep) else run.status


def picture(png: bytes, caption: str, alt: str) -> nodes.figure:
    """A figure that was drawn while the book is built."""
    uri = "data:image/png;base64," + base64.b64encode(png).decode()
    figure = nodes.figure("", nodes.image(uri=uri, alt=alt), classes=["recorded"])
    figure += nodes.caption("", caption)
    return figure


def sweep_nodes(sweep: Sweep, png: bytes, caption: str, alt: str, *, dots: bool = False) -> list:
    """A kept sweep: its figure, how often its claims held, its command and what it cost.

    dots: the figure has one dot per run or seed and a bar at their mean; otherwise curves with bands.
    """
    shown = "Bars: means over" if dots else "Mean and range of"
    figure = picture(png, f"{caption} {shown} {_status(sweep)}.", alt)
    at = sweep.provenance
    where = f"{at.get('hardware', 'a machine not known')}, {at.get('date', 'no date')}"
    said: list = [held_sentence(sweep.claims)]
    if sweep.code == STALE:
        said = [*stale(sweep), f" {SINCE[STALE]} ", *said]
    cost = f"The sweep's command: {shown_seconds(sweep.seconds)} of runs on {where}"
    since = [paragraph(SINCE[EARLIER])] if sweep.code == EARLIER else []
    return [figure, paragraph(*said), folded(cost, shell(sweep.command), *since)]


def held_sentence(claims: Mapping[str, Held]) -> str:
    """In how many runs of a sweep the claims were reproduced; those that always were come first."""
    always = [id for id, claim in claims.items() if claim.held == claim.of]
    others = [
        f"{id} in {claim.held} of {claim.of}" for id, claim in claims.items() if id not in always
    ]
    if not others:
        return f"All {len(always)} claims that were checked were reproduced in every run."
    rest = f"Reproduced in every run: {', '.join(always)}; " if always else "Reproduced: "
    return f"{rest}{', '.join(others)}."


def gpu_note(stem: str, runs: list[Run]) -> list:
    """That no run on a GPU is recorded yet, the command, its cost and the data that it needs;
    nothing where there is one."""
    if any((run.provenance.get("device"), run.status) == ("cuda", DONE) for run in runs):
        return []
    jobs = jobs_of(stem)
    if not jobs:
        return []
    needs = sorted({name for job in jobs for name in job.data})
    sets = "data set" if len(needs) == 1 else "data sets"
    data = f"it needs the {sets} {', '.join(needs)}" if needs else "it needs no data"
    cost = shown_time(sum(job.seconds for job in jobs))
    said = paragraph(
        "No run on a GPU is recorded yet. This makes one: about ", cost,
        f" on an H100, estimated; {data}. ", "; ".join(job.shows for job in jobs), ".",
    )  # fmt: skip
    return [said, shell(gpu_command(stem))]


def section(title: str, id: str, *content) -> nodes.section:
    """A section of the page, listed in its contents."""
    heading = nodes.title("", title)
    return nodes.section("", heading, *content, ids=[nodes.make_id(id)])
