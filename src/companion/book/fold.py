"""A fold: a summary line, and what opens below it. Plain HTML, without a script."""

from __future__ import annotations

from docutils import nodes


class fold(nodes.General, nodes.Element):
    """Holds one `summary`, then anything; `open` where it is shown open."""


class summary(nodes.TextElement):
    """The line that is always shown."""


def folded(said: str | list, *content, classes: str = "") -> fold:
    """A fold whose line is a text, or texts and nodes."""
    parts = said if isinstance(said, list) else [said]
    line = summary("", "", *(nodes.Text(p) if isinstance(p, str) else p for p in parts))
    return fold("", line, *content, classes=["fold", *classes.split()])


def register(app) -> None:
    app.add_node(fold, html=(_open("details"), _close("details")))
    app.add_node(summary, html=(_open("summary"), _close("summary")))


def _open(tag: str):
    def visit(translator, node) -> None:
        translator.body.append(translator.starttag(node, tag, ""))

    return visit


def _close(tag: str):
    def depart(translator, node) -> None:
        translator.body.append(f"</{tag}>\n")

    return depart
