"""Data sets as a few small archives, to be carried to a machine without a network."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from companion.data.root import CorruptDataError, MissingDataError, verify
from companion.files import to_json, write_whole
from companion.files import unpack as extract

LIMIT = 45_000_000  # bytes of all archives
LIST = "archives.json"


def prepare(names: Iterable[str], root: Path, folder: Path, limit: int = LIMIT) -> dict[str, int]:
    """Pack data sets below a data root, an archive each; their sizes in bytes.

    The same files give the same archives. Raises MissingDataError for a set that is not there,
    CorruptDataError for one that is damaged, and ValueError if they are larger than the limit.
    """
    from companion.data.catalogue import catalogue

    about: dict[str, dict[str, Any]] = {}
    for name in sorted(set(names)):
        source = catalogue()[name]
        source.require(name, root)
        for path, sha256 in getattr(source, "files", {}).items():
            verify(root / path, sha256)
        content = _packed(root, sorted(source.needs))
        file = f"{name}.tar.gz"
        write_whole(folder / file, content)
        about[name] = {
            "file": file,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
    total = sum(entry["bytes"] for entry in about.values())
    if total > limit:
        raise ValueError(f"--prepare {folder}: {total:,} bytes in all, more than {limit:,}")
    write_whole(folder / LIST, to_json(about))
    return {name: entry["bytes"] for name, entry in about.items()}


def _packed(root: Path, patterns: Iterable[str]) -> bytes:
    """The files of some patterns below a root as a .tar.gz, whenever they were written."""
    held = io.BytesIO()
    with (
        gzip.GzipFile(fileobj=held, mode="wb", mtime=0) as packed,
        tarfile.open(fileobj=packed, mode="w", format=tarfile.USTAR_FORMAT) as tar,
    ):
        for path in sorted({path for pattern in patterns for path in root.glob(pattern)}):
            content = path.read_bytes()
            entry = tarfile.TarInfo(path.relative_to(root).as_posix())
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))
    return held.getvalue()


def unpack(folder: Path, root: Path, ready: Callable[[str], object] = lambda name: None) -> None:
    """Unpack what `prepare` made into a data root, each archive checked by its sha256.

    ready: is told the name of each set that is whole. Raises MissingDataError for a folder that
    `prepare` did not make, CorruptDataError for a damaged one.
    """
    from companion.data.catalogue import catalogue

    try:
        about = json.loads((folder / LIST).read_text(encoding="utf-8"))
        archives = {name: (folder / about[name]["file"], about[name]["sha256"]) for name in about}
    except OSError as error:
        raise MissingDataError(
            f"--data {folder}: no {LIST} there ({error.strerror}); `companion gpu --prepare` makes it"
        ) from None
    except (ValueError, LookupError, TypeError):
        raise CorruptDataError(f"{folder / LIST}: not as `companion gpu --prepare` wrote it") from None  # fmt: skip
    for name, (archive, sha256) in archives.items():
        verify(archive, sha256)
        extract(archive, root)
        if name in catalogue():
            catalogue()[name].require(name, root)
            ready(name)
