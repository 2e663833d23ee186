"""Files of data sets are read here, so that one that is missing or damaged is named."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from companion.data.root import CorruptDataError, MissingDataError

if TYPE_CHECKING:
    from PIL.Image import Image

Row = tuple[int, list[str]]  # number of a line and its entries


def read_text(path: Path, get: str = "") -> str:
    """A file's text, which is UTF-8 with or without a byte order mark.

    get: a sentence that says how to come by it. Raises MissingDataError or CorruptDataError.
    """
    if not path.is_file():
        raise MissingDataError(f"{path} is not there. {get}".rstrip())
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise CorruptDataError(f"{path}: expected a text in UTF-8 ({error})") from error
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read ({error.strerror})") from error


def read_rows(
    path: Path, columns: str, *, get: str = "", separator: str | None = None, more: bool = False
) -> list[Row]:
    """The lines of a table with something in them, split at a separator or at white space.

    columns: their names, with spaces between. more: a line may have further entries.
    Raises MissingDataError, or CorruptDataError with the line that has another number of entries
    and for a table without any.
    """
    count = len(columns.split())
    rows = []
    for number, line in enumerate(read_text(path, get).splitlines(), 1):
        if not line.strip():
            continue
        entries = line.split(separator)
        if len(entries) < count or (len(entries) > count and not more):
            raise CorruptDataError(
                f"{path}, line {number}: {len(entries)} entries, expected {count} ({columns})"
            )
        rows.append((number, entries))
    if not rows:
        raise CorruptDataError(f"{path} is empty: expected lines of {columns}")
    return rows


def to_numbers(path: Path, rows: list[Row], columns: str) -> np.ndarray:
    """The first entries of rows as (rows, columns) float64.

    Raises CorruptDataError with the line that holds something else than numbers.
    """
    count = len(columns.split())
    try:
        return np.array([entries[:count] for _, entries in rows], dtype=float).reshape(-1, count)
    except ValueError:
        for number, entries in rows:
            try:
                np.array(entries[:count], dtype=float)
            except ValueError as error:
                raise CorruptDataError(
                    f"{path}, line {number}: expected numbers ({columns}): {error}"
                ) from None
        raise


def read_table(
    path: Path, columns: str, *, get: str = "", separator: str | None = None
) -> np.ndarray:
    """A table of finite numbers, (rows, columns) float64.

    columns: their names, with spaces between. Raises MissingDataError, or CorruptDataError with
    the first line that is none of such a table.
    """
    rows = read_rows(path, columns, get=get, separator=separator)
    table = to_numbers(path, rows, columns)
    finite = np.isfinite(table).all(1)
    if not finite.all():
        number = rows[int(finite.argmin())][0]
        raise CorruptDataError(f"{path}, line {number}: expected finite numbers ({columns})")
    return table


def open_picture(
    path: Path | str, mode: str = "", *, get: str = "", as_seen: bool = False
) -> Image:
    """A picture file, decoded whole.

    mode: Pillow's, to convert to, of 16 bits the upper 8; "" leaves it. get: a sentence that says
    how to come by it. as_seen: when converted, turned as EXIF data tell, and on white where it is
    transparent.
    Raises MissingDataError, or CorruptDataError for what cannot be decoded or converted, or claims
    more pixels than Pillow holds to be safe.
    """
    from PIL import Image

    if not Path(path).is_file():
        raise MissingDataError(f"{path} is not there. {get}".rstrip())
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Image.DecompressionBombWarning)
            with Image.open(path) as picture:
                picture.load()
                if not mode:
                    return picture
                shown = _on_white(turned_upright(picture)) if as_seen else picture
                return _of_8_bits(shown, picture.format).convert(mode)
    except Exception as error:  # each of Pillow's decoders has exceptions of its own
        raise CorruptDataError(f"{path} cannot be decoded: {error}") from error


def turned_upright(picture: Image) -> Image:
    """As its EXIF data say; damaged ones, for which Pillow has many exceptions, say nothing."""
    from PIL import ImageOps

    try:
        with warnings.catch_warnings(action="ignore"):
            return ImageOps.exif_transpose(picture)
    except Exception:
        return picture


def _on_white(picture: Image) -> Image:
    """Without the colours that are hidden where it is transparent."""
    from PIL import Image

    # 16 bits with a transparent value would be clipped at 255
    if not picture.has_transparency_data or picture.mode.startswith("I"):
        return picture
    white = Image.new("RGBA", picture.size, "white")
    return Image.alpha_composite(white, picture.convert("RGBA"))


def _of_8_bits(picture: Image, kind: str | None) -> Image:
    """The picture; of grey in 16 bits, which Pillow's conversions clip at 255, the upper 8."""
    from PIL import Image

    if picture.mode.startswith("I;16") or (picture.mode == "I" and kind in ("PNG", "PPM")):
        return Image.fromarray((np.asarray(picture) >> 8).astype(np.uint8))
    if picture.mode in ("I", "F"):  # of any range
        raise ValueError(f"Pillow's mode {picture.mode}, expected 8 or 16 bits a channel")
    return picture
