"""The house style and the shared kinds of figure."""

import io

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pytest

from companion.figures import COLOURS, image_grid, label_lines, show_source, show_table, use_style


@pytest.fixture(autouse=True)
def clean():
    with mpl.rc_context():
        yield
    plt.close("all")


def luminance(colour):
    """Relative luminance of the sRGB colour, as WCAG defines it."""
    rgb = np.array(mpl.colors.to_rgb(colour))
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    return float(linear @ [0.2126, 0.7152, 0.0722])


def test_colours_can_be_seen_on_white_and_told_apart():
    for name, colour in COLOURS.items():
        # lines are graphics, not text; the palest two of the palette are the limit
        assert 1.05 / (luminance(colour) + 0.05) > 2.0, name
    assert len(set(COLOURS.values())) == len(COLOURS)


def test_the_style_gives_white_figures_in_the_house_colours():
    use_style()
    assert mpl.rcParams["figure.facecolor"] == mpl.rcParams["savefig.facecolor"] == "white"
    assert mpl.rcParams["axes.prop_cycle"].by_key()["color"] == list(COLOURS.values())


def test_two_drawings_of_one_figure_are_the_same_bytes():
    use_style()

    def draw():
        figure, ax = plt.subplots()
        ax.plot([0, 1], [2, 3])
        label_lines(ax, {"a": (1, 3, "black")})
        file = io.BytesIO()
        figure.savefig(file, metadata={"Software": None})
        plt.close(figure)
        return file.getvalue()

    assert draw() == draw()


def heights(ax):
    return {text.get_text(): text.get_position()[1] for text in ax.texts}


@pytest.mark.parametrize("scale", ["linear", "log"])
def test_labels_stand_beside_the_ends_of_their_lines(scale):
    figure, ax = plt.subplots()
    ends = {"low": 2.0, "high": 50.0}
    for y in ends.values():
        ax.plot([0, 10], [1, y])
    ax.set_yscale(scale)
    label_lines(ax, {name: (10, y, "black") for name, y in ends.items()})
    figure.canvas.draw()
    to_axes = ax.transData + ax.transAxes.inverted()
    for text in ax.texts:
        x, y = to_axes.transform((10, ends[text.get_text()]))
        assert text.get_position() == pytest.approx((x + 0.015, y), abs=1e-9)


def test_labels_keep_their_distance_and_order():
    _, ax = plt.subplots()
    ax.set(xlim=(0, 1), ylim=(0, 1))
    label_lines(
        ax, {"c": (1, 0.5, "k"), "a": (1, 0.49, "k"), "b": (1, 0.495, "k"), "d": (1, 0.9, "k")}
    )
    found = heights(ax)
    assert sorted(found, key=found.get) == ["a", "b", "c", "d"]
    assert found["a"] == pytest.approx(0.49)
    assert found["d"] == pytest.approx(0.9)
    assert np.diff(sorted(found.values())).min() >= 0.055 - 1e-12


def test_a_grid_has_a_row_a_name_and_hides_empty_places():
    grey, colour = np.zeros((4, 4)), np.zeros((4, 4, 3))
    figure = image_grid(
        {"one": [grey, grey, grey], "two": [colour]}, titles=["x", "y"], cmaps={"one": "gray"}
    )
    axes = np.array(figure.axes).reshape(2, 3)
    assert [[len(ax.images) for ax in line] for line in axes] == [[1, 1, 1], [1, 0, 0]]
    assert not any(ax.axison for ax in figure.axes)
    assert [ax.get_title() for ax in axes[0]] == ["x", "y", ""]
    assert [line[0].texts[0].get_text() for line in axes] == ["one", "two"]
    assert axes[0, 0].images[0].get_cmap().name == "gray"
    assert axes[0, 0].images[0].get_interpolation() == "nearest"


def example(x):
    """One line.

    And more.
    """
    return x + 1  # why


def bare(x):
    return x


def test_source_is_shown_without_its_docstring():
    assert show_source(example).data == "```python\ndef example(x):\n    return x + 1  # why\n```"
    assert show_source(bare).data == "```python\ndef bare(x):\n    return x\n```"


def several(x):
    """One line."""
    y = x
    if y:
        z = y + 1
        y = z  # eq. (1)
    return y


def test_only_the_lines_that_implement_an_equation_are_shown():
    assert (
        show_source(several, "z =", "eq. (1)").data
        == "```python\nz = y + 1\ny = z  # eq. (1)\n```"
    )
    assert show_source(several, last="y = x").data.splitlines()[1:-1] == [
        "def several(x):",
        "    y = x",
    ]


@pytest.mark.parametrize(("first", "last"), [("w =", "y"), ("z =", "y = x"), ("", "eq. (2)")])
def test_lines_that_are_not_there_are_named(first, last):
    with pytest.raises(ValueError, match="is in no line of several"):
        show_source(several, first, last)


def test_a_table_is_markdown():
    table = show_table(
        {"snip": {"90 %": 2.84, "kept": 7}, "dense": {"90 %": 2.0, "kept": 9}}, "error"
    )
    assert table.data.splitlines() == [
        "| error | 90 % | kept |",
        "| --- | ---: | ---: |",
        "| snip | 2.8 | 7 |",
        "| dense | 2.0 | 9 |",
    ]
