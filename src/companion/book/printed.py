"""The whole book as one PDF: Sphinx writes it as a single page, and Chromium prints that."""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

from companion.book.building import ROOT, BuildError, run_sphinx
from companion.files import locked

BROWSERS = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 600  # for a page with a thousand equations
OPTIONS = (
    "--headless",
    "--no-sandbox",  # it opens only our own page
    "--disable-gpu",
    "--disable-background-networking",
    "--no-pdf-header-footer",
    "--generate-pdf-document-outline",
    "--virtual-time-budget=600000",  # until MathJax has set everything
)


def find_browser() -> str | None:
    """Path of a Chromium or Chrome on this machine, or None."""
    return next(filter(None, map(shutil.which, BROWSERS)), None)


def needed_browser() -> str:
    """As `find_browser`; raises BuildError where there is none."""
    if (browser := find_browser()) is None:
        raise BuildError(f"a PDF needs one of {', '.join(BROWSERS)}; none is on the PATH")
    return browser


def print_book(root: Path = ROOT) -> Path:
    """Write `_build/paper-companion.pdf` with all pages of the book; return its path.

    Raises BuildError where there is no Chromium, or with what Sphinx or Chromium said, and
    BusyError while another process builds.
    """
    browser = needed_browser()
    out = root / "_build"
    out.mkdir(exist_ok=True)
    with locked(out / ".lock", f"{out}: {{holder}} is building the book; wait for it") as lock:
        # pages that the strict build has read are taken as they are: it has seen their warnings
        run_sphinx(root, out, lock, "singlehtml")
        return print_page(browser, out / "singlehtml" / "index.html", out / "paper-companion.pdf")


def print_page(browser: str, page: Path, pdf: Path) -> Path:
    """Print an HTML file into a PDF, which takes its place only when it is whole."""
    part = pdf.with_suffix(".part.pdf")
    part.unlink(missing_ok=True)  # of a print that was broken off
    print("printing ...", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as profile:
        try:
            done = subprocess.run(
                [browser, *OPTIONS, f"--user-data-dir={profile}", f"--print-to-pdf={part}", page.as_uri()],
                capture_output=True, text=True, errors="replace", timeout=PATIENCE_S,
            )  # fmt: skip
        except subprocess.TimeoutExpired as error:
            part.unlink(missing_ok=True)
            raise BuildError(f"{browser} did not print the book in {PATIENCE_S} s") from error
    if done.returncode or not part.is_file():
        part.unlink(missing_ok=True)
        raise BuildError(f"{browser} did not print the book:\n{done.stderr.strip()}")
    return part.replace(pdf)
