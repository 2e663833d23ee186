"""Tracks: every way of writing them, read from small files, and the real sets where they lie."""

import dataclasses
import random

import numpy as np
import pytest
import torch

from companion.data import trajectories
from companion.data.root import CorruptDataError, MissingDataError
from companion.data.trajectories import (
    FOLDER,
    Tracks,
    cut_windows,
    join_windows,
    load_tracks,
    read_splines,
    read_tracks,
    track_names,
    transform,
)
from companion.forecasting import ade, constant_velocity, fde

ROW_FIRST = [[0.0, 0.02, -1.0], [0.03, 0.0, 2.0], [0.0, 0.001, 1.0]]  # metres of (row, col, 1)


def put(root, name, text):
    path = root / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")
    return path


def matrix(rows):
    return "\n".join(" ".join(map(str, row)) for row in rows) + "\n"


def straight(agents=3, steps=30, dt_s=0.4):
    """Agent a walks along x at (a + 1) m/s from step a on."""
    rows = [(a + t, a, (a + 1) * dt_s * t, float(a)) for a in range(agents) for t in range(steps)]
    step, agent, x, y = map(torch.tensor, zip(*rows, strict=True))
    return Tracks("straight", step, agent, torch.stack([x, y], 1).double(), dt_s)


# ---------------------------------------------------------------- readers, on files made here


def test_obsmat_is_metres_on_a_clock_of_its_own_with_row_first_homographies(tmp_path):
    put(
        tmp_path,
        "ETH/seq_eth/obsmat.txt",
        matrix(
            [
                [780, 1, 1.0, 0, 2.0, 0, 0, 0],
                [786, 1, 1.5, 0, 2.5, 0, 0, 0],
                [792, 2, 7.0, 0, 8.0, 0, 0, 0],
                [783, 3, 0.0, 0, 0.0, 0, 0, 0],  # between the others' frames
                [789, 3, 0.1, 0, 0.0, 0, 0, 0],
            ]
        ),
    )
    put(tmp_path, "ETH/seq_eth/H.txt", matrix(ROW_FIRST))
    put(tmp_path, "ETH/seq_eth/groups.txt", " 1 2\n\n")
    tracks = load_tracks("eth", tmp_path)
    assert tracks.agent.tolist() == [1, 1, 2, 3, 3]
    assert tracks.step.tolist() == [0, 1, 2, 0, 1]
    assert tracks.position[:2].tolist() == [[1.0, 2.0], [1.5, 2.5]]
    assert (tracks.unit, tracks.dt_s, tracks.groups) == ("m", 0.4, (frozenset({1, 2}),))
    # a pixel goes to metres by the file's own rule, and back to (column, row)
    row, column = 120.0, 340.0
    metres = np.array(ROW_FIRST) @ [row, column, 1]
    back = tracks.pixels(torch.from_numpy(metres[:2] / metres[2]))
    assert back.tolist() == pytest.approx([column, row])


def test_zara02_is_shifted_before_its_homography(tmp_path):
    put(tmp_path, "UCY/zara02/obsmat.txt", matrix([[7, 1, 0, 0, 0, 0, 0, 0]]))
    put(tmp_path, "UCY/zara02/H.txt", matrix(ROW_FIRST))
    metres = np.array(ROW_FIRST) @ [100.0 + 50, 900.0 - 720, 1]
    tracks = load_tracks("zara02", tmp_path)
    back = tracks.pixels(torch.from_numpy(metres[:2] / metres[2]))
    assert back.tolist() == pytest.approx([900.0, 100.0])


SPLINES = """2 - the number of splines
3 - Num of control points
0 0 0 90 - (2D point, m_id)
50 100 25 90
50 100 50 90
1 - Num of control points
-360 288 30 0
9 - something else that follows
"""


def test_splines_are_walked_straight_from_the_middle_of_the_frame(tmp_path):
    put(tmp_path, "UCY/uni_examples/annotation.vsp", SPLINES)
    tracks = load_tracks("uni_examples", tmp_path)
    assert tracks.unit == "px"
    step, position = tracks.of(1)
    assert step.tolist() == [0, 1, 2, 3, 4, 5]  # every 10 of frames 0 to 50
    assert position[0].tolist() == [360, 288]
    assert position[1].tolist() == pytest.approx([360 + 20, 288 - 40])  # v points up
    assert position[-1].tolist() == [410, 188]
    assert tracks.of(2)[1].tolist() == [[0, 0]]
    fine = load_tracks("uni_examples", tmp_path, dt_s=0.04)
    assert len(fine.of(1)[0]) == 51
    with pytest.raises(ValueError, match=r"dt_s = 0.05: expected a multiple of 1/25 s"):
        load_tracks("uni_examples", tmp_path, dt_s=0.05)


def test_splines_that_break_off_are_refused(tmp_path):
    path = put(tmp_path, "UCY/uni_examples/annotation.vsp", SPLINES.replace("2 - the", "5 - the"))
    with pytest.raises(CorruptDataError, match="not the splines of UCY"):
        read_splines(path)


SDD = """0 10 20 30 60 0 0 0 0 "Biker"
0 12 20 32 60 6 0 0 1 "Biker"
0 14 20 34 60 12 0 0 1 "Biker"
0 16 20 36 60 24 1 0 1 "Biker"
1 0 0 2 4 12 0 1 0 "Pedestrian"
"""


def sdd(tmp_path):
    put(tmp_path, "SDD/gates/video8/annotations.txt", SDD)
    put(tmp_path, "SDD/estimated_scales.yaml", "gates:\n   video8:\n      scale: 0.05\n")
    return load_tracks("sdd/gates/8", tmp_path)


def test_sdd_is_box_middles_in_pixels_without_the_lost_ones(tmp_path):
    tracks = sdd(tmp_path)
    assert tracks.step.tolist() == [0, 1, 1]
    assert tracks.position.tolist() == [[20, 40], [24, 40], [1, 2]]
    assert tracks.left_out == {"lost": 1}
    assert tracks.labels == {0: "Biker", 1: "Pedestrian"}
    assert load_tracks("sdd/gates/8", tmp_path, dt_s=0.2).step.tolist() == [0, 1, 2, 2]


def test_pixels_become_metres_only_by_a_scale(tmp_path):
    tracks = sdd(tmp_path)
    metres = tracks.in_metres()
    assert metres.unit == "m"
    assert metres.position[0].tolist() == [1, 2]
    torch.testing.assert_close(metres.pixels(metres.position), tracks.position)
    assert tracks.in_metres(0.5).position[0].tolist() == [10, 20]
    bare = Tracks("bare", tracks.step, tracks.agent, tracks.position, 0.4, unit="px")
    for scale in (None, 0.0, float("nan"), float("inf")):
        with pytest.raises(ValueError, match="metres_per_pixel"):
            bare.in_metres(scale)
    assert metres.in_metres() is metres
    with pytest.raises(ValueError, match=r"metres_per_pixel = 0\.5: sdd/gates/8 is in metres"):
        metres.in_metres(0.5)
    with pytest.raises(ValueError, match="no map from px to a picture"):
        bare.pixels(bare.position)


def test_trajnet_drops_what_it_does_not_tell_and_finds_the_picture_of_sdd(tmp_path):
    put(tmp_path, "TrajNet/Test/stanford/gates_8.txt", "0 5.0 1.0 2.0\n12 5.0 1.5 2.0\n24 5 ? ?\n")
    sdd(tmp_path)
    tracks = load_tracks("trajnet/gates_8", tmp_path)
    assert tracks.step.tolist() == [0, 1]
    assert tracks.left_out == {"unknown": 1}
    assert tracks.pixels(tracks.position)[0].tolist() == pytest.approx([712 + 20, 544 + 40])


def test_trajnet_counts_its_steps_by_the_folder(tmp_path):
    put(tmp_path, "TrajNet/Train/mot/a.txt", "0 1 0 0\n2 1 1 1\n")
    put(tmp_path, "TrajNet/Test/biwi/biwi_eth.txt", "800 1 0 0\n810 1 1 1\n")
    assert load_tracks("trajnet/a", tmp_path).step.tolist() == [0, 1]
    eth = load_tracks("trajnet/biwi_eth", tmp_path)
    assert eth.dt_s == pytest.approx(2 / 3)  # not the 0.4 s that TrajNet says
    assert eth.step.diff().tolist() == [1]


def test_thinning_keeps_the_clock(tmp_path):
    rows = [[1 + 10 * t, 1, t, 0, 0, 0, 0, 0] for t in range(6)]
    put(tmp_path, "UCY/zara01/obsmat.txt", matrix(rows))
    put(tmp_path, "UCY/zara01/H.txt", matrix(ROW_FIRST))
    tracks = load_tracks("zara01", tmp_path, dt_s=0.8)
    assert (tracks.step.tolist(), tracks.dt_s) == ([0, 1, 2], 0.8)
    assert tracks.position[:, 0].tolist() == [0, 2, 4]
    with pytest.raises(ValueError, match=r"dt_s = 0.5: expected a multiple of 0.4 s"):
        load_tracks("zara01", tmp_path, dt_s=0.5)


def test_what_is_missing_or_damaged_is_named(tmp_path):
    with pytest.raises(MissingDataError, match=r"obsmat.txt is not there.*OpenTraj"):
        load_tracks("hotel", tmp_path)
    with pytest.raises(ValueError, match=r"name = 'zara': expected one of 'eth'"):
        load_tracks("zara", tmp_path)
    with pytest.raises(ValueError, match=r"name = 'trajnet/\.\./\.\./x'"):
        load_tracks("trajnet/../../x", tmp_path)
    with pytest.raises(ValueError, match="dt_s = 0"):
        load_tracks("hotel", tmp_path, dt_s=0)
    put(tmp_path, "ETH/seq_hotel/obsmat.txt", "1 2 3\n")
    with pytest.raises(CorruptDataError, match=r"obsmat.txt, line 1: 3 entries, expected 8"):
        load_tracks("hotel", tmp_path)
    put(tmp_path, "SDD/gates/video8/annotations.txt", "0 a b c\n")
    with pytest.raises(CorruptDataError, match=r"annotations.txt, line 1: 4 entries, expected 9"):
        load_tracks("sdd/gates/8", tmp_path)
    assert track_names(tmp_path) == ["hotel", "sdd/gates/8"]


# ---------------------------------------------------------------- whatever the format

FORMATS = {
    "eth": ("ETH/seq_eth/obsmat.txt", "{frame} {agent} {x} 0 {y} 0 0 0", 6),
    "students001": ("UCY/students01/students001.txt", "{frame} {agent} {x} {y}", 10),
    "trajnet/bookstore_0": ("TrajNet/Train/stanford/bookstore_0.txt", "{frame} {agent} {x} {y}", 12),
    "sdd/gates/8": (
        "SDD/gates/video8/annotations.txt",
        '{agent} {x} {y} {x} {y} {frame} 0 0 1 "Golf Cart"',
        12,
    ),
}  # fmt: skip


def two_walkers(name, root, change=lambda lines: lines, encode=str.encode, every=None):
    """Agents 1 and 2 side by side for 25 steps, in the format of a set; the lines changed."""
    file, row, frames = FORMATS[name]
    lines = [
        row.format(frame=(every or frames) * t, agent=agent, x=f"{0.5 * t:.2f}", y=f"{agent:.2f}")
        for agent in (1, 2)
        for t in range(25)
    ]
    put(root, file, "").write_bytes(encode("\n".join(change(lines)) + "\n"))
    put(root, "ETH/seq_eth/H.txt", matrix(ROW_FIRST))
    return load_tracks(name, root)


def edited(row, old, new):
    """A change of one line."""

    def change(lines):
        assert old in lines[row]
        return [*lines[:row], lines[row].replace(old, new), *lines[row + 1 :]]

    return change


WAYS = {
    "CRLF": lambda text: text.replace("\n", "\r\n").encode(),
    "byte order mark": lambda text: text.encode("utf-8-sig"),
    "tabs": lambda text: text.replace(" ", "\t").encode(),
    "blank lines": lambda text: text.replace("\n", "\n \t\n\n").encode(),
    "copied lines": lambda text: (text + text[: text.index("\n") + 1]).encode(),
}


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("name", FORMATS)
def test_every_way_of_writing_the_same_rows_gives_the_same_tracks(name, way, tmp_path):
    plain, other = (
        two_walkers(name, tmp_path, encode=encode) for encode in (str.encode, WAYS[way])
    )
    for field in ("step", "agent", "position"):
        assert torch.equal(getattr(plain, field), getattr(other, field))
    assert other.labels == plain.labels
    assert other.left_out.get("repeated", 0) == (1 if way == "copied lines" else 0)


def test_a_label_may_have_two_words_or_be_absent(tmp_path):
    assert two_walkers("sdd/gates/8", tmp_path).labels == {1: "Golf Cart", 2: "Golf Cart"}
    bare = two_walkers(
        "sdd/gates/8", tmp_path, lambda lines: [line.split(' "')[0] for line in lines]
    )
    assert bare.labels == {}


@pytest.mark.parametrize("value", ["nan", "inf", "-inf", "NaN"])
@pytest.mark.parametrize("axis", ["x", "y"])
@pytest.mark.parametrize("name", FORMATS)
def test_a_place_that_is_not_finite_is_absence_and_is_counted(name, axis, value, tmp_path):
    old = "3.00" if axis == "x" else "1.00"  # step 6 of agent 1
    tracks = two_walkers(name, tmp_path, edited(6, old, value))
    assert tracks.left_out["not_finite"] == 1
    assert tracks.of(1)[0].tolist() == [t for t in range(25) if t != 6]
    windows = cut_windows(tracks, obs_len=8, pred_len=12)
    for part in (windows.past, windows.future, windows.origin_m):
        assert part.isfinite().all()
    assert windows.mask.sum(1).tolist() == [1] * 6  # agent 2 alone, for those go through step 6


def test_windows_take_places_that_are_not_finite_as_absence():
    tracks = straight(agents=2)
    place = tracks.position.clone()
    place[5, 1] = torch.nan  # y of agent 0 at step 5
    windows = cut_windows(dataclasses.replace(tracks, position=place), obs_len=3, pred_len=2)
    assert windows.past.isfinite().all()
    assert windows.origin_m.isfinite().all()
    there = dict(zip(windows.start.tolist(), windows.agent.tolist(), strict=True))
    assert all((0 in agents) == (start > 5 or start + 5 <= 5) for start, agents in there.items() if start < 26)  # fmt: skip


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (edited(3, " 1 ", " 1.5 "), "whole numbers"),
        (lambda lines: [*lines, lines[4].replace("2.00", "9.00")], "two places in frame"),
        (lambda lines: ["frame id x y xx yy zz vv label", *lines], "line 1: "),
        (edited(7, "3.50", "3,50"), "line 8: expected numbers"),
        (edited(7, "3.50", ""), "line 8: "),
        (edited(7, "3.50", "1e30"), "expected places below"),
        (lambda lines: [], "is empty: expected lines of"),
        (lambda lines: [" "], "is empty: expected lines of"),
    ],
)
@pytest.mark.parametrize("name", FORMATS)
def test_a_damaged_file_is_named_in_every_format(name, change, message, tmp_path):
    if name.startswith("sdd") and message == "whole numbers":  # there the agent comes first
        change = edited(3, "1 1.50", "1.5 1.50")
    with pytest.raises(CorruptDataError, match=message) as caught:
        two_walkers(name, tmp_path, change)
    assert FORMATS[name][0] in str(caught.value)


@pytest.mark.parametrize("name", FORMATS)
def test_any_few_bytes_changed_are_refused_by_name_or_leave_finite_windows(name, tmp_path):
    two_walkers(name, tmp_path)
    path = tmp_path / FOLDER / FORMATS[name][0]
    good, draw = path.read_bytes(), random.Random(0)
    odd = [
        b"nan",
        b"inf",
        b"-",
        b"1e400",
        b"\n",
        b"\0",
        b"\xff",
        b"?",
        b",",
        b'"',
        b"1_0",
        b"9" * 20,
    ]
    read, refused = 0, []
    for _ in range(150):
        at, more = draw.randrange(len(good)), draw.randrange(3)
        new = draw.choice([bytes([draw.randrange(256)]), b"", *odd])
        path.write_bytes(good[:at] + new + good[at + more :])
        try:
            tracks = load_tracks(name, tmp_path)
        except CorruptDataError as error:
            refused.append(str(error))
            continue
        read += 1
        windows = cut_windows(tracks, obs_len=3, pred_len=2)
        assert windows.past.isfinite().all()
        assert windows.future.isfinite().all()
    assert read
    assert refused
    assert all(str(path) in message and "\n" not in message for message in refused)


@pytest.mark.parametrize("name", ["eth", "students001", "trajnet/bookstore_0"])
def test_a_line_that_is_too_long_is_refused(name, tmp_path):
    with pytest.raises(CorruptDataError, match=r"line 8: \d entries, expected"):
        two_walkers(name, tmp_path, edited(7, "3.50", "3.50 4"))


@pytest.mark.parametrize("name", ["eth", "students001", "trajnet/bookstore_0"])
def test_rows_on_another_clock_are_refused(name, tmp_path):
    """10 frames to a step read as 12 would put two rows on a step and leave holes."""
    with pytest.raises(
        CorruptDataError, match=r"agent 1 is in frames 0 and 7, expected multiples"
    ):
        two_walkers(name, tmp_path, every=7)


def test_a_folder_of_another_name_has_no_clock_of_its_own(tmp_path):
    put(tmp_path, "TrajNet/Train/thinned/a.txt", "0 1 0 0\n12 1 1 1\n24 1 2 2\n")
    with pytest.raises(CorruptDataError, match="frames 0 and 12, expected multiples of 10"):
        load_tracks("trajnet/a", tmp_path)


def test_a_video_that_somebody_has_thinned_otherwise_is_refused(tmp_path):
    with pytest.raises(CorruptDataError, match=r"annotations.txt: no row at a step of 0.4 s"):
        two_walkers("sdd/gates/8", tmp_path, lambda lines: [lines[1].replace(" 12 0", " 5 0")])


def test_two_files_of_one_name_are_refused_and_listed_once(tmp_path):
    for part in ("Train", "Test"):
        put(tmp_path, f"TrajNet/{part}/stanford/same_0.txt", "0 1 0 0\n")
    assert track_names(tmp_path) == ["trajnet/same_0"]
    with pytest.raises(CorruptDataError, match=r"Test.*same_0.txt and .*Train.*same_0.txt"):
        load_tracks("trajnet/same_0", tmp_path)


def test_a_file_that_begins_as_the_published_one_must_be_as_long(tmp_path):
    """Cut at the end of a line a file looks whole: only its published length tells."""
    rows = "\n".join(f"{780 + 6 * t} 1 {8.4568443 + t} 0 3.5880664 0 0 0" for t in range(60))
    put(tmp_path, "ETH/seq_eth/obsmat.txt", rows)
    put(tmp_path, "ETH/seq_eth/H.txt", matrix(ROW_FIRST))
    with pytest.raises(CorruptDataError, match=r"obsmat.txt is cut short: 60 rows, 8908 in the"):
        load_tracks("eth", tmp_path)


@pytest.mark.parametrize(
    ("file", "content", "names"),
    [
        ("ETH/seq_eth/H.txt", b"1 0 0\n0 1 0\n", ["eth"]),
        ("ETH/seq_eth/H.txt", b"1 0 0\n1 0 0\n0 0 1\n", ["eth"]),
        ("ETH/seq_eth/H.txt", b"1 0 nan\n0 1 0\n0 0 1\n", ["eth"]),
        ("ETH/seq_eth/H.txt", b"\xff\xfe\x00\x00", ["eth"]),
        ("ETH/seq_eth/H.txt", b"", ["eth"]),
        ("ETH/seq_eth/groups.txt", b"1 two\n", ["eth"]),
        ("ETH/seq_eth/groups.txt", b"\xff\xfe1 2\n", ["eth"]),
        ("SDD/estimated_scales.yaml", b"", ["sdd/gates/8", "trajnet/bookstore_0"]),
        ("SDD/estimated_scales.yaml", b"gates: [1\n", ["sdd/gates/8"]),
        ("SDD/estimated_scales.yaml", b"gates:\n  video8: 3\n", ["sdd/gates/8"]),
        ("SDD/estimated_scales.yaml", b"gates:\n  video8:\n    scale: big\n", ["sdd/gates/8"]),
        ("SDD/estimated_scales.yaml", b"gates:\n  video8:\n    scale: -1\n", ["sdd/gates/8"]),
        ("SDD/estimated_scales.yaml", b"gates:\n\tvideo8: 3\n", ["sdd/gates/8"]),
    ],
)
def test_a_damaged_file_beside_the_tracks_is_named(file, content, names, tmp_path):
    for name in names:
        two_walkers(name, tmp_path)
        path = put(tmp_path, file, "")
        path.write_bytes(content)
        with pytest.raises(CorruptDataError, match=path.name) as caught:
            load_tracks(name, tmp_path)
        assert "\n" not in str(caught.value)
        path.unlink()


def test_a_first_line_that_counts_the_groups_is_none(tmp_path):
    for text, groups in (("2\n1 2\n3 4 5\n", 2), ("7\n1 2\n3 4 5\n", 3), ("\n", 0)):
        put(tmp_path, "ETH/seq_eth/groups.txt", text)
        assert len(two_walkers("eth", tmp_path).groups) == groups


@pytest.mark.parametrize(
    "text",
    [
        "", "x\n", "1\n2\n0 0 0 0\n", "1\n1\nnan 0 0 0\n", "1\n2\n0 0 0 0\n0 0 1e15 0\n", "0\n", "-1\n",
        "1\n0\n", "1\n99999999999999\n0 0 0 0\n",
    ],
)  # fmt: skip
def test_splines_that_are_none_are_named(text, tmp_path):
    put(tmp_path, "UCY/uni_examples/annotation.vsp", text)
    with pytest.raises(CorruptDataError, match=r"annotation\.vsp: not the splines of UCY"):
        load_tracks("uni_examples", tmp_path)


@pytest.mark.parametrize("dt_s", [0, -0.4, 1e9, float("inf"), float("nan"), "0.4", None])
@pytest.mark.parametrize("name", [*FORMATS, "uni_examples"])
def test_a_step_that_cannot_be_is_refused_at_once(name, dt_s, tmp_path):
    with pytest.raises(ValueError, match=r"dt_s = .*: expected seconds above 0, at most 60"):
        load_tracks(name, tmp_path, dt_s=dt_s)


@pytest.mark.parametrize("name", [5, None, "", "sdd/gates", "trajnet/", "students002"])
def test_an_unknown_scene_is_refused_at_once(name, tmp_path):
    with pytest.raises(ValueError, match=r"name = .*: expected one of 'eth'"):
        load_tracks(name, tmp_path)


# ---------------------------------------------------------------- windows


def test_windows_hold_those_who_are_there_all_the_time():
    tracks = straight()  # agents on steps 0-29, 1-30 and 2-31
    windows = cut_windows(tracks, obs_len=8, pred_len=12)
    assert windows.start.tolist() == list(range(13))
    assert windows.mask.sum(1).tolist() == [1, 2, *[3] * 9, 2, 1]
    assert windows.left_out == {"partial": 6}
    assert windows.past.shape == (13, 3, 8, 2)
    assert windows.future.shape == (13, 3, 12, 2)
    for scene in range(13):
        for place in range(int(windows.mask[scene].sum())):
            step, path = tracks.of(int(windows.agent[scene, place]))
            at = int(windows.start[scene] - step[0])
            mine = torch.cat([windows.past[scene, place], windows.future[scene, place]])
            expected = path[at : at + 20] - windows.origin_m[scene]
            torch.testing.assert_close(mine.double(), expected, atol=1e-5, rtol=0)
    last_seen = windows.past[:, :, -1].sum(1)
    assert last_seen.abs().max() < 1e-4  # the origin is their mean
    assert not windows.past[~windows.mask].any()
    assert (windows.agent[~windows.mask] == -1).all()


def test_an_agent_may_have_any_number(tmp_path):
    rows = [f"{k},{who},{0.5 * k},{who}" for who in (-7, -1, 3) for k in range(24)]
    (tmp_path / "mine.csv").write_text("frame,id,x,y\n" + "\n".join(rows))
    tracks = read_tracks(tmp_path / "mine.csv", fps=2.5)
    windows = cut_windows(tracks)
    assert windows.mask.all()
    assert (windows.agent == torch.tensor([-7, -1, 3])).all()
    torch.testing.assert_close(
        windows.to_world(windows.past)[0, :, :, 1],
        torch.tensor([[-7.0], [-1], [3]]).expand(3, 8).double(),
    )


def test_a_track_with_a_hole_is_not_whole():
    tracks = straight(agents=1)
    holed = tracks.rows(tracks.step != 12)
    windows = cut_windows(holed, obs_len=3, pred_len=4)
    assert not {range(s, s + 7).count(12) for s in windows.start.tolist()} - {0}
    assert windows.left_out == {"partial": 0}


def test_windows_are_those_of_a_plain_search():
    """Against every start and every agent looked up one by one, on tracks full of holes."""
    draw = torch.Generator().manual_seed(4)
    for stride, least in ((1, 1), (3, 2), (4, 1)):
        full = straight(agents=5, steps=60)
        tracks = full.rows(torch.rand(len(full.step), generator=draw) < 0.93)
        tracks = tracks.rows(~((tracks.step > 20) & (tracks.step < 33)))  # nobody is there
        places = {
            (int(s), int(a)): p
            for s, a, p in zip(tracks.step, tracks.agent, tracks.position, strict=True)
        }
        first, last = int(tracks.step.min()), int(tracks.step.max())
        found, partial = [], 0
        for start in range(first, last - 4 + 1, stride):
            window = [{a for a in range(5) if (start + t, a) in places} for t in range(5)]
            whole = set.intersection(*window)
            if len(whole) >= least:
                found.append((start, sorted(whole)))
                partial += len(set.union(*window) - whole)
        windows = cut_windows(tracks, obs_len=3, pred_len=2, stride=stride, min_agents=least)
        assert found == [
            (int(start), [a for a in agents if a >= 0])
            for start, agents in zip(windows.start, windows.agent.tolist(), strict=True)
        ]
        assert windows.left_out == {"partial": partial}
        for scene, (start, agents) in enumerate(found):
            path = torch.cat([windows.past[scene], windows.future[scene]], 1).double()
            path = path + windows.origin_m[scene]
            for place, agent in enumerate(agents):
                expected = torch.stack([places[start + t, agent] for t in range(5)])
                torch.testing.assert_close(path[place], expected, atol=1e-4, rtol=0)


def test_a_step_far_away_costs_no_memory():
    tracks = straight()
    step = torch.where(tracks.step == 31, 10**12, tracks.step)
    windows = cut_windows(dataclasses.replace(tracks, step=step))
    assert windows.start.tolist() == list(range(12))


def test_an_agent_at_two_places_is_refused():
    tracks = straight()
    step = torch.where(tracks.step == 7, 6, tracks.step)
    with pytest.raises(ValueError, match="straight: an agent is at two places at one step"):
        cut_windows(dataclasses.replace(tracks, step=step))


def test_who_comes_back_is_whole_before_and_after_but_not_across():
    tracks = straight(agents=1, steps=30)
    there = tracks.rows((tracks.step < 10) | (tracks.step > 15))
    starts = cut_windows(there, obs_len=3, pred_len=2).start.tolist()
    assert starts == [*range(6), *range(16, 26)]


def test_stride_and_fewest_agents():
    windows = cut_windows(straight(), stride=3)
    assert windows.start.tolist() == [0, 3, 6, 9, 12]
    assert cut_windows(straight(), min_agents=3).mask.all()


def test_windows_can_be_picked_and_joined():
    one, two = cut_windows(straight()), cut_windows(straight(agents=5))
    both = join_windows([one, two])
    assert both.mask.shape == (len(one) + len(two), 5)
    assert torch.equal(both.past[: len(one), :3], one.past)
    assert not both.mask[: len(one), 3:].any()
    assert both.left_out["partial"] == one.left_out["partial"] + two.left_out["partial"]
    few = both[torch.tensor([0, 15])]
    assert torch.equal(few.future[1], both.future[15])
    with pytest.raises(ValueError, match="parts differ in"):
        join_windows([one, cut_windows(straight(), obs_len=4)])
    with pytest.raises(ValueError, match="at least one"):
        join_windows([])


def test_places_of_who_is_not_there_are_zero_whatever_was_given():
    windows = join_windows([cut_windows(straight()), cut_windows(straight(agents=5))])
    names, absent = ("past", "future"), ~windows.mask[..., None, None]
    padded = {name: getattr(windows, name).masked_fill(absent, torch.nan) for name in names}
    again = dataclasses.replace(windows, **padded)
    for name in names:
        assert torch.equal(getattr(again, name), getattr(windows, name))
        assert getattr(windows[:], name).data_ptr() == getattr(windows, name).data_ptr()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_len": 0}, "obs_len = 0"),
        ({"stride": 0}, "stride = 0"),
        ({"stride": -1}, "stride = -1"),
        ({"min_agents": 0}, "min_agents = 0"),
        ({"obs_len": 2.5}, r"obs_len = 2.5: expected a whole number"),
        ({"pred_len": 200}, "no window of obs_len"),
        ({"min_agents": 4}, r"holds 4 whole track"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cut_windows(straight(), **arguments)


def test_the_steps_of_one_agent_come_in_time():
    tracks = straight()
    expected = tracks.of(1)
    found = tracks.rows(torch.arange(len(tracks.step)).flip(0)).of(1)
    assert all(map(torch.equal, expected, found))


def test_an_empty_scene_and_an_unknown_agent():
    tracks = straight()
    with pytest.raises(ValueError, match="there are no tracks"):
        cut_windows(tracks.between(500, 600))
    with pytest.raises(KeyError, match="no agent 9"):
        tracks.of(9)


# ---------------------------------------------------------------- the real sets


@pytest.mark.parametrize(
    ("name", "agents", "rows"),
    [
        ("eth", 360, 8908),
        ("hotel", 390, 6544),
        ("zara01", 148, 5024),
        ("zara02", 204, 9537),
        ("students03", 428, 21846),
    ],
)
def test_real_sets_have_the_published_counts_and_a_walking_pace(real_data, name, agents, rows):
    tracks = load_tracks(name, real_data("trajectories"))
    assert (len(tracks.agents), len(tracks.step)) == (agents, rows)
    same = (tracks.agent.diff() == 0) & (tracks.step.diff() == 1)
    pace = tracks.position.diff(dim=0)[same].norm(dim=1) / 0.4
    assert 0.5 < pace.median() < 1.6  # m/s
    pixel = tracks.pixels(tracks.position)
    inside = ((pixel > -8) & (pixel < torch.tensor([728.0, 790.0]))).all(1)
    assert inside.double().mean() > 0.995


def forecast_errors(windows):
    path = constant_velocity(windows.past, windows.future.shape[2])
    return [error(path, windows.future)[windows.mask] for error in (ade, fde)]


def test_the_benchmarks_university_square_has_its_published_windows(real_data):
    """14,295 and 10,039 paths in 425 and 522 windows, and constant velocity's 0.52 and 1.17 m."""
    root, errors = real_data("trajectories"), []
    for name, paths, scenes in (("students001", 14_295, 425), ("students003", 10_039, 522)):
        windows = cut_windows(load_tracks(name, root), min_agents=2)
        assert (int(windows.mask.sum()), len(windows)) == (paths, scenes)
        errors.append(forecast_errors(windows))
    both = [torch.cat(part) for part in zip(*errors, strict=True)]
    assert [len(part) for part in both] == [24_334, 24_334]
    assert both[0].mean().item() == pytest.approx(0.524, abs=5e-4)
    assert both[1].mean().item() == pytest.approx(1.165, abs=5e-4)
    # the other annotation of the square is another set
    assert int(cut_windows(load_tracks("students03", root)).mask.sum()) == 14_029


def test_hotel_has_the_benchmarks_windows_with_two_people_at_least(real_data):
    tracks = load_tracks("hotel", real_data("trajectories"))
    windows = cut_windows(tracks, min_agents=2)
    assert (len(windows), int(windows.mask.sum())) == (301, 1053)
    assert len(cut_windows(tracks)) > 301


@pytest.mark.parametrize(
    ("name", "file"),
    [
        ("eth", "ETH/seq_eth/obsmat.txt"),
        ("students003", "UCY/students03/students003.txt"),
        ("trajnet/bookstore_0", "TrajNet/Train/stanford/bookstore_0.txt"),
        ("sdd/hyang/9", "SDD/hyang/video9/annotations.txt"),
    ],
)
def test_half_a_real_file_is_refused(real_data, name, file, tmp_path):
    real = real_data("trajectories") / FOLDER / file
    for companion in ("H.txt", "estimated_scales.yaml"):
        if (real.parent / companion).is_file():
            put(tmp_path, file, "").with_name(companion).write_bytes(
                (real.parent / companion).read_bytes()
            )
    lines = real.read_bytes().splitlines(keepends=True)
    path = put(tmp_path, file, "")
    path.write_bytes(b"".join(lines))
    load_tracks(name, tmp_path)
    path.write_bytes(b"".join(lines[: len(lines) // 2]))
    with pytest.raises(
        CorruptDataError, match=rf"{path.name} is cut short: {len(lines) // 2} rows"
    ):
        load_tracks(name, tmp_path)


def test_the_table_of_published_files_holds_for_the_real_ones(real_data):
    base = real_data("trajectories") / FOLDER
    for file, (rows, first) in trajectories.sets._published().items():
        lines = [line.split() for line in (base / file).read_text(encoding="utf-8").splitlines()]
        known = [line for line in lines if line and "?" not in line]
        columns = [0, 1, 2, 4] if file.endswith("obsmat.txt") else [0, 1, 2, 3]
        assert len(known) == rows
        assert tuple(float(known[0][c]) for c in columns) == first


def test_the_splines_of_zara01_give_its_table(real_data):
    """Two files of one scene, through different readers: they agree to 5 micrometres."""
    root = real_data("trajectories")
    tracks = load_tracks("zara01", root)
    worst = 0.0
    for agent, spline in enumerate(
        read_splines(root / FOLDER / "UCY" / "zara01" / "annotation.vsp"), start=1
    ):
        step, position = tracks.of(agent)
        frame = 10 * step.numpy()
        u, v = (np.interp(frame, spline[:, 2], spline[:, axis]) for axis in (0, 1))
        pixel = torch.from_numpy(np.stack([u + 360, 288 - v], 1))
        back = transform(torch.linalg.inv(tracks.to_pixels), pixel)
        worst = max(worst, float((back - position).norm(dim=1).max()))
    assert worst < 6e-6


def test_trajnet_lies_on_sdd_in_the_same_frames(real_data):
    root = real_data("trajectories")
    ours, theirs = load_tracks("sdd/gates/8", root), load_tracks("trajnet/gates_8", root)
    boxes = {}
    for step, place in zip(ours.step.tolist(), ours.position, strict=True):
        boxes.setdefault(step, []).append(place)
    pixel = theirs.pixels(theirs.position)
    near = [
        step in boxes and (torch.stack(boxes[step]) - place).norm(dim=1).min() < 1
        for step, place in zip(theirs.step.tolist(), pixel, strict=True)
    ]
    assert np.mean(near) > 0.9


def test_the_flawed_clock_of_trajnet_eth_gives_a_walking_pace(real_data):
    tracks = load_tracks("trajnet/biwi_eth", real_data("trajectories"))
    same = tracks.agent.diff() == 0
    pace = tracks.position.diff(dim=0)[same].norm(dim=1) / tracks.dt_s
    assert 1.0 < pace.median() < 1.5


def test_every_scene_can_be_loaded(real_data):
    root = real_data("trajectories")
    names = track_names(root)
    assert len([n for n in names if n.startswith("sdd/")]) == 23
    assert len([n for n in names if n.startswith("trajnet/")]) == 59
    for name in names[:8]:
        assert load_tracks(name, root).position.isfinite().all()


def test_trajnets_withheld_ends_are_named_and_what_is_seen_can_be_cut(tmp_path):
    rows = [f"{12 * k} 1 {0.1 * k} 0" if k < 8 else f"{12 * k} 1 ? ?" for k in range(20)]
    put(tmp_path, "TrajNet/Test/stanford/demo_0.txt", "\n".join(rows))
    tracks = load_tracks("trajnet/demo_0", tmp_path)
    with pytest.raises(ValueError, match="withholds 12 positions: pred_len = 0"):
        cut_windows(tracks)
    windows = cut_windows(tracks, pred_len=0)
    assert windows.past.shape == (1, 1, 8, 2)
    assert windows.future.shape == (1, 1, 0, 2)


def test_a_phase_reads_other_frames_of_a_video(tmp_path):
    rows = [f'0 {f} 0 {f + 2} 2 {f} 0 0 0 "Biker"' for f in range(30)]
    put(tmp_path, "SDD/gates/video8/annotations.txt", "\n".join(rows))
    tracks = load_tracks("sdd/gates/8", tmp_path, phase=5)
    assert tracks.position[:, 0].tolist() == [6, 18, 30]
    assert tracks.step.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match="phase = 12: expected a frame of the first step"):
        load_tracks("sdd/gates/8", tmp_path, phase=12)
    with pytest.raises(ValueError, match="phase = 1: expected 0, 'eth'"):
        load_tracks("eth", tmp_path, phase=1)


def test_windows_go_back_to_the_world():
    tracks = straight()
    windows = cut_windows(tracks, obs_len=3, pred_len=4)
    world = windows.to_world(windows.past)
    at = tracks.of(int(windows.agent[2, 1]))
    first = int((at[0] == windows.start[2]).nonzero())
    assert torch.allclose(world[2, 1], at[1][first : first + 3], atol=1e-5)
    with pytest.raises(ValueError, match="index = 3: expected a slice"):
        windows[3]


def test_float32_positions_lose_nothing_of_the_map():
    homography = torch.tensor([[1, 0.001, 3], [0, 1.5, 2], [1e-6, 0, 1]], dtype=torch.float64)
    points = 1000 * torch.rand(50, 2, generator=torch.Generator().manual_seed(0))
    exact = transform(homography, points.double())
    assert torch.equal(transform(homography, points), exact.float())
    assert torch.equal(
        transform(homography, points.long()), transform(homography, points.long().double())
    )


@pytest.mark.parametrize("name", FORMATS)
def test_step_zero_and_the_frames_of_a_step_are_those_of_the_file(name, tmp_path):
    frames = FORMATS[name][2]
    tracks = two_walkers(name, tmp_path)
    assert (tracks.frames_per_step, tracks.first_frame) == (frames, 0)
    if not name.startswith("sdd"):  # read on another clock, it is not thinned
        slow = load_tracks(name, tmp_path, dt_s=0.8)
        assert (slow.frames_per_step, slow.first_frame) == (2 * frames, 0)


def test_a_phase_and_splines_have_the_frames_of_their_files(tmp_path):
    rows = [f'0 {f} 0 {f + 2} 2 {f} 0 0 0 "Biker"' for f in range(30)]
    put(tmp_path, "SDD/gates/video8/annotations.txt", "\n".join(rows))
    tracks = load_tracks("sdd/gates/8", tmp_path, phase=5)
    assert (tracks.frames_per_step, tracks.first_frame) == (12, 5)
    put(tmp_path, "UCY/uni_examples/annotation.vsp", SPLINES)
    splines = load_tracks("uni_examples", tmp_path, dt_s=0.2)
    assert (splines.frames_per_step, splines.first_frame) == (5, 0)
    put(tmp_path, "ETH/seq_eth/obsmat.txt", matrix([[780, 1, 1, 0, 2, 0, 0, 0]]))
    put(tmp_path, "ETH/seq_eth/H.txt", matrix(ROW_FIRST))
    eth = load_tracks("eth", tmp_path)
    assert (eth.frames_per_step, eth.first_frame) == (6, 780)


def test_windows_of_clocks_that_differ_a_little_are_not_joined():
    parts = [cut_windows(straight(dt_s=dt_s)) for dt_s in (0.4, 0.36)]
    with pytest.raises(ValueError, match="parts differ"):
        join_windows(parts)


def test_a_step_shorter_than_any_is_no_multiple_of_none(tmp_path):
    put(tmp_path, "ETH/seq_eth/obsmat.txt", matrix([[780, 1, 1.0, 0, 2.0, 0, 0, 0]]))
    put(tmp_path, "ETH/seq_eth/H.txt", matrix(ROW_FIRST))
    with pytest.raises(ValueError, match=r"dt_s = 1e-08: expected a multiple of 0.4 s"):
        load_tracks("eth", tmp_path, dt_s=1e-8)


def test_metres_lie_where_their_pixels_lay_in_a_picture_that_is_shifted():
    shift = torch.tensor([[2.0, 0, 30], [0, 2, 40], [0, 0, 1]], dtype=torch.float64)
    tracks = dataclasses.replace(straight(), unit="px", metres_per_pixel=0.5, to_pixels=shift)
    metres = tracks.in_metres()
    torch.testing.assert_close(metres.pixels(metres.position), tracks.pixels(tracks.position))
