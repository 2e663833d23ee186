"""What lies beside the pages: MathJax, figures, and only those icons that a page shows."""

from __future__ import annotations

import io
import re
import shutil
import struct
from concurrent.futures import ThreadPoolExecutor
from importlib.util import find_spec
from pathlib import Path
from urllib.parse import unquote

ICONS = Path("scripts/fontawesome.js")
# one icon in the theme's script: name: [width, height, [other names], code, path]
ICON = re.compile(r'"?([a-z0-9-]+)"?:\[\d+,\d+,(\[[^\]]*\]),"[0-9a-f]+","[^"]*"\],?')
NAMED = re.compile(r"\bfa-([a-z0-9-]+)")


def copy_mathjax(static: Path, name: str) -> None:
    """Put MathJax, one self-contained file, where `mathjax_path` says.

    The package that carries it is no extension for us: that would copy all of its 100 files
    and overrule `mathjax_path`.
    """
    found = find_spec("sphinx-mathjax-offline")
    assert found is not None  # the extra "book" has it
    assert found.origin is not None
    package = Path(found.origin).parent
    target = static / name
    target.parent.mkdir(parents=True, exist_ok=True)
    shutil.copyfile(package / "static" / name, target)


def trim_icons(site: Path) -> None:
    """Leave of the theme's two thousand icons those that a page or a script names.

    A style names them all, for its own font; pages draw theirs by the script.
    """
    static = site / "_static"
    script = static / ICONS
    if not script.is_file():
        return
    files = [*site.rglob("*.html"), *static.rglob("*.js")]
    used = {
        name
        for file in files
        if file != script
        for name in NAMED.findall(file.read_text(encoding="utf-8", errors="replace"))
    }
    script.write_text(trimmed(script.read_text(encoding="utf-8"), used), encoding="utf-8")
    script.with_suffix(".js.map").unlink(missing_ok=True)


def trimmed(source: str, used: set[str]) -> str:
    """The script without the icons of which no name is used."""

    def keep(icon: re.Match) -> str:
        names = {icon[1], *re.findall(r'"([^"]+)"', icon[2])}
        return icon[0] if names & used else ""

    return ICON.sub(keep, source)


def lighten_figures(site: Path) -> None:
    """Give the site's PNGs a palette, as far as nobody sees it: they are half as large then."""

    def lighten(file: Path) -> None:
        before = file.read_bytes()
        after = with_palette(before)
        if len(after) < len(before):
            file.write_bytes(after)

    with ThreadPoolExecutor() as pool:
        list(pool.map(lighten, sorted((site / "_images").glob("*.png"))))


def with_palette(png: bytes) -> bytes:
    """A PNG with at most 256 colours; as it is where it has a palette already, is transparent, or a
    colour would move by more than one of 255 steps on average."""
    import numpy as np
    from PIL import Image

    picture = Image.open(io.BytesIO(png))
    if picture.mode == "P":
        return png
    if np.asarray(picture.convert("RGBA"))[..., 3].min() < 255:
        return png
    plain = picture.convert("RGB")
    few = plain.quantize(256, dither=Image.Dither.NONE)
    apart = np.asarray(plain, dtype=float) - np.asarray(few.convert("RGB"), dtype=float)
    if abs(apart).mean() > 1:
        return png
    out = io.BytesIO()
    few.save(out, format="png", optimize=True)
    return out.getvalue()


LATE = re.compile(
    r'<img(?=[^>]*\sloading="lazy")(?![^>]*\swidth=)(?=[^>]*\ssrc="([^"]*_images/[^"]+\.png)")'
)
FIGURE = re.compile(r'(<figure\b[^>]*>\s*)(<img\b[^>]*\ssrc="([^"]*_images/[^"]+\.png)"[^>]*>)')
WIDE = 560  # pixels from which a figure's text cannot be read on a phone's width


def size_images(site: Path) -> None:
    """Give images that are loaded late their size: nothing moves then when they come, and an
    address within a page is where a browser looks for it. Wide figures get a box, which scrolls on
    a narrow screen.
    """
    for file in site.rglob("*.html"):

        def size(address: str, folder: Path = file.parent) -> tuple[int, int]:
            head = (folder / unquote(address)).read_bytes()[16:24]
            return struct.unpack(">II", head)

        def sized(image: re.Match, size=size) -> str:
            width, height = size(image[1])
            return f'<img width="{width}" height="{height}"'

        def boxed(figure: re.Match, size=size) -> str:
            if size(figure[3])[0] < WIDE:
                return figure[0]
            # the theme's class: its script gives what scrolls a tab stop
            box = '<div class="figure-box pst-scrollable-table-container">'
            return f"{figure[1]}{box}{figure[2]}</div>"

        before = file.read_text(encoding="utf-8")
        after = FIGURE.sub(boxed, LATE.sub(sized, before))
        if after != before:
            file.write_text(after, encoding="utf-8")


# what the theme and MyST-NB write -> what assistive technology can read: a button's name holds its text
BUTTONS = (
    (re.compile(r'(<button class="btn search-button-field[^>]*?) aria-label="[^"]*"'), r"\1"),
    (re.compile('<summary aria-label="Toggle hidden content">'), "<summary>"),
    (re.compile(r'(<i class="theme-switch [^>]*?) *title="[^"]*"'), r'\1 aria-hidden="true"'),
)


def name_buttons(site: Path) -> None:
    """Mend the names of the theme's buttons on every page."""
    for file in site.rglob("*.html"):
        before = after = file.read_text(encoding="utf-8")
        for wrong, right in BUTTONS:
            after = wrong.sub(right, after)
        if after != before:
            file.write_text(after, encoding="utf-8")
