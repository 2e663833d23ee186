"""What a chapter's outputs depend on, in one number: its cells and what they import."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import tokenize
from pathlib import Path

from companion.files import seal
from companion.runs.chapters import code_cells, read

PACKAGE = Path(__file__).parents[1]


def fingerprint(path: Path) -> str:
    """sha256 over the code cells, every library file that they reach through imports, and the
    data files in the packages of these.

    Prose, docstrings, comments and layout are left out: they change no number. The same on
    every Python that the project supports.
    Raises ValueError for a cell or file that is no Python.
    """
    cells = [cell["source"] for cell in code_cells(read(path))]
    parts: list[object] = [_tokens(cell, path.name, is_cell=True) for cell in cells]
    files = library_files(cells)
    for file in files + data_files(files):
        name = file.relative_to(PACKAGE.parents[1]).as_posix()
        if file.suffix == ".py":
            parts.append([name, _tokens(file.read_text(encoding="utf-8"), name)])
        else:
            parts.append([name, hashlib.sha256(file.read_bytes()).hexdigest()])
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


@functools.lru_cache(maxsize=512)  # chapters share most of what they reach
def _tokens(source: str, name: str, is_cell: bool = False) -> tuple[str, ...]:
    """What Python runs of a source: its tokens without comments, blank lines and docstrings.

    A cell's first string is no docstring: the cell shows it.
    """
    source = source.replace("\r\n", "\n").replace("\r", "\n") + "\n"
    lines = source.split("\n")
    tokens: list[str] = []
    try:
        docstrings = _docstrings(source, lines, is_cell)
        depth, begin, doc_end = 0, (0, 0), None
        for kind, text, start, end, _ in tokenize.generate_tokens(io.StringIO(source).readline):
            doc_end = docstrings.get(start, doc_end)
            if kind == FSTRING_START:  # Python 3.12 splits an f-string: one token here, as written
                begin = begin if depth else start
                depth += 1
            elif kind == FSTRING_END:
                depth -= 1
                if not depth:
                    tokens.append(_between(lines, begin, end))
            elif depth or kind in SKIPPED or (doc_end and start < doc_end):
                continue
            elif doc_end:  # the end of line or semicolon after a docstring goes with it
                doc_end = None
            else:
                tokens.append(LAYOUT.get(kind, text))
    except (SyntaxError, tokenize.TokenError) as error:
        raise ValueError(f"{name}: not Python: {error}") from None
    return tuple(tokens)


SKIPPED = {tokenize.COMMENT, tokenize.NL, tokenize.ENDMARKER}
# no other token begins with a line's end
LAYOUT = {tokenize.NEWLINE: "\n", tokenize.INDENT: "\n>", tokenize.DEDENT: "\n<"}
FSTRING_START = getattr(tokenize, "FSTRING_START", None)
FSTRING_END = getattr(tokenize, "FSTRING_END", None)


def _docstrings(source: str, lines: list[str], is_cell: bool) -> dict:
    """Start and end of each docstring: (line, column in characters)."""
    documented = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)

    def place(line: int, offset: int) -> tuple[int, int]:  # ast counts bytes
        return line, len(lines[line - 1].encode()[:offset].decode())

    found = {}
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, documented[is_cell:]) and ast.get_docstring(node) is not None:
            text = node.body[0]
            start = place(text.lineno, text.col_offset)
            found[start] = place(text.end_lineno, text.end_col_offset)
    return found


def _between(lines: list[str], begin: tuple[int, int], end: tuple[int, int]) -> str:
    """The text from one (line, column) to another."""
    (first, left), (last, right) = begin, end
    if first == last:
        return lines[first - 1][left:right]
    return "\n".join([lines[first - 1][left:], *lines[first : last - 1], lines[last - 1][:right]])


def library_files(sources: list[str]) -> list[Path]:
    """Files of the companion that these sources import, directly or not."""
    found: set[Path] = set()
    waiting = [(source, "") for source in sources]
    while waiting:
        for module in _imports(*waiting.pop()):
            # every package on the way is run by the import as well
            parts = module.split(".")[1:]
            for depth in range(len(parts) + 1):
                base = PACKAGE.joinpath(*parts[:depth])
                for file in (base / "__init__.py", base.with_suffix(".py")):
                    if file.is_file() and file not in found:
                        found.add(file)
                        around = ".".join(["companion", *file.parent.relative_to(PACKAGE).parts])
                        waiting.append((file.read_text(encoding="utf-8"), around))
    return sorted(found)


def data_files(files: list[Path]) -> list[Path]:
    """What the packages among these files hold besides Python and prose."""
    found: list[Path] = []
    waiting = [file.parent for file in files if file.name == "__init__.py"]
    while waiting:
        for item in waiting.pop().iterdir():
            if item.name.startswith((".", "__")):
                continue  # caches, files that are being written
            if item.is_dir():
                if not (item / "__init__.py").is_file():
                    waiting.append(item)
            elif item.suffix not in (".py", ".md"):
                found.append(item)
    return sorted(found)


@functools.lru_cache(maxsize=512)
def _imports(source: str, package: str) -> frozenset[str]:
    """Modules of the companion, and names in them, that a source in this package imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*(around if node.level else []), *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return frozenset(name for name in names if name.split(".")[0] == "companion")


def is_current(path: Path) -> bool:
    """Whether the stored outputs were made by the code as it is now."""
    stored = read(path)["metadata"].get("companion", {}).get("fingerprint")
    return stored == fingerprint(path)


def outputs_seal(notebook: dict) -> str:
    """sha256 over all stored outputs, as the file has them."""
    return seal([cell["outputs"] for cell in code_cells(notebook)])


def is_untouched(path: Path) -> bool:
    """Whether the stored outputs are those that `refresh` wrote: nothing stripped or edited."""
    notebook = read(path)
    return notebook["metadata"].get("companion", {}).get("outputs") == outputs_seal(notebook)
