"""Tracks of one's own: the reader of tables, and the writer of forecasts."""

import dataclasses
import json
import random

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from companion.data.root import CorruptDataError, MissingDataError
from companion.data.trajectories import (
    cut_windows,
    join_windows,
    read_tracks,
    write_trajnetpp,
)


def table(agents=3, steps=25, frames=10, first=0):
    """Rows (frame, id, x, y): agent a walks along x from step a on."""
    return [
        (first + frames * (a + t), a + 5, round(0.3 * t, 3), float(a))
        for a in range(agents)
        for t in range(steps)
    ]


def write(path, rows, *, header="frame,id,x,y", separator=","):
    lines = [separator.join(map(str, row)) for row in rows]
    path.write_text("\n".join(([header] if header else []) + lines) + "\n", encoding="utf-8")
    return path


@settings(max_examples=25)
@given(
    order=st.permutations(["frame", "id", "x", "y", "speed"]),
    separator=st.sampled_from([",", ";", "\t", " "]),
    ending=st.sampled_from(["\n", "\r\n"]),
    seed=st.integers(0, 99),
)
def test_every_layout_of_the_same_rows_gives_the_same_tracks(
    tmp_path_factory, order, separator, ending, seed
):
    folder = tmp_path_factory.mktemp("tracks")
    plain = read_tracks(write(folder / "plain.csv", table(), header=""), fps=25)
    rows = [
        [dict(zip(("frame", "id", "x", "y"), row, strict=True), speed=1.5)[name] for name in order]
        for row in table()
    ]
    random.Random(seed).shuffle(rows)
    path = write(folder / "other.csv", rows, header=separator.join(order), separator=separator)
    path.write_bytes(b"\xef\xbb\xbf" + path.read_bytes().replace(b"\n", ending.encode()))
    other = read_tracks(path, fps=25)
    for name in ("step", "agent", "position"):
        assert torch.equal(getattr(plain, name), getattr(other, name))
    assert (other.unit, other.dt_s, other.left_out) == ("m", 0.4, {})


def test_a_clock_takes_the_frames_that_begin_a_step(tmp_path):
    path = write(tmp_path / "dense.csv", [(f, 1, 0.1 * f, 0.0) for f in range(3, 43)])
    tracks = read_tracks(path, fps=25)
    assert tracks.position[:, 0].tolist() == pytest.approx([0.3, 1.3, 2.3, 3.3])
    assert tracks.left_out == {"between_steps": 36}
    later = read_tracks(path, fps=25, phase=5)
    assert later.position[:, 0].tolist() == pytest.approx([0.5, 1.5, 2.5, 3.5])
    assert later.step.tolist() == [0, 1, 2, 3]
    slow = read_tracks(path, fps=25, dt_s=0.8)
    assert slow.position[:, 0].tolist() == pytest.approx([0.3, 2.3])


def test_pixels_and_other_names_are_said(tmp_path):
    header = "t,ped,col,row"
    path = write(tmp_path / "px.csv", table(1), header=header)
    names = {"frame": "t", "id": "ped", "x": "col", "y": "row"}
    tracks = read_tracks(path, fps=25, unit="px", metres_per_pixel=0.5, columns=names)
    assert tracks.unit == "px"
    assert torch.equal(tracks.in_metres().position, 0.5 * tracks.position)
    with pytest.raises(CorruptDataError, match="expected one frame and one id and one x"):
        read_tracks(path, fps=25)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda rows: [*rows, (0, 5, 9.0, 9.0)], "agent 5 is at two places in frame 0"),
        (lambda rows: [(0.5, 5, 0, 0), *rows], "line 2: expected whole numbers as frame and id"),
        (lambda rows: [*rows, (10, "five", 0, 0)], "line 77: expected numbers"),
        (lambda rows: [*rows, (10, 6)], "line 77: 2 entries, expected 4"),
        (lambda rows: [], "no line below"),
        (
            lambda rows: rows + [(10 * k + 5, 9, 0, 0) for k in range(9)],
            r"agent 9 is in frames 5 to 85, none of which begins a step \(0, 10",
        ),
    ],
)
def test_a_damaged_table_is_named(tmp_path, change, message):
    path = write(tmp_path / "tracks.csv", change(table()))
    with pytest.raises(CorruptDataError, match=message):
        read_tracks(path, fps=25)


def test_a_clock_or_unit_that_cannot_be_is_refused(tmp_path):
    path = write(tmp_path / "tracks.csv", table())
    for arguments, message in (
        ({"fps": 0}, "fps = 0"),
        ({"fps": 25, "dt_s": 0.41}, "dt_s = 0.41: expected a whole number of frames"),
        (
            {"fps": 29.97},
            r"of which fps = 29\.97 make a second: 12 are dt_s = 12/29\.97$",
        ),
        ({"fps": 25, "unit": "cm"}, "unit = 'cm': expected 'm' or 'px'"),
        ({"fps": 25, "columns": {"time": "t"}}, "expected names for frame, id, x, y"),
        ({"fps": 25, "metres_per_pixel": -1}, "metres_per_pixel = -1"),
        ({"fps": 25, "metres_per_pixel": 0.05}, "metres_per_pixel = 0.05: belongs to unit = 'px'"),
    ):
        with pytest.raises(ValueError, match=message):
            read_tracks(path, **arguments)
    odd = read_tracks(write(tmp_path / "odd.csv", table(frames=12)), fps=29.97, dt_s=12 / 29.97)
    assert odd.step.max() == 26
    with pytest.raises(MissingDataError):
        read_tracks(tmp_path / "none.csv", fps=25)


def test_positions_that_are_not_finite_are_absence(tmp_path):
    rows = table(1)
    rows[3] = (*rows[3][:2], "nan", 0)
    tracks = read_tracks(write(tmp_path / "tracks.csv", rows), fps=25)
    assert tracks.left_out == {"not_finite": 1}
    assert 3 not in tracks.step


def test_forecasts_are_written_at_the_frames_of_the_file(tmp_path):
    tracks = read_tracks(write(tmp_path / "tracks.csv", table(first=1000)), fps=25)
    windows = cut_windows(tracks, obs_len=8, pred_len=12, stride=3)
    samples = windows.future[:, :, None].repeat(1, 1, 3, 1, 1)
    samples[:, :, 1] += 1.0
    samples[0, 0] = torch.nan  # the first agent of the first scene is not forecast
    path = tmp_path / "forecast.ndjson"
    write_trajnetpp(path, windows, samples, frames_per_step=10)
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    scenes = [line["scene"] for line in lines if "scene" in line]
    rows = [line["track"] for line in lines if "track" in line]
    assert len(scenes) == len(windows) - (int(windows.mask[0].sum()) == 1)
    assert {s["fps"] for s in scenes} == {2.5}
    truth = {
        (int(s * 10), int(a)): p
        for s, a, p in zip(tracks.step, tracks.agent, tracks.position, strict=True)
    }
    assert len(rows) == (int(windows.mask.sum()) - 1) * 3 * 12
    for row in rows:
        x, y = truth[row["f"], row["p"]].tolist()
        off = float(row["prediction_number"] == 1)
        assert (row["x"], row["y"]) == pytest.approx((x + off, y + off), abs=1e-3)
        scene = next(s for s in scenes if s["id"] == row["scene_id"])
        assert scene["s"] + 70 < row["f"] <= scene["e"] == scene["s"] + 190


def frames_and_people(path):
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    return {(line["track"]["f"], line["track"]["p"]) for line in lines if "track" in line}


@pytest.mark.parametrize("first", [-7, 0, 1, 3, 1001])
@pytest.mark.parametrize("phase", [None, 5])
def test_forecasts_keep_the_frame_numbers_of_any_file(tmp_path, first, phase):
    rows = [(f, a, 0.1 * f, float(a)) for a in (1, 2) for f in range(first, first + 250)]
    tracks = read_tracks(write(tmp_path / "t.csv", rows), fps=25, phase=phase)
    begins = {row[0] for row in rows if (row[0] - (first if phase is None else phase)) % 10 == 0}
    everything = cut_windows(tracks.between(int(tracks.step.min()), 10**6))
    for windows in (everything, everything[1:].to("cpu"), join_windows([everything, everything])):
        write_trajnetpp(tmp_path / "f.ndjson", windows, windows.future[:, :, None])
        written = frames_and_people(tmp_path / "f.ndjson")
        assert {f for f, _ in written} <= begins
        assert max(f for f, _ in written) == max(begins)


def test_frames_that_are_given_take_precedence_over_those_of_the_file(tmp_path):
    windows = cut_windows(read_tracks(write(tmp_path / "t.csv", table(1, first=3)), fps=25))[:1]
    path, samples = tmp_path / "f.ndjson", windows.future[:, :, None]
    write_trajnetpp(path, windows, samples, frames_per_step=12, first_frame=2)
    assert min(frames_and_people(path)) == (2 + 8 * 12, 5)
    write_trajnetpp(path, windows, samples, frames_per_step=12)
    assert min(frames_and_people(path)) == (3 + 8 * 12, 5)
    own = dataclasses.replace(windows, frames_per_step=None, first_frame=None)
    write_trajnetpp(path, own, samples)
    assert min(frames_and_people(path)) == (8, 5)


def test_windows_of_files_with_other_frames_keep_none_of_them(tmp_path):
    parts = [
        cut_windows(read_tracks(write(tmp_path / "t.csv", table(first=first)), fps=25))
        for first in (0, 3)
    ]
    joined = join_windows(parts)
    assert (joined.frames_per_step, joined.first_frame) == (None, None)


def test_what_cannot_be_written_is_named(tmp_path):
    windows = cut_windows(read_tracks(write(tmp_path / "t.csv", table()), fps=25))
    samples = windows.future[:, :, None].clone()
    half = samples.clone()
    half[0, 0, 0, 0] = torch.nan
    for wrong, values, message in (
        (dataclasses.replace(windows, unit="px"), samples, "windows.unit = 'px'"),
        (dataclasses.replace(windows, agent=None), samples, "expected the agents' numbers"),
        (windows, windows.future, r"samples \("),
        (windows, half, "samples: expected finite positions"),
    ):
        with pytest.raises(ValueError, match=message):
            write_trajnetpp(tmp_path / "f.ndjson", wrong, values)
    assert not (tmp_path / "f.ndjson").exists()
