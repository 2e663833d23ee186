"""The one place where data sets lie."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pooch


class MissingDataError(FileNotFoundError):
    """Raised for a data set that is not there; the message says what to put where."""


class CorruptDataError(ValueError):
    """Raised for a data file that is not what it should be."""


def data_root(path: str | os.PathLike = "") -> Path:
    """The folder of the data sets: `path`, else $COMPANION_DATA, else the user's cache.

    Raises ValueError if the path exists and is no folder.
    """
    chosen = str(path) or os.environ.get("COMPANION_DATA", "")
    root = Path(chosen).expanduser() if chosen else Path(pooch.os_cache("paper-companion"))
    if root.exists() and not root.is_dir():
        raise ValueError(f"data_root = {str(root)!r}: expected a folder")
    return root


def verify(path: Path, sha256: str) -> None:
    """Raise CorruptDataError unless the file has this checksum."""
    with open(path, "rb") as file:
        found = hashlib.file_digest(file, "sha256").hexdigest()
    if found != sha256:
        raise CorruptDataError(
            f"{path} is damaged: sha256 {found[:12]}..., expected {sha256[:12]}.... "
            "Delete it and fetch it again."
        )
