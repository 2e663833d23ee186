"""The strict build, left out when nothing that the book reads has changed."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from companion.files import locked, write_whole

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("_config.yml", "_toc.yml", "index.md", "book", "notebooks", "src/companion")


class BuildError(RuntimeError):
    """Raised when the book cannot be built, or only with warnings."""


def content_hash(root: Path = ROOT) -> str:
    """sha256 over the name and content of every file that the book reads."""
    digest = hashlib.sha256()
    for source in SOURCES:
        path = root / source
        for file in sorted(path.rglob("*")) if path.is_dir() else [path]:
            name = file.relative_to(root).as_posix()
            folders = {*file.relative_to(root).parts}
            passing = ".part" in file.suffixes or folders & {"__pycache__", ".ipynb_checkpoints"}
            if file.is_file() and not passing:
                digest.update(f"\0{name}\0".encode() + file.read_bytes())
    return digest.hexdigest()


def build(force: bool = False, root: Path = ROOT) -> int:
    """Build the book from a clean folder with every warning an error; say where to open it.

    Does nothing if nothing that the book reads has changed since the last good build.
    Returns 0. Raises BuildError with the warnings if there are any, and BusyError while another
    process builds.
    """
    if missing := [name for name in SOURCES if not (root / name).exists()]:
        raise BuildError(f"{root}: no checkout of the project, it lacks {', '.join(missing)}")
    out = root / "_build"
    out.mkdir(exist_ok=True)
    with locked(out / ".lock", f"{out}: {{holder}} is building the book; wait for it") as lock:
        return _build(force, root, out, lock)


def _build(force: bool, root: Path, out: Path, lock: int) -> int:
    stamp, start = out / "built-from", out / "html" / "index.html"
    # taken before the build: an edit while it runs makes the next call build again
    content = content_hash(root)
    if (
        not force
        and start.is_file()
        and stamp.is_file()
        and stamp.read_text(encoding="utf-8") == content
    ):
        print(f"the book is up to date: {start.as_uri()}")
        return 0

    stamp.unlink(missing_ok=True)
    # Sphinx shows a warning only when it reads the page: an incremental build would hide it
    for name in (".doctrees", "jupyter_execute"):
        shutil.rmtree(out / name, ignore_errors=True)
    began = time.monotonic()
    run_sphinx(root, out, lock, "html")
    write_whole(stamp, content)
    print(f"built in {time.monotonic() - began:.0f} s: {start.as_uri()}")
    return 0


def run_sphinx(root: Path, out: Path, lock: int, builder: str) -> None:
    """Write the book anew into the folder of `_build` named as the builder, warnings as errors.

    Raises BuildError with the warnings if there are any, or if jupyter-book is missing.
    """
    script = Path(sys.executable).parent / "jupyter-book"
    if not script.is_file():
        raise BuildError(f"{script} is missing: run `make environment`, or install '.[book]'")
    shutil.rmtree(out / builder, ignore_errors=True)
    command = [str(script), "build", str(root), "-W", "-n", "--keep-going", "--builder", builder]
    status, lines = _run_with_progress(command, root, lock)
    log = out / "build.log"
    log.write_text("".join(lines), encoding="utf-8")
    if status or not (out / builder / "index.html").is_file():
        wrong = [line for line in lines if re.search(r"WARNING|ERROR|CRITICAL|Error\b", line)]
        raise BuildError(
            "the book was not built:\n"
            + "".join(wrong or lines[-20:])
            + f"everything it said: {log}"
        )


def _run_with_progress(command: list[str], root: Path, lock: int) -> tuple[int, list[str]]:
    """Run a command; return its status and output. On a terminal, one line shows how far it is.

    The command ends with this process, or holds the lock if this one is killed.
    """
    live = sys.stdout.isatty()
    print("building the book, strictly ...", end="" if live else "\n", flush=True)
    lines: list[str] = []
    with subprocess.Popen(
        command, cwd=root, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        encoding="utf-8", errors="replace", start_new_session=True, pass_fds=[lock],
    ) as process:  # fmt: skip
        try:
            for line in process.stdout or ():
                line = re.sub(r"\x1b\[[0-9;]*m", "", line)
                lines.append(line)
                if live and (step := re.match(r"(\w[\w ]+)\.\.\. *\[ *(\d+%)\]", line)):
                    print(f"\rbuilding the book: {step[1]} {step[2]}\x1b[K", end="", flush=True)
        except BaseException:
            os.killpg(process.pid, signal.SIGKILL)  # with what it has started
            raise
    print("\r\x1b[K" if live else "", end="", flush=True)
    return process.returncode, lines
