"""Every example in a docstring runs and prints what it says."""

import doctest
import re
from importlib import import_module
from pathlib import Path

import pytest
import torch

FLAGS = doctest.NORMALIZE_WHITESPACE | doctest.ELLIPSIS
SOURCE = Path(__file__).parents[1] / "src"
WITH_EXAMPLES = [
    ".".join(path.relative_to(SOURCE).with_suffix("").parts).removesuffix(".__init__")
    for path in sorted((SOURCE / "companion").rglob("*.py"))
    if re.search(r"^ *>>> ", path.read_text(encoding="utf-8"), re.MULTILINE)
]


@pytest.mark.parametrize("name", WITH_EXAMPLES)
def test_examples_run(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    tried = doctest.testmod(import_module(name), optionflags=FLAGS)
    assert tried.attempted > 0
    assert tried.failed == 0
