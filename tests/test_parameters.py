"""Parameters as a notebook states them and papermill sets them."""

import subprocess
import sys

import nbformat
import pytest

from companion.parameters import ParameterError, check_parameters

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
    "quick": {"dataset": "digits", "steps": 300, "rate": 0.1},
    "mnist": {"dataset": "mnist", "steps": 1000},
    "paper": {"dataset": "mnist", "steps": 25_000, "rate": 0.01},
}


def run(given="", cell=CELL, **checks):
    """What the cells leave behind: parameters, papermill's injected cell, then the check."""
    space = {"In": [""], "check_parameters": check_parameters, "checks": checks}
    sources = [cell] + (["# Parameters\n" + given] if given else [])
    for source in [*sources, "settings = check_parameters(**checks)"]:
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


@pytest.mark.parametrize("value", ["float('nan')", "float('inf')", "-float('inf')"])
def test_a_number_that_is_not_finite_raises(value):
    cell = f"rate: float = {value}\n"
    assert problems(cell=cell).endswith("expected a finite number")


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
        exec("check_parameters(profiles=PROFILES, seed=(0, None))", space)
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


def test_a_value_edited_in_the_cell_overrides_the_profile():
    cell = CELL.replace('"quick"', '"mnist"').replace("300 ", "77 ")
    space = run(cell=cell, profiles=PROFILES)
    assert (space["dataset"], space["steps"]) == ("mnist", 77)
    assert space["settings"].changed == {"steps"}


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
    missing = {"quick": {}, "big": {"steps": 9}}
    assert problems(profiles=missing) == "the first profile does not give 'steps'"
    unknown = {"quick": {"stpes": 1}}
    assert problems(profiles=unknown) == "the profiles set 'stpes', which is no parameter"


def test_where_a_run_happens_is_set_like_any_other_parameter():
    settings = run("device = 'cpu'\ndata_root = '~/sets'\n", profiles=PROFILES)["settings"]
    assert settings.values["device"] == "cpu"
    assert settings.changed == {"device", "data_root"}  # claims look past these two


def test_checking_twice_gives_the_same_settings():
    space = run("profile = 'mnist'\n", profiles=PROFILES)
    first = space["settings"]
    exec("settings = check_parameters(**checks)", space)
    assert space["settings"] == first


# ---------------------------------------------------------------- papermill


def test_papermill_ends_in_the_message(tmp_path):
    cells = [
        nbformat.v4.new_code_cell(CELL.strip(), metadata={"tags": ["parameters"]}),
        nbformat.v4.new_code_cell(
            "from companion.parameters import check_parameters\n\ncheck_parameters(steps=(1, None))"
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
