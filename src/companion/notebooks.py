"""The chapters as files: find, fingerprint, validate, run, store, export.

Reading needs only the standard library, so that a machine without Jupyter can run a chapter's
code cells (`companion record`).
"""

from __future__ import annotations

import ast
import asyncio
import contextlib
import functools
import hashlib
import io
import json
import os
import tokenize
import types
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from companion import parameters
from companion.runtime import ROOT, pick_device, seal, sweep_up, write_whole

FOLDER = ROOT / "notebooks"
TAGS = frozenset(
    {
        "parameters",
        "remove-input",
        "remove-cell",
        "hide-input",
        "hide-cell",
        "nbval-check-output",
        "raises-exception",
    }
)
CELL_TIMEOUT = 3600  # seconds


def stems() -> list[str]:
    """Stems of the chapters that exist, in alphabetical order.

    Raises ValueError where there are no notebooks: outside a checkout.
    """
    if not FOLDER.is_dir():
        raise ValueError(
            f"{FOLDER}: no such folder; the chapters are in a checkout of the project, "
            "and its own .venv/bin/companion finds them"
        )
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def find(name: str | os.PathLike) -> Path:
    """The notebook of a stem, or of a path to it.

    Raises ValueError for a chapter that does not exist, with what there is.
    """
    path, chapter = Path(name), FOLDER / f"{name}.ipynb"
    with contextlib.suppress(OSError, ValueError):  # too long, or what no file can be called
        if path.suffix == ".ipynb" and path.is_file():
            return path.resolve()
        if chapter.is_file():
            return chapter
    raise ValueError(
        f"notebook = {parameters.told(str(name))}: "
        f"expected one of {', '.join(stems()) or 'none yet'}"
    )


def read(path: Path) -> dict:
    """A notebook as a dictionary, every source a single string.

    Raises ValueError for a file that is no notebook of format 4.
    """
    try:
        notebook = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: not a notebook: {error}") from None
    try:
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            wanted = {"metadata", "outputs"} if cell["cell_type"] == "code" else {"metadata"}
            if not wanted <= cell.keys():
                raise KeyError(*wanted)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{path}: not a notebook of format 4, or a damaged one") from None
    return notebook


def code_cells(notebook: dict) -> list[dict]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def recorded_values(notebook: dict) -> dict[str, object]:
    """What the stored cells recorded, by name."""
    values: dict[str, object] = {}
    for cell in code_cells(notebook):
        for output in cell["outputs"]:
            name = output.get("metadata", {}).get("scrapbook", {}).get("name")
            if name:
                data = output["data"]
                if "application/json" in data:
                    values[name] = data["application/json"]
                else:
                    values[name] = ast.literal_eval("".join(data["text/plain"]))
    return values


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
        name = file.relative_to(ROOT).as_posix()
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
    package = Path(__file__).parent
    found: set[Path] = set()
    waiting = [(source, "") for source in sources]
    while waiting:
        for module in _imports(*waiting.pop()):
            # every package on the way is run by the import as well
            parts = module.split(".")[1:]
            for depth in range(len(parts) + 1):
                base = package.joinpath(*parts[:depth])
                for file in (base / "__init__.py", base.with_suffix(".py")):
                    if file.is_file() and file not in found:
                        found.add(file)
                        around = ".".join(["companion", *file.parent.relative_to(package).parts])
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


def declared(path: Path) -> dict[str, object]:
    """Type by parameter, as the first code cell states them, without running it."""
    cells = code_cells(read(path))
    with _readable(path):
        return parameters.declared(_annotations(cells[0]["source"] if cells else ""))


@functools.lru_cache(maxsize=64)  # as for the next: a sweep checks one notebook thousands of times
def _annotations(source: str) -> dict[str, str]:
    """The annotation of each name in a source, as text."""
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


@functools.lru_cache(maxsize=64)
def _compiled(source: str, name: str) -> types.CodeType:
    return compile(source, name, "exec", dont_inherit=True)


@contextlib.contextmanager
def _readable(path: Path) -> Iterator[None]:
    """Make one line of whatever goes wrong in the first cells of a notebook that is no chapter."""
    try:
        yield
    except (ValueError, ImportError):  # ours, which say what is wrong
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{path}: its parameters cannot be read: {type(error).__name__}: {error}"
        ) from None


def validate(path: Path, given: dict[str, object], *, here: bool = False) -> dict[str, object]:
    """Run only the parameters cell and the check cell with these values; return all values.

    here: the run would be on this machine; also refuse a device, a data set, a folder or a file
    that is not there.

    Raises companion.parameters.ParameterError as the notebook itself would, before a kernel is
    started. A name that is not one of the notebook's parameters is never executed.
    """
    known = declared(path)
    problems = parameters.unknown(given, known)
    # of an earlier run's output, too, the cell that checks comes after what was set
    stated = [cell for cell in code_cells(read(path)) if "injected-parameters" not in tags(cell)]
    cells = [cell["source"] for cell in stated[:2]]
    if len(cells) < 2:
        raise ValueError(f"{path}: expected a cell of parameters and one that checks them")
    space: dict[str, object] = {"In": [], "__name__": "parameters", "HERE": here}

    def run(source: str) -> None:
        space["In"].append(source)
        with _readable(path):
            exec(_compiled(source, path.name), space)

    run(cells[0])
    usual = space.get("dataset")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(injected({name: value for name, value in given.items() if name in known}))
            run(cells[1])
    except parameters.ParameterError as error:
        problems.append(str(error))
    if problems:
        raise parameters.ParameterError("; ".join(problems))
    with _readable(path):
        values = {name: space[name] for name in known}
    if here:
        _check_place(values, usual)
    print(said.getvalue(), end="")
    return values


# data sets that the catalogue has under the name of a family
FAMILIES = {
    "hotel": ("eth",),
    "zara01": ("ucy",),
    "zara02": ("ucy",),
    "students03": ("ucy",),
    "ethucy": ("eth", "ucy"),
}


def _check_place(values: dict[str, object], usual: object) -> None:
    """Raise ValueError for a device, a data root or a data set that this machine lacks.

    usual: the data set that needs no download. It and the usual devices are not looked up:
    importing torch takes seconds.
    """
    if values.get("device", "auto") not in ("auto", "cpu"):
        pick_device(str(values["device"]))
    root, name = str(values.get("data_root", "")), values.get("dataset", usual)
    if wrong := parameters.OUTSIDE["folder"](root) if root else None:
        raise parameters.ParameterError(f"data_root = {root!r}: {wrong}")
    if name == usual:
        return
    from companion.data import MissingDataError, data_root
    from companion.data.catalogue import catalogue

    place, sets = data_root(root), catalogue()
    if name == "folder" and "scene_path" not in values:  # pictures of the user's own
        for part in ("train", "val"):
            if not any((place / part).glob("*/*")):
                raise parameters.ParameterError(
                    f"dataset = 'folder', data_root = {str(place)!r}: expected {part}/ there, "
                    "with one subfolder of pictures a class"
                )
    for source in (sets[family] for family in FAMILIES.get(name, (name,)) if family in sets):
        try:
            # of a set whose files are not known one by one, chapters take what is there
            source.require(name, place, whole=bool(source.sizes))
        except MissingDataError as error:
            said = str(error).removeprefix(f"dataset {name!r} ").removeprefix("is ")
            raise parameters.ParameterError(f"dataset = {name!r}: {said}") from None


def presets(path: Path) -> dict[str, dict[str, object]]:
    """The profiles that the check cell states, by name; the first holds the defaults."""
    check = ast.parse(code_cells(read(path))[1]["source"])
    for node in ast.walk(check):
        if isinstance(node, ast.keyword) and node.arg == "profiles":
            return ast.literal_eval(node.value)
    return {}


def write_preset_files(path: Path) -> None:
    """Write each preset but the default one as a YAML file for ``papermill -f``."""
    import yaml

    folder = path.parent / "params"
    for name, preset in list(presets(path).items())[1:]:
        values = yaml.safe_dump({"profile": name} | preset, sort_keys=False)
        head = f"# preset {name!r} of {path.name}: written by make notebooks, not by hand\n"
        write_whole(folder / f"{path.stem}-{name.replace('_', '-')}.yaml", head + values)


def injected(given: dict[str, object]) -> str:
    """The cell of values that papermill would put after the parameters cell.

    Raises companion.parameters.ParameterError for what is no name or no literal: nothing that
    was given is executed.
    """
    lines = [f"{name} = {parameters.literal(name, value)}" for name, value in given.items()]
    return "\n".join(["# Parameters", *lines]) + "\n"


def run(path: Path, given: dict[str, object], show: bool = True) -> tuple[str, str]:
    """Run a notebook with these values; return it as text, and what went wrong or "".

    The text of a run that failed ends with the failing cell. show: a progress bar.
    """
    import nbformat
    from nbclient.exceptions import CellExecutionError, DeadKernelError
    from tqdm import tqdm

    from companion import kernels

    notebook = nbformat.reads(json.dumps(read(path)), as_version=4)
    put_values(notebook, given)
    failure = ""
    with tqdm(total=len(notebook.cells), unit="cell", disable=not show) as bar:
        try:
            # here: a path among the parameters is the caller's
            asyncio.run(kernels.execute(notebook, Path.cwd(), tell=bar.update))
        except CellExecutionError as error:
            failure = f"{error.ename}: {error.evalue}"
        except DeadKernelError:
            failure = "the kernel died: killed, or out of memory"
    return nbformat.writes(notebook) + "\n", failure


def put_values(notebook, given: dict[str, object]) -> None:
    """Put a cell of values after the parameters cell, as papermill does, for an earlier one."""
    import nbformat

    notebook.cells = [cell for cell in notebook.cells if "injected-parameters" not in tags(cell)]
    if given:
        cell = nbformat.v4.new_code_cell(injected(given))
        cell.metadata["tags"] = ["injected-parameters"]
        first = next(n for n, cell in enumerate(notebook.cells) if cell.cell_type == "code")
        notebook.cells.insert(first + 1, cell)


def refresh(path: Path) -> float:
    """Run a notebook with its defaults and store it with fresh outputs; return its CPU seconds.

    The stored form is canonical: two runs of the same code give the same bytes. Nothing is
    written if a cell raises or writes to stderr, or if the code changed while it ran.
    """
    return asyncio.run(_refresh(path))


def refresh_all(
    paths: Sequence[Path], jobs: int, tell: Callable[[Path, float | Exception], None]
) -> None:
    """Refresh several notebooks, `jobs` at once. Interrupted, it leaves no kernel behind.

    tell: called as each ends, with its CPU seconds or with what went wrong.
    """
    gate = asyncio.Semaphore(jobs)

    async def one(path: Path) -> None:
        async with gate:
            try:
                outcome = await _refresh(path)
            except Exception as error:
                outcome = error
        tell(path, outcome)

    async def every() -> None:
        await asyncio.gather(*map(one, paths))

    asyncio.run(every())


async def _refresh(path: Path) -> float:
    import nbformat

    from companion import kernels

    sweep_up(path.parent)
    notebook = nbformat.reads(json.dumps(read(path)), as_version=4)
    before = notebook.metadata.get("companion", {})
    stamp = fingerprint(path)
    # a last cell asks the kernel for its CPU seconds: wall time would depend on what else runs
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    await kernels.execute(notebook, path.parent, CELL_TIMEOUT)
    seconds = round(float(notebook.cells.pop().outputs[0].text))
    if fingerprint(path) != stamp:
        raise RuntimeError(f"{path.name}: its code changed while it ran: run it again")
    if before.get("fingerprint") == stamp:  # the same code: keep the bytes
        seconds = before.get("seconds", seconds)

    complaints = [
        f"{path.name}, cell {number} wrote to stderr:\n{output.text}"
        for number, cell in enumerate(notebook.cells)
        for output in cell.get("outputs", [])
        if output.get("name") == "stderr"
    ]
    if complaints:
        raise RuntimeError("\n".join(complaints))
    count = 0
    for number, cell in enumerate(notebook.cells):
        cell.id = f"{path.stem.replace('_', '-')}-{number:02d}"
        kept = {key: cell.metadata[key] for key in ("tags", "mystnb") if key in cell.metadata}
        cell.metadata = nbformat.from_dict(kept)
        if cell.cell_type != "code":
            continue
        count += 1
        cell.execution_count = count
        for output in cell.outputs:
            if output.output_type == "execute_result":
                output.execution_count = count
    notebook.metadata = nbformat.from_dict(
        {
            "companion": {"fingerprint": stamp, "seconds": seconds},
            "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
            "language_info": {"name": "python"},
        }
    )
    notebook.nbformat_minor = 5
    stored = json.loads(nbformat.writes(notebook))
    notebook.metadata.companion.outputs = outputs_seal(stored)
    write_whole(path, nbformat.writes(notebook) + "\n")
    return seconds


def script(path: Path, given: dict[str, object] | None = None) -> str:
    """A notebook's code cells as a plain Python script, for machines without Jupyter.

    Figures with a name in their metadata and all recorded values go to the file that the
    variable COMPANION_RECORD names, as soon as they are there.
    """
    cells = [cell for cell in code_cells(read(path)) if cell["source"].strip()]
    parts = [
        f"# {path.name} as a script: written by `companion record`, not by hand\n"
        "import warnings\n"
        "import matplotlib\n"
        'matplotlib.use("Agg")\n'
        'warnings.filterwarnings("ignore", message=".*non-interactive.*")\n'
        "from companion.records import keep_figure\n"
        "from companion.runtime import end_with_parent\n"
        "end_with_parent()\n"
        "In = []\n"
    ]
    for number, cell in enumerate(cells, 1):
        parts.append(_script_cell(cell["source"], f"cell {number} of {len(cells)}"))
        figure = cell["metadata"].get("mystnb", {}).get("figure")
        if figure:
            alt = cell["metadata"]["mystnb"].get("image", {}).get("alt", "")
            parts.append(
                f"keep_figure({figure['name']!r}, {figure.get('caption', '')!r}, {alt!r})\n"
            )
        if "parameters" in tags(cell):
            parts.append(_script_cell(injected(given or {}), "values set by hand"))
    # before the last cell: that one may raise, to say that a claim failed
    closing = (
        "from companion.claims import record\n"
        "from companion.runtime import peak_memory\n"
        'record("peak_memory", peak_memory())\n'
    )
    parts.insert(-1, closing)
    return "\n".join(parts)


def _script_cell(source: str, title: str) -> str:
    return f"# --- {title}\nIn.append({source!r})\n{source}\n"
