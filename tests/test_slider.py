"""Frames behind one slider."""

import base64
import io
import re

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from PIL import Image

from companion.slider import LIMIT, Frames, frames


def square(side):
    figure = Figure(figsize=(2, 1))
    figure.subplots().plot([0, side], [0, side])
    return figure


def made(count=3, **options):
    given = {"alt": "A line of {label}.", "name": "Length"} | options
    return frames(
        [square(n + 1) for n in range(count)], [f"{n + 1} m" for n in range(count)], **given
    )


def images(shown: Frames) -> list[dict[str, str]]:
    found = re.findall(r"<img ([^>]*)>", shown._repr_html_())
    return [dict(re.findall(r'([\w-]+)="([^"]*)"', tag)) for tag in found]


def test_every_frame_is_there_with_its_text_and_one_is_shown():
    shown = images(made(shown=1))
    assert [image["alt"] for image in shown] == [
        "A line of 1 m.",
        "A line of 2 m.",
        "A line of 3 m.",
    ]
    assert ["display:none" in image["style"] for image in shown] == [True, False, True]
    assert repr(made()) == "3 frames, Length: 1 m, 2 m, 3 m"


def test_the_slider_goes_from_the_first_frame_to_the_last_and_says_its_value():
    page = made(shown=2)._repr_html_()
    (slider,) = re.findall(r"<input ([^>]*)>", page)
    said = dict(re.findall(r'([\w-]+)="([^"]*)"', slider))
    assert (said["type"], said["min"], said["max"], said["value"]) == ("range", "0", "2", "2")
    assert said["aria-valuetext"] == "3 m"
    assert "<label>Length <input" in page
    assert "<noscript>" in page  # without scripts the slider moves nothing: it is not shown


def test_the_page_needs_nothing_from_elsewhere():
    page = made()._repr_html_()
    assert not re.search(r"https?://|<script|<link|url\(", page)
    assert {image["src"].partition(";")[0] for image in images(made())} == {"data:image/png"}


@pytest.mark.parametrize("format", ["png", "svg"])
def test_the_same_frames_are_the_same_bytes(format):
    assert made(format=format)._repr_html_() == made(format=format)._repr_html_()


def test_a_front_end_without_html_gets_the_shown_frame():
    first = images(made(shown=1))[1]["src"].partition(",")[2]
    assert base64.b64encode(made(shown=1)._repr_png_()).decode() == first
    assert made(format="svg")._repr_png_() is None


def test_pictures_have_twice_the_density_of_the_page():
    first = images(made())[0]
    with Image.open(io.BytesIO(base64.b64decode(first["src"].partition(",")[2]))) as picture:
        assert picture.size == (400, 200)
    assert "width:192px" in first["style"]  # two inches of 96 pixels


def test_functions_and_bytes_are_frames_too():
    buffer = io.BytesIO()
    square(3).savefig(buffer, format="svg")
    mixed = frames(
        [lambda: square(1), buffer.getvalue()], ["a", "b"], alt=["One.", "Two."], name="n"
    )
    kinds = [image["src"].partition(";")[0] for image in images(mixed)]
    assert kinds == ["data:image/png", "data:image/svg+xml"]


def test_a_text_cannot_leave_its_attribute():
    page = made(2, alt=['"><script>', "b"], name="<b>")._repr_html_()
    assert "<script>" not in page
    assert "<b>" not in page


def test_figures_are_closed_but_for_the_shown_one_which_a_recorded_run_keeps():
    plt.close("all")
    drawn = [plt.figure() for _ in range(3)]
    frames(drawn, ["a", "b", "c"], alt="{label}", name="n", shown=1)
    assert plt.get_fignums() == [drawn[1].number]
    plt.close("all")


def test_frames_that_are_too_large_are_shown_with_a_warning():
    noise = np.random.default_rng(0).integers(0, 256, (1000, 1000), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(noise).save(buffer, format="png")
    with pytest.warns(UserWarning, match=r"figures: [\d,]{9,} bytes together, more than 600,000"):
        large = frames([buffer.getvalue()] * 2, ["a", "b"], alt="{label}", name="n")
    assert len(images(large)) == 2
    size = sum(len(image["src"]) for image in images(made()))
    assert size < LIMIT
    made(limit=size)
    with pytest.warns(UserWarning, match=f"more than {size - 1:,}"):
        made(limit=size - 1)


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"count": 1}, "figures: 1 given, expected two or more"),
        ({"alt": "the same"}, "expected frames to differ"),
        ({"alt": ["a", "b"]}, "expected a text for each of 3 frames"),
        ({"alt": ["a", "b", " "]}, "expected a text for each of 3 frames"),
        ({"name": ""}, "name = ''"),
        ({"shown": 3}, "shown = 3: expected 0 to 2"),
        ({"shown": -1}, "shown = -1"),
        ({"format": "gif"}, "format = 'gif': expected 'png' or 'svg'"),
    ],
)
def test_what_cannot_be_shown_is_named(wrong, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        made(**wrong)


@pytest.mark.parametrize("labels", [["a"], ["a", "a"], ["a", ""]])
def test_labels_are_one_a_frame_and_differ(labels):
    with pytest.raises(ValueError, match="labels"):
        frames([square(1), square(2)], labels, alt="{label}", name="n")


def test_bytes_that_are_no_picture_are_refused():
    with pytest.raises(ValueError, match="expected a PNG or an SVG"):
        frames([b"GIF89a", b"GIF89a"], ["a", "b"], alt="{label}", name="n")
