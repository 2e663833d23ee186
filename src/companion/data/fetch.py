"""Downloads: over https, whole or not at all, and only what has the checksum written down here."""

from __future__ import annotations

import gzip
import os
import shutil
import tarfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO

from companion.data.root import CorruptDataError, MissingDataError, verify
from companion.files import scratch


def fetch(name: str, archives: Mapping[str, str], files: Mapping[str, str], root: Path) -> None:
    """Download the archives of a set and put its files into place, each checked by its sha256.

    archives: sha256 by address; each is a .gz of one file or a .tar.gz. files: sha256 by path
    below the data root; their names are those in the archives. Nothing is done if all are there.
    Each attempt works in a folder of its own, so that several at once do not meet. One that
    fails or is interrupted leaves nothing behind; what a killed one leaves, the next removes.

    Raises MissingDataError, saying what to put where by hand, if there is no way to the network;
    CorruptDataError for a download that is not what it should be; ValueError for a data root
    that cannot be written.
    """
    if _all_whole(files, root):
        return
    try:
        root.mkdir(parents=True, exist_ok=True)
        with scratch(str(root)) as part:
            for url, sha256 in archives.items():
                _unpack(_download(name, url, sha256, part, _by_hand(files, root)), files, part)
            for path, sha256 in files.items():
                verify(part / Path(path).name, sha256)
            for path in files:
                (root / path).parent.mkdir(parents=True, exist_ok=True)
                os.replace(part / Path(path).name, root / path)
    except (MissingDataError, CorruptDataError):
        raise
    except (EOFError, gzip.BadGzipFile, tarfile.TarError, zlib.error) as error:
        raise CorruptDataError(f"--fetch {name}: a download is damaged ({error})") from error
    except OSError as error:
        raise ValueError(
            f"data_root = {str(root)!r}: {name} cannot be written there ({error.strerror or error})"
        ) from error


def _all_whole(files: Mapping[str, str], root: Path) -> bool:
    try:
        for path, sha256 in files.items():
            verify(root / path, sha256)
    except (OSError, CorruptDataError):
        return False
    return True


def _by_hand(files: Mapping[str, str], root: Path) -> str:
    folder = (root / next(iter(files))).parent
    return f"put the unpacked {', '.join(Path(path).name for path in files)} into {folder} by hand"


def _download(name: str, url: str, sha256: str, folder: Path, by_hand: str) -> Path:
    try:
        import pooch
        from requests.exceptions import RequestException
    except ImportError as error:
        raise MissingDataError(
            f"--fetch {name}: needs the package {error.name}; install it, or {by_hand}"
        ) from error
    file = url.rsplit("/", 1)[1]
    try:
        return Path(pooch.retrieve(url, f"sha256:{sha256}", file, folder, progressbar=True))
    except RequestException as error:
        raise MissingDataError(
            f"--fetch {name}: {url} cannot be reached ({type(error).__name__}), nothing was kept. "
            f"Try again with a network, or {by_hand}"
        ) from error
    except ValueError as error:  # pooch has another checksum
        raise CorruptDataError(
            f"--fetch {name}: what {url} sent is not what it should be, nothing was kept ({error})"
        ) from error


def _unpack(archive: Path, files: Mapping[str, str], folder: Path) -> None:
    wanted = {Path(path).name for path in files}
    with _members(archive) as members:
        for member, stream in members:
            if member in wanted:
                with open(folder / member, "wb") as file:
                    shutil.copyfileobj(stream, file)


@contextmanager
def _members(archive: Path) -> Iterator[Iterator[tuple[str, IO[bytes] | gzip.GzipFile]]]:
    """The name without folders and the content of each plain file in an archive."""
    if archive.name.endswith(".tar.gz"):
        with tarfile.open(archive) as tar:
            yield (
                (Path(member.name).name, content)
                for member in tar
                if member.isfile() and (content := tar.extractfile(member)) is not None
            )
    else:
        with gzip.open(archive) as stream:
            yield iter([(archive.name.removesuffix(".gz"), stream)])
