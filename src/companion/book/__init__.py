"""The book: its strict build, and the tables that are computed while it is built.

As a Sphinx extension it turns a chapter's notebook into its page (`companion.book.pages`,
`companion.book.frame`) and adds directives: ``{papers}``, ``{scoreboard}``, ``{result} PAPER``,
``{runit} PAPER``, ``{related} PAPER``, ``{recorded} PAPER``, ``{sweep} PAPER NAME``,
``{environment}``, ``{provenance}``, ``{benchmarks}``, ``{gpu}`` and ``{datasets}``. They read the
stored notebooks and the records each time, so that no table can drift from the runs behind it and nothing generated is committed.

The build itself needs the standard library only, so that finding nothing to do takes no time.
"""

from companion.book.building import BuildError, build, content_hash
from companion.book.printed import print_book

__all__ = ["BuildError", "build", "content_hash", "print_book", "setup"]


def setup(app):
    """Sphinx's entry: register what `companion.book.extension` defines."""
    from companion.book.extension import register

    return register(app)
