"""What a chapter's outputs depend on, in one number: its cells and what they import."""

from __future__ import annotations

import ast
import functools
import hashlib
import io
import json
import sys
import tokenize
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any

from companion.files import seal, write_whole
from companion.notebook.claims import read_claims, what_decides
from companion.runs.chapters import code_cells, read
from companion.runs.record import CURRENT, EARLIER, STALE

PACKAGE = Path(__file__).parents[1]


def fingerprint(path: Path) -> str:
    """sha256 over the code cells, every library file that they reach through imports, and the
    data files in the packages of these.

    Prose, docstrings, comments and layout are left out: they change no number. The same on
    every Python that the project supports.
    Raises ValueError for a cell or file that is no Python.
    """
    return fingerprint_of(read(path), path.name)


def fingerprint_of(notebook: dict, name: str) -> str:
    """As `fingerprint`, of a notebook that was read from the file of this name."""
    cells = [cell["source"] for cell in code_cells(notebook)]
    parts: list[Any] = [_look(cell, name, is_cell=True)[0] for cell in cells]
    files = library_files(cells)
    for file in files + data_files(files):
        where = file.relative_to(PACKAGE).as_posix()
        if file.suffix == ".py":
            parts.append([where, _look(file.read_text(encoding="utf-8"), where)[0]])
        elif file.name == "claims.yaml":
            parts.append([where, _bounds(file)])
        else:
            parts.append([where, _sha256(file.read_bytes())])
    _memory(PACKAGE.parents[1]).keep()
    return _sha256(json.dumps(parts))


def _bounds(file: Path) -> str:
    """sha256 of what decides the verdicts of a file of claims: its sentences change none."""
    memory, key = _memory(PACKAGE.parents[1]), _sha256(file.read_bytes())
    if key not in memory:
        memory[key] = (_sha256(json.dumps(what_decides(read_claims(file)), default=str)), [])
    return memory[key][0]


def library_files(cells: list[str]) -> list[Path]:
    """Files of the companion that these cells import, directly or not."""
    found: dict[str, Path | None] = {}  # by module; None for what is only a name in one
    waiting = {name for cell in cells for name in _look(cell, "a cell", is_cell=True)[1]}
    while waiting:
        module = waiting.pop()
        around = module.rpartition(".")[0]
        if around and around not in found:
            waiting |= {module, around}  # every package on the way is run by the import as well
            continue
        found[module] = file = _file_of(module, found.get(around))
        if file:
            where = file.relative_to(PACKAGE).as_posix()
            imported = _look(file.read_text(encoding="utf-8"), where)[1]
            waiting |= set(imported) - found.keys()
    return sorted(filter(None, found.values()))


def _file_of(module: str, around: Path | None) -> Path | None:
    """The file of a module in a package whose file is given."""
    if module == "companion":
        return PACKAGE / "__init__.py"
    if around is None or around.name != "__init__.py":
        return None
    name = module.rpartition(".")[2]
    for file in (around.parent / name / "__init__.py", around.with_name(f"{name}.py")):
        if file.is_file():
            return file
    return None


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


def _look(source: str, name: str, is_cell: bool = False) -> tuple[str, list[str]]:
    """sha256 of what Python runs of a source, and what of the companion it imports.

    name: of a cell's notebook, or of a file below the package.
    """
    package = "" if is_cell else ".".join(["companion", *name.split("/")[:-1]])
    memory, key = _memory(PACKAGE.parents[1]), _sha256(f"{package}\n{source}")
    if key not in memory:
        tokens = json.dumps(_tokens(source, name, is_cell))
        memory[key] = (_sha256(tokens), sorted(_imports(source, package)))
    return memory[key]


@functools.cache
class _memory(dict):
    """What `_look` found, by the sha256 of the source; kept in a checkout's folder of builds.

    Only to save time: where nothing can be written there is none, and a file that is damaged, or
    of another Python or version of this module, is not taken.
    """

    def __init__(self, root: Path) -> None:
        self.file = root / "_build" / "fingerprints.json"
        self.checkout = (root / "pyproject.toml").is_file()
        self.reader = sys.version + Path(__file__).read_text(encoding="utf-8")
        with suppress(OSError, ValueError):
            stamp, text = self.file.read_text(encoding="utf-8").split("\n", 1)
            if self.checkout and stamp == _sha256(self.reader + text):
                self.update(json.loads(text))
        self.kept = len(self)

    def keep(self) -> None:
        if len(self) > self.kept and self.checkout:
            self.kept = len(self)
            text = json.dumps(self)
            with suppress(OSError):
                write_whole(self.file, f"{_sha256(self.reader + text)}\n{text}")


def _sha256(content: str | bytes) -> str:
    data = content if isinstance(content, bytes) else content.encode(errors="surrogateescape")
    return hashlib.sha256(data).hexdigest()


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

    def place(line: Any, offset: Any) -> tuple[int, int]:  # ast counts bytes
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


def _imports(source: str, package: str) -> set[str]:
    """Modules of the companion, and names in them, that a source in this package imports."""
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            around = package.split(".")[: len(package.split(".")) - node.level + 1]
            module = ".".join([*(around if node.level else []), *filter(None, [node.module])])
            names |= {module} | {f"{module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "companion"}


def is_current(path: Path) -> bool:
    """Whether the stored outputs were made by the code as it is now."""
    notebook = read(path)
    return _stored(notebook).get("fingerprint") == fingerprint_of(notebook, path.name)


def stamp(notebook: dict, name: str, before: dict) -> dict[str, Any]:
    """What tells whose outputs an executed notebook, read from the file of this name, holds.

    before: the notebook as it was stored until now. Code with the same results, which `alike.compare`
      finds, is listed under `alike` as long as the code stays the same.
    """
    code, old = fingerprint_of(notebook, name), _stored(before)
    alike = old.get("alike", []) if old.get("fingerprint") == code else []
    return {"fingerprint": code, "outputs": outputs_seal(notebook), "alike": alike}


def standing(path: Path) -> Callable[[str], str]:
    """How the code of a run, given by its fingerprint, stands to the chapter's as it is now.

    CURRENT: the same; EARLIER: it has changed since, and the chapter's default run gave the
    same values with both (`alike.compare`); STALE: anything else.
    """
    now, alike = (_once if _unchanged else _code)(path)
    return lambda made: CURRENT if made == now else EARLIER if made in alike else STALE


def _code(path: Path) -> tuple[str, set[str]]:
    """The fingerprint of a chapter, and those of earlier code with the same results."""
    notebook = read(path)
    now = fingerprint_of(notebook, path.name)
    same = _stored(notebook).get("fingerprint") == now
    return now, set(_stored(notebook).get("alike", [])) if same else set()


_once, _unchanged = functools.cache(_code), False


def assume_unchanged(now: bool) -> None:
    """Whether this process takes the code of all chapters as it is. A build of the book does: it
    is of one state, and asks for the code of each chapter some thirty times."""
    global _unchanged
    _unchanged = now
    _once.cache_clear()


def _stored(notebook: dict) -> dict[str, Any]:
    return notebook["metadata"].get("companion", {})


def outputs_seal(notebook: dict) -> str:
    """sha256 over all stored outputs, as the file has them."""
    return seal([cell["outputs"] for cell in code_cells(notebook)])


def is_untouched(path: Path) -> bool:
    """Whether the stored outputs are those that `refresh` wrote: nothing stripped or edited."""
    notebook = read(path)
    return _stored(notebook).get("outputs") == outputs_seal(notebook)
