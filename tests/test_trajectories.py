"""Tracks: every way of writing them, read from small files, and the real sets where they lie."""

import numpy as np
import pytest
import torch

from companion.data import CorruptDataError, MissingDataError
from companion.data.trajectories import (
    FOLDER,
    Tracks,
    cut_windows,
    join_windows,
    load_tracks,
    read_splines,
    track_names,
    transform,
)

ROW_FIRST = [[0.0, 0.02, -1.0], [0.03, 0.0, 2.0], [0.0, 0.001, 1.0]]  # metres of (row, col, 1)


def put(root, name, text):
    path = root / FOLDER / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
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
    for scale in (None, 0.0, float("nan")):
        with pytest.raises(ValueError, match="metres_per_pixel"):
            bare.in_metres(scale)
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
    with pytest.raises(CorruptDataError, match=r"obsmat.txt: expected 8 numbers a line"):
        load_tracks("hotel", tmp_path)
    put(tmp_path, "SDD/gates/video8/annotations.txt", "0 a b c\n")
    with pytest.raises(CorruptDataError, match="not the annotations of SDD"):
        load_tracks("sdd/gates/8", tmp_path)
    assert track_names(tmp_path) == ["hotel", "sdd/gates/8"]


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


def test_a_track_with_a_hole_is_not_whole():
    tracks = straight(agents=1)
    holed = tracks.rows(tracks.step != 12)
    windows = cut_windows(holed, obs_len=3, pred_len=4)
    assert not {range(s, s + 7).count(12) for s in windows.start.tolist()} - {0}
    assert windows.left_out == {"partial": 0}


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


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"obs_len": 0}, "obs_len = 0"),
        ({"stride": 0}, "stride = 0"),
        ({"pred_len": 200}, "no window of obs_len"),
        ({"min_agents": 4}, r"holds 4 whole track"),
    ],
)
def test_windows_that_cannot_be_cut_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        cut_windows(straight(), **arguments)


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
