"""Files that are whole or not there, what killed writers left, locks, JSON."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import platform
import re
import secrets
import shutil
import stat
import tarfile
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PART = ".companion.part"  # ends the name of every file that is being written


def write_whole(path: Path | str, content: str | bytes) -> None:
    """Write a file so that readers see the old content or all of the new, never a part.

    A file that is there keeps its mode, a link stays and what it names is written. What a killed
    writer leaves, `sweep_up` removes from the folder of the file.
    Raises OSError, which names the file, also for a device or a pipe: these cannot be replaced.
    """
    data = content.encode() if isinstance(content, str) else content
    target = Path(os.path.realpath(path))
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        mode = _mode(path)
        with _own(lambda: _new_part(target)) as part:
            with open(part, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            if mode is not None:
                os.chmod(part, mode)
            os.replace(part, target)
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(path)) from error


def _mode(path: Path | str) -> int | None:
    """The permissions of the file that a path names; None if there is none yet."""
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        return None
    if not stat.S_ISREG(mode):
        raise OSError(errno.EINVAL, "not an ordinary file")
    return stat.S_IMODE(mode)


def _new_part(path: Path) -> tuple[int, str]:
    """A new file beside the path, with the permissions that the user wants new files to have."""
    part = path.with_name(f".{path.name}.{secrets.token_hex(4)}{PART}")
    return os.open(part, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666), str(part)


def check_writable(folder: Path | str) -> None:
    """Raise OSError, which names the folder, where no file can be made in it."""
    try:
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise OSError(error.errno, error.strerror or str(error), str(folder)) from None


def sweep_up(folder: Path | str) -> None:
    """Remove what killed writers left in a folder: our parts that no process holds."""
    for part in Path(folder).glob(f".*{PART}"):
        _remove_unheld(part)


@contextmanager
def scratch(where: str = "") -> Iterator[Path]:
    """A temporary folder that goes with the block; those of killed processes go first.

    where: the folder around it; that of the system if empty.
    """
    where = where or tempfile.gettempdir()
    for left in Path(where).glob("companion-scratch-*"):
        _remove_unheld(left)

    def make() -> tuple[int, str]:
        while True:
            folder = tempfile.mkdtemp(prefix="companion-scratch-", dir=where)
            with suppress(FileNotFoundError):  # swept up before we had it open
                return os.open(folder, os.O_RDONLY), folder

    with _own(make) as folder:
        yield Path(folder)


@contextmanager
def _own(make: Callable[[], tuple[int, str]]) -> Iterator[str]:
    """Make a file or folder, hold it while the block runs, then remove what is left of it.

    make: returns an open descriptor of it and its name.
    """
    import fcntl

    while True:
        handle, name = make()
        with suppress(OSError):  # a file system without locks: then nobody sweeps, either
            fcntl.flock(handle, fcntl.LOCK_EX)
        if _is_open(handle, name):
            break
        os.close(handle)  # swept up before we held it
    try:
        yield name
    finally:
        _remove(name)
        os.close(handle)


def _remove_unheld(path: Path) -> None:
    """Remove a file or folder of ours, a link never, unless a process holds it."""
    import fcntl

    with suppress(OSError):
        handle = os.open(path, os.O_RDONLY | os.O_NOFOLLOW)
        try:
            if os.fstat(handle).st_uid == os.getuid():
                fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
                _remove(path)
        finally:
            os.close(handle)


def _remove(path: Path | str) -> None:
    if os.path.isdir(path):
        shutil.rmtree(path, ignore_errors=True)
    else:
        with suppress(OSError):
            os.unlink(path)


def _is_open(handle: int, path: Path | str) -> bool:
    """Whether the path still names the open file."""
    try:
        return os.path.samestat(os.fstat(handle), os.stat(path))
    except OSError:
        return False


class BusyError(RuntimeError):
    """Raised where another process holds what only one may use at a time."""


@contextmanager
def locked(file: Path | str, busy: str = "", *, wait: bool = False) -> Iterator[int]:
    """Hold a lock while the block runs; it goes with the process, however that ends.

    file: the lock, removed afterwards. busy: the message if it is held, in which "{holder}"
      becomes the process that does. wait: until it is free, instead.
    Gives a descriptor: a child process that inherits it holds the lock as well.
    Raises BusyError if the lock is held, FileExistsError for a file of that name that is no lock
    of ours, and OSError, which names the file, where it cannot be made or locked.
    """
    import fcntl

    def foreign() -> OSError:
        return OSError(errno.EEXIST, "is no lock of ours, and stays; move it away", str(file))

    def opener(name: str, flags: int) -> int:
        if os.path.islink(name):
            raise foreign()
        return os.open(name, flags | os.O_NOFOLLOW, 0o666)

    while True:
        with open(file, "a+", encoding="utf-8", errors="replace", opener=opener) as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                free = True
            except BlockingIOError:
                free = False
            except OSError as error:
                raise OSError(
                    error.errno, f"cannot be locked: {error.strerror}", str(file)
                ) from None
            lock.seek(0)
            holder = lock.read(300)
            if holder and not re.fullmatch(r"process \d+ on .*", holder):
                raise foreign()
            if not free:
                raise BusyError(busy.replace("{holder}", holder or "another process"))
            if not _is_open(lock.fileno(), file):
                continue  # its holder has just removed it
            with suppress(OSError):  # only for the message above
                lock.truncate(0)
                lock.write(f"process {os.getpid()} on {platform.node()}")
                lock.flush()
            try:
                yield lock.fileno()
            finally:
                if _is_open(lock.fileno(), file):
                    _remove(file)
            return


def to_json(value: object) -> str:
    """Readable JSON in the order given, six digits a float; NaN and infinity become null."""
    return json.dumps(_plain(value), indent=1, ensure_ascii=False, allow_nan=False) + "\n"


def seal(content: object) -> str:
    """sha256 of what `to_json` writes, but for a key ``seal``: tells whether a file was edited."""
    if isinstance(content, dict):
        content = {key: value for key, value in content.items() if key != "seal"}
    return hashlib.sha256(to_json(content).encode()).hexdigest()


def _plain(value: object) -> object:
    if hasattr(value, "tolist"):  # tensors, arrays, numpy's scalars
        value = value.tolist()
    if isinstance(value, dict):
        return {str(k): _plain(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, float):
        return float(f"{value:.6g}") if math.isfinite(value) else None
    return value


def unpack(archive: Path, folder: Path) -> None:
    """Unpack a tar archive; nothing lands outside the folder.

    Raises tarfile.TarError for an archive that is damaged, or has links or names that lead out.
    """
    with tarfile.open(archive) as tar:
        if hasattr(tarfile, "data_filter"):
            tar.extractall(folder, filter="data")
            return
        for member in tar:  # Python before 3.11.4 looks at nothing
            if not (member.isfile() or member.isdir()):
                raise tarfile.ReadError(f"{member.name}: neither a file nor a folder")
            if not (folder / member.name).resolve().is_relative_to(folder.resolve()):
                raise tarfile.ReadError(f"{member.name}: outside of the folder")
        tar.extractall(folder)
