"""The API pages: one a paper and one of what they share, made from the source."""

import ast
import re
from importlib import import_module

import pytest
import yaml

from companion.book import api
from companion.files import ROOT
from companion.notebook.claims import papers

PAGES = [*papers(), "common"]


def documented(page: str) -> list[str]:
    return re.findall(r"automodule:: (\S+)", page)


def test_there_is_a_page_for_each_paper_and_one_for_the_rest():
    folder = ROOT / "book" / "api"
    assert sorted(path.stem for path in folder.iterdir()) == sorted(PAGES)
    text = (ROOT / "_toc.yml").read_text(encoding="utf-8")
    (reference,) = (
        part for part in yaml.safe_load(text)["parts"] if part["caption"] == "Reference"
    )
    assert {"file": "book/api", "sections": [{"glob": "book/api/*"}]} in reference["chapters"]


@pytest.mark.parametrize("name", PAGES)
def test_a_page_documents_modules_that_exist_once(name):
    page = api.page(name)
    modules = documented(page)
    assert modules
    assert len(set(modules)) == len(modules)
    for module in modules:
        assert (import_module(module).__doc__ or "").strip(), module


def test_no_module_is_forgotten():
    """All of the papers, and of the shared modules all that a chapter imports from."""
    everywhere = [module for name in PAGES for module in documented(api.page(name))]
    assert len(set(everywhere)) == len(everywhere)
    packages = ROOT / "src" / "companion"
    for file in [*packages.glob("papers/*/*.py"), *packages.glob("data/**/*.py"), *packages.glob("models/*.py"), *packages.glob("*.py")]:  # fmt: skip
        module = ".".join(file.relative_to(ROOT / "src").with_suffix("").parts)
        module = module.removesuffix(".__init__")
        empty = not any(
            isinstance(node, (ast.FunctionDef, ast.ClassDef))
            for node in ast.parse(file.read_text(encoding="utf-8")).body
        )
        assert empty or module in {*everywhere, *api.INTERNAL}, module


@pytest.mark.parametrize("paper", papers())
def test_no_name_that_a_package_exports_hides_a_submodule(paper):
    package = import_module(f"companion.papers.{paper}")
    for path in (ROOT / "src/companion/papers" / paper).glob("[!_]*.py"):
        module = import_module(f"companion.papers.{paper}.{path.stem}")
        assert getattr(package, path.stem) is module, path.stem


@pytest.mark.parametrize("paper", papers())
def test_the_names_to_begin_with_are_those_that_the_package_exports(paper):
    page = api.page(paper)
    rows = re.findall(r"^\| \{py:obj\}`(\w+) <(\S+)\.(\w+)>` \| (.*) \|$", page, re.MULTILINE)
    package = import_module(f"companion.papers.{paper}")
    assert [name for name, *_ in rows] == list(package.__all__)
    for name, module, original, what in rows:
        thing = getattr(package, name)
        assert getattr(import_module(module), original) is thing
        if callable(thing) and thing.__doc__:
            assert what == thing.__doc__.strip().partition("\n")[0].replace("|", "\\|")
