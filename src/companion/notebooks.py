"""The chapters as files: find, fingerprint, validate, run, store, export.

Reading needs only the standard library, so that a machine without Jupyter can run a chapter's
code cells (`companion record`).
"""

from __future__ import annotations

import ast
import contextlib
import hashlib
import io
import json
import os
from pathlib import Path

from companion import parameters
from companion.runtime import ROOT, pick_device, write_whole

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
    """Stems of the chapters that exist, in alphabetical order."""
    return sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def find(name: str | os.PathLike) -> Path:
    """The notebook of a stem, or of a path to it.

    Raises ValueError for a chapter that does not exist, with what there is.
    """
    path = Path(name)
    if path.suffix == ".ipynb" and path.is_file():
        return path.resolve()
    path = FOLDER / f"{name}.ipynb"
    if not path.is_file():
        raise ValueError(
            f"notebook = {str(name)!r}: expected one of {', '.join(stems()) or 'none yet'}"
        )
    return path


def read(path: Path) -> dict:
    """A notebook as a dictionary, every source a single string."""
    notebook = json.loads(path.read_text(encoding="utf-8"))
    for cell in notebook["cells"]:
        cell["source"] = "".join(cell["source"])
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
    """sha256 over the code cells and every library file that they reach through imports.

    Prose, docstrings, comment lines and blank lines are left out: they change no output.
    """
    sources = [cell["source"] for cell in code_cells(read(path))]
    digest = hashlib.sha256("\0".join(map(_bare, sources)).encode())
    for file in library_files(sources):
        name = file.relative_to(ROOT).as_posix()
        digest.update(f"\0{name}\0{_bare(file.read_text(encoding='utf-8'))}".encode())
    return digest.hexdigest()


def _bare(source: str) -> str:
    """The source without docstrings, comment lines and blank lines; the same on every Python."""
    lines = source.splitlines()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef)) and ast.get_docstring(
            node
        ):
            text = node.body[0]
            lines[text.lineno - 1 : text.end_lineno] = [""] * (text.end_lineno - text.lineno + 1)
    return "\n".join(line for line in lines if line.strip() and not line.lstrip().startswith("#"))


def library_files(sources: list[str]) -> list[Path]:
    """Files of the companion that these sources import, directly or not."""
    package = Path(__file__).parent
    found: set[Path] = set()
    waiting = list(sources)
    while waiting:
        for module in _imports(waiting.pop()):
            # every package on the way is run by the import as well
            parts = module.split(".")[1:]
            for depth in range(len(parts) + 1):
                base = package.joinpath(*parts[:depth])
                for file in (base / "__init__.py", base.with_suffix(".py")):
                    if file.is_file() and file not in found:
                        found.add(file)
                        waiting.append(file.read_text(encoding="utf-8"))
    return sorted(found)


def _imports(source: str) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name for name in names if name.split(".")[0] == "companion"}


def is_current(path: Path) -> bool:
    """Whether the stored outputs were made by the code as it is now."""
    stored = read(path)["metadata"].get("companion", {}).get("fingerprint")
    return stored == fingerprint(path)


def declared(path: Path) -> dict[str, object]:
    """Type by parameter, as the first code cell states them, without running it."""
    cells = code_cells(read(path))
    statements = ast.parse(cells[0]["source"]).body if cells else []
    return parameters.declared(
        {
            statement.target.id: ast.unparse(statement.annotation)
            for statement in statements
            if isinstance(statement, ast.AnnAssign)
        }
    )


def validate(path: Path, given: dict[str, object], *, here: bool = False) -> dict[str, object]:
    """Run only the parameters cell and the check cell with these values; return all values.

    here: the run would be on this machine; also refuse a device, a data set, a folder or a file
    that is not there.

    Raises companion.parameters.ParameterError as the notebook itself would, before a kernel is
    started. A name that is not one of the notebook's parameters is never executed.
    """
    known = declared(path)
    problems = parameters.unknown(given, known)
    cells = [cell["source"] for cell in code_cells(read(path))[:2]]
    if len(cells) < 2:
        raise ValueError(f"{path}: expected a cell of parameters and one that checks them")
    space: dict[str, object] = {"In": [], "__name__": "parameters", "HERE": here}

    def run(source: str) -> None:
        space["In"].append(source)
        exec(compile(source, path.name, "exec", dont_inherit=True), space)

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
    from companion.data import data_root
    from companion.data.catalogue import catalogue

    place, sets = data_root(root), catalogue()
    for source in (sets[family] for family in FAMILIES.get(name, (name,)) if family in sets):
        if source.where and not (place / source.where).is_dir():
            raise parameters.ParameterError(
                f"dataset = {name!r}: not in {place}: expected the folder {source.where}/ there. "
                f"{source.get} Another place: -p data_root PATH, or the variable COMPANION_DATA."
            )


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


def refresh(path: Path) -> float:
    """Run a notebook with its defaults and store it with fresh outputs; return its CPU seconds.

    The stored form is canonical: two runs of the same code give the same bytes. Nothing is
    written if a cell raises or writes to stderr.
    """
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, as_version=4)
    before = notebook.metadata.get("companion", {})
    stamp = fingerprint(path)
    client = NotebookClient(
        notebook,
        timeout=CELL_TIMEOUT,
        kernel_name="python3",
        record_timing=False,
        resources={"metadata": {"path": str(path.parent)}},
    )
    # a last cell asks the kernel for its CPU seconds: wall time would depend on what else runs
    notebook.cells.append(nbformat.v4.new_code_cell("import time; print(time.process_time())"))
    client.execute(env=kernel_environment())
    seconds = round(float(notebook.cells.pop().outputs[0].text))
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
    write_whole(path, nbformat.writes(notebook) + "\n")
    return seconds


def kernel_environment(**more: str) -> dict[str, str]:
    """This process's environment for a kernel, so that its figures become outputs.

    A backend that is set outside, as it often is on a machine without a display, would win over
    the kernel's own, and the notebook would come out without its figures.
    """
    return {k: v for k, v in os.environ.items() if k != "MPLBACKEND"} | more


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
