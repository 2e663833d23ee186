"""The scoreboard: what was reproduced, of which claim, under which run, with its numbers."""

from __future__ import annotations

from typing import Any

from docutils import nodes

from companion.book import tables
from companion.book.charts import strips
from companion.book.evidence import Chapter, count, read_chapters
from companion.book.html import environment, raw
from companion.runs.record import Run


def totals(chapters: list[Chapter]) -> dict[str, dict[str, int]]:
    """The standings of all claims of the papers, and of all checks of ours."""
    rows = [row for chapter in chapters for row in chapter.rows]
    return {
        "paper": count(row for row in rows if row.claim.kind == "paper"),
        "ours": count(row for row in rows if row.claim.kind != "paper"),
    }


def widest(chapters: list[Chapter]) -> int:
    """The claims of the longest bar: all bars are drawn to its scale."""
    return max(sum(c.counts(paper=kind).values()) for c in chapters for kind in (True, False))


def page(env) -> list[nodes.Node]:
    """All of the scoreboard: the bars, the filters, and a section a chapter."""
    chapters = read_chapters()
    parts: Any = environment.get_template("scoreboard.html").module  # its macros
    return [
        raw(parts.summary(chapters, totals(chapters), widest(chapters))),
        tables.section(
            "Every claim under every run",
            "claims",
            raw(parts.how() + parts.filters(chapters)),
            *(_section(env, parts, chapter) for chapter in chapters),
        ),
    ]


def _section(env, parts: Any, chapter: Chapter) -> nodes.section:
    drawn = {row.claim.id: strips(row) for row in chapter.rows}
    beside = [strip for found in drawn.values() for strip in found if strip.reported]
    content = [
        raw(parts.matrix(chapter, drawn) + parts.numbers(chapter, beside)),
        raw("<details><summary>Commands, cost and machine of these runs</summary>"),
        tables.runs_table(list(chapter.runs)),
        *tables.gpu_note(chapter.stem, [run for run in chapter.runs if isinstance(run, Run)]),
        raw("</details>"),
    ]
    if link := tables.chapter_link(env, "Read the chapter", chapter.stem):
        content.insert(0, tables.paragraph(link))
    return tables.section(chapter.title, f"scoreboard-{chapter.stem}", *content)
