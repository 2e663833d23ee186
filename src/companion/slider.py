"""A row of pre-rendered frames and one slider: for what changes with time, rounds or sparsity.

The output is plain HTML of its own. It works from disk, with the keyboard, in Jupyter and in the
built book; without scripts, or where a front end removes them, it shows one frame.
"""

from __future__ import annotations

import base64
import html
import io
import struct
import warnings
from collections.abc import Callable, Sequence

from matplotlib.figure import Figure

LIMIT = 600_000  # bytes: all frames of a page together
DENSITY = 200  # dots an inch: twice what a page shows, for sharp screens

# shows the frame of the slider's place; one statement a line, joined below
_MOVE = "".join(
    (
        "var f=this.closest('.frames'),p=f.querySelectorAll('img'),n=+this.value;",
        "p.forEach(function(e,i){e.style.display=i==n?'':'none'});",
        "var t=p[n].dataset.label;f.querySelector('span').textContent=t;",
        "this.setAttribute('aria-valuetext',t)",
    )
)


class Frames:
    """What `frames` returns: displays itself as HTML in a notebook, and as its label elsewhere."""

    def __init__(
        self, pictures: Sequence[bytes], labels: Sequence[str], alt: Sequence[str], name: str, shown: int
    ) -> None:  # fmt: skip
        self.pictures, self.labels, self.alt = list(pictures), list(labels), list(alt)
        self.name, self.shown = name, shown

    def __repr__(self) -> str:
        return f"{len(self.pictures)} frames, {self.name}: {', '.join(self.labels)}"

    def _repr_png_(self) -> bytes | None:
        """The shown frame, for front ends that remove scripts and HTML."""
        picture = self.pictures[self.shown]
        return picture if _kind(picture) == "image/png" else None

    def _repr_html_(self) -> str:
        images = "".join(
            f'<img alt="{html.escape(alt)}" data-label="{html.escape(label)}" src="{_address(picture)}"'
            + f' style="max-width:100%;{_width(picture)}{"" if number == self.shown else "display:none"}">'
            for number, (picture, label, alt) in enumerate(
                zip(self.pictures, self.labels, self.alt, strict=True)
            )
        )
        label = html.escape(self.labels[self.shown])
        return (
            f'<div class="frames">{images}<div class="frames-control"><label>'
            f'{html.escape(self.name)} <input type="range" min="0" max="{len(self.pictures) - 1}" '
            f'value="{self.shown}" aria-valuetext="{label}" oninput="{_MOVE}" '
            # what it moves is wider in a page than a front end's own slider
            'style="width:16em;max-width:50vw;vertical-align:middle"></label> '
            f'<span aria-hidden="true">{label}</span></div>'
            "<noscript><style>.frames-control{display:none}</style></noscript></div>"
        )


def frames(
    figures: Sequence[Figure | Callable[[], Figure] | bytes],
    labels: Sequence[str],
    *,
    alt: Sequence[str] | str,
    name: str,
    shown: int = 0,
    format: str = "png",
    limit: int = LIMIT,
) -> Frames:
    """Frames behind one slider.

    Args:
        figures: the frames in order, two or more: matplotlib figures, functions without arguments
            that draw and return one, or pictures as bytes (PNG or SVG). Figures are closed.
        labels: what the slider says at each frame, such as "90 % removed".
        alt: alternative text of each frame, or one text in which {label} is the frame's label.
        name: of what the slider moves, such as "sparsity".
        shown: number of the frame that is shown first, and alone where scripts do not run.
        format: "png", which takes a palette of 256 colours, or "svg", of figures.
        limit: bytes of all frames together, as they stand in the page; more are worth a warning.

    Returns:
        An object that displays itself in a notebook. The same frames give the same bytes.

    Raises:
        ValueError: for fewer than two frames, labels or texts of another number, an empty or
            repeated label, an empty text, a frame that there is not, and bytes that are no picture.

    >>> from matplotlib.figure import Figure
    >>> def square(side):
    ...     figure = Figure(figsize=(2, 2))
    ...     figure.subplots().plot([0, side], [0, side])
    ...     return figure
    >>> frames([square(1), square(2)], ["1 m", "2 m"], alt="A line of {label}.", name="length")
    2 frames, length: 1 m, 2 m
    """
    figures, labels = list(figures), [str(label) for label in labels]
    if len(figures) < 2:
        raise ValueError(f"figures: {len(figures)} given, expected two or more")
    if len(labels) != len(figures):
        raise ValueError(f"labels: {len(labels)} given, expected one for each of {len(figures)}")
    if not all(labels) or len(set(labels)) < len(labels):
        raise ValueError(f"labels = {labels}: expected each to be there, and to differ")
    texts = [alt.replace("{label}", label) for label in labels] if isinstance(alt, str) else [*alt]
    if len(texts) != len(figures) or not all(text.strip() for text in texts):
        raise ValueError(f"alt = {alt!r}: expected a text for each of {len(figures)} frames")
    if len(set(texts)) < len(texts):
        raise ValueError(f"alt = {alt!r}: expected frames to differ; {{label}} stands for each")
    if not name.strip():
        raise ValueError(f"name = {name!r}: expected what the slider moves")
    if shown not in range(len(figures)):
        raise ValueError(f"shown = {shown}: expected 0 to {len(figures) - 1}")
    if format not in ("png", "svg"):
        raise ValueError(f"format = {format!r}: expected 'png' or 'svg'")
    pictures = [
        _rendered(figure, format, number == shown) for number, figure in enumerate(figures)
    ]
    size = sum(len(_address(picture)) for picture in pictures)
    if size > limit:
        # what a long run has found is worth more than a light page
        warnings.warn(
            f"figures: {size:,} bytes together, more than {limit:,}: take fewer or smaller frames, "
            "or another format",
            stacklevel=2,
        )
    return Frames(pictures, labels, texts, name, shown)


def _rendered(figure: Figure | Callable[[], Figure] | bytes, format: str, shown: bool) -> bytes:
    """A frame as the bytes of a picture."""
    if isinstance(figure, bytes):
        _kind(figure)
        return figure
    if not isinstance(figure, Figure):
        figure = figure()
    buffer = io.BytesIO()
    if format == "svg":
        import matplotlib as mpl

        with mpl.rc_context({"svg.hashsalt": "frames"}):  # names in the file: always the same
            figure.savefig(buffer, format="svg", metadata={"Date": None, "Creator": None})
    else:
        from PIL import Image

        figure.savefig(buffer, format="png", dpi=DENSITY)
        picture = Image.open(buffer).convert("RGB").quantize(256, dither=Image.Dither.NONE)
        buffer = io.BytesIO()
        picture.save(buffer, format="png", optimize=True)
    _close(figure, shown)
    return buffer.getvalue()


def _close(figure: Figure, shown: bool) -> None:
    """Take a figure out of pyplot's list: a notebook would show it once more.

    In a plain Python the shown frame stays the current figure: a recorded run keeps that one.
    """
    import matplotlib.pyplot as plt

    if not shown or _in_notebook():
        plt.close(figure)


def _in_notebook() -> bool:
    try:
        from IPython import get_ipython
    except ImportError:  # a machine without Jupyter
        return False
    return get_ipython() is not None


def _kind(picture: bytes) -> str:
    if picture.startswith(b"\x89PNG\r\n\x1a\n"):
        return "image/png"
    if picture.lstrip().startswith((b"<?xml", b"<svg")):
        return "image/svg+xml"
    raise ValueError(f"figures: bytes that begin with {picture[:8]!r}: expected a PNG or an SVG")


def _width(picture: bytes) -> str:
    """Half of a PNG's own width: it has twice the density of a page."""
    if _kind(picture) != "image/png":
        return ""
    (width,) = struct.unpack(">I", picture[16:20])
    return f"width:{width * 96 // DENSITY}px;"


def _address(picture: bytes) -> str:
    return f"data:{_kind(picture)};base64,{base64.b64encode(picture).decode()}"
