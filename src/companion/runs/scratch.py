"""A temporary folder, also where many processes ask for one at once."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from companion import files

TRIES = 20  # in each of which another process has to look within microseconds


@contextmanager
def scratch(where: str = "") -> Iterator[Path]:
    """`files.scratch`, made again if another process took it for one that was left by then.

    That happens between its making and its opening. It is mended here, because what is in `files`
    counts as code of every chapter: with a change there all records would be of other code.
    """
    for left in reversed(range(TRIES)):
        with ExitStack() as stack:
            try:
                folder = stack.enter_context(files.scratch(where))
            except FileNotFoundError:
                if not left:
                    raise
                continue
            yield folder
            return
