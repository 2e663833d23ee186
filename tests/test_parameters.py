"""Parameters as a notebook states them and papermill sets them."""

import ast
import contextlib
import io
import math
import os
import subprocess
import sys
import tempfile
import time
import typing
import unicodedata
from pathlib import Path

import nbformat
import pytest
from hypothesis import Phase, example, settings
from hypothesis import given as given_
from hypothesis import strategies as st

from companion.__main__ import _parameters, _parser, main
from companion.data.images import IMAGE_SETS
from companion.notebook import parameters
from companion.notebook.outside import OUTSIDE
from companion.notebook.parameters import ALWAYS, ParameterError, check_parameters, require
from companion.runs import chapters, executor, given, grid, records, sweep

CELL = """
profile: str = "quick"          # preset
dataset: str = "digits"         # data
rate: float = 0.1               # step size
steps: int = 300                # optimiser steps
flag: bool = True               # a switch
sizes: list[int] = [8, 16]      # widths
names: list[str] = ["a"]        # criteria
device: str = "auto"            # where
data_root: str = ""             # where data lies
seed: int = 0
"""
PROFILES = {
    "quick": {},
    "mnist": {"dataset": "mnist", "steps": 1000},
    "paper": {"dataset": "mnist", "steps": 25_000, "rate": 0.01},
}


def run(given="", cell=CELL, **checks):
    """What the cells leave behind: parameters, papermill's injected cell, then the check."""
    space = {"In": [""], "check_parameters": check_parameters, "checks": checks}
    sources = [cell] + (["# Parameters\n" + given] if given else [])
    for source in [*sources, "settings = check_parameters(globals(), **checks)"]:
        space["In"].append(source)
        exec(compile(source, "cell", "exec", dont_inherit=True), space)
    return space


def problems(given="", cell=CELL, **checks):
    with pytest.raises(ParameterError) as caught:
        run(given, cell, **checks)
    return str(caught.value)


# ---------------------------------------------------------------- types


def test_defaults_pass_and_are_shown(capsys):
    settings = run(profiles=PROFILES)["settings"]
    assert settings.changed == set()
    assert settings.profile == "quick"
    assert capsys.readouterr().out == "profile 'quick': all values as above\n"


def test_an_unknown_name_is_an_error_with_a_suggestion():
    assert problems("stpes = 3\n") == "unknown parameter 'stpes' (did you mean 'steps'?)"
    assert problems("zzzzz = 3\n") == "unknown parameter 'zzzzz'"


def test_names_of_papermill_itself_are_allowed():
    run("PAPERMILL_OUTPUT_PATH = 'out.ipynb'\n")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("steps = 'eight'", "steps = 'eight': expected int, got str"),
        ("steps = 3.0", "steps = 3.0: expected int, got float"),
        ("steps = True", "steps = True: expected int, got bool"),
        ("steps = None", "steps = None: expected int, got NoneType"),
        ("rate = True", "rate = True: expected float, got bool"),
        ("rate = 'nan'", "rate = 'nan': expected float, got str"),
        ("dataset = 3", "dataset = 3: expected str, got int"),
        ("flag = 1", "flag = 1: expected bool (papermill: -y '{flag: true}'), got int"),
        ("flag = 'true'", "flag = 'true': expected bool (papermill: -y '{flag: true}'), got str"),
        ("sizes = 8", "sizes = 8: expected a list (papermill: -y '{sizes: [..]}'), got int"),
        ("sizes = '[8]'", "sizes = '[8]': expected a list (papermill: -y '{sizes: [..]}'), got str"),
        ("sizes = [8, 'x']", "sizes = [8, 'x']: element 'x': expected int, got str"),
        ("sizes = [8, True]", "sizes = [8, True]: element True: expected int, got bool"),
        ("names = ['a', 1]", "names = ['a', 1]: element 1: expected str, got int"),
    ],
)  # fmt: skip
def test_a_wrong_type_is_named_with_what_is_allowed(given, expected):
    assert problems(given + "\n") == expected


@pytest.mark.parametrize("cells", [True, False], ids=["a notebook", "a script"])
def test_types_are_found_as_python_3_14_keeps_them(cells, monkeypatch):
    sources = ["Seeds = list[int]\n", *(f"{line}\n" for line in CELL.strip().splitlines())]
    sources[6] = "sizes: Seeds = [8, 16]\n"
    space = {"In": [*sources, "# Parameters\nsteps = 'eight'\n"] if cells else []}
    for source in sources:
        exec(compile(source, "cell", "exec", dont_inherit=True), space)
    types = {name: type(value) for name, value in space.items() if name in CELL}
    # once somebody has asked for them, the last statement's are kept under their old name, too
    space |= {"__annotations__": {"seed": int}, "__annotate__": None, "steps": "eight"}
    if not cells:
        space["__annotate__"] = lambda _: types
    monkeypatch.setattr(parameters.sys, "version_info", (3, 14))
    with pytest.raises(ParameterError, match=r"^steps = 'eight': expected int, got str$"):
        check_parameters(space)
    space["steps"] = 300
    settings = check_parameters(space, sizes=(1, 20), names=["a", "b"])
    assert list(settings.values) == [source.split(":")[0] for source in sources[1:]]


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-float('inf')"])
def test_a_number_that_is_not_finite_raises(value):
    cell = f"rate: float = {value}\n"
    assert problems(cell=cell).endswith("expected a finite number")


@pytest.mark.parametrize("cell", ["epochs: int = 60 * 5\n", "epochs: int\nepochs = 300\n"])
@pytest.mark.parametrize("given", ["epochs = 2\n", ""])
def test_a_default_is_a_literal_or_nobody_could_tell_what_is_changed(cell, given):
    assert problems(given, cell).startswith("epochs: its default must be a literal")


def test_a_default_counts_however_it_is_spaced():
    settings = run("epochs = 2\n", "epochs:int=300\n")["settings"]
    assert (settings.defaults, settings.changed) == ({"epochs": 300}, {"epochs"})


def test_an_int_is_taken_for_a_float_and_becomes_one():
    space = run("rate = 1\n")
    assert type(space["rate"]) is float
    assert space["settings"].values["rate"] == 1.0


def test_annotations_as_strings_work_too():
    cell = "from __future__ import annotations\n" + CELL
    assert problems("steps = 1.5\n", cell) == "steps = 1.5: expected int, got float"
    assert problems("sizes = ['x']\n", cell).endswith("element 'x': expected int, got str")


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "good", "bad", "shown"),
    [
        ((0, 1), [0, 0.5, 1], [-0.1, 1.1], "[0, 1]"),
        ((0, None), [0, 1e9], [-1e-9], "[0, inf)"),
        ((None, 5), [-1e9, 5], [5.1], "(-inf, 5]"),
        ("[0, 1)", [0, 0.999], [1, -0.1], "[0, 1)"),
        ("(0, 1]", [1e-9, 1], [0, 1.5], "(0, 1]"),
        ("(0, inf)", [1e-9, 1e9], [0, -1], "(0, inf)"),
        ("(-inf, 0)", [-1e-9], [0, 3], "(-inf, 0)"),
    ],
)
def test_ranges_are_closed_or_open_as_written(rule, good, bad, shown):
    for value in good:
        run(f"rate = {value}\n", rate=rule)
    for value in bad:
        assert problems(f"rate = {value}\n", rate=rule) == (
            f"rate = {value!r}: expected a value in {shown}"
        )


def test_choices_are_listed_with_a_suggestion():
    message = problems("dataset = 'mnits'\n", dataset=["digits", "mnist"])
    assert message == (
        "dataset = 'mnits': expected one of 'digits', 'mnist' (did you mean 'mnist'?)"
    )


def test_rules_hold_for_every_element_of_a_list():
    run("sizes = [1, 64]\n", sizes=(1, 64))
    assert problems("sizes = [1, 65]\n", sizes=(1, 64)) == (
        "sizes = [1, 65]: element 65: expected a value in [1, 64]"
    )
    assert "element 'b': expected one of 'a'" in problems("names = ['a', 'b']\n", names=["a"])


def test_a_rule_for_no_parameter_is_an_error():
    assert (
        problems(rates=(0, 1)) == "check_parameters has a rule for 'rates', which is no parameter"
    )


def test_all_problems_come_in_one_message():
    message = problems(
        "wdith = 3\nsteps = 'x'\nrate = 7\nsizes = [0]\n", rate=(0, 1), sizes=(1, None)
    )
    assert message.split("; ") == [
        "unknown parameter 'wdith'",
        "rate = 7: expected a value in [0, 1]",
        "steps = 'x': expected int, got str",
        "sizes = [0]: element 0: expected a value in [1, inf)",
    ]


def test_nothing_is_written_back_when_a_value_is_bad():
    space = {"In": [""], "check_parameters": check_parameters, "PROFILES": PROFILES}
    exec(CELL.replace('"quick"', '"mnist"').replace("seed: int = 0", "seed: int = -1"), space)
    with pytest.raises(ParameterError):
        exec("check_parameters(globals(), profiles=PROFILES, seed=(0, None))", space)
    assert space["steps"] == 300


# ---------------------------------------------------------------- profiles


def test_a_profile_sets_what_was_not_set_by_hand(capsys):
    space = run("profile = 'mnist'\n", profiles=PROFILES)
    assert (space["dataset"], space["steps"], space["rate"]) == ("mnist", 1000, 0.1)
    assert space["settings"].profile == "mnist"
    # choosing a profile is not a departure from it: its claims stay asserted
    assert space["settings"].changed == set()
    assert capsys.readouterr().out == (
        "profile 'mnist': as above, but\n  dataset = 'mnist'\n  steps = 1000\n"
    )


def test_the_defaults_own_value_is_marked_where_the_profile_has_another(capsys):
    run("profile = 'mnist'\nsteps = 300\n", profiles=PROFILES)
    assert capsys.readouterr().out.endswith("dataset = 'mnist'\n  steps = 300   (changed)\n")


def test_an_explicit_value_overrides_the_profile_and_counts_as_changed(capsys):
    space = run("profile = 'paper'\nsteps = 50\n", profiles=PROFILES)
    assert (space["steps"], space["rate"]) == (50, 0.01)
    assert space["settings"].changed == {"steps"}
    assert space["settings"].defaults["steps"] == 25_000
    assert "  steps = 50   (changed)\n" in capsys.readouterr().out


def test_an_explicit_value_equal_to_the_default_still_overrides_the_profile():
    space = run("profile = 'mnist'\nsteps = 300\n", profiles=PROFILES)
    assert space["steps"] == 300
    assert space["settings"].changed == {"steps"}


def test_an_explicit_value_equal_to_the_profiles_is_no_change():
    assert run("profile = 'mnist'\nsteps = 1000\n", profiles=PROFILES)["settings"].changed == set()


def test_a_profile_chosen_in_the_cell_itself_is_applied_and_told(capsys):
    cell = CELL.replace('"quick"', '"mnist"').replace("300 ", "77 ")
    space = run(cell=cell, profiles=PROFILES)
    assert (space["dataset"], space["steps"]) == ("mnist", 1000)
    assert space["settings"].changed == set()
    assert "  steps = 1000\n" in capsys.readouterr().out


def test_a_value_without_a_preset_is_changed_against_its_cell():
    settings = run("seed = 4\nsizes = [8, 16]\n", profiles=PROFILES)["settings"]
    assert settings.changed == {"seed"}
    assert settings.defaults["seed"] == 0


def test_values_of_a_profile_are_checked_as_well():
    assert problems("profile = 'paper'\n", profiles=PROFILES, steps=(1, 9999)) == (
        "steps = 25000: expected a value in [1, 9999]"
    )


def test_an_unknown_profile_is_an_error_with_a_suggestion():
    assert problems("profile = 'papr'\n", profiles=PROFILES) == (
        "profile = 'papr': expected one of 'quick', 'mnist', 'paper' (did you mean 'paper'?)"
    )


def test_profiles_that_do_not_fit_the_cell_are_named():
    unknown = {"quick": {"stpes": 1}}
    assert problems(profiles=unknown) == "the profiles set 'stpes', which is no parameter"


def test_where_a_run_happens_is_set_like_any_other_parameter():
    settings = run("device = 'cpu'\ndata_root = '~/sets'\n", profiles=PROFILES)["settings"]
    assert settings.values["device"] == "cpu"
    assert settings.changed == {"device", "data_root"}  # claims look past these two


def test_checking_twice_gives_the_same_settings():
    space = run("profile = 'mnist'\n", profiles=PROFILES)
    first = space["settings"]
    exec("settings = check_parameters(globals(), **checks)", space)
    assert space["settings"] == first


# ---------------------------------------------------------------- papermill


def test_papermill_ends_in_the_message(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(CELL.strip(), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from companion.notebook import check_parameters\n\ncheck_parameters(globals(), steps=(1, None))"
        ),
    ]
    kernel = {"name": "python3", "display_name": "Python 3", "language": "python"}
    notebook = nbformat.v4.new_notebook(cells=cells, metadata={"kernelspec": kernel})
    nbformat.write(notebook, tmp_path / "tiny.ipynb")
    command = [sys.executable, "-m", "papermill", "tiny.ipynb", "out.ipynb"]
    options = ["-p", "stpes", "0", "-p", "steps", "0", "--no-progress-bar"]
    done = subprocess.run(
        [*command, *options], cwd=tmp_path, capture_output=True, text=True, timeout=120
    )
    assert done.returncode != 0
    assert done.stderr.rstrip().splitlines()[-1] == (
        "ParameterError: unknown parameter 'stpes' (did you mean 'steps'?); "
        "steps = 0: expected a value in [1, inf)"
    )


# ---------------------------------------------------------------- lists, seeds, texts


def test_a_list_may_be_empty_only_where_it_says_so():
    assert problems("sizes = []\n") == "sizes = []: expected at least one element"
    assert run("sizes = []\n", may_be_empty=["sizes"])["sizes"] == []
    assert "'widths', which is no parameter" in problems(may_be_empty=["widths"])


def test_no_list_holds_a_value_twice():
    assert problems("sizes = [8, 4, 8]\n") == "sizes = [8, 4, 8]: holds 8 twice"


def test_seeds_have_one_range_everywhere():
    for seed in (0, 2**32 - 1000):
        run(f"seed = {seed}\n")
    for seed in (-1, 2**32 - 999, 2**70):
        assert problems(f"seed = {seed}\n").startswith(f"seed = {seed}: expected a ")


@pytest.mark.parametrize("text", ["a\\0b", "a\\nb", "\\ud800", "\\u2028", "x" * 5000])
def test_a_text_is_one_line_that_a_file_can_hold(text):
    message = problems(f"data_root = '{text}'\n")
    assert message.startswith("data_root = 'a" if text[0] == "a" else "data_root = '")
    assert message.endswith("expected one line of at most 4096 characters")
    assert len(message) < 300


def test_a_value_that_is_too_long_is_told_so(nothing_starts, capsys):
    long = f"[{', '.join(map(str, range(20_000)))}]"
    for asked in (["run", "snip", "-p"], ["sweep", "snip", "-g"], ["sweep", "snip", "-g", "lr", "[0.1]", "-p"]):  # fmt: skip
        nothing_starts(capsys, [*asked, "seed", long], "'seed'", "100,000 characters, got 128,890")


def test_a_grid_reads_the_parameters_cell_once_and_not_once_a_combination(monkeypatch):
    path = chapters.find("snip")
    cell = chapters.code_cells(chapters.read(path))[0]["source"]
    read, parse = [], ast.parse

    def counted(source, *arguments, **options):
        read.append(source)
        return parse(source, *arguments, **options)

    monkeypatch.setattr(ast, "parse", counted)
    runs = grid.expand(path, {"seed": list(range(30)), "lr": [0.1, 0.2]})
    assert len(runs) == 60
    assert read.count(cell) <= 3


def test_a_default_that_is_a_list_is_new_each_time():
    for _ in range(2):
        space = run("sizes = [1]")
        assert space["settings"].defaults["sizes"] == [8, 16]
        space["settings"].defaults["sizes"].append(3)


def test_many_problems_are_told_shortly():
    message = problems("".join(f"wrong_{n} = 0\n" for n in range(1000)))
    assert message.endswith("; and 980 more")


def test_what_depends_on_several_parameters_names_them():
    require(1 < 2, "")
    with pytest.raises(ParameterError, match="steps = 3: expected"):
        require(False, "steps = 3: expected fewer")


@pytest.mark.parametrize(
    "value", [{"a": float("inf")}, float("nan"), [float("inf")], object(), 1j * 0]
)
def test_only_literals_are_written_into_a_cell(value):
    if value == 0:
        value = type("Code", (int,), {"__repr__": lambda self: "print('run')"})()
    with pytest.raises(ParameterError, match=r"seed = .*expected a finite number, a text"):
        chapters.injected({"seed": value})


@pytest.mark.parametrize("name", ["class", "a b", "", "1", "seed; x", "seed = 1\nx", None, 3])
def test_only_names_are_written_into_a_cell(name):
    with pytest.raises(ParameterError, match="is no parameter: expected a name"):
        chapters.injected({name: 3})


# ---------------------------------------------------------------- text by declared type


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("off", str, "off"),
        ("no", str, "no"),
        ("2024-01-01", str, "2024-01-01"),
        ("~", str, "~"),
        ("a: b #c", str, "a: b #c"),
        ('"a b"', str, "a b"),
        ("", str, ""),
        ("null", str, None),
        ("off", bool, False),
        ("True", bool, True),
        ("1", bool, 1),
        ("0x10", int, 16),
        ("1_000", int, 1000),
        ("-3", int, -3),
        ("010", int, 10.0),  # eight or ten: a float, which no int parameter takes
        ("1:30", int, "1:30"),
        ("3.0", int, 3.0),
        ('"3"', int, "3"),
        ("1e-3", float, 0.001),
        ("3", float, 3.0),
        (".INF", float, float("inf")),
        ("-.inf", float, -float("inf")),
        ("1e400", float, float("inf")),
        ("[1e-3, 2]", list[float], [0.001, 2.0]),
        ("[1,\t2]", list[int], [1, 2]),
        ("[off, 'on', null]", list[str], ["off", "on", None]),
        ("{a: 1}", list[int], {"a": 1}),
        ("8", list[int], 8),
    ],
)
def test_the_declared_type_says_what_a_text_means(text, kind, value):
    found = given.argument(text, kind)
    assert found == value
    assert type(found) is type(value)
    if text and "\t" not in text and ": b" not in text:  # a file says the same
        assert given.typed(given.read(f"x: {text}")["x"], kind) == value


def test_a_file_holds_documented_values(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("\ufeffamp: off\nlr: 1e-3\nselectors: [full]\n", encoding="utf-8")
    options = _parser().parse_args(["run", "masked_kd", "-f", str(file), "-p", "lr", "2e-3"])
    assert _parameters(options) == {"amp": "off", "lr": 0.002, "selectors": ["full"]}
    file.write_text("# nothing\n")
    assert given.read_file(file) == {}


def test_without_pyyaml_values_are_json(monkeypatch):
    monkeypatch.setitem(sys.modules, "yaml", None)
    assert given.argument("[1e-3, 2]", list[float]) == [0.001, 2.0]
    assert given.argument("off", str) == "off"
    assert given.argument("false", bool) is False


# ---------------------------------------------------------------- all parameters of all chapters

CHAPTERS = {stem: chapters.read(chapters.find(stem)) for stem in chapters.stems()}
NASTY = [
    "", "~", "null", "on", "off", "no", "yes", "y", "true", "1", "0", "-1", "1.5", "3.0", "1e-3", "1e3", "1e400",
    "-1e400", ".inf", "-.Inf", ".nan", "nan", "inf", "0x10", "0o7", "010", "0b1", "1_000", "1:30", "1:", "12:30:45",
    "2024-01-01", "2024-01-01T10:00:00Z", "9" * 30, "9" * 5000, "0x" + "f" * 5000, "\t", "a\tb", "- 1", "? a", "[", "]",
    "{}", "[]", "[[]]", "[1]", "[1, 1]", "[null]", "[.nan]", "[true]", "{a: 1}", "{a: 1, a: 2}", "!!binary aGk=",
    "!!set {a}", "!!python/name:os.system", "&a [*a]", "*a", "|\n x", ">\n x", "%", "@", "`", "'", '"', '"\\ud800"', '"\\0"',
    "# x", "<<: 1", "=", "[" * 300, "x" * 5000, "auto", "quick", "digits", "snip", "cpu", "cuda:99", "/", "/dev/null",
    "__import__('os').system('touch canary')", "'; import os; os.system('touch canary') #", "\u2028", "\x85", "\ud800",
]  # fmt: skip
SCALARS = st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.dates()
OBJECTS = SCALARS | st.sampled_from([2**63, -(2**63), 10**5000, b"x", {1}, (1,), {"a": 1}])
VALUES = OBJECTS | st.lists(OBJECTS, max_size=4) | st.recursive(SCALARS, st.lists, max_leaves=5)
TEXTS = (
    st.sampled_from(NASTY)
    | st.text(max_size=30)
    | st.integers().map(str)
    | st.floats().map(str)
    | st.lists(st.sampled_from(NASTY) | st.text(max_size=5), max_size=3).map(
        lambda items: f"[{', '.join(items)}]"
    )
)


def documented(notebook):
    """Name -> rule, and the lists that may be empty, as the check cell's source states them."""
    call = next(
        node
        for node in ast.walk(ast.parse(chapters.code_cells(notebook)[1]["source"]))
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "check_parameters"
    )
    stated = {k.arg: eval(ast.unparse(k.value), {"range": range}) for k in call.keywords}
    return stated, set(stated.pop("may_be_empty", ()))


def fits(value, kind, rule):
    """Whether a value has the declared type and keeps to the rule; written apart from the check."""
    if type(value) is not kind or (kind is float and not math.isfinite(value)):
        return False
    if kind is str:
        one_line = not {unicodedata.category(c) for c in value} & {"Cc", "Cs", "Zl", "Zp"}
        return one_line and (not isinstance(rule, list) or value in rule)
    if isinstance(rule, list):
        return value in rule
    if isinstance(rule, str):
        low, high = (float(part) for part in rule[1:-1].split(","))
        above = value > low if rule[0] == "(" else value >= low
        return above and (value < high if rule[-1] == ")" else value <= high)
    return rule is None or rule[0] <= value <= rule[1]


@pytest.mark.parametrize("stem", CHAPTERS)
def test_every_number_of_a_chapter_has_two_bounds(stem):
    rules, may_be_empty = documented(CHAPTERS[stem])
    for name, kind in chapters.declared(chapters.find(stem)).items():
        inner = (*typing.get_args(kind), kind)[0]
        rule = (ALWAYS | rules).get(name)
        if inner in (int, float):
            assert rule is not None, f"{name} has no rule"
            assert isinstance(rule, (str, list)) or None not in rule, f"{name} has no bound"
        elif inner is str:
            assert rule or name in {"profile", "device", "data_root"}, f"{name} has no choices"
        assert name not in may_be_empty or typing.get_origin(kind) is list


@pytest.mark.parametrize("stem", CHAPTERS)
@settings(max_examples=8, deadline=None, derandomize=True, database=None, phases=[Phase.generate])
@given_(data=st.data())
def test_any_value_is_taken_or_named(stem, data):
    """Every parameter in turn: a value inside its rule, or an error that names it; no code runs."""
    path, notebook = chapters.find(stem), CHAPTERS[stem]
    rules, may_be_empty = documented(notebook)
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.setattr(chapters, "read", lambda _: notebook)
        patch.chdir(folder)
        for name, kind in chapters.declared(path).items():
            if data.draw(st.booleans()):
                value = data.draw(VALUES)
            else:
                value = given.argument(data.draw(TEXTS), kind)
            start, message = time.process_time(), ""
            try:
                with contextlib.redirect_stdout(io.StringIO()):
                    found = chapters.validate(path, {name: value})[name]
            except ParameterError as error:
                message = str(error)
            if message:
                assert name in message
                assert len(message.splitlines()) == 1
                assert len(message.encode()) < 3000
            else:
                rule = (ALWAYS | rules).get(name)
                if typing.get_origin(kind) is list:
                    (inner,) = typing.get_args(kind)
                    assert all(fits(item, inner, rule) for item in found)
                    assert found or name in may_be_empty
                    assert len(set(found)) == len(found)
                else:
                    assert fits(found, kind, rule) or (found == "" and kind is str)
            assert time.process_time() - start < 1
        assert not os.listdir(folder)


@settings(max_examples=60, deadline=None, derandomize=True, database=None)
@given_(name=TEXTS | st.text(), value=st.integers(0, 9))
def test_no_name_is_executed(name, value):
    with pytest.MonkeyPatch.context() as patch, tempfile.TemporaryDirectory() as folder:
        patch.chdir(folder)
        patch.setattr(chapters, "read", lambda _: CHAPTERS["snip"])
        with pytest.raises(ParameterError, match="unknown parameter"):
            chapters.validate(chapters.find("snip"), {name: value})
        assert not os.listdir(folder)


# ---------------------------------------------------------------- the command line

BAD = [
    ("snip", "seed", [".inf", ".nan", "2024-01-01", "1:30", "1:", "[1]", "{a: 1}", "null", "-1", "4294967295", "1e3", "3.0",
                      "true", "0o8", "1e400", "9" * 5000, "abc", '"3"', "!!binary aGk=", "&a 1", "- 1", "1 2",
                      "__import__('os').mkdir('canary')"]),
    ("snip", "lr", [".inf", "nan", "-0.1", "0", "101", "1e400", "true", "fast", "[0.1]"]),
    ("snip", "prune_biases", ["1", "maybe", "null", "[true]"]),
    ("snip", "sparsities", ["0.9", "[]", "[1.0]", "[0.9, 0.9]", "[[0.9]]", "[true]", "[.nan]", "[null]", "['0.9']", "{}"]),
    ("snip", "criteria", ["[]", "snip", "[sinp]", "[on]"]),
    ("snip", "dataset", ["off", "null", "mnits", "x" * 5000, "cifar11"]),
    ("snip", "device", ["tpu", "cuda:99", "cpu:7", "null", "on"]),
    ("snip", "data_root", ["/nowhere/at all", "/dev/null", "x" * 300, "'a\\\\", "null"]),
    ("snip", "n_seeds", ["0", "21"]),
    ("snip", "train_examples", ["1", "1348", "60001"]),
    ("snip", "profile", ["qiuck", "null", "[quick]"]),
    ("data_parallelism", "lr_range", ["[1]", "[1, 0.1]", "[0.1, 1, 2]", "[]"]),
    ("data_parallelism", "store", ["/", "/dev/null/x", "x" * 300]),
    ("data_parallelism", "check_every", ["3001"]),
    ("data_parallelism", "model", ["simple_cnn"]),
    ("desire", "dt_s", ["1e9", "1e-9"]),
    ("desire", "dataset", ["trajnet"]),
    ("fictitious_play", "cell_m", ["0.2"]),
    ("learn_to_pay_attention", "levels", ["[3]", "[]", "[1, 1]"]),
    ("learn_to_pay_attention", "batch_size", ["20000"]),
    ("masked_kd", "amp", ["no", "true", "fp16"]),
    ("masked_kd", "teacher_dim", ["6"]),
    ("masked_kd", "teacher_model", ["vit_tinny_patch16_224", "resnet18"]),
    ("signal_propagation", "arch", ["vgg_c"]),
    ("sparse_inr", "size", ["3"]),
    ("sparse_inr", "n_train", ["2"]),
    ("spreme", "window", ["6"]),
    ("visual_compiler", "scene_path", ["/nowhere"]),
    ("visual_compiler", "out_dir", ["/dev/null", "/dev/null/out"]),
    ("visual_compiler", "dataset", ["folder"]),
]  # fmt: skip
NAMES = [
    "stpes", "class", "None", "a b", "", "1", "In", "__annotations__", "check_parameters", "print", "os.path", "ſeed",
    "PAPERMILL_OUTPUT_PATH", "import os; os.mkdir('canary'); seed", "seed\n", "seed=1",
]  # fmt: skip
FILES = {
    "a list": b"- 1\n",
    "a word": b"snip\n",
    "binary": bytes(range(256)),
    "latin": b"data_root: \xe4\n",
    "tabs": b"seed:\t1\n\tlr: 2\n",
    "twice": b"seed: 1\nseed: 2\n",
    "a bomb": b"a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n",
    "deep": b"seed: " + b"[" * 20_000,
    "long": b"seed: 1\n" * 20_000,
    "keys": b"[a]: 1\n",
    "a tag": b"seed: !!python/object/apply:os.mkdir [canary]\n",
    "a null": b"seed:\n",
    "half": b"seed: [1, 2\n",
    "two": b"seed: 1\n---\nseed: 2\n",
    "code": b"\"import os; os.mkdir('canary'); seed\": 3\n",
    "merge": b"<<: {seed: 1}\n",
    "number": b"3: 4\n",
}


@pytest.fixture
def nothing_starts(monkeypatch, tmp_path):
    """An empty working folder, and executors that must not be reached; gives `main` refused."""
    import papermill

    def started(*_, **__):
        raise AssertionError("started")

    monkeypatch.delenv("COMPANION_DATA", raising=False)
    monkeypatch.setattr(papermill, "execute_notebook", started)
    monkeypatch.setattr(records, "write_whole", started)
    monkeypatch.setattr(sweep, "sweep", started)
    monkeypatch.setattr(executor, "script", started)
    monkeypatch.setattr(executor, "in_kernel", started)
    folder = tmp_path / "empty"
    folder.mkdir()
    monkeypatch.chdir(folder)

    def refused(capsys, arguments, *named):
        assert main(arguments) == 2, arguments
        said = capsys.readouterr()
        assert said.err.startswith("companion: ")
        assert len(said.err.splitlines()) == 1, said.err
        assert len(said.err) < 1500
        assert all(name in said.err for name in named), said.err
        assert not os.listdir(folder)

    return refused


@pytest.mark.parametrize(("stem", "name", "texts"), BAD, ids=lambda x: x if type(x) is str else "")
def test_bad_values_are_refused_by_every_command(stem, name, texts, nothing_starts, capsys, tmp_path):  # fmt: skip
    file = tmp_path / "given.yaml"
    for number, text in enumerate(texts):
        nothing_starts(capsys, ["run", stem, "-p", name, text], name)
        file.write_text(f"{name}: {text}\n", encoding="utf-8")
        nothing_starts(capsys, ["run", stem, "-f", str(file)], name if text[0] not in "&!" else "-f")  # fmt: skip
        if number < 3:  # the others call the same check
            nothing_starts(capsys, ["record", stem, "--name", "x", "--out", "out", "-p", name, text], name)  # fmt: skip
            nothing_starts(capsys, ["sweep", stem, "-g", name, f"[{text}]", "--out", "out"], name)


@pytest.mark.parametrize("name", NAMES)
def test_bad_names_are_refused_by_every_command(name, nothing_starts, capsys):
    told = repr(name)
    nothing_starts(capsys, ["run", "snip", "-p", name, "3"], told)
    nothing_starts(capsys, ["record", "snip", "--name", "x", "--script", "-p", name, "3"], told)
    nothing_starts(capsys, ["record", "snip", "--name", "x", "-p", name, "3"], told)
    nothing_starts(capsys, ["sweep", "snip", "-g", name, "[3]"], told)
    nothing_starts(capsys, ["sweep", "snip", "-g", "seed", "[3]", "-p", name, "3"], told)


@pytest.mark.parametrize("kind", FILES)
def test_bad_files_are_refused(kind, nothing_starts, capsys, tmp_path):
    file = tmp_path / "given.yaml"
    file.write_bytes(FILES[kind])
    named = "seed" if kind in ("a null", "code") else "<<" if kind == "merge" else "'3'" if kind == "number" else "-f "  # fmt: skip
    nothing_starts(capsys, ["run", "snip", "-f", str(file)], named)
    nothing_starts(capsys, ["sweep", "snip", "-g", "lr", "[0.1]", "-f", str(file)], named)


def test_what_is_no_file_is_refused(nothing_starts, capsys, tmp_path):
    for place in (tmp_path, tmp_path / "none.yaml", Path("/dev/zero"), Path("x" * 300)):
        nothing_starts(capsys, ["run", "snip", "-f", str(place)], f"-f {place}")
    nothing_starts(capsys, ["run", "snip", "-p", "seed", "1", "-p", "seed", "2"], "given twice")
    for place in ("/dev/null/x.ipynb", str(tmp_path), "x" * 300, "a\0.ipynb"):
        nothing_starts(capsys, ["run", "snip", "-o", place], f"-o {place}")
    for place in ("/dev/null/x", "a\0b", "a\ud800", "x" * 300):
        nothing_starts(capsys, ["record", "snip", "--name", "x", "--out", place], "--out")
        nothing_starts(capsys, ["sweep", "snip", "-g", "seed", "[1]", "--out", place], "--out")
    for name in ("x" * 300, "a\0", "a\0.ipynb", "\ud800", "x" * 5000 + ".ipynb"):
        for asked in (["run", name], ["record", name, "--name", "x"], ["sweep", name, "-g", "seed", "[1]"]):  # fmt: skip
            nothing_starts(capsys, asked, "notebook = '", "snip")
    nothing_starts(capsys, ["run", "snip", "-f", "a\0"], "-f a")
    tls = [part for option in ("ca", "cert", "key") for part in (f"--tls-{option}", "a\0")]
    nothing_starts(capsys, ["sweep", "snip", "-g", "seed", "[1]", "--scheduler", "tls://h:1", *tls], "--tls-ca a")  # fmt: skip
    for axis in ("7", "[]", "[1, 1]", "[1, 0x1]", "{a: 1}", "[", "[" * 20_000):
        nothing_starts(capsys, ["sweep", "snip", "-g", "seed", axis], "seed")


@pytest.mark.parametrize("what", sorted({*OUTSIDE} - {"timm model"}))
def test_no_text_makes_a_rule_for_paths_raise(what, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    texts = st.text(st.sampled_from("a/.~\0\ud800\udcff\u2028 ä"), max_size=9)

    @settings(max_examples=100)
    @example("x" * 5000)
    @example("x/" * 5000)
    @given_(texts)
    def check(text):
        assert (OUTSIDE[what](text) or "expected a f").startswith("expected a f")

    check()


def test_a_path_is_used_where_it_was_checked(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    space = run("data_root = '~/x.txt'\ndataset = '~'\n", data_root="new file")
    assert space["data_root"] == str(tmp_path / "x.txt")
    assert space["dataset"] == "~"  # no path
    assert space["settings"].values["data_root"] == "~/x.txt"
    assert run("data_root = './a/../b'\n", data_root="new folder")["data_root"] == "./a/../b"
    path = chapters.find("visual_compiler")  # another machine has another home
    assert chapters.validate(path, {"out_dir": "~/x"})["out_dir"] == "~/x"


def test_the_working_folder_is_a_folder(tmp_path, monkeypatch):
    """Its name has no parts."""
    monkeypatch.chdir(tmp_path)
    for text in (".", "./", "", "/"):
        assert OUTSIDE["folder"](text) is OUTSIDE["new folder"](text) is None
        assert "file" in OUTSIDE["new file"](text)
    assert OUTSIDE["new folder"]("a\0b") == "expected a folder that can be written"


def test_data_that_are_not_there_are_refused(nothing_starts, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path / "no root"))
    for stem, dataset in (
        ("snip", "mnist"), ("desire", "sdd"), ("fictitious_play", "zara01"), ("sparse_inr", "kodak_grey"),
        ("visual_compiler", "pets"),
    ):  # fmt: skip
        for root in ([], ["-p", "data_root", str(tmp_path)]):
            asked = [stem, "-p", "dataset", dataset, *root]
            nothing_starts(capsys, ["run", *asked], f"dataset = {dataset!r}: not in {tmp_path}")
            nothing_starts(capsys, ["record", "--name", "x", *asked], f"dataset = {dataset!r}")
            nothing_starts(capsys, ["sweep", "-g", "seed", "[1]", *asked], f"dataset = {dataset!r}")  # fmt: skip


def test_half_a_set_that_is_used_whole_is_refused(nothing_starts, capsys, tmp_path, monkeypatch):
    monkeypatch.setenv("COMPANION_DATA", str(tmp_path))
    for path in IMAGE_SETS["mnist"].files:
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_bytes(b"cut short")
    for stem in ("snip", "sparse_inr"):
        asked = ["run", stem, "-p", "dataset", "mnist"]
        nothing_starts(capsys, asked, "dataset = 'mnist': in ", "lacks", "(9 of 10008 bytes)")


def test_a_set_of_which_only_an_empty_folder_is_there_is_refused(nothing_starts, capsys, tmp_path):
    (tmp_path / "cifar10" / "train" / "a").mkdir(parents=True)
    asked = ["-p", "dataset", "cifar10_jpeg", "-p", "data_root", str(tmp_path)]
    nothing_starts(capsys, ["run", "snip", *asked], "dataset = 'cifar10_jpeg': in ", "lacks")


def test_the_home_folder_is_one_wherever_the_shell_leaves_a_tilde(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", str(tmp_path))
    line = ["record", "snip", "--name", "x", "--script", "--out=~/records"]
    assert _parser().parse_args(line).out == tmp_path / "records"
    assert _parser().parse_args(["run", "snip", "-o", "~nobody-of-this-name/x"]).output == Path(
        "~nobody-of-this-name/x"
    )


def test_a_folder_without_pictures_is_refused(nothing_starts, capsys, tmp_path):
    asked = ["masked_kd", "-p", "dataset", "folder", "-p", "data_root", str(tmp_path)]
    nothing_starts(capsys, ["run", *asked], "data_root = ", "expected train/ there")
    (tmp_path / "train" / "cat").mkdir(parents=True)
    (tmp_path / "train" / "cat" / "1.png").touch()
    nothing_starts(
        capsys, ["record", "--name", "x", *asked], "data_root = ", "expected val/ there"
    )
    (tmp_path / "val" / "cat").mkdir(parents=True)
    (tmp_path / "val" / "cat" / "1.png").touch()
    given = {"dataset": "folder", "data_root": str(tmp_path)}
    assert chapters.validate(chapters.find("masked_kd"), given, here=True)["dataset"] == "folder"


def test_a_run_elsewhere_is_not_judged_by_this_machine(capsys, tmp_path):
    asked = [
        "snip",
        "--name",
        "x",
        "--script",
        "-p",
        "device",
        "cuda:99",
        "-p",
        "dataset",
        "mnist",
    ]
    assert main(["record", *asked, "-p", "data_root", str(tmp_path / "there")]) == 0
    printed = capsys.readouterr().out
    compile(printed, "script", "exec")  # nothing but the script
    assert "device = 'cuda:99'" in printed
    path = chapters.find("visual_compiler")
    chapters.validate(path, {"out_dir": "/dev/null/x", "device": "cuda:99"})
    with pytest.raises(ParameterError, match="out_dir = '/dev/null/x': expected a folder"):
        chapters.validate(path, {"out_dir": "/dev/null/x"}, here=True)


def test_a_whole_number_has_64_bits_and_a_text_4096_characters():
    run(f"steps = {2**63 - 1}\ndataset = '{'x' * 4096}'\n")
    assert problems(f"steps = {2**63}\n").endswith("expected a number of 64 bits")
    assert problems(f"dataset = '{'x' * 4097}'\n").endswith("of at most 4096 characters")


def test_of_two_cells_that_state_a_default_the_first_counts():
    space = {"In": [""]}
    for source in ("rate: float = 0.1", "rate: float = 0.2"):
        space["In"].append(source)
        exec(compile(source, "cell", "exec", dont_inherit=True), space)
    found = check_parameters(space)
    assert (found.defaults, found.changed) == ({"rate": 0.1}, {"rate"})


def test_a_run_has_a_seed_at_least():
    cell = CELL + "n_seeds: int = 1\n"
    for count in (0, 501):
        said = problems(f"n_seeds = {count}\n", cell=cell)
        assert said == f"n_seeds = {count}: expected a value in [1, 500]"


def test_a_list_of_lists_is_a_bad_value_and_no_error_of_ours():
    space = {"In": ["sizes: list = [[1]]"], "sizes": [[1]], "__annotations__": {"sizes": list}}
    with pytest.raises(ParameterError, match=r"sizes = \[\[1\]\]: element \[1\]: expected"):
        check_parameters(space)
