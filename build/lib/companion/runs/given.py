"""Parameter values as a command line or a file gives them: text, until the declared type reads it.

YAML alone would read `off` as False, `1:30` as 90 and `1e-3` as text; here the parameter's type
decides.
"""

from __future__ import annotations

import json
import typing
from pathlib import Path

LIMIT = 100_000  # characters of a parameter file or of one value
NULLS = frozenset({"", "~", "null", "Null", "NULL"})
TRUTHS = {"true": True, "yes": True, "on": True, "false": False, "no": False, "off": False}


class Plain(str):
    """A scalar that was written without quotes."""

    __slots__ = ()


def read_file(path: Path) -> dict[str, object]:
    """The mapping of names to values in a YAML file, scalars without quotes as `Plain`.

    Raises ValueError for what is no such file.
    """
    try:
        with open(path, "rb") as file:
            data = file.read(LIMIT + 1)
    except OSError as error:
        raise ValueError(f"-f {path}: {error.strerror or error}") from None
    except ValueError as error:  # no name of a file
        raise ValueError(f"-f {path}: {error}") from None
    try:
        tree = read(data.decode("utf-8-sig"))
    except UnicodeDecodeError:
        raise ValueError(f"-f {path}: expected text in UTF-8") from None
    except ValueError as error:
        raise ValueError(f"-f {path}: {error}") from None
    if tree is None:
        return {}
    if not isinstance(tree, dict):
        raise ValueError(f"-f {path}: expected a mapping of names to values")
    return tree


def read(text: str) -> object:
    """Lists, mappings and scalars of YAML (of JSON where PyYAML is missing).

    Raises ValueError, in one line, for text that is neither.
    """
    if len(text) > LIMIT:
        raise ValueError(f"expected at most {LIMIT} characters")
    try:
        return _yaml(text)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    except (ImportError, ValueError) as error:
        try:  # JSON may hold tabs
            return json.loads(text, parse_int=Plain, parse_float=Plain, parse_constant=Plain)
        except (ValueError, RecursionError):
            raise ValueError(" ".join(str(error).split())) from None


def _yaml(text: str) -> object:
    import yaml

    class Loader(yaml.BaseLoader):
        def compose_node(self, parent, index):
            event = self.peek_event()
            if getattr(event, "anchor", None) or getattr(event, "tag", None):
                raise yaml.YAMLError("expected no anchors (&, *) and no tags (!)")
            return super().compose_node(parent, index)

    try:
        return _tree(yaml.compose(text, Loader))
    except yaml.YAMLError as error:
        raise ValueError(str(error)) from None


def _tree(node) -> object:
    """A composed node as lists, dictionaries and scalars."""
    if node is None:
        return None
    if isinstance(node.value, str):
        return Plain(node.value) if node.style is None else node.value
    if node.id == "sequence":
        return [_tree(item) for item in node.value]
    tree: dict[str, object] = {}
    for key, value in node.value:
        name = _tree(key)
        if not isinstance(name, str):
            raise ValueError("expected names before the colons")
        if name in tree:
            raise ValueError(f"{name[:99]!r} is given twice")
        tree[str(name)] = _tree(value)
    return tree


def argument(text: str, kind: object) -> object:
    """The value of one command-line argument for a parameter of this type."""
    if kind is str and text[:1] not in ("'", '"'):  # taken as it is; "" is a text too
        return typed(Plain(text), str) if text else ""
    try:
        return typed(read(text), kind)
    except ValueError:
        return text


def typed(value: object, kind: object) -> object:
    """What a value read by `read` says to a parameter of this type.

    What the type cannot be is left as it is, for `check_parameters` to refuse.
    """
    origin, inner = typing.get_origin(kind) or kind, (*typing.get_args(kind), object)[0]
    if isinstance(value, list):
        return [typed(item, inner if origin is list else object) for item in value]
    if isinstance(value, dict):
        return {name: typed(item, object) for name, item in value.items()}
    if not isinstance(value, Plain):
        return value
    text = str(value)
    if text in NULLS and not (origin is str and text == "~"):  # "~" may be a folder
        return None
    if origin is str:
        return text
    first = {float: _number, bool: _truth}.get(origin, _whole)
    for convert in (first, _whole, _number, _truth):
        try:
            return convert(text)
        except ValueError:
            pass
    return text


def _whole(text: str) -> int:
    return int(text, 0)  # 0x10 and 1_000 too; not 010, which YAML reads as eight


def _number(text: str) -> float:
    special = text.lower().replace(".", "", 1)  # .inf and .nan
    return float(special if special.lstrip("+-") in ("inf", "nan") else text)


def _truth(text: str) -> bool:
    if text.lower() not in TRUTHS:
        raise ValueError
    return TRUTHS[text.lower()]
