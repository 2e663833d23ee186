"""The templates beside this module, and their output as a part of a page."""

from __future__ import annotations

from docutils import nodes
from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from companion.book.evidence import (
    KINDS,
    LABELS,
    SIGNS,
    SINCE,
    STANDINGS,
    label,
    short_name,
)
from companion.notebook.checking import NOT_RUN

environment = Environment(
    loader=PackageLoader("companion.book"),
    autoescape=select_autoescape(["html"]),  # Markdown escapes for itself
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
environment.globals |= {
    "css": STANDINGS, "kinds": KINDS, "label": label, "labels": LABELS, "not_run": NOT_RUN,
    "name": short_name, "signs": SIGNS, "since": SINCE,
}  # fmt: skip


def render(template: str, **values: object) -> str:
    """The text of a template of the folder `templates`."""
    return environment.get_template(template).render(**values)


def raw(html: str) -> nodes.raw:
    return nodes.raw("", html, format="html")
