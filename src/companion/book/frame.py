"""The frame of a chapter's page: what its notebook's cells become once they are read."""

from __future__ import annotations

from docutils import nodes
from sphinx import addnodes
from sphinx.transforms import SphinxTransform
from sphinx.transforms.post_transforms import SphinxPostTransform

from companion.book.fold import fold
from companion.book.pages import RUN_IT
from companion.book.runs import about

CHAPTERS = "notebooks/"
BESIDE = "beside"  # tag of a cell that stands beside the equation before it


class Frame(SphinxTransform):
    """Fold the set-up of a chapter, and put code beside the equation that it implements."""

    default_priority = 700

    def apply(self, **kwargs) -> None:
        if not self.env.docname.startswith(CHAPTERS):
            return
        _gather(self.document)
        for cell in list(self.document.findall(_is_beside)):
            _put_beside(cell)
        _index(self.document, self.env.docname)
        _defer_images(self.document)


def _gather(document: nodes.document) -> None:
    """Move what was set up before the first section into the fold *Run it*."""
    for box in list(document.findall(fold)):
        if RUN_IT not in box["classes"]:
            continue
        place = box.parent.index(box) + 1
        while place < len(box.parent) and not isinstance(box.parent[place], nodes.section):
            node = box.parent[place]
            box.parent.remove(node)
            box += node


def _is_beside(node: nodes.Node) -> bool:
    return isinstance(node, nodes.container) and f"tag_{BESIDE}" in node["classes"]


def _put_beside(cell: nodes.container) -> None:
    """Two columns: the equation before the cell, and the cell."""
    parent, place = cell.parent, cell.parent.index(cell)
    first = place
    while first and isinstance(parent[first - 1], (nodes.math_block, nodes.target)):
        first -= 1
    if first == place:
        return  # no equation is there
    left = nodes.container("", *parent[first:place], classes=["beside-equation"])
    pair = nodes.container("", left, classes=["beside-pair"])
    del parent[first : place + 1]
    pair += cell
    parent.insert(first, pair)


def _index(document: nodes.document, docname: str) -> None:
    """Let search find the chapter by its topics: entries of the index come first."""
    topics = about().get(docname.removeprefix(CHAPTERS), {}).get("topics", [])
    section = next(document.findall(nodes.section), None)
    if topics and section is not None:
        target = section["ids"][0]
        entries = [("single", topic, target, "main", None) for topic in topics]
        section.insert(1, addnodes.index(entries=entries))


def _defer_images(document: nodes.document) -> None:
    """All images but the first are loaded when they come into view."""
    for image in list(document.findall(nodes.image))[1:]:
        image["loading"] = "lazy"


class CodeLast(SphinxPostTransform):
    """Folded code comes after what it shows."""

    default_priority = 250  # MyST-NB folds at 199
    formats = ("html",)

    def run(self, **kwargs) -> None:
        for cell in list(self.document.findall(nodes.container)):
            if cell.get("nb_element") == "cell_code" and cell.get("hide_mode") == "input":
                cell.children[:] = [*cell.children[1:], cell.children[0]]


def register(app) -> None:
    app.add_transform(Frame)
    app.add_post_transform(CodeLast)
