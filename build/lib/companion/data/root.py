"""The one place where data sets lie, and what a whole set consists of."""

from __future__ import annotations

import hashlib
import os
import stat
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

ELSEWHERE = "Another place: -p data_root PATH, or the variable COMPANION_DATA."


class MissingDataError(FileNotFoundError):
    """Raised for a data set that is not there; the message says what to put where."""


class CorruptDataError(ValueError):
    """Raised for a data file that is not what it should be."""


class IncompleteDataError(MissingDataError, CorruptDataError):
    """Raised for half a data set; the message says what is missing."""


def data_root(path: str | os.PathLike = "") -> Path:
    """The folder of the data sets: `path`, else $COMPANION_DATA, else the user's cache.

    It need not be there yet. Raises ValueError if it is no folder or cannot be read.
    """
    chosen = str(path or "") or os.environ.get("COMPANION_DATA", "")
    try:
        if "\0" in chosen:
            raise ValueError("a null character")
        root = Path(chosen).expanduser() if chosen else _cache() / "paper-companion"
        there, folder = root.exists(), root.is_dir()
    except (OSError, RuntimeError, ValueError) as error:  # no permission, no such user
        raise ValueError(f"data_root = {chosen!r}: cannot be read ({error})") from error
    if there and not folder:
        raise ValueError(f"data_root = {str(root)!r}: expected a folder")
    if there and not os.access(root, os.R_OK | os.X_OK):
        raise ValueError(f"data_root = {str(root)!r}: expected a folder that can be read")
    return root


def _cache() -> Path:
    """The user's folder for caches, where `platformdirs` and so pooch have it."""
    if sys.platform == "darwin":
        return Path.home() / "Library" / "Caches"
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")


@dataclass(frozen=True)
class DataSource:
    """Where a data set comes from and what may be done with it.

    where: its folder below the data root ("" for one that a dependency bundles).
    get: one sentence that says how to come by it.
    needs: patterns of paths below the data root, and how many files of each a whole set has.
    sizes: bytes of the files among these that are published in one form only.
    """

    title: str
    where: str
    licence: str
    get: str
    needs: Mapping[str, int] = field(default_factory=dict, kw_only=True)
    sizes: Mapping[str, int] = field(default_factory=dict, kw_only=True)

    def lacking(self, root: Path) -> list[str]:
        """What a data root lacks of a whole set, such as "a/b.txt" or "c/*.jpg (3 of 20)".

        An empty file is none, and one of another size than the published file not it.
        """
        short = []
        for pattern, wanted in self.needs.items():
            found = [_size(path) for path in root.glob(pattern)]
            size = self.sizes.get(pattern)
            if found and size and found != [size]:
                short.append(f"{pattern} ({found[0]} of {size} bytes)")
            elif (full := sum(bytes_ > 0 for bytes_ in found)) < wanted:
                empty = " (empty)" if found else ""
                short.append(pattern + empty if wanted == 1 else f"{pattern} ({full} of {wanted})")
        return short

    def state(self, root: Path) -> str:
        """Whether the set is "there", "incomplete" or "missing" below a data root."""
        if not self.where:
            return "there"
        if not self.lacking(root) and (self.needs or (root / self.where).is_dir()):
            return "there"
        some = any(next(root.glob(pattern), None) for pattern in self.needs)
        return "incomplete" if some else "missing"

    def require(self, name: str, root: Path, *, whole: bool = True) -> None:
        """Raise MissingDataError, saying what to put where, unless the set is there.

        whole: half a set raises too, as IncompleteDataError.
        """
        if not self.where:
            return
        if not (root / self.where).is_dir():
            nowhere = "" if root.is_dir() else " (there is no such folder)"
            raise MissingDataError(
                f"dataset {name!r} is not in {root}{nowhere}: expected the folder {self.where}/ "
                f"there. {self.get} {ELSEWHERE}"
            )
        if whole and (short := self.lacking(root)):
            raise IncompleteDataError(
                f"dataset {name!r} in {root} is incomplete, it lacks {', '.join(short)}. "
                f"{self.get} {ELSEWHERE}"
            )


def _size(path: Path) -> int:
    """Bytes of a file; 0 for what is none, or cannot be looked at."""
    try:
        about = path.stat()
    except OSError:  # such as a link to nothing
        return 0
    return about.st_size if stat.S_ISREG(about.st_mode) else 0


def verify(path: Path, sha256: str) -> None:
    """Raise CorruptDataError unless the file can be read and has this checksum."""
    try:
        with open(path, "rb") as file:
            found = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise CorruptDataError(f"{path} cannot be read ({error.strerror})") from error
    if found != sha256:
        raise CorruptDataError(
            f"{path} is damaged: sha256 {found[:12]}..., expected {sha256[:12]}.... "
            "Delete it and fetch it again."
        )
