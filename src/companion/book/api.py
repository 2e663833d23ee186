"""The API pages, made from the library's source: one a paper, and one of what they share."""

from __future__ import annotations

import ast
import importlib
from collections.abc import Mapping
from pathlib import Path

from companion.book import runs

LIBRARY = Path(__file__).parents[1]
SHARED = {  # heading -> modules, or packages with all that is in them
    "Networks and masks": ["sparsity", "models", "training", "stacked"],
    "Data": ["data"],
    "Trajectories": ["forecasting"],
    "Figures, devices and files": ["figures", "slider", "device", "progress", "files"],
    "Chapters and runs": ["notebook", "runs.record"],
}
DEFINITIONS = (ast.FunctionDef, ast.ClassDef)
# of the library itself, not for its users
INTERNAL = {"companion", "companion.__main__", "companion.checks"}


def page(name: str) -> str:
    """The page `book/api/<name>` as MyST: of a paper, or "common", which stands before them."""
    return _common() if name == "common" else _paper(name)


def _paper(paper: str) -> str:
    about = next(entry for entry in runs.papers() if entry["stem"] == paper)
    package = LIBRARY / "papers" / paper
    parts = [
        f"# API: {paper}",
        f"[{about['title']}](../../notebooks/{paper}.ipynb). Import from `companion.papers.{paper}`;"
        " what only the chapter uses is imported from the module that it stands in.",
        _module(package / "__init__.py"),
        "## Names to begin with",
        _table(package / "__init__.py"),
    ]
    for module in _modules(package):
        parts += [f"## {module.stem}", _module(module)]
    return "\n\n".join(parts) + "\n"


def _common() -> str:
    parts = ["# API: what the chapters share"]
    for heading, names in SHARED.items():
        parts.append(f"## {heading}")
        for name in names:
            place = LIBRARY.joinpath(*name.split("."))
            for module in _all_modules(place) if place.is_dir() else [place.with_suffix(".py")]:
                parts += [f"### {_dotted(module).removeprefix('companion.')}", _module(module)]
    return "\n\n".join(parts) + "\n"


def _modules(package: Path) -> list[Path]:
    """The public modules of a package, in the order of its imports, then by name."""
    found = {file.stem: file for file in sorted(package.glob("*.py")) if file.stem[0] != "_"}
    first = [module.rpartition(".")[2] for module, _ in _imports(package / "__init__.py")]
    return [found[name] for name in dict.fromkeys([*first, *found]) if name in found]


def _all_modules(package: Path) -> list[Path]:
    """The modules of a package and of those in it."""
    inner = [folder for folder in sorted(package.iterdir()) if (folder / "__init__.py").is_file()]
    return [*_modules(package), *(module for folder in inner for module in _all_modules(folder))]


def _module(file: Path) -> str:
    lines = [f".. automodule:: {_dotted(file)}", "   :members:", "   :ignore-module-all:"]
    return "\n".join(["```{eval-rst}", *lines, "```"])


def _table(init: Path) -> str:
    """Each name that a package exports, linked, with the first line of its docstring."""
    rows = ["| Name | What it is |", "|---|---|"]
    origins = {name: place for _, names in _imports(init) for name, place in names.items()}
    for name in _exported(init):
        place = origins.get(name, f"{_dotted(init)}.{name}")
        *module, original = place.split(".")
        what = _summary(LIBRARY.parent.joinpath(*module), original) or _constant(place)
        rows.append(f"| {{py:obj}}`{name} <{place}>` | {what} |")
    return "\n".join(rows)


def _dotted(file: Path) -> str:
    parts = file.relative_to(LIBRARY.parent).with_suffix("").parts
    return ".".join(parts).removesuffix(".__init__")


def _imports(init: Path) -> list[tuple[str, dict[str, str]]]:
    """Module by module what a package imports: by its name there, where it is from."""
    return [
        (module, {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names})
        for node in ast.parse(init.read_text(encoding="utf-8")).body
        if isinstance(node, ast.ImportFrom) and (module := node.module or "")[:10] == "companion."
    ]


def _exported(init: Path) -> list[str]:
    for node in ast.parse(init.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "__all__":
            return ast.literal_eval(node.value)
    return []


def _constant(place: str) -> str:
    """The names that a constant holds, or has something for; "" for any other constant."""
    module, _, name = place.rpartition(".")
    value = getattr(importlib.import_module(module), name)
    if not isinstance(value, tuple | Mapping) or not all(isinstance(one, str) for one in value):
        return ""
    return "For each of " * isinstance(value, Mapping) + ", ".join(f"`{one}`" for one in value)


def _summary(module: Path, name: str) -> str:
    """The first line of what a module says of a name; empty for a constant without a docstring."""
    file = module / "__init__.py" if module.is_dir() else module.with_suffix(".py")
    for node in ast.parse(file.read_text(encoding="utf-8")).body:
        # an overload has none
        text = ast.get_docstring(node) if isinstance(node, DEFINITIONS) else None
        if text and getattr(node, "name", "") == name:
            return text.partition("\n")[0].replace("|", "\\|")
        if (
            isinstance(node, ast.ImportFrom)
            and node.module
            and name in {alias.name for alias in node.names}
        ):
            return _summary(LIBRARY.parent.joinpath(*node.module.split(".")), name)
    return ""
