"""The chapters as files: find, read, check their parameters.

Reading needs only the standard library, so that a machine without Jupyter can run a chapter's
code cells (`companion record`).
"""

from __future__ import annotations

import ast
import contextlib
import functools
import io
import json
import os
import types
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from companion.device import pick_device
from companion.files import ROOT, write_whole
from companion.notebook import parameters

FOLDER = ROOT / "notebooks"
HOME = "https://github.com/paper-companion/paper-companion"
TAGS = frozenset(
    {
        "parameters",
        "remove-input",
        "remove-cell",
        "hide-input",
        "hide-cell",
        "nbval-check-output",
        "raises-exception",
        "opening",  # its output opens the page
        "beside",  # stands beside the equation before it
    }
)


def stems() -> list[str]:
    """Stems of the chapters that exist, in alphabetical order.

    Raises ValueError where there are no notebooks: outside a checkout.
    """
    if not FOLDER.is_dir():
        raise ValueError(
            f"{FOLDER}: no such folder; the chapters are in a checkout of the project "
            f"(git clone {HOME}), whose own .venv/bin/companion finds them; or give the path of a notebook"
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


def called(path: Path, name: str | os.PathLike) -> str:
    """What to call a notebook in a command: a chapter by its stem, another as it was called."""
    return path.stem if path.parent == FOLDER else os.fspath(name)


def read(path: Path) -> dict:
    """A notebook as a dictionary, every source a single string.

    Raises ValueError for a file that is no notebook of format 4.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except ValueError as error:
        raise ValueError(f"{path}: not a notebook: {error}") from None
    return parse(text, str(path))


def parse(text: str, name: str) -> dict:
    """As `read`, of a notebook's text; errors call it by this name."""
    try:
        notebook = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{name}: not a notebook: {error}") from None
    try:
        for cell in notebook["cells"]:
            cell["source"] = "".join(cell["source"])
            wanted = {"metadata", "outputs"} if cell["cell_type"] == "code" else {"metadata"}
            if not wanted <= cell.keys():
                raise KeyError(*wanted)
    except (KeyError, TypeError, AttributeError):
        raise ValueError(f"{name}: not a notebook of format 4, or a damaged one") from None
    return notebook


def code_cells(notebook: Mapping[str, Any]) -> list[Any]:
    return [cell for cell in notebook["cells"] if cell["cell_type"] == "code"]


def joined(outputs: Iterable) -> list:
    """Outputs in which what a cell prints is one text: a kernel may send it in pieces."""
    found: list = []
    for output in outputs:
        if found and "name" in output and output["name"] == found[-1].get("name"):
            text = "".join([*found[-1]["text"], *output["text"]])
            found[-1] = type(found[-1])(found[-1], text=text)
        else:
            found.append(output)
    return found


def tags(cell: dict) -> list[str]:
    return cell["metadata"].get("tags", [])


def recorded_values(notebook: dict) -> dict[str, Any]:
    """What the stored cells recorded, by name."""
    values: dict[str, Any] = {}
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


def declared(path: Path) -> dict[str, Any]:
    """Type by parameter, as the first code cell states them, without running it."""
    return _declared(code_cells(read(path)), str(path))


def _declared(cells: list[dict], name: str) -> dict[str, Any]:
    with _readable(name):
        return parameters.declared(_annotations(cells[0]["source"] if cells else ""))


@functools.lru_cache(maxsize=64)  # as for the next: a sweep checks one notebook thousands of times
def _annotations(source: str) -> dict[str, str]:
    """The annotation of each name in a source, as text."""
    return {
        statement.target.id: ast.unparse(statement.annotation)
        for statement in ast.parse(source).body
        if isinstance(statement, ast.AnnAssign) and isinstance(statement.target, ast.Name)
    }


def misplaced(cells: list[dict], name: object) -> str:
    """Why a name that a notebook sets is no parameter of it; "" where it sets no such name.

    cells: its code cells. Looked at are the first and those that papermill takes.
    """
    for cell in cells:
        first = cell is cells[0]
        if not first and "parameters" not in tags(cell):
            continue
        with contextlib.suppress(SyntaxError):  # a cell with a magic
            for statement in ast.parse(cell["source"]).body:
                targets = getattr(statement, "targets", [getattr(statement, "target", None)])
                if name not in [getattr(target, "id", None) for target in targets]:
                    continue
                if isinstance(statement, ast.Assign):
                    kind = "int"
                    with contextlib.suppress(ValueError):
                        kind = type(ast.literal_eval(statement.value)).__name__
                    return (
                        "it is assigned without an annotation, expected "
                        f"{name}: {kind} = {ast.unparse(statement.value)}"
                    )
                if isinstance(statement, ast.AnnAssign) and not first:
                    return "it is assigned in a later cell, expected in the first cell of code"
    return ""


@functools.lru_cache(maxsize=64)
def _compiled(source: str, name: str) -> types.CodeType:
    return compile(source, name, "exec", dont_inherit=True)


@contextlib.contextmanager
def _readable(name: str) -> Iterator[None]:
    """Make one line of whatever goes wrong in the first cells of a notebook that is no chapter."""
    try:
        yield
    except (ValueError, ImportError):  # ours, which say what is wrong
        raise
    except (Exception, SystemExit) as error:
        raise ValueError(
            f"{name}: its parameters cannot be read: {type(error).__name__}: {error}"
        ) from None


def validate(path: Path, given: dict[str, Any], *, here: bool = False) -> dict[str, Any]:
    """Run only the parameters cell and the check cell with these values; return all values.

    here: the run would be on this machine; also refuse a device, a data set, a folder or a file
    that is not there.

    Raises companion.notebook.ParameterError as the notebook itself would, before a kernel is
    started. A name that is not one of the notebook's parameters is never executed.
    """
    return check(read(path), str(path), given, here=here)


def check(
    notebook: dict, name: str, given: dict[str, Any], *, here: bool = False
) -> dict[str, Any]:
    """As `validate`, of a notebook that was read from the file of this name."""
    # of an earlier run's output, too, the cell that checks comes after what was set
    stated = [cell for cell in code_cells(notebook) if "injected-parameters" not in tags(cell)]
    known = _declared(stated, name)
    problems = []
    for one in given:
        if why := one not in known and misplaced(stated, one):
            problems.append(f"unknown parameter {parameters.told(one)}: {why}")
        else:
            problems += parameters.unknown([one], known)
    if len(stated) < 2:
        raise ValueError(f"{name}: expected a cell of parameters and one that checks them")
    space: dict[str, Any] = {"In": [], "__name__": "parameters", "HERE": here}

    def run(source: str) -> None:
        space["In"].append(source)
        with _readable(name):
            exec(_compiled(source, name), space)

    run(stated[0]["source"])
    usual = space.get("dataset")
    said = io.StringIO()
    try:
        with contextlib.redirect_stdout(said):
            run(injected({name: value for name, value in given.items() if name in known}))
            run(stated[1]["source"])
    except parameters.ParameterError as error:
        problems.append(str(error))
    if problems:
        raise parameters.ParameterError("; ".join(problems))
    with _readable(name):
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


def _check_place(values: dict[str, Any], usual: object) -> None:
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
    from companion.data.catalogue import catalogue
    from companion.data.root import MissingDataError, data_root

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
            whole = bool(source.sizes) or source.state(place) == "missing"
            source.require(name, place, whole=whole)
        except MissingDataError as error:
            said = str(error).removeprefix(f"dataset {name!r} ").removeprefix("is ")
            raise parameters.ParameterError(f"dataset = {name!r}: {said}") from None


def defaults(path: Path) -> dict[str, Any]:
    """Value by parameter, as the first code cell states them, without running it."""
    return parameters.literals(code_cells(read(path))[0]["source"])


def presets(path: Path) -> dict[str, dict[str, Any]]:
    """The profiles that the check cell states, by name; the first changes nothing."""
    check = ast.parse(code_cells(read(path))[1]["source"])
    for node in ast.walk(check):
        if isinstance(node, ast.keyword) and node.arg == "profiles":
            return ast.literal_eval(node.value)
    return {}


def write_preset_files(path: Path) -> list[Path]:
    """Write each preset but the default one as a YAML file for ``papermill -f``; the files."""
    import yaml

    folder, written = path.parent / "params", []
    for name, preset in list(presets(path).items())[1:]:
        values = yaml.safe_dump({"profile": name} | preset, sort_keys=False)
        head = f"# preset {name!r} of {path.name}: written by make notebooks, not by hand\n"
        written.append(folder / f"{path.stem}-{name.replace('_', '-')}.yaml")
        write_whole(written[-1], head + values)
    return written


def injected(given: dict[str, Any]) -> str:
    """The cell of values that papermill would put after the parameters cell.

    Raises companion.notebook.ParameterError for what is no name or no literal: nothing that
    was given is executed.
    """
    lines = [f"{name} = {parameters.literal(name, value)}" for name, value in given.items()]
    return "\n".join(["# Parameters", *lines]) + "\n"
