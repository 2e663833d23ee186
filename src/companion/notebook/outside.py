"""Rules for texts that name something outside a notebook: a file, a folder, a model of timm.

Each takes the text and returns what was expected of it, or None. They hold on the machine that
runs the notebook; another one cannot judge them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path


def _path(what: str, good: Callable[[Path], bool]) -> Callable[[str], str | None]:
    def check(name: str) -> str | None:
        try:
            path = Path(name).expanduser()
            short = all(len(os.fsencode(part)) < 256 for part in path.parts)
            fine = short and "\0" not in name and good(path)
        except (OSError, RuntimeError, ValueError):  # no access; no such home; no name of a file
            fine = False
        return None if fine else f"expected {what}"

    return check


def _writable_file(path: Path) -> bool:
    if path.exists():
        return path.is_file() and os.access(path, os.W_OK)
    return _writable_folder(path.parent)


def _writable_folder(path: Path) -> bool:
    while not path.exists():  # what is missing is made
        path = path.parent
    return path.is_dir() and os.access(path, os.W_OK | os.X_OK)


def _timm_model(name: str) -> str | None:
    try:
        import timm
    except ImportError:
        return "expected timm to be installed (pip install timm), or an empty name"
    if name not in timm.list_models():
        return "expected a name of timm.list_models()"
    import torch

    try:
        with torch.device("meta"):
            timm.create_model(name, img_size=224)
    except TypeError:
        return "expected a vision transformer, which takes img_size"
    except (AssertionError, RuntimeError, ValueError):  # it takes another size
        pass
    return None


OUTSIDE: dict[str, Callable[[str], str | None]] = {
    "file": _path("a file that is there", Path.is_file),
    "folder": _path("a folder that is there", Path.is_dir),
    "file or folder": _path("a file or folder that is there", Path.exists),
    "new file": _path("a file that can be written", _writable_file),
    "new folder": _path("a folder that can be written", _writable_folder),
    "timm model": _timm_model,
}
PATHS = [rule for rule in OUTSIDE if rule != "timm model"]  # ~ is the home folder
