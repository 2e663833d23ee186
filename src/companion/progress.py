"""How far a long loop is, in a terminal and in a notebook."""

from __future__ import annotations

import sys
import time
from contextlib import AbstractContextManager, nullcontext, suppress


class Progress:
    """A progress bar: tqdm in a terminal, one line that updates itself in a notebook.

    Where tqdm is absent nothing is shown. The notebook's line ends as "<done> <what>", so a
    stored output is the same every time.

    >>> with Progress(2, "steps", show=False) as bar:
    ...     bar.update()
    ...     bar.update()
    >>> bar
    2 steps
    """

    def __init__(self, total: int, what: str, *, show: bool = True) -> None:
        self.total, self.what, self.done = total, what, 0
        self.start = self.shown = time.monotonic()
        self.line = self.bar = None
        if not show:
            return
        if "ipykernel" in sys.modules:
            from IPython.display import display

            self.line = display(self, display_id=True)
        else:
            with suppress(ImportError):  # a GPU machine may lack it
                from tqdm import tqdm

                self.bar = tqdm(total=total, desc=what, mininterval=1.0)

    def update(self, steps: int = 1) -> None:
        """Count some steps as done."""
        self.done += steps
        now = time.monotonic()
        if self.bar is not None:
            self.bar.update(steps)
        elif self.line is not None and now - self.shown > 0.5:
            self.shown = now
            self.line.update(self)

    def __repr__(self) -> str:
        if self.done >= self.total:
            return f"{self.done} {self.what}"
        left = (time.monotonic() - self.start) / max(self.done, 1) * (self.total - self.done)
        filled = round(24 * self.done / self.total)
        return f"[{'#' * filled}{'.' * (24 - filled)}] {self.done}/{self.total} {self.what}, {left:.0f} s left"

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        if self.bar is not None:
            self.bar.close()
        elif self.line is not None:
            self.line.update(self)


def progress_bar(
    progress: bool | Progress, total: int, what: str
) -> AbstractContextManager[Progress]:
    """A context with the bar of a loop: one of its own, shown if true, or a caller's to move on."""
    if isinstance(progress, Progress):
        return nullcontext(progress)
    return Progress(total, what, show=bool(progress))
