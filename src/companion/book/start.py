"""The start page: a card a paper, and the map of what the papers take from each other."""

from __future__ import annotations

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass

from docutils import nodes

from companion.book.evidence import Chapter, read_chapters
from companion.book.html import raw, render
from companion.book.runs import papers
from companion.book.scoreboard import totals
from companion.runs.chapters import find

WIDE, HIGH = 196, 44  # a paper on the map
STEP, ROW = 382, 58  # from one paper to the next


def cards(found: set[str]) -> str:
    """The grid of cards as Markdown, for sphinx-design.

    found: names of the pages that there are.
    """
    chapters = read_chapters()
    return render(
        "cards.md",
        chapters=[(each, _page(each.stem, found), thumbnail(each)) for each in chapters],
        missing=[paper for paper in papers() if not _page(paper["stem"], found)],
    )


def headline() -> nodes.raw:
    """In one line and one bar what came out, over all chapters."""
    chapters = read_chapters()
    return raw(render("headline.html", chapters=chapters, total=totals(chapters)))


def _page(stem: str, found: set[str]) -> str:
    return f"notebooks/{stem}" if f"notebooks/{stem}" in found else ""


# ---------------------------------------------------------------- the picture of a card


def thumbnail(chapter: Chapter) -> str:
    """The parts of the notebook's figure that stand on the card, as a data URI; "" for none.

    Raises:
        ValueError: if the notebook has no figure of this name.
    """
    about = chapter.about.get("figure")
    if not about:
        return ""
    from PIL import Image

    with Image.open(io.BytesIO(stored_figure(chapter.stem, about["name"]))) as figure:
        wide, high = figure.size
        parts = [
            figure.convert("RGB").crop((left * wide, top * high, right * wide, low * high))
            for left, top, right, low in about["boxes"]
        ]
    gap = round(0.01 * wide)
    size = (parts[0].width, sum(part.height for part in parts) + gap * (len(parts) - 1))
    whole, top = Image.new("RGB", size, "white"), 0
    for part in parts:
        whole.paste(part, (0, top))
        top += part.height + gap
    whole.thumbnail((400, 400))  # twice the size of a card
    file = io.BytesIO()
    whole.save(file, "webp", quality=85, method=6)
    return "data:image/webp;base64," + base64.b64encode(file.getvalue()).decode()


def stored_figure(stem: str, name: str) -> bytes:
    """A figure of a chapter's stored outputs, by the name that its cell gives it.

    Raises:
        ValueError: if there is none.
    """
    path = find(stem)
    for cell in json.loads(path.read_text(encoding="utf-8"))["cells"]:
        about = cell["metadata"].get("mystnb", {}).get("figure", {})
        if about.get("name") == name:
            for output in cell.get("outputs", []):
                if image := output.get("data", {}).get("image/png"):
                    return base64.b64decode("".join(image))
    raise ValueError(f"book/papers.yml: {path.name} has no figure {name!r}")


# ---------------------------------------------------------------- the map


@dataclass(frozen=True)
class Place:
    """A paper on the map; x, y: its upper left corner."""

    paper: dict
    x: int
    y: int
    page: str


@dataclass(frozen=True)
class Arrow:
    """What one paper takes from another. solid: it says so itself. path, x, y: for SVG."""

    giver: dict
    taker: dict
    what: str
    solid: bool
    path: str
    x: int
    y: int


def layout(about: list[dict]) -> dict[str, tuple[int, int]]:
    """Column and row of each paper: to the right of the one it takes from first, and below.

    Raises:
        ValueError: for a paper that takes from one that is not there, or from itself.
    """
    places: dict[str, tuple[int, int]] = {}
    row = 0

    def place(stem: str, column: int) -> None:
        nonlocal row
        places[stem] = (column, row)
        takers = [p["stem"] for p in about if _giver(p) == stem]
        for number, taker in enumerate(takers):
            row += number > 0
            place(taker, column + 1)

    for paper in about:
        if _giver(paper) is None:
            place(paper["stem"], 0)
            row += 1
    if lost := [paper["stem"] for paper in about if paper["stem"] not in places]:
        raise ValueError(f"book/papers.yml: takes: {', '.join(lost)} lead to no first paper")
    return places


def _giver(paper: dict) -> str | None:
    return paper["takes"][0]["from"] if paper.get("takes") else None


def borrowings(found: set[str], link) -> nodes.raw:
    """The map as SVG, and in words for narrow windows.

    link: gives the address of a page's name.
    """
    about = {paper["stem"]: paper for paper in papers()}
    corners = {stem: (c * STEP, r * ROW) for stem, (c, r) in layout([*about.values()]).items()}
    places = [
        Place(about[stem], x, y, link(page) if (page := _page(stem, found)) else "")
        for stem, (x, y) in corners.items()
    ]
    arrows = list(_arrows(about, corners))
    wide = max(place.x for place in places) + WIDE
    high = max(place.y for place in places) + HIGH
    box = (WIDE, HIGH)
    return raw(render("map.html", places=places, arrows=arrows, wide=wide, high=high, box=box))


def _arrows(about: dict[str, dict], corners: dict[str, tuple[int, int]]) -> Iterator[Arrow]:
    for stem, paper in about.items():
        x, y = corners[stem]
        for takes in paper.get("takes", []):
            from_x, from_y = corners[takes["from"]]
            start, turn, end = from_x + WIDE, from_x + WIDE + 14, x - 7
            path = f"M{start} {from_y + HIGH // 2}H{turn}V{y + HIGH // 2}H{end}"
            yield Arrow(
                about[takes["from"]],
                paper,
                takes["what"],
                bool(takes.get("builds_on")),
                path,
                (turn + x) // 2,
                y + HIGH // 2 - 7,
            )
