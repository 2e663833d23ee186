"""The visual compiler: camera, rasteriser, renders, network and evaluation."""

import contextlib
import copy
import dataclasses
import io
import itertools
import json
import math
import os
import re
import subprocess
import sys

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.ops import box_iou

from companion.data.root import CorruptDataError
from companion.files import ROOT
from companion.papers import visual_compiler as vc
from companion.papers.visual_compiler import baselines, datasets, experiment, labels
from companion.papers.visual_compiler import camera as cameras
from companion.papers.visual_compiler import coco as coco_files
from companion.papers.visual_compiler import network as networks
from companion.papers.visual_compiler import raster as rasters
from companion.papers.visual_compiler import render as rendering
from companion.papers.visual_compiler import scene as scenes
from companion.papers.visual_compiler.metrics import coco_metrics, match, to_results
from companion.runs import chapters, executor

BACKENDS = ("warp", "torch")


@pytest.fixture(scope="module")
def bank():
    return vc.BodyBank.load()


@pytest.fixture(scope="module")
def scene():
    return vc.procedural_scene()


PITCH = math.radians(16)


def level(pitch=PITCH):
    return vc.Camera.level(150.0, 3.2, pitch, 160, 120)


def brown():
    """A camera with a strong lens, as Town Centre's."""
    K = torch.tensor([[2696.36, 0, 959.5], [0, 2696.36, 539.5], [0, 0, 1]], dtype=torch.float64)
    R = level(0.3).R
    t = -R @ torch.tensor([0.0, 0.0, 7.8], dtype=torch.float64)
    return vc.Camera.from_opencv(K, R, t, (1920, 1080), (-0.6, 4.7, -0.0005, -0.008))


def tsai():
    return dataclasses.replace(level(), lens=cameras.Tsai(0.16))


# ---------------------------------------------------------------- camera


@pytest.mark.parametrize("make", [level, brown, tsai])
def test_a_ground_point_comes_back_to_its_pixel(make):
    camera = make()
    size = torch.tensor([camera.width, camera.height], dtype=torch.float64)
    uv = torch.rand(500, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64) * size
    ground = camera.backproject_ground(uv)
    seen = ground.isfinite().all(-1)
    assert seen.sum() > 300
    again, depth = camera.project(torch.cat([ground, torch.zeros(500, 1)], 1)[seen])
    assert (again - uv[seen]).abs().max() < 1e-6
    assert (depth > 0).all()


def test_projection_is_opencvs():
    camera = brown()
    points = torch.rand(50, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    points = points * torch.tensor([6.0, 10.0, 2.0]) + torch.tensor([-3.0, 25.0, 0.0])
    K = camera.K.clone()
    K[:2, 2] -= 0.5  # OpenCV puts the centre of pixel 0 at 0
    lens = camera.lens
    rotation = cv2.Rodrigues(camera.R.numpy())[0]
    dist = np.array([lens.k1, lens.k2, lens.p1, lens.p2])
    theirs = cv2.projectPoints(points.numpy(), rotation, camera.t.numpy(), K.numpy(), dist)[0]
    ours = camera.project(points)[0] - 0.5
    assert np.abs(ours.numpy() - theirs[:, 0]).max() < 1e-9


def test_undistortion_goes_on_until_it_is_exact():
    """OpenCV's default number of iterations leaves an error that ours does not."""
    camera = brown()
    uv = torch.tensor([[[20.0, 20.0]], [[1900.0, 1060.0]]], dtype=torch.float64)
    lens, K = camera.lens, camera.K.numpy()
    dist = np.array([lens.k1, lens.k2, lens.p1, lens.p2])
    xy = torch.from_numpy(cv2.undistortPoints(uv.numpy(), K, dist))
    theirs = (lens.distort(xy) * K[0, 0] + camera.K[:2, 2] - uv).abs().max()
    ours = lens.undistort((uv - camera.K[:2, 2]) / K[0, 0])
    assert (lens.distort(ours) * K[0, 0] + camera.K[:2, 2] - uv).abs().max() < 1e-9
    assert theirs > 0.01


def test_nothing_is_seen_above_the_horizon_or_behind_the_camera():
    camera = level()
    v = cameras.horizon_row(camera, math.radians(16))
    assert camera.backproject_ground(torch.tensor([80.0, v - 0.01]).double()).isnan().all()
    assert camera.backproject_ground(torch.tensor([80.0, v + 0.01]).double()).isfinite().all()
    uv, depth = camera.project(torch.tensor([0.0, -5.0, 1.0]).double())
    assert depth < 0
    assert uv.isnan().all()


def test_t_is_not_the_centre():
    """The camera's place projects nowhere; taking t for it moves the ground."""
    camera = brown()
    assert torch.allclose(camera.centre[2], torch.tensor(7.8).double())
    uv = torch.tensor([900.0, 800.0], dtype=torch.float64)
    ground = camera.backproject_ground(uv)
    ray = camera.rays(uv)
    wrong = camera.t[:2] - camera.t[2] / ray[2] * ray[:2]  # the planted fault
    back = camera.project(torch.cat([wrong, torch.zeros(1)]))[0]
    assert (camera.project(torch.cat([ground, torch.zeros(1)]))[0] - uv).abs().max() < 1e-6
    assert not (back - uv).abs().max() < 1


def test_resizing_keeps_pixel_centres_in_place():
    """The ray through the middle of a block of four pixels is that of the halved picture's pixel.

    Leaving out the half pixel moves it: the planted fault.
    """
    camera = level()
    half = camera.resize(0.5)
    assert torch.allclose(camera.rays(torch.tensor([42.0, 90.0]).double()),
                          half.rays(torch.tensor([21.0, 45.0]).double()))  # fmt: skip
    K = camera.K.numpy()
    wrong = K * [[0.5], [0.5], [1]]  # OpenCV's convention needs c -> s (c + 1/2) - 1/2
    opencv = vc.Camera.from_opencv(
        torch.tensor(wrong - [[0, 0, 0.5], [0, 0, 0.5], [0, 0, 0]]), camera.R, camera.t, (80, 60)
    )
    assert torch.allclose(opencv.K, half.K)
    missing = vc.Camera(torch.tensor(wrong) + torch.tensor([[0, 0, -0.25], [0, 0, -0.25], [0, 0, 0]]), camera.R, camera.t, 80, 60)  # fmt: skip
    pixel = torch.tensor([[21.0, 45.0]]).double()
    gap = (missing.backproject_ground(pixel) - half.backproject_ground(pixel)).norm()
    assert gap > 0.02


def ground_homography(camera):
    """Ground (X, Y, 1) to pixels (u, v, 1) of a pinhole, up to the third component."""
    return camera.K @ torch.stack([camera.R[:, 0], camera.R[:, 1], camera.t], 1)


def test_a_camera_comes_back_from_its_homography():
    camera = level()
    for sign in (1, -2.5):
        again = vc.Camera.from_homography(sign * ground_homography(camera), 160, 120)
        for name in ("K", "R", "t"):
            assert torch.allclose(getattr(again, name), getattr(camera, name), atol=1e-6)
    down = level(math.pi / 2)
    with pytest.raises(ValueError, match="straight down"):
        vc.Camera.from_homography(ground_homography(down), 160, 120)
    for pitch in (0.0, PITCH, 1.5):
        mirrored = ground_homography(level(pitch)) * torch.tensor([1.0, -1, 1]).double()
        with pytest.raises(ValueError, match="left-handed"):
            vc.Camera.from_homography(mirrored, 160, 120)


def test_a_quaternion_is_the_rotation_it_stands_for():
    half = torch.tensor([0.0, 0.0, math.sin(0.2), math.cos(0.2)])
    assert torch.allclose(
        cameras.rotation_quaternion(half), cameras.rotation_vector(torch.tensor([0, 0, 0.4]))
    )


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"R": 2 * torch.eye(3)}, "rotation"),
        ({"K": torch.zeros(3, 3)}, "focal"),
        ({"t": torch.zeros(4)}, "t = "),
        ({"width": 0}, "width"),
    ],
)
def test_a_bad_camera_is_refused(change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(level(), **change)


def test_the_height_law_is_what_projection_gives():
    camera, theta = level(), math.radians(16)
    for v in (40.0, 70.0, 100.0, 115.0):
        foot = torch.tensor([80.0, v], dtype=torch.float64)
        ground = camera.backproject_ground(foot)
        head = camera.project(torch.cat([ground, torch.tensor([1.75])]))[0]
        law = cameras.height_law(150.0, 3.2, theta, v - cameras.horizon_row(camera, theta), 1.75)
        assert abs(law - float(v - head[1])) < 1e-9
    assert (
        round(
            cameras.height_law(150.0, 3.2, theta, 100 - cameras.horizon_row(camera, theta), 1.75),
            2,
        )
        == 42.12
    )


K = torch.tensor([[500.0, 0, 320], [0, 500.0, 240], [0, 0, 1]], dtype=torch.float64)


def ahead(lens=None, skew=0.0):
    """A camera at the origin that looks along z."""
    k = K.clone()
    k[0, 1] = skew
    return vc.Camera(k, torch.eye(3), torch.zeros(3), 640, 480, lens)


@pytest.mark.parametrize("make", [level, brown, tsai])
@pytest.mark.parametrize(
    "turn",
    [lambda X: X.long(), lambda X: X.int().numpy(), lambda X: X.tolist(), lambda X: X.half()],
)
def test_points_and_pixels_of_any_dtype_are_taken_for_what_they_are(make, turn):
    """Whole numbers are exact in all of them; rounding the camera to their dtype is the fault."""
    camera = make()
    X = torch.tensor([[1.0, 30.0, 0.0], [-2.0, 40.0, 1.0]], dtype=torch.float64)
    uv, depth = camera.project(turn(X))
    right, at = camera.project(X)
    assert uv.dtype in (torch.float32, torch.float64)
    assert (uv - right).abs().max() < 1e-2
    assert (depth - at).abs().max() < 1e-4
    pixels = torch.tensor([[70.0, 90.0], [100.0, 110.0]], dtype=torch.float64)
    gap = camera.backproject_ground(turn(pixels)) - camera.backproject_ground(pixels)
    assert gap.abs().nan_to_num(0).max() < 1e-2
    assert torch.equal(gap.isnan(), camera.backproject_ground(pixels).isnan())


def test_no_points_give_no_pixels_and_wrong_shapes_are_named():
    for camera in (level(), brown(), tsai()):
        uv, depth = camera.project(torch.zeros(0, 3))
        assert (uv.shape, depth.shape) == ((0, 2), (0,))
        assert camera.backproject_ground(torch.zeros(4, 0, 2)).shape == (4, 0, 2)
    for values, name in (
        (torch.zeros(2), "X"),
        (torch.tensor(1.0), "X"),
        (torch.zeros(2, 3) > 0, "X"),
    ):
        with pytest.raises(ValueError, match=name):
            level().project(values)
    with pytest.raises(ValueError, match="uv"):
        level().rays(torch.zeros(5, 3))


@pytest.mark.parametrize("skew", [50.0, -3.0])
def test_skew_is_part_of_the_projection_and_its_inverse(skew):
    camera = ahead(skew=skew)
    X = torch.rand(40, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    X = X + torch.tensor([-0.5, -0.5, 2.0])
    by_matrix = X @ camera.K.T
    uv = camera.project(X)[0]
    assert torch.allclose(uv, by_matrix[:, :2] / by_matrix[:, 2:])
    assert torch.allclose(camera.rays(uv), X / X[:, 2:])
    assert torch.allclose(camera.resize(0.5).project(X)[0], uv / 2)


LENSES = [
    cameras.Tsai(-0.3), cameras.Tsai(0.4), cameras.Brown(k1=-0.3), cameras.Brown(k1=1.0, k2=0.5),
    cameras.Brown(k1=-0.2, k2=0.05, p1=0.002, p2=-0.003), cameras.Brown(k1=0.8, p1=0.01, p2=0.02),
    cameras.Brown(k1=-0.1, k2=-0.2, k3=0.3),
]  # fmt: skip


def folds(lens, direction, step=1e-3):
    """The ideal radius at which a lens first brings farther points nearer; by walking outwards."""
    r = np.arange(1, 4000) * step
    points = torch.tensor(r)[:, None] * direction
    if isinstance(lens, cameras.Tsai):  # walk on distorted radii, whose ideal ones are known
        ideal = r * (1 + lens.kappa * r**2)
        turns = np.flatnonzero(np.diff(ideal) < 0)
        return ideal[turns[0]] if len(turns) else math.inf
    x, y = points.unbind(1)
    r2 = x * x + y * y
    radial = 1 + lens.k1 * r2 + lens.k2 * r2**2 + lens.k3 * r2**3
    bent = torch.stack([
        x * radial + 2 * lens.p1 * x * y + lens.p2 * (r2 + 2 * x * x),
        y * radial + lens.p1 * (r2 + 2 * y * y) + 2 * lens.p2 * x * y,
    ], 1)  # fmt: skip
    turns = np.flatnonzero(np.diff((bent @ direction).numpy()) < 0)
    return r[turns[0]] if len(turns) else math.inf


def by_fixed_point(lens, xy):
    """Undistortion as OpenCV does it, a hundred times; NaN where it does not arrive."""
    ideal = xy
    for _ in range(100):
        radial, tangential = lens._terms(ideal)
        ideal = (xy - tangential) / radial
    off = (lens._bend(ideal) - xy).abs().amax(-1, keepdim=True)
    return torch.where(off < 1e-12, ideal, torch.nan)


def test_undistortion_is_the_fixed_points_and_takes_few_evaluations(monkeypatch):
    lens = brown().lens
    xy = 0.36 * (2 * torch.rand(5000, 2, generator=torch.Generator().manual_seed(0)).double() - 1)
    slow = by_fixed_point(lens, xy)
    assert slow.isfinite().all()
    assert (lens.undistort(xy) - slow).abs().max() < 1e-15
    steps = []
    stack = torch.maximum
    monkeypatch.setattr(torch, "maximum", lambda a, b: (steps.append(len(a)), stack(a, b))[1])
    lens.undistort(xy)
    assert 3 <= len(steps) <= 7
    assert sum(steps) < 6 * len(xy)
    assert lens.undistort(xy.float()).dtype == torch.float32
    assert (lens.undistort(xy.float()) - slow).abs().max() < 1e-6
    assert lens.undistort(torch.zeros(3, 0, 2)).shape == (3, 0, 2)
    assert lens.undistort(xy.view(50, 100, 2)).shape == (50, 100, 2)


@pytest.mark.parametrize("lens", LENSES, ids=str)
@pytest.mark.parametrize("angle", [0.0, 0.7, 2.5, 4.4])
def test_a_lens_shows_nothing_beyond_its_fold_and_is_inverted_before_it(lens, angle):
    direction = torch.tensor([math.cos(angle), math.sin(angle)], dtype=torch.float64)
    limit = folds(lens, direction)
    inside = (
        torch.linspace(0, 0.93 * min(limit, 1.5), 60, dtype=torch.float64)[:, None] * direction
    )
    bent = lens.distort(inside)
    assert bent.isfinite().all()
    assert (lens.undistort(bent) - inside).abs().max() < 1e-6
    if math.isfinite(limit):
        beyond = (
            torch.linspace(1.05 * limit, 20 * limit, 60, dtype=torch.float64)[:, None] * direction
        )
        assert lens.distort(beyond).isnan().all()
        camera = ahead(lens)
        far = torch.cat([beyond, torch.ones(60, 1)], 1)
        assert camera.project(far)[0].isnan().all()
        assert (camera.project(far)[1] == 1).all()
    if limit < 1.5:  # nothing comes to lie farther out than the fold does
        assert camera.rays(camera.K[:2, 2] + 500 * 1.4 * bent[-1]).isnan().any()


def test_the_reach_of_a_lens_is_where_its_jacobian_first_vanishes():
    lens = cameras.Brown(k1=-0.1, k2=0.02, p1=0.08, p2=-0.05)
    angles = torch.arange(180, dtype=torch.float64) * math.pi / 90
    r = torch.arange(1, 3000, dtype=torch.float64) / 1000
    points = (r[:, None, None] * torch.stack([angles.cos(), angles.sin()], 1)).view(-1, 2)
    points.requires_grad_()
    rows = [torch.autograd.grad(lens._bend(points)[:, k].sum(), points)[0] for k in range(2)]
    det = torch.linalg.det(torch.stack(rows, 1)).view(len(r), -1)
    first = r[(det <= 0).any(1)].min()
    assert abs(lens.reach - first) < 2e-3
    assert cameras.Brown().reach == math.inf
    assert cameras.Brown(k1=-0.3).reach == pytest.approx(1 / math.sqrt(0.9))


def test_the_largest_radius_of_a_tsai_lens_is_the_closed_forms():
    lens = cameras.Tsai(-0.3)
    largest = 2 / 3 / math.sqrt(0.9)
    near = torch.tensor([[largest * (1 - 1e-9), 0.0]], dtype=torch.float64)
    assert abs(lens.distort(near)[0, 0] - 1 / math.sqrt(0.9)) < 1e-3
    assert lens.distort(near * 1.00001).isnan().all()
    assert lens.undistort(torch.tensor([[1.06, 0.0]])).isnan().all()  # 1 / sqrt(0.9) = 1.054
    assert lens.undistort(torch.tensor([[1.05, 0.0]])).isfinite().all()


def test_a_magnifying_lens_is_inverted_far_from_the_axis():
    """Newton's first steps, and the fixed point, run away there."""
    x = torch.tensor([[1e-3, 0.0], [30.0, 40.0], [1e5, 1e4]], dtype=torch.float64)
    lens = cameras.Tsai(0.16)
    assert (lens.undistort(lens.distort(x)) / x - 1).nan_to_num(0).abs().max() < 1e-9


def test_what_the_lens_does_not_show_is_black_and_has_no_pixels(bank):
    lens = cameras.Brown(k1=-0.9)
    camera = dataclasses.replace(level(), lens=lens)
    straight = scenes.undistort(torch.ones(3, 120, 160), dataclasses.replace(camera, K=level().K * torch.tensor([[0.5], [0.5], [1.0]]) + torch.tensor([[0.0, 0, 40], [0, 0, 30], [0, 0, 0]])))  # fmt: skip
    assert straight[:, 60, 80].tolist() == [1, 1, 1]
    assert straight[:, 0, 0].tolist() == [0, 0, 0]
    # a person half outside of what the lens shows has the box of the half inside
    ideal = math.sqrt(1 / 2.7)
    scene = vc.Scene(
        torch.full((3, 120, 160), 0.5), camera, [[(-20, 3), (20, 3), (20, 40), (-20, 40)]]
    )
    spot = (ideal * 9.4, 9.0)
    out = vc.render_people(scene, bank, people_at(bank, [spot]), noon())
    assert out.boxes_xyxy.isfinite().all()
    assert out.image.isfinite().all()
    assert 0 < out.boxes_xyxy[0, 2] - out.boxes_xyxy[0, 0] < 30


def test_opencvs_own_shapes_are_as_good_as_vectors():
    vector, t, dist = [0.1, -0.2, 0.3], [0.5, 1.0, 6.0], [0.1, -0.05, 0.001, 0.002, 0.01]
    plain = vc.Camera.from_opencv(
        K, torch.tensor(vector), torch.tensor(t), (640, 480), tuple(dist)
    )
    column = lambda values: np.array(values).reshape(-1, 1)  # noqa: E731
    for d in (np.array([dist]), column(dist), torch.tensor(dist), np.array([*dist, 0, 0, 0])):
        again = vc.Camera.from_opencv(K.numpy(), column(vector), column(t), (640, 480), d)
        assert torch.allclose(again.R, plain.R)
        assert torch.allclose(again.t, plain.t)
        assert np.allclose(list(vars(again.lens).values())[:5], dist)
    assert vc.Camera.from_opencv(K, torch.eye(3), t, (640, 480), None).lens is None
    for d in ([0.1], [*dist, 0.2, 0, 0]):
        with pytest.raises(ValueError, match="dist"):
            vc.Camera.from_opencv(K, torch.eye(3), t, (640, 480), d)


def test_a_rotation_rounded_to_five_digits_is_made_exact():
    R = cameras.rotation_vector(torch.tensor([0.3, 0.4, 0.5]))
    camera = vc.Camera(K, torch.round(R, decimals=5), torch.zeros(3), 640, 480)
    assert (camera.R @ camera.R.T - torch.eye(3)).abs().max() < 1e-12
    assert (camera.R - R).abs().max() < 1e-5
    with pytest.raises(ValueError, match="rotation"):
        vc.Camera(K, torch.round(R, decimals=2), torch.zeros(3), 640, 480)


def test_a_camera_keeps_float64_where_the_device_has_none():
    camera = level().to("mps")
    assert camera.K.dtype == torch.float64
    assert camera.K.device.type == "cpu"
    assert rasters.drawing_device("mps").type == "cpu"
    assert rasters.drawing_device("cuda").type == "cuda"


@pytest.mark.parametrize(
    "change", [('dpx="0.0"', "dpx"), ('focal="nan"', "focal"), ("", "nothing")]
)
def test_a_damaged_calibration_names_its_file(change, tmp_path):
    text = (
        '<Camera><Geometry width="768" height="576" dpx="0.005" dpy="0.005"/>'
        '<Intrinsic focal="5" kappa1="0.006" cx="300" cy="280" sx="1"/>'
        '<Extrinsic tx="0" ty="0" tz="9000" rx="2" ry="0" rz="0"/></Camera>'
    )
    file = tmp_path / "View_001.xml"
    file.write_text(text)
    assert vc.Camera.from_tsai(file).width == 768
    name = change[1]
    file.write_text(
        text.replace(f'{name}="{5 if name == "focal" else 0.005}"', change[0], 1)
        if change[0]
        else "<Camera>"
    )
    with pytest.raises(CorruptDataError, match="View_001"):
        vc.Camera.from_tsai(file)


# ---------------------------------------------------------------- rasteriser


def draw(uv, depth, faces, backend, *, image=None, static=None, size=(60, 80), n=1):
    uv = torch.as_tensor(uv, dtype=torch.float64)
    depth = torch.as_tensor(depth, dtype=torch.float64)
    image = torch.zeros(len(uv), dtype=torch.long) if image is None else image
    static = torch.full(size, torch.inf) if static is None else static
    return rasters.rasterise(uv, depth, torch.as_tensor(faces), image, static, n, backend=backend)


def square(x, y, side):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side]]


def solo_mask(out, p):
    """(H, W) bool: what person p covers when alone."""
    x0, y0, x1, y1 = out.boxes[p].tolist()
    mask = torch.zeros(out.keys.shape[1:], dtype=torch.bool)
    part = out.cover[int(out.offset[p]) :][: (x1 - x0) * (y1 - y0)]
    mask[y0:y1, x0:x1] = part.view(y1 - y0, x1 - x0).bool()
    return mask


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("shift", [0.0, 0.5, 0.25, 3.14159])
def test_a_square_has_its_area_exactly(backend, shift):
    """Also with edges on the centres of samples, and in both windings."""
    for faces in ([[0, 1, 2], [0, 2, 3]], [[0, 2, 1], [0, 3, 2]]):
        out = draw([square(10 + shift, 12 + shift, 20.0)], [[2.0] * 4], faces, backend)
        assert out.visible_samples().tolist() == [400]


@pytest.mark.parametrize("backend", BACKENDS)
def test_faces_that_share_an_edge_leave_no_gap_and_count_nothing_twice(backend):
    generator = torch.Generator().manual_seed(2)
    for _ in range(20):
        a, b, c, d = (60 * torch.rand(4, 2, generator=generator, dtype=torch.float64)).unbind(0)
        both, one, other = ([[0, 1, 2], [1, 0, 3]], [[0, 1, 2]], [[1, 0, 3]])
        if _side(a, b, c) * _side(a, b, d) >= 0:
            continue  # on the same side of the edge they overlap
        points = [torch.stack([a, b, c, d]).tolist()]
        whole, left, right = (
            draw(points, [[2.0] * 4], faces, backend, size=(60, 60))
            for faces in (both, one, other)
        )
        assert not (solo_mask(left, 0) & solo_mask(right, 0)).any()
        assert torch.equal(solo_mask(left, 0) | solo_mask(right, 0), solo_mask(whole, 0))


def _side(a, b, c):
    return (b[0] - a[0]) * (c[1] - a[1]) - (b[1] - a[1]) * (c[0] - a[0])


def sphere(n=160):
    """A mesh of the unit sphere."""
    polar, around = torch.meshgrid(
        torch.linspace(0, math.pi, n), torch.linspace(0, 2 * math.pi, 2 * n), indexing="ij"
    )
    points = torch.stack([polar.sin() * around.cos(), polar.sin() * around.sin(), polar.cos()], -1)
    index = torch.arange(n * 2 * n).view(n, 2 * n)
    a, b, c, d = index[:-1, :-1], index[:-1, 1:], index[1:, 1:], index[1:, :-1]
    faces = torch.cat(
        [torch.stack([a, b, c], -1).view(-1, 3), torch.stack([a, c, d], -1).view(-1, 3)]
    )
    return points.reshape(-1, 3).double(), faces


def test_a_sphere_has_the_area_and_the_nearest_depth_of_the_closed_form():
    points, faces = sphere()
    f, D = 400.0, 5.0
    z = points[:, 2] + D
    uv = points[:, :2] / z[:, None] * f + 100
    out = draw(uv[None], z[None], faces, "warp", size=(200, 200))
    area = math.pi * f**2 / (D**2 - 1)
    assert abs(float(out.visible_samples()) / area - 1) < 0.003
    assert abs(float(out.depth.min()) - (D - 1)) < 1e-3


@pytest.mark.parametrize("backend", BACKENDS)
def test_crossing_planes_change_hands_at_the_crossing_column(backend):
    """Depth must be perspective: interpolated linearly, the crossing would lie elsewhere."""
    f, width = 100.0, 80
    ends = torch.tensor([-0.78, 0.47], dtype=torch.float64)  # metres to the left and right

    def plane(near, far):
        x = torch.tensor([ends[0], ends[1], ends[1], ends[0]])
        z = torch.tensor([near, far, far, near], dtype=torch.float64)
        y = torch.tensor([-0.5, -0.5, 0.5, 0.5], dtype=torch.float64)
        return torch.stack([x, y], 1) / z[:, None] * f + torch.tensor([40.0, 30.0]), z

    (uv0, z0), (uv1, z1) = plane(2.0, 4.0), plane(3.0, 2.5)
    out = draw(torch.stack([uv0, uv1]), torch.stack([z0, z1]), [[0, 1, 2], [0, 2, 3]], backend)
    # both have z = 2.8 at two fifths of the way, at x = -0.28 m: column 40 - 10
    row = out.person[0, 30]
    assert row[25:30].tolist() == [0] * 5
    assert row[30:35].tolist() == [1] * 5
    # the planted fault: z linear in the picture puts the crossing elsewhere
    u = torch.arange(width) + 0.5

    def linear(uv, z):
        return z[0] + (z[1] - z[0]) * (u - uv[0, 0]) / (uv[1, 0] - uv[0, 0])

    wrong = linear(uv0, z0) > linear(uv1, z1)
    assert wrong[25:35].tolist() != [False] * 5 + [True] * 5


@pytest.mark.parametrize("seed", range(6))
def test_warp_draws_what_torch_draws(bank, seed):
    """Bit for bit: with fused multiply-add a few depths in a hundred differ in their last bits."""
    generator = torch.Generator().manual_seed(seed)
    n = 40
    mesh = bank.vertices[torch.randint(len(bank), (n,), generator=generator)]
    z = 3 + 5 * torch.rand(n, 1, generator=generator) + mesh[..., 1]
    at = torch.rand(n, 1, 2, generator=generator) * torch.tensor([160.0, 120.0])
    uv = torch.stack([mesh[..., 0], -mesh[..., 2]], -1) * 150 / z[..., None] + at
    image = torch.arange(n) % 8
    static = torch.full((120, 160), torch.inf)
    static[:, 40:70] = 5.0
    ours, theirs = (
        draw(uv, z, bank.faces, name, image=image, static=static, n=8) for name in BACKENDS
    )
    assert torch.equal(ours.keys, theirs.keys)
    assert torch.equal(ours.cover, theirs.cover)
    assert torch.equal(ours.solo_samples(), theirs.solo_samples())
    assert (ours.person >= 0).any()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("size", [(7, 13), (13, 7)])
def test_what_reaches_over_the_edges_of_a_picture_is_drawn_up_to_them(backend, size):
    height, width = size
    uv = [
        [[-3, -2], [30, -2], [30, 29], [-3, 29]],  # over all edges
        [[-3, -2], [4, -2], [4, 29], [-3, 29]],  # its first four columns
        [[2, 5], [30, 5], [30, 29], [2, 29]],  # its last corner
        [[40, 2], [50, 2], [50, 5], [40, 5]],  # beside it
    ]
    faces = [[0, 1, 2], [0, 2, 3]]
    image = torch.arange(4)
    out = draw(uv, [[2.0] * 4] * 4, faces, backend, image=image, size=size, n=4)
    x, y = torch.arange(width), torch.arange(height)[:, None]
    nowhere = torch.zeros(size, dtype=torch.bool)
    drawn = [~nowhere, (x < 4) & (y >= 0), (x >= 2) & (y >= 5), nowhere]
    for number, expected in enumerate(drawn):
        assert torch.equal(out.person[number], torch.where(expected, number, -1))
        assert torch.equal(solo_mask(out, number), expected)


def test_torch_draws_the_same_in_small_portions(bank, monkeypatch):
    mesh = bank.vertices[:3]
    z = 4 + mesh[..., 1]
    uv = torch.stack([mesh[..., 0], -mesh[..., 2]], -1) * 150 / z[..., None] + 40
    whole = draw(uv, z, bank.faces, "torch")
    monkeypatch.setattr(rasters, "CHUNK", 500)
    parts = draw(uv, z, bank.faces, "torch")
    assert torch.equal(whole.keys, parts.keys)
    assert torch.equal(whole.cover, parts.cover)
    assert (whole.person >= 0).sum() > 300


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_with_one_corner_too_near_is_left_out(backend):
    out = draw([square(10, 15, 20.0)], [[2.0, 1e-6, 2.0, 2.0]], [[0, 1, 2], [0, 2, 3]], backend)
    alone = draw([square(10, 15, 20.0)], [[2.0] * 4], [[0, 2, 3]], backend)
    assert out.visible_samples().tolist() == alone.visible_samples().tolist()


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_corner_without_a_pixel_takes_its_faces_with_it(backend):
    uv = [square(10, 10, 20.0)]
    uv[0][2] = [math.nan, math.nan]
    out, alone = (
        draw(uv, [[2.0] * 4], faces, backend) for faces in ([[0, 1, 2], [0, 1, 3]], [[0, 1, 3]])
    )
    assert out.visible_samples().tolist() == alone.visible_samples().tolist()
    assert alone.visible_samples() > 180


def test_torch_draws_where_warp_is_not_installed(bank, monkeypatch):
    scene = bare()
    pictures = [
        vc.render_people(scene, bank, people_at(bank, [(0.0, 8.0), (0.3, 9.0)]), noon(), backend=b)
        for b in ("warp", "torch")
    ]
    monkeypatch.setitem(sys.modules, "warp", None)
    assert rasters.pick_backend() == "torch"
    pictures.append(
        vc.render_people(scene, bank, people_at(bank, [(0.0, 8.0), (0.3, 9.0)]), noon())
    )
    for field in dataclasses.fields(vc.Renders):
        one, two, three = (getattr(out, field.name) for out in pictures)
        assert torch.equal(one, two)
        assert torch.equal(one, three)
    with pytest.raises(rasters.KernelError, match="not installed"):
        rasters.pick_backend("warp")
    assert rasters.drawing_code() is rasters._draw_with_torch
    with pytest.raises(ValueError, match="backend"):
        rasters.pick_backend("gl")


def test_a_face_too_near_is_left_out():
    for backend in BACKENDS:
        out = draw(
            [square(10, 10, 20.0)], [[2.0, 2.0, 0.05, 2.0]], [[0, 1, 2], [0, 2, 3]], backend
        )
        assert out.visible_samples().tolist() == [0]


@pytest.mark.parametrize("backend", BACKENDS)
def test_a_face_is_drawn_from_a_tenth_of_a_metre_on(backend):
    for depth, samples in ((0.11, 400), (0.09, 0)):
        out = draw([square(10, 10, 20.0)], [[depth] * 4], [[0, 1, 2], [0, 2, 3]], backend)
        assert out.visible_samples().tolist() == [samples]


def test_without_a_kernel_compiler_the_error_names_the_way_out(monkeypatch):
    monkeypatch.setitem(sys.modules, "companion.papers.visual_compiler.kernels", None)
    monkeypatch.delattr(vc, "kernels", raising=False)
    with pytest.raises(rasters.KernelError, match="backend='torch'"):
        draw([square(10, 10, 20.0)], [[2.0] * 4], [[0, 1, 2], [0, 2, 3]], "warp")


# ---------------------------------------------------------------- renders


def people_at(bank, spots, *, yaw=0.0, image=None, stature=1.72, body=0):
    n = len(spots)
    image = torch.zeros(n, dtype=torch.long) if image is None else torch.tensor(image)
    return vc.Placements(
        image,
        torch.full((n,), body),
        torch.tensor(spots, dtype=torch.float32),
        torch.full((n,), float(yaw)),
        torch.full((n,), stature),
        torch.rand(n, 7, 3, generator=torch.Generator().manual_seed(3)),
        torch.zeros(n),
        int(image.max()) + 1,
    )


def noon(n=1):
    return vc.Light(
        torch.tensor([[0.0, 0.0, 1.0]]).expand(n, 3), torch.full((n,), 0.5), torch.full((n,), 0.3),
        torch.ones(n, 3), torch.zeros(n), torch.ones(n),
    )  # fmt: skip


def bare(walls=()):
    camera = level()
    return vc.Scene(torch.full((3, 120, 160), 0.5), camera, [[(-20, 3), (20, 3), (20, 40), (-20, 40)]], walls)  # fmt: skip


def test_a_person_is_as_tall_as_the_height_law_says(bank):
    """Without tilt between feet and head the mesh spans the law's height, wherever it stands."""
    scene, theta = bare(), math.radians(16)
    for y in (6.0, 12.0, 25.0):
        out = vc.render_people(scene, bank, people_at(bank, [(0.0, y)], stature=1.75), noon())
        foot, head = out.foot_head[0].double()
        law = cameras.height_law(
            150.0, 3.2, theta, float(foot[1]) - cameras.horizon_row(scene.camera, theta), 1.75
        )
        assert abs(float(foot[1] - head[1]) - law) < 1e-3
        top, bottom = out.boxes_xyxy[0, 1], out.boxes_xyxy[0, 3]
        assert abs(float(bottom - top) / law - 1) < 0.12  # feet and head are not above each other


@pytest.mark.parametrize("supersample", [1, 2])
def test_who_stands_behind_shows_what_the_front_leaves(bank, supersample):
    scene = bare()
    spots = [(0.0, 8.0), (0.25, 10.0)]
    both = vc.render_people(scene, bank, people_at(bank, spots), noon(), supersample=supersample)
    alone = rendering.pose_people(bank, people_at(bank, spots))[0]
    uv, depth = scene.camera.project(alone)
    static = scene.depth(supersample)
    solo = [
        draw(uv[p : p + 1] * supersample, depth[p : p + 1], bank.faces, "warp", static=static)
        for p in range(2)
    ]
    overlap = (solo_mask(solo[0], 0) & solo_mask(solo[1], 0)).sum()
    assert overlap > 20
    assert both.visible_samples[0] == solo[0].solo_samples()[0]
    assert both.visible_samples[1] == solo[1].solo_samples()[0] - overlap


def test_a_wall_in_front_hides_everything_and_one_behind_nothing(bank):
    person = people_at(bank, [(0.0, 10.0)])
    for y, expected in ((7.0, 0.0), (13.0, 1.0)):
        out = vc.render_people(bare((vc.Box(0, y, (20, 0.2, 6)),)), bank, person, noon())
        assert out.visible_fraction.tolist() == [expected]
        shown = (out.keypoints[0, :, 2] == 2).sum()
        assert shown >= 14 if expected else shown == 0  # a wrist may miss its pixel's majority
        assert (out.instance > 0).any() == bool(expected)


def test_a_keypoint_off_the_picture_is_not_labelled(bank):
    out = vc.render_people(bare(), bank, people_at(bank, [(-3.1, 6.0)]), noon())
    state, column = out.keypoints[0, :, 2], out.keypoints[0, :, 0]
    assert ((state == 0) == (column < 0)).all()
    assert 0 < (state == 0).sum() < 17


def test_the_order_of_people_changes_their_numbers_only(bank):
    scene = bare()
    people = people_at(bank, [(0.0, 8.0), (0.3, 9.5), (-1.0, 12.0), (2.0, 7.0)])
    order = torch.tensor([2, 0, 3, 1])
    turned = dataclasses.replace(
        people, **{k: v[order] for k, v in vars(people).items() if isinstance(v, torch.Tensor)}
    )
    a, b = (vc.render_people(scene, bank, p, noon()) for p in (people, turned))
    assert torch.equal(a.image, b.image)
    renumber = torch.cat([torch.zeros(1, dtype=torch.long), order + 1])
    assert torch.equal(renumber[b.instance.long()], a.instance.long())
    assert torch.equal(a.keypoints[order], b.keypoints)


def test_people_face_where_their_yaw_says(bank):
    """The nose is ahead of the ears along (sin yaw, -cos yaw); the wrong sign is the planted fault."""
    for yaw in (0.0, 0.7, math.pi / 2, -2.0):
        _, joints = rendering.pose_people(bank, people_at(bank, [(1.0, 9.0)], yaw=yaw))
        ahead = (joints[0, 0] - joints[0, 3:5].mean(0))[:2]
        along = torch.tensor([math.sin(yaw), -math.cos(yaw)])
        assert torch.nn.functional.cosine_similarity(ahead, along, dim=0) > 0.97
        mirrored = torch.tensor([math.sin(-yaw), -math.cos(-yaw)])
        if abs(math.sin(yaw)) > 0.3:
            assert torch.nn.functional.cosine_similarity(ahead, mirrored, dim=0) < 0.9


def test_left_is_left(bank):
    """Seen from behind (facing away, +y) the left shoulder is on the left of the picture."""
    out = vc.render_people(bare(), bank, people_at(bank, [(0.0, 9.0)], yaw=math.pi), noon())
    left, right = out.keypoints[0, 5, 0], out.keypoints[0, 6, 0]
    assert left < right


def test_a_shadow_falls_away_from_the_sun_on_visible_ground_only(bank):
    scene = bare((vc.Box(0.0, 20.0, (40, 0.2, 6)),))
    light = dataclasses.replace(noon(), sun=torch.tensor([[-0.6, 0.0, 0.8]]))
    out = vc.render_people(scene, bank, people_at(bank, [(0.0, 9.0)]), light)
    darker = (out.image[0] < 0.5 - 1e-3).all(0) & (out.instance[0] == 0)
    assert darker.any()
    assert not (darker & ~scene.ground()).any()
    rows, columns = darker.nonzero().T
    points = scene.camera.backproject_ground(torch.stack([columns, rows], 1) + 0.5)
    assert points[:, 0].max() > 1.0  # 1.72 m · 0.6 / 0.8 to the other side of the sun
    assert points[:, 0].max() < 1.72 * 0.6 / 0.8 + 0.3
    assert points[:, 0].min() > -0.6


def test_one_person_is_rendered_in_one_call(bank):
    scene = bare()
    out = vc.render_person(scene, (0.0, 9.0), yaw=1.0, stature=1.8, body=3)
    person = people_at(bank, [(0.0, 9.0)], yaw=1.0, stature=1.8, body=3)
    generator = torch.Generator().manual_seed(0)
    person = dataclasses.replace(
        person, padding=torch.tensor([0.5]),
        colours=rendering.draw_colours(1, rendering.CLOTHES, generator),
    )  # fmt: skip
    light = vc.draw_light(scene, 1, randomise=False, generator=generator)
    twin = vc.render_people(scene, bank, person, light)
    for field in dataclasses.fields(vc.Renders):
        assert torch.equal(getattr(out, field.name), getattr(twin, field.name)), field.name
    assert out.stature.tolist() == pytest.approx([1.8])
    assert torch.equal(
        out.image, vc.render_person(scene, (0.0, 9.0), yaw=1.0, stature=1.8, body=3).image
    )
    dark = vc.render_person(
        scene, (0.0, 9.0), light=dataclasses.replace(noon(), level=torch.zeros(1))
    )
    assert (
        dark.image[0][:, out.instance[0] > 0].mean()
        < 0.7 * out.image[0][:, out.instance[0] > 0].mean()
    )
    for given, message in (
        ({"position": (0.0, -5.0)}, "out of view"),
        (
            {"body": len(bank)},
            f"placements.body = {len(bank)} to {len(bank)}: expected 0 to {len(bank) - 1}",
        ),
        ({"body": -1}, "placements.body = -1"),
        ({"supersample": 0}, "supersample = 0"),
        ({"stature": -1.7}, "stature = -1.7: expected a finite number above 0"),
        ({"stature": math.nan}, "stature = nan"),
    ):
        with pytest.raises(ValueError, match=message):
            vc.render_person(scene, **({"position": (0.0, 9.0)} | given))


def test_placements_of_any_float_are_the_same_people(bank):
    people = people_at(bank, [(0.0, 8.0), (0.5, 9.5)])
    wide = dataclasses.replace(
        people,
        **{k: getattr(people, k).double() for k in ("position", "yaw", "stature", "padding")},
    )
    for one, other in zip(vc.render_people(bare(), bank, people, noon()).__dict__.values(),
                          vc.render_people(bare(), bank, wide, noon()).__dict__.values(), strict=True):  # fmt: skip
        assert torch.allclose(one.double(), other.double(), atol=1e-5)
    with pytest.raises(ValueError, match=r"yaw: shape \(1,\), expected \(2,\)"):
        dataclasses.replace(people, yaw=torch.zeros(1))
    with pytest.raises(ValueError, match=r"placements\.stature = -1\.7: expected metres above 0"):
        vc.render_people(
            bare(), bank, dataclasses.replace(people, stature=torch.tensor([1.7, -1.7])), noon()
        )
    with pytest.raises(ValueError, match=r"placements\.image = 0 to 3: expected 0 to 0"):
        vc.render_people(
            bare(), bank, dataclasses.replace(people, image=torch.tensor([0, 3])), noon()
        )


def test_people_out_of_view_are_refused(bank):
    for spot in ((0.0, -5.0), (60.0, 9.0)):
        with pytest.raises(ValueError, match="out of view"):
            vc.render_people(bare(), bank, people_at(bank, [spot]), noon())


def test_drawn_people_stand_on_walkable_ground_and_apart(scene, bank):
    people = vc.draw_placements(
        scene, bank, 200, max_people=6, generator=torch.Generator().manual_seed(0)
    )
    uv, _ = scene.camera.project(torch.cat([people.position, torch.zeros(len(people), 1)], 1))
    column, row = uv.long().unbind(1)
    assert scene.walkable_mask[row.clamp(0, 119), column.clamp(0, 159)].double().mean() > 0.98
    for b in range(200):
        spots = people.position[people.image == b]
        for one, other in itertools.combinations(spots, 2):
            assert (one - other).norm() > 0.5
    assert people.image.unique().numel() == 200
    # uniform in the picture, not on the ground: the upper and lower half of the walkable pixels
    rows = scene.walkable_mask.nonzero()[:, 0].double()
    assert abs((row.double() < rows.median()).double().mean() - 0.5) < 0.06


def test_people_are_drawn_in_all_headings_and_in_the_statures_of_people(scene, bank):
    people = vc.draw_placements(scene, bank, 600, generator=torch.Generator().manual_seed(1))
    quarters = torch.bincount((people.yaw / (math.pi / 2)).long(), minlength=4).double()
    assert len(quarters) == 4
    assert (quarters / len(people) - 0.25).abs().max() < 0.04
    assert abs(people.stature.mean() - 1.72) < 0.01
    assert abs(people.stature.std() - 0.09) < 0.01
    assert people.padding.min() >= 0
    assert people.padding.max() <= 1


def test_the_same_seed_draws_the_same_picture(scene, bank):
    def once():
        generator = torch.Generator().manual_seed(5)
        people = vc.draw_placements(scene, bank, 4, generator=generator)
        light = vc.draw_light(scene, 4, generator=generator)
        return vc.render_people(scene, bank, people, light, generator=generator)

    assert torch.equal(once().image, once().image)


def test_the_light_of_a_scene_is_read_off_its_ground(scene):
    fitted = rendering.fit_light(scene)
    assert abs(fitted["ambient"] - 0.55) < 0.08  # what the scene was painted with
    dark = dataclasses.replace(scene, background=scene.background * 0.6)
    assert rendering.fit_light(dark)["level"] < 0.7 * fitted["level"]


# ---------------------------------------------------------------- scene


@pytest.mark.parametrize("n", [1, 2, 3, 7, 12, 24])
def test_region_masks_add_up_to_one(scene, n):
    masks = scene.regions(n)
    assert masks.shape == (n, 30, 40)
    assert (masks.sum(0) - 1).abs().max() < 1e-6
    assert masks.min() >= 0
    assert (masks.flatten(1).max(1).values > 0.9).all()


def test_the_pages_example_of_a_scene_loads_and_shrinks(tmp_path):
    cells = chapters.read(chapters.find("visual_compiler"))["cells"]
    (page,) = (c["source"] for c in cells if c["source"].startswith("## On your own work"))
    size = tuple(map(int, re.search(r"background of (\d+)×(\d+) pixels", page).groups()))
    Image.new("RGB", size).save(tmp_path / "background.png")
    (tmp_path / "scene.json").write_text(re.search(r"```json\n(.*?)```", page, re.S)[1])
    scene = vc.load_scene(tmp_path)
    assert scene.camera.centre[2] > 2  # metres above the ground
    vc.save_scene(scene.resize(1 / 4), tmp_path / "smaller")
    assert vc.load_scene(tmp_path / "smaller").camera.width == size[0] // 4


def test_nobody_stands_within_0_3_metres_of_a_box():
    scene = bare((vc.Box(1.0, 12.0, (2.0, 1.0, 1.0), math.pi / 2),))  # 1 m wide, 2 m deep
    x, y = scene.camera.backproject_ground(scene.camera.pixel_grid()).unbind(-1)
    gap = torch.maximum((x - 1).abs() - 0.5, (y - 12).abs() - 1)
    near, far = (gap > 0) & (gap < 0.299), (gap > 0.301) & (gap < 1)
    assert min(int(near.sum()), int(far.sum())) > 20
    assert not scene.walkable_mask[gap < 0.299].any()
    assert scene.walkable_mask[far].all()


def test_a_scene_survives_the_disk(scene, tmp_path):
    scenes.save_scene(scene, tmp_path)
    again = vc.load_scene(tmp_path)
    assert (again.background - scene.background).abs().max() < 1 / 255
    assert torch.equal(again.depth(), scene.depth())
    assert torch.equal(again.walkable_mask, scene.walkable_mask)
    assert again.sun == scene.sun


def test_a_scene_of_numpys_numbers_survives_the_disk_whole(scene, tmp_path):
    walkable = [np.array([[-6, 4], [9, 4], [14, 32], [-6, 32]])]
    boxes = (vc.Box(np.float32(1), np.int64(9), tuple(np.float32([1, 2, 1.5]))),)
    occluders = (vc.Occluder(np.array([[10, 20], [30, 20], [30, 90]]), np.array([20, 90])),)
    given = dataclasses.replace(scene, walkable=walkable, boxes=boxes, occluders=occluders)
    scenes.save_scene(given, tmp_path / "scene")
    again = vc.load_scene(tmp_path / "scene")
    assert torch.equal(again.walkable_mask, given.walkable_mask)
    assert torch.equal(again.depth(), given.depth())
    with pytest.raises((TypeError, AttributeError)):
        scenes.save_scene(dataclasses.replace(scene, name={1, 2}), tmp_path / "none")
    assert not (tmp_path / "none").exists()


def test_a_scene_with_a_lens_is_tested_on_pictures_as_they_were_taken(scene, bank, tmp_path):
    """Scene, pictures and boxes are in one frame: that of the camera with its lens."""
    lens = cameras.Brown(k1=-0.3, k2=0.1)
    scene = dataclasses.replace(
        scene, boxes=(), camera=dataclasses.replace(scene.camera, lens=lens)
    )
    scenes.save_scene(scene, tmp_path / "scene")
    again = vc.load_scene(tmp_path / "scene")
    assert again.camera.lens == lens
    assert torch.allclose(again.camera.K, scene.camera.K, rtol=0, atol=1e-9)
    assert (again.background - scene.background).abs().max() < 1 / 255

    film, drawn = (
        vc.render_scene(place, bank, 4, generator=torch.Generator().manual_seed(0))
        for place in (scene, again)
    )
    vc.write_coco(film, vc.to_coco(film), tmp_path / "film")
    case = experiment.make_case(
        "folder", scene_path=str(tmp_path / "scene"), video_path=str(tmp_path / "film/images"),
        gt_path=str(tmp_path / "film/annotations.json"),
    )  # fmt: skip
    assert case.scene.camera.lens == lens
    assert vc.evaluate(perfect(drawn, vc.to_coco(drawn)), case.truth)["AP"] > 0.999

    with pytest.raises(ValueError, match="lens = Tsai"):
        scenes.save_scene(dataclasses.replace(scene, camera=tsai()), tmp_path / "tsai")
    assert not (tmp_path / "tsai").exists()


def test_an_upright_occluder_hides_who_is_farther_than_its_foot(bank):
    scene = bare()
    foot = scene.camera.project(torch.tensor([0.0, 9.0, 0.0]).double())[0]
    polygon = ((60.0, 10.0), (100.0, 10.0), (100.0, float(foot[1])), (60.0, float(foot[1])))
    scene = dataclasses.replace(scene, occluders=(vc.Occluder(polygon, tuple(foot.tolist())),))
    near, far = (
        vc.render_people(scene, bank, people_at(bank, [(0.0, y)]), noon()).visible_fraction
        for y in (8.0, 10.5)
    )
    assert near == 1
    assert far < 0.2


POST = vc.Occluder(((60, 20), (100, 20), (100, 110), (60, 110)), (80, 110))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"background": torch.zeros(3, 60, 80)}, "does not fit the camera"),
        ({"walkable": [[(-1, -9), (1, -9), (0, -5)]]}, "behind the camera"),
        ({"walkable": [[(0, 5), (1, 5)]]}, "no polygon"),
        ({"walkable": []}, "walkable"),
        ({"walkable": [[(500, 5), (501, 5), (500, 6)]]}, "none of it is seen"),
        ({"min_height": 500.0}, "none of it is seen"),
        ({"sun": (0.0, 0.0, 0.0)}, r"sun = \(0.0, 0.0, 0.0\)"),
        ({"sun": (0.5, math.nan, 0.7)}, r"sun = \(0.5, nan, 0.7\)"),
        ({"sun": (0.6, 0.8)}, r"sun = \(0.6, 0.8\)"),
        ({"sun": (0.6, 0.0, -0.8)}, r"sun = \(0.6, 0.0, -0.8\): expected a z above 0"),
        ({"sun": (0.6, 0.8, 0.0)}, r"sun = \(0.6, 0.8, 0.0\): expected a z above 0"),
        (
            {"walkable": [[(-6, 4), (9, math.nan), (0, 30)]]},
            "walkable: .* expected finite corners",
        ),
        (
            {"walkable": [[(-6, 4), (9, 4), (math.inf, 30)]]},
            "walkable: .* expected finite corners",
        ),
        ({"occluders": (POST, dataclasses.replace(POST, foot=(80, 10)))}, r"occluders\[1\]"),
    ],
)
def test_a_scene_that_cannot_be_is_refused(scene, change, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(scene, **change)


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ((0.0, 9.0, (1.0, -1.0, 2.0)), r"size = \(1.0, -1.0, 2.0\): expected length, width and"),
        ((0.0, 9.0, (1.0, math.nan, 2.0)), "size = "),
        ((0.0, 9.0, (1.0, 1.0, 0.0)), "size = "),
        ((0.0, 9.0, (1.0, 1.0)), "size = "),
        ((0.0, math.inf, (1.0, 1.0, 1.0)), "y = inf: expected a finite number"),
        ((0.0, 9.0, (1.0, 1.0, 1.0), math.nan), "yaw = nan"),
    ],
)
def test_a_box_that_cannot_be_is_refused(given, message):
    with pytest.raises(ValueError, match=message):
        vc.Box(*given)


@pytest.mark.parametrize("z", [-0.8, 0.0, math.nan])
def test_light_comes_from_above_the_ground(z):
    with pytest.raises(ValueError, match=r"sun = .*: expected directions above the ground"):
        dataclasses.replace(noon(2), sun=torch.tensor([[0.0, 0.0, 1.0], [0.6, 0.0, z]]))
    with pytest.raises(ValueError, match=r"sun: shape \(3,\), expected \(B, 3\)"):
        dataclasses.replace(noon(), sun=torch.tensor([0.0, 0.0, 1.0]))


@pytest.mark.parametrize("length", [1e-3, 1.0, 1.001, 7.0])
def test_the_length_of_the_sun_does_not_matter(scene, length):
    one = dataclasses.replace(scene, sun=(0.6 * length, 0.0, 0.8 * length))
    assert one.sun == pytest.approx((0.6, 0.0, 0.8))
    assert dataclasses.replace(one).sun is one.sun  # a unit vector stays as it is


@pytest.mark.parametrize("yaw", [0.5, -1.1])
def test_what_a_turned_box_takes_of_the_ground_turns_with_it(yaw):
    scene = bare((vc.Box(1.0, 12.0, (4.0, 1.0, 1.0), yaw),))
    x, y = scene.camera.backproject_ground(scene.camera.pixel_grid()).unbind(-1)
    along = (x - 1) * math.cos(yaw) + (y - 12) * math.sin(yaw)
    across = (y - 12) * math.cos(yaw) - (x - 1) * math.sin(yaw)
    near = (along.abs() < 2.299) & (across.abs() < 0.799)
    beside = ((along.abs() > 2.301) | (across.abs() > 0.801)) & (along.hypot(across) < 3)
    assert min(int(near.sum()), int(beside.sum())) > 20
    assert not scene.walkable_mask[near].any()
    assert scene.walkable_mask[beside].all()


def test_walkable_is_what_any_polygon_holds(scene):
    left, right = [(-6, 4), (3, 4), (3, 32), (-6, 32)], [(-1, 4), (9, 4), (9, 32), (-1, 32)]
    one, other, both = (
        dataclasses.replace(scene, walkable=given).walkable_mask
        for given in ([left], [right], [left, right])
    )
    assert (one & other).any()
    assert torch.equal(both, one | other)


def test_walkable_ground_may_reach_behind_the_camera(scene):
    wide = dataclasses.replace(scene, walkable=[[(-1, -9), (20, 30), (-20, 30)]])
    assert wide.walkable_mask[60:].any()


def test_a_polygon_holds_its_inside_at_the_heights_of_its_corners_too():
    diamond = [(2.0, 0.0), (0.0, 2.0), (-2.0, 0.0), (0.0, -2.0)]
    x, y = torch.meshgrid(torch.arange(-3.0, 4), torch.arange(-3.0, 4), indexing="ij")
    inside = scenes.inside_polygon(torch.stack([x, y], -1), diamond)
    away = x.abs() + y.abs() != 2  # a point of the edge may be of either side
    assert torch.equal(inside[away], (x.abs() + y.abs() < 2)[away])


def test_a_ray_meets_no_box_behind_it():
    ray = torch.tensor([[0.0, 1.0, 0.0], [0.0, -1.0, 0.0]], dtype=torch.float64)
    at, _ = scenes.hit_box(torch.tensor([0.0, 0.0, 1.0]).double(), ray, vc.Box(0, 9, (2, 2, 2)))
    assert at.tolist() == [8, math.inf]


def test_ground_is_seen_up_to_the_wall_and_below_the_horizon():
    scene = bare((vc.Box(0.0, 12.0, (200.0, 1.0, 6.0)),))
    y = scene.camera.backproject_ground(scene.camera.pixel_grid())[..., 1]
    assert torch.equal(scene.ground(), y < 11.5)  # NaN above the horizon


def test_of_a_wall_and_an_outline_the_nearer_hides():
    camera = level()
    foot = tuple(camera.project(torch.tensor([0.0, 12.0, 0.0]).double())[0].tolist())
    outline = vc.Occluder(((60, 10), (100, 10), (100, 90), (60, 90)), foot)
    wall = vc.Box(0.0, 8.0, (30.0, 0.4, 2.0))
    both = dataclasses.replace(bare((wall,)), occluders=(outline,)).depth()
    alone = dataclasses.replace(bare(), occluders=(outline,)).depth()
    assert torch.equal(both, torch.minimum(alone, bare((wall,)).depth()))


def test_a_resized_scene_takes_outlines_picture_and_least_height_along(scene):
    outline = vc.Occluder(((60.0, 20.0), (100.0, 20.0), (100.0, 110.0)), (80.0, 110.0))
    scene = dataclasses.replace(scene, occluders=(outline,), min_height=8.0)
    small = scene.resize(0.25)
    (there,) = small.occluders
    assert there == vc.Occluder(((15.0, 5.0), (25.0, 5.0), (25.0, 27.5)), (20.0, 27.5))
    assert small.min_height == 2
    blocks = torch.nn.functional.avg_pool2d(scene.background, 4)
    assert torch.allclose(small.background, blocks, atol=1e-6)
    # 53 x 40 pixels: columns and rows shrink by what was rounded
    ((_, corner, _),) = (o.polygon for o in scene.resize(0.33).occluders)
    assert corner == pytest.approx((100 * 53 / 160, 20 * 40 / 120))


@pytest.mark.parametrize("stature", [0.5, 1.75, 2.0])
def test_the_height_at_a_pixel_is_of_the_stature_that_is_asked_for(scene, stature):
    feet = torch.tensor([[70.0, 100.0], [20.0, 50.0]]).double()
    ground = scene.camera.backproject_ground(feet)
    head = scene.camera.project(torch.cat([ground, torch.full((2, 1), stature)], 1))[0]
    assert torch.equal(scene.person_height(feet, stature), feet[:, 1] - head[:, 1])


def test_regions_share_the_walkable_pixels_evenly_and_fade_over_what_is_asked_for(scene):
    cells = torch.nn.functional.avg_pool2d(scene.walkable_mask[None].float(), 4)
    for n in (2, 3):
        shares = (scene.regions(n, overlap=0.0) * cells).sum((1, 2)) / cells.sum()
        assert (shares - 1 / n).abs().max() < 0.02
    narrow, wide = (scene.regions(2, overlap=o)[0, :, 0] for o in (0.0, 1.0))
    assert ((narrow > 0) & (narrow < 1)).sum() <= 1
    assert ((wide > 0) & (wide < 1)).sum() >= 5


def test_six_regions_are_three_bands_of_two_columns(scene):
    masks = scene.regions(6, overlap=0.0)
    for first in (0, 2, 4):
        band = masks[first : first + 2].sum(0)
        assert torch.equal(band, band[:, :1].expand_as(band))
    assert (masks[0::2, :, 0].sum(0) == 1).all()
    assert (masks[1::2, :, -1].sum(0) == 1).all()
    left = masks[0::2].sum(0)
    assert ((left > 0) & (left < 1)).sum(1).max() <= 1  # columns


def test_every_number_of_a_lens_survives_the_disk(scene, tmp_path):
    lens = cameras.Brown(k1=-0.2, k2=0.04, p1=0.001, p2=-0.002, k3=0.003)
    camera = dataclasses.replace(scene.camera, lens=lens)
    scenes.save_scene(dataclasses.replace(scene, camera=camera), tmp_path)
    assert vc.load_scene(tmp_path).camera.lens == lens


def test_a_picture_is_written_by_the_nearest_byte_and_bytes_are_kept(scene, tmp_path):
    drawn = torch.rand(3, 120, 160, generator=torch.Generator().manual_seed(0))
    scenes.save_scene(dataclasses.replace(scene, background=drawn), tmp_path)
    again = vc.load_scene(tmp_path)
    assert (again.background - drawn).abs().max() < 0.501 / 255
    scenes.save_scene(again, tmp_path)
    assert torch.equal(vc.load_scene(tmp_path).background, again.background)


@pytest.mark.parametrize("mode", ["L", "RGBA"])
def test_a_background_may_be_grey_or_have_a_fourth_channel(scene, mode, tmp_path):
    scenes.save_scene(scene, tmp_path / "yard")
    Image.new(mode, (160, 120), 255 if mode == "L" else (255, 255, 255, 9)).save(
        tmp_path / "yard" / "background.png"
    )
    layout = json.loads((tmp_path / "yard" / "scene.json").read_text())
    del layout["name"]
    (tmp_path / "yard" / "scene.json").write_text(json.dumps(layout))
    again = vc.load_scene(tmp_path / "yard")
    assert torch.equal(again.background, torch.ones(3, 120, 160))
    assert again.name == "yard"


def test_a_straightened_picture_shows_at_each_pixel_what_the_lens_had_put_elsewhere():
    camera = dataclasses.replace(level(), lens=cameras.Brown(k1=-0.2, p1=0.01))
    columns, rows = camera.pixel_grid().unbind(-1)
    ramps = torch.stack([columns, rows, columns + rows]).float()
    source = camera.distort(camera.pixel_grid()).movedim(2, 0).float()
    inside = ((source > 1) & (source < torch.tensor([159.0, 119.0])[:, None, None])).all(0)
    straight = scenes.undistort(ramps, camera)
    assert (straight[:2] - source)[:, inside].abs().max() < 1e-3
    assert (source - ramps[:2])[:, inside].abs().max() > 2
    assert scenes.undistort(ramps, level()) is ramps


def test_a_shadow_lies_on_the_side_away_from_the_sun_as_long_as_the_box_is_high():
    box = vc.Box(0.0, 12.0, (2.0, 2.0, 1.5))
    dark = dataclasses.replace(bare((box,)), sun=(1.0, 0.0, 1.0)).shadowed()
    points = level().backproject_ground(level().pixel_grid())
    beside = (points[..., 1] - 12).abs() < 0.99
    x = points[..., 0]
    assert dark[beside & (x > -2.49) & (x < -1.01)].all()
    assert not dark[beside & ((x < -2.51) | (x > 1.01))].any()
    with pytest.raises(ValueError, match="sun = None: expected the direction to the light"):
        bare((box,)).shadowed()


def test_light_from_all_sides_knows_no_sun():
    boxes = (vc.Box(0.0, 12.0, (2.0, 2.0, 1.5)),)
    one, other, lit = (
        scenes.paint(
            level(), boxes, sun, generator=torch.Generator().manual_seed(0), ambient=ambient
        )
        for sun, ambient in (((0.6, 0, 0.8), 1.0), ((0, -0.8, 0.6), 1.0), ((0, -0.8, 0.6), 0.5))
    )
    assert torch.allclose(one, other, atol=1e-6)
    assert (one - lit).abs().max() > 0.1


def test_what_stands_behind_a_wall_is_not_painted():
    wall, hidden = vc.Box(0.0, 8.0, (40.0, 0.4, 6.0)), vc.Box(0.0, 12.0, (4.0, 2.0, 2.0))
    alone, both = (
        scenes.paint(level(), boxes, (0, -0.6, 0.8), generator=torch.Generator().manual_seed(0))
        for boxes in ((wall,), (wall, hidden))
    )
    assert (alone - both).abs().max() < 0.12  # of the grain, which is drawn after the colours


def test_the_procedural_scene_is_the_same_yard_at_every_size(scene):
    small = vc.procedural_scene(80, 60)
    assert torch.allclose(small.camera.K, scene.camera.resize(0.5).K)


def test_other_cameras_see_people_in_the_sizes_of_the_scene_that_they_are_like(scene):
    def heights(scene):
        return scene.person_height(scene.camera.pixel_grid())[scene.walkable_mask]

    tall = heights(scene).quantile(0.98)
    drawn = scenes.random_scenes(8, 80, 60, like=scene, seed=0)
    tallest = torch.stack([heights(one).max() for one in drawn])
    assert tallest.max() > 0.7 * tall
    assert tallest.max() < 1.3 * tall
    assert all(one.walkable_mask.double().mean() > 0.08 for one in drawn)


# ---------------------------------------------------------------- labels


@pytest.fixture(scope="module")
def small(scene, bank):
    """Some training pictures of the procedural scene."""
    return vc.compile_scene(scene, bank, 24, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def renders(scene, bank):
    generator = torch.Generator().manual_seed(4)
    people = vc.draw_placements(scene, bank, 12, generator=generator)
    light = vc.draw_light(scene, 12, generator=generator)
    return vc.render_people(scene, bank, people, light, generator=generator)


def test_targets_are_what_a_loop_over_cells_gives(small):
    _, target = small.batch(torch.arange(6))
    slow = torch.zeros_like(target["heat"])
    joints = torch.zeros_like(target["joints"])
    for b in range(6):
        for p in range(int(small.first[b]), int(small.first[b + 1])):
            if not small.valid[p]:
                continue
            x0, y0, x1, y1 = (small.boxes[p] / 4).tolist()
            cx, cy, sx, sy = (
                (x0 + x1) / 2,
                (y0 + y1) / 2,
                max((x1 - x0) / 6, 0.7),
                max((y1 - y0) / 6, 0.7),
            )
            narrow = max((y1 - y0) / 24, 0.6)
            for row, column in itertools.product(range(30), range(40)):
                dx, dy = column + 0.5 - cx, row + 0.5 - cy
                bell = math.exp(-0.5 * ((dx / sx) ** 2 + (dy / sy) ** 2))
                slow[b, row, column] = max(slow[b, row, column], bell)
                if row == int(cy) and column == int(cx):
                    slow[b, row, column] = 1
                    assert target["positive"][b, row, column] == 1
            for k in range(17):
                u, v, state = small.keypoints[p, k].tolist()
                if state == 2:
                    row, column = min(int(v / 4), 29), min(int(u / 4), 39)
                    bell = math.exp(
                        -0.5 * ((column + 0.5 - u / 4) ** 2 + (row + 0.5 - v / 4) ** 2) / narrow**2
                    )
                    joints[b, k, row, column] = max(joints[b, k, row, column], bell)
    assert (target["heat"] - slow).abs().max() < 1e-5
    at = joints > 0
    assert (target["joints"][at] >= joints[at] - 1e-5).all()


def ideal_output(target):
    """Maps that say exactly what the targets ask for."""
    b, h, w = target["heat"].shape
    out = torch.zeros(b, networks.CHANNELS, h, w)
    out[:, 0] = torch.where(target["positive"] > 0, 8.0, -8.0)
    out[:, 1:3], out[:, 3:5] = target["offset"], target["size"]
    out[:, 5:22] = torch.logit(target["joints"].clamp(1e-4, 1 - 1e-4))
    out[:, 22] = torch.where(target["mask"] > 0, 8.0, -8.0)
    return out


def test_decoding_the_targets_gives_back_the_people(small):
    index = torch.arange(24)
    _, target = small.batch(index)
    found = vc.decode(ideal_output(target), overlap=0.9)
    checked = 0
    for b in range(24):
        rows = torch.arange(int(small.first[b]), int(small.first[b + 1]))
        truth = small.boxes[rows][small.valid[rows]]
        if len(truth) < 2 or (box_iou(truth, truth).fill_diagonal_(0) > 0.05).any():
            continue  # where bells touch, one cell cannot speak for two
        both = box_iou(found[b].boxes, truth)
        assert len(found[b]) == len(truth)
        assert both.max(0).values.min() > 0.99
        marks = small.keypoints[rows][small.valid[rows]]
        order = both.argmax(0)
        gap = (found[b].keypoints[order][..., :2] - marks[..., :2]).norm(dim=-1)
        assert gap[marks[..., 2] == 2].median() < 2.0  # half a cell
        checked += len(truth)
    assert checked > 10


def test_scenes_are_drawn_learnt_and_searched_whatever_pytorchs_default(bank):
    torch.set_default_dtype(torch.float64)
    try:
        scene, draw = vc.procedural_scene(), torch.Generator().manual_seed(0)
        assert vc.render_person(scene, (0.0, 7.0)).image.dtype == torch.float32
        data = vc.compile_scene(scene, bank, 4, generator=draw)
        model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 3, 4, scene.regions(3))
        vc.train(model, data, steps=1, batch_size=2, lr=1e-3, generator=draw)
        vc.detect(model, data.images, threshold=0.0)
        networks.export(model, *scene.background.shape[1:])
    finally:
        torch.set_default_dtype(torch.float32)
    assert scene.background.dtype == torch.float32
    assert model.bias.dtype == model.masks.dtype == torch.float64  # a network has the default's


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"overlap": 3.0}, r"overlap = 3\.0: expected 0 to 1"),
        ({"overlap": math.nan}, "overlap = nan"),
        ({"threshold": math.nan}, "threshold = nan: expected 0 to 1"),
        ({"threshold": -0.1}, r"threshold = -0\.1"),
        ({"top": 0}, "top = 0"),
    ],
)
def test_a_search_refuses_options_out_of_range_before_it_starts(options, message):
    with pytest.raises(ValueError, match=message):
        vc.decode(torch.zeros(1, networks.CHANNELS, 4, 4), **options)
    never = torch.nn.Conv2d(5, 5, 1)  # takes no image: the search would fail another way
    with pytest.raises(ValueError, match=message):
        vc.detect(never, torch.zeros(1, 3, 16, 16), **options)


def test_the_loss_is_lowest_for_the_targets(small):
    _, target = small.batch(torch.arange(8))
    right = networks.losses(ideal_output(target), target)
    generator = torch.Generator().manual_seed(0)
    for name in right:
        noisy = ideal_output(target)
        noisy = noisy + torch.randn(noisy.shape, generator=generator)
        assert networks.losses(noisy, target)[name] > right[name]


def test_the_loss_of_a_hand_worked_cell():
    """Every exponent and weight: a centre, a cell near one, and one that nobody asks for."""
    target = {
        "heat": torch.tensor([[[1.0, 0.25, 0.0, 0.5]]]),
        "positive": torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
        "weight": torch.tensor([[[1.0, 1.0, 1.0, 0.0]]]),
        "blob": torch.tensor([[[1.0, 1.0, 0.0, 0.0]]]),
        "offset": torch.zeros(1, 2, 1, 4),
        "size": torch.full((1, 2, 1, 4), 3.0),
        "joints": torch.zeros(1, 17, 1, 4),
        "mask": torch.tensor([[[1.0, 0.0, 0.0, 0.0]]]),
    }
    target["joints"][0, 2, 0, 0] = 0.5
    out = torch.zeros(1, networks.CHANNELS, 1, 4)
    p = [0.3, 0.6, 0.2, 0.9]
    out[0, 0, 0] = torch.logit(torch.tensor(p))
    out[0, 1, 0], out[0, 3, 0] = 0.2, 2.0
    part = networks.losses(out, target)
    centre = 0.7**2 * math.log(0.3) + 0.75**4 * 0.6**2 * math.log(0.4) + 0.2**2 * math.log(0.8)
    assert float(part["centre"]) == pytest.approx(-centre, rel=1e-5)
    # the offset is 0.2 off in one of two, the size 1 and 3, in both cells of the blob
    assert float(part["box"]) == pytest.approx(0.2 + 1 + 3, rel=1e-5)
    joints = (17 * 4 - 1 + (1 + 9 * 0.5)) * math.log(2) / 17
    assert float(part["joints"]) == pytest.approx(joints, rel=1e-5)
    assert float(part["mask"]) == pytest.approx(math.log(2), rel=1e-5)
    twice = {name: torch.cat([value, value]) for name, value in target.items()}
    again = networks.losses(torch.cat([out, out]), twice)
    assert all(torch.allclose(again[name], part[name]) for name in part)  # by person, not by sum


def test_offsets_and_sizes_say_what_is_missing_to_the_box():
    """The middle lies right of and below the cell's by the offset; the size is in pixels."""
    boxes = torch.tensor([[41.0, 34.0, 61.0, 94.0]])
    target = labels.targets(boxes, torch.zeros(1, 17, 3), torch.tensor([True]), torch.tensor([0]), torch.zeros(1, 30, 40, dtype=torch.bool), (30, 40))  # fmt: skip
    # the middle, (51, 64) px, is (12.75, 16) cells: 0.25 right of the middle of cell 12, and on
    # the upper edge of cell 16
    assert target["positive"].nonzero().tolist() == [[0, 16, 12]]
    assert target["offset"][0, :, 16, 12].tolist() == pytest.approx([0.25, -0.5])
    assert target["offset"][0, :, 15, 12].tolist() == pytest.approx([0.25, 0.5])
    assert target["size"][0, :, 16, 12].exp().tolist() == pytest.approx([20, 60], rel=1e-5)
    # the bell's standard deviation is a sixth of the box
    assert float(target["heat"][0, 21, 12]) == pytest.approx(
        math.exp(-0.5 * ((0.25 / (5 / 6)) ** 2 + (5.5 / 2.5) ** 2)), rel=1e-4
    )
    blob = target["blob"][0].nonzero()
    heat = target["heat"][0]
    assert (heat[blob[:, 0], blob[:, 1]] > 0.4).all()
    assert int((heat > 0.4).sum()) == len(blob)


def test_visible_joints_are_bells_of_a_24th_of_the_height():
    boxes = torch.tensor([[40.0, 20.0, 60.0, 92.0], [80.0, 20.0, 90.0, 40.0]])
    marks = torch.zeros(2, 17, 3)
    marks[0, 3] = torch.tensor([50.0, 50.0, 2.0])  # the middle of cell (12, 12)
    marks[0, 4] = torch.tensor([50.0, 50.0, 1.0])  # hidden: not learned
    marks[1, 5] = torch.tensor([86.0, 30.0, 2.0])  # of somebody small: no narrower than 0.6 cells
    target = labels.targets(boxes, marks, torch.tensor([True, True]), torch.tensor([0, 0]), torch.zeros(1, 30, 40, dtype=torch.bool), (30, 40))  # fmt: skip
    joints = target["joints"][0]
    assert float(joints[3, 12, 12]) == 1
    assert float(joints[3, 13, 12]) == pytest.approx(math.exp(-0.5 / 0.75**2), rel=1e-5)
    assert joints[4].max() == 0
    assert float(joints[5, 8, 21]) == pytest.approx(math.exp(-0.5 / 0.6**2), rel=1e-5)


def test_who_is_asked_for_shows_a_third_and_a_dozen_pixels(renders):
    share, instance = renders.visible_fraction.clone(), renders.instance.clone()
    shown = torch.bincount(instance.flatten().long(), minlength=len(share) + 1)[1:]
    p = int(shown.argmax())
    for value, asked in ((0.3, True), (0.2999, False)):
        share[p] = value
        again = dataclasses.replace(renders, visible_fraction=share)
        assert bool(labels.is_valid(again)[p]) is asked
    share[p] = 1.0
    rows = (instance == p + 1).nonzero()
    for pixels, asked in ((12, True), (11, False)):
        few = torch.where(instance == p + 1, 0, instance)
        few[tuple(rows[:pixels].T)] = p + 1
        again = dataclasses.replace(renders, visible_fraction=share, instance=few)
        assert bool(labels.is_valid(again)[p]) is asked


def test_a_training_set_is_the_renders_with_the_labels_of_their_cells(scene, bank):
    data = vc.compile_scene(scene, bank, 6, generator=torch.Generator().manual_seed(3))
    generator = torch.Generator().manual_seed(3)
    people = vc.draw_placements(scene, bank, 6, generator=generator)
    light = vc.draw_light(scene, 6, generator=generator)
    out = vc.render_people(scene, bank, people, light, generator=generator)
    assert torch.equal(data.images, (out.image * 255).round().to(torch.uint8))
    assert torch.equal(data.boxes, out.boxes_xyxy)
    filled = (out.instance > 0).view(6, 30, 4, 40, 4).sum((2, 4))
    assert torch.equal(data.masks, filled >= 8)  # at least half of the pixels
    assert ((filled == 8) | (filled == 9)).any()
    assert data.first.tolist() == [int((out.image_index < k).sum()) for k in range(7)]


@pytest.mark.parametrize(
    ("width", "height", "supersample", "count"),
    [(160, 120, 2, 64), (320, 240, 2, 64), (640, 480, 2, 64), (160, 120, 8, 64), (1920, 1080, 2, 9), (1920, 1080, 8, 1)],
)  # fmt: skip
def test_fewer_pictures_of_a_large_scene_are_rendered_together(width, height, supersample, count):
    assert labels.group_size(height, width, supersample) == count


def test_groups_of_pictures_are_those_rendered_one_after_the_other(scene, bank, monkeypatch):
    generator = torch.Generator().manual_seed(3)
    apart = [vc.compile_scene(scene, bank, n, generator=generator) for n in (4, 4, 2)]
    monkeypatch.setattr(labels, "SAMPLES", 4 * 160 * 120 * 2**2 + 1)
    data = vc.compile_scene(scene, bank, 10, generator=torch.Generator().manual_seed(3))
    for name in ("images", "masks", "boxes", "keypoints", "valid"):
        assert torch.equal(getattr(data, name), torch.cat([getattr(p, name) for p in apart])), name
    assert data.first.diff().tolist() == [n for p in apart for n in p.first.diff().tolist()]


def test_training_weighs_the_parts_of_the_loss_as_the_page_says(small):
    """Centre 1, box 2, joints 0.1, mask 2."""
    torch.manual_seed(0)
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4)
    twin = copy.deepcopy(model).train()
    (loss,) = vc.train(
        model, small, steps=1, batch_size=24, lr=1e-3, generator=torch.Generator().manual_seed(0)
    )
    order = torch.randperm(24, generator=torch.Generator().manual_seed(0))
    pictures, target = small.batch(order)
    part = networks.losses(twin(pictures), target)
    expected = part["centre"] + 2 * part["box"] + 0.1 * part["joints"] + 2 * part["mask"]
    assert loss == pytest.approx(float(expected.detach()), rel=1e-4)


def test_peaks_are_cells_that_no_neighbour_exceeds():
    maps = torch.zeros(1, networks.CHANNELS, 12, 16)
    maps[:, 0] = -9
    maps[:, 3:5] = math.log(4.0)
    maps[:, 1], maps[:, 2] = 0.25, -0.25
    for row, column, p in ((2, 3, 0.9), (2, 5, 0.5), (3, 4, 0.4), (8, 8, 0.021), (8, 12, 0.019)):
        maps[0, 0, row, column] = torch.logit(torch.tensor(p))
    (found,) = vc.decode(maps)
    # (3, 4) is beside both; two cells apart are two peaks; what scores below 0.02 is nothing
    assert found.scores.tolist() == pytest.approx([0.9, 0.5, 0.021], rel=1e-4)
    centre = (found.boxes[:, :2] + found.boxes[:, 2:]) / 2
    assert centre.flatten().tolist() == pytest.approx([15, 9, 23, 9, 35, 33])
    assert (found.boxes[:, 2:] - found.boxes[:, :2]).flatten().tolist() == pytest.approx([4] * 6)
    close = torch.tensor([[0.0, 0, 10, 10], [0, 0, 10, 20.01], [0, 0, 10, 19.9]])
    assert networks.suppress(close[:2], torch.tensor([0.9, 0.5]), 0.5).tolist() == [0, 1]
    assert networks.suppress(close[[0, 2]], torch.tensor([0.9, 0.5]), 0.5).tolist() == [0]


def test_pictures_are_kept_as_bytes_and_a_part_is_a_copy(small):
    assert small.images.dtype == torch.uint8
    assert {t.device.type for t in vars(small).values()} == {"cpu"}
    part = small.part(5)
    assert len(part) == 5
    assert part.images.untyped_storage().nbytes() == part.images.numel()
    assert len(small.part(500)) == len(small)
    index = torch.tensor([3, 0, 4])
    for one, other in zip(part.batch(index), small.batch(index), strict=True):
        if isinstance(one, dict):
            assert all(torch.equal(one[name], other[name]) for name in one)
        else:
            assert torch.equal(one, other)


def test_people_who_hardly_show_are_neither_asked_for_nor_punished():
    boxes = torch.tensor([[40.0, 40, 60, 90], [100, 40, 120, 90]])
    marks = torch.zeros(2, 17, 3)
    valid = torch.tensor([True, False])
    target = labels.targets(boxes, marks, valid, torch.zeros(2, dtype=torch.long), torch.zeros(1, 30, 40, dtype=torch.bool), (30, 40))  # fmt: skip
    assert target["positive"].sum() == 1
    assert target["weight"][0, 16, 27] == 0
    assert target["weight"][0, 16, 12] == 1
    # nobody asks what is said where the other's bell is above 0.3
    y, x = torch.meshgrid(torch.arange(30) + 0.5, torch.arange(40) + 0.5, indexing="ij")
    bell = torch.exp(-0.5 * (((x - 27.5) / (5 / 6)) ** 2 + ((y - 16.25) / (12.5 / 6)) ** 2))
    assert torch.equal(target["weight"][0] == 0, bell >= 0.3)


def test_coco_reads_back(renders, scene, tmp_path):
    from pycocotools import mask as rle
    from pycocotools.coco import COCO

    coco = vc.to_coco(renders, scene=scene, info={"seed": 4})
    vc.write_coco(renders, coco, tmp_path)
    again = COCO(str(tmp_path / "annotations.json"))
    assert len(again.getImgIds()) == 12
    assert again.dataset["info"]["camera"]["t"] == scene.camera.t.tolist()
    camera = dataclasses.replace(scene.camera, lens=cameras.Brown(k1=-0.1))
    bent = vc.to_coco(renders, scene=dataclasses.replace(scene, camera=camera))
    assert "lens" not in coco["info"]["camera"]
    assert bent["info"]["camera"]["lens"].startswith("Brown(k1=-0.1,")
    for p, entry in enumerate(again.loadAnns(again.getAnnIds())):
        mask = rle.decode(entry["segmentation"])
        image = entry["image_id"]
        assert (mask == (renders.instance[image] == p + 1).numpy()).all()
        assert set(entry["keypoints"][2::3]) <= {0.0, 1.0, 2.0}
        assert entry["iscrowd"] in (0, 1)
    assert len(list((tmp_path / "images").glob("*.png"))) == 12


# ---------------------------------------------------------------- network


def test_equal_heads_are_one_head(scene):
    torch.manual_seed(0)
    varying = vc.SpatiallyVaryingFCN(vc.make_trunk(), 3, 8, scene.regions(3)).eval()
    plain = vc.SpatiallyVaryingFCN(varying.trunk, 1, 8).eval()
    with torch.no_grad():
        plain.out.weight.normal_()
        plain.bias.normal_()
        varying.hidden.weight.copy_(plain.hidden.weight.repeat(3, 1, 1, 1))
        varying.hidden.bias.copy_(plain.hidden.bias.repeat(3))
        varying.out.weight.copy_(plain.out.weight.repeat(1, 3, 1, 1))
        varying.bias.copy_(plain.bias.expand(3, -1))
        pictures = torch.rand(2, 3, 120, 160)
        assert (varying(pictures) - plain(pictures)).abs().max() < 1e-5  # sums in another order
        assert varying.variation() == 0
        varying.out.weight[:, :8] += 0.1
        assert varying.variation() > 0


def test_heads_are_kept_alike_where_their_regions_touch(scene):
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 12, 1, scene.regions(12))  # 4 rows of 3
    rows = [(3 * i + j, 3 * i + j + 1) for i in range(4) for j in range(2)]
    columns = [(i, i + 3) for i in range(9)]
    heads = torch.randn(23, 12)
    with torch.no_grad():
        model.out.weight.copy_(heads[..., None, None])
    gaps = [(heads[:, a] - heads[:, b]).square().sum() for a, b in rows + columns]
    assert model.variation().item() == pytest.approx(sum(gaps).item(), rel=1e-5)
    assert "neighbours" not in model.state_dict()  # networks of before can be loaded


def test_a_head_speaks_in_its_own_region_only(scene):
    masks = scene.regions(3)
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(), 3, 8, masks).eval()
    pictures = torch.rand(1, 3, 120, 160)
    with torch.no_grad():
        before = model(pictures)
        model.out.weight[:, 16:] += 1
        changed = (model(pictures) - before).abs().amax((0, 1))
    assert changed[masks[2] == 0].max() == 0
    assert changed[masks[2] == 1].max() > 0


def test_masks_that_are_no_partition_are_refused():
    with pytest.raises(ValueError, match="partition"):
        vc.SpatiallyVaryingFCN(vc.make_trunk(), 2, 8, torch.ones(2, 30, 40))
    with pytest.raises(ValueError, match="n_regions"):
        vc.SpatiallyVaryingFCN(vc.make_trunk(), 2, 8)
    with pytest.raises(ValueError, match=r"masks: shape \(2, 1200\)"):
        vc.SpatiallyVaryingFCN(vc.make_trunk(), 2, 8, torch.full((2, 1200), 0.5))


def test_training_lowers_the_loss_and_repeats_itself(small, scene):
    def once():
        torch.manual_seed(0)
        model = vc.SpatiallyVaryingFCN(vc.make_trunk(8), 3, 4, scene.regions(3))
        generator = torch.Generator().manual_seed(0)
        return vc.train(model, small, steps=60, batch_size=4, lr=1e-2, generator=generator)

    first = once()
    assert np.mean(first[-5:]) < 0.6 * np.mean(first[:5])
    assert first == once()


def test_networks_trained_together_are_those_trained_one_by_one(small, scene, monkeypatch):
    def fresh():
        shapes = ((3, 4, scene.regions(3)), (1, 12, None), (1, 4, None))
        torch.manual_seed(0)
        return [vc.SpatiallyVaryingFCN(vc.make_trunk(8), *shape) for shape in shapes]

    def options():
        generator = torch.Generator().manual_seed(0)
        return {"steps": 7, "batch_size": 5, "lr": 1e-2, "gamma": 0.1, "generator": generator}

    alone = fresh()
    expected = [vc.train(model, small, **options()) for model in alone]
    made = []
    batch = labels.TrainingSet.batch
    monkeypatch.setattr(labels.TrainingSet, "batch", lambda *a: made.append(a) or batch(*a))
    together = fresh()
    assert networks.train_together(together, small, **options()) == expected
    assert len(made) == 7  # once for all
    for one, other in zip(together, alone, strict=True):
        for name, value in other.state_dict().items():
            assert torch.equal(one.state_dict()[name], value), name


def test_a_trunk_whose_last_convolution_is_used_before_has_its_channels():
    again = torch.nn.Conv2d(6, 9, 3, padding=1)
    first = torch.nn.Conv2d(3, 6, 3, stride=2, padding=1)
    narrower = torch.nn.Conv2d(9, 6, 3, stride=2, padding=1)
    model = vc.SpatiallyVaryingFCN(torch.nn.Sequential(first, again, narrower, again), 1, 4)
    assert model.hidden.in_channels == 9
    assert model(torch.rand(1, 3, 16, 24)).shape == (1, networks.CHANNELS, 4, 6)


@pytest.mark.parametrize(("width", "height"), [(98, 73), (99, 75), (101, 74)])
def test_sizes_that_do_not_divide_by_the_stride(bank, width, height):
    scene = vc.procedural_scene(width, height)
    data = vc.compile_scene(scene, bank, 6, generator=torch.Generator().manual_seed(0))
    cells = (height // 4, width // 4)
    assert data.masks.shape[1:] == cells
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 3, 4, scene.regions(3))
    generator = torch.Generator().manual_seed(0)
    vc.train(model, data, steps=2, batch_size=3, lr=1e-3, generator=generator)
    found = vc.detect(model, data.images, threshold=0.0)
    assert found[0].mask.shape == cells
    renders = experiment.render_test(scene, bank, 6, 3, 2, 0)
    coco = vc.to_coco(renders)
    assert vc.evaluate(found, coco)["AP50"] >= 0
    mask = vc.Detections(
        torch.tensor([[0.0, 0, width, height]]), torch.ones(1), None, torch.ones(cells)
    )
    shown = mask.person_mask(0, height, width)
    assert shown.shape == (height, width)
    assert shown.sum() == 16 * cells[0] * cells[1]  # no strip at the edge belongs to a cell
    with pytest.raises(ValueError, match="height, width"):
        mask.person_mask(0, height + 4, width)


@pytest.mark.parametrize("steps", range(1, 7))
def test_training_may_take_any_few_steps(small, steps):
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(2), 1, 1)
    options = {"batch_size": 1, "lr": 1e-3, "generator": torch.Generator()}
    assert len(vc.train(model, small, steps=steps, **options)) == steps


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 25}, "batch_size = 25: expected 1 to 24"),
        ({"batch_size": 0}, "batch_size = 0"),
        ({"steps": 0}, "steps = 0"),
        ({"lr": 0.0}, "lr = 0.0"),
        ({"lr": math.nan}, "lr = nan"),
        ({"gamma": -1.0}, "gamma = -1.0"),
    ],
)
def test_training_refuses_what_it_cannot_do(small, options, message):
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4)
    given = {"steps": 2, "batch_size": 4, "lr": 1e-3} | options
    with pytest.raises(ValueError, match=message):
        vc.train(model, small, generator=torch.Generator(), **given)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda scene, bank: vc.make_trunk(1), "width = 1"),
        (lambda scene, bank: vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 0), "head_width = 0"),
        (lambda scene, bank: vc.SpatiallyVaryingFCN(vc.make_trunk(4), 0, 4), "n_regions = 0"),
        (lambda scene, bank: vc.compile_scene(scene, bank, 0, generator=torch.Generator()), "n = 0"),
        (lambda scene, bank: vc.compile_scene([], bank, 5, generator=torch.Generator()), "scenes = 0"),
        (lambda scene, bank: vc.compile_scene(scene, bank, 5, max_people=0, generator=torch.Generator()), "max_people = 0"),
        (lambda scene, bank: vc.compile_scene(scene, bank, 5, supersample=9, generator=torch.Generator()), "supersample = 9"),
        (lambda scene, bank: vc.compile_scene(scene, bank, 5, supersample=1.5, generator=torch.Generator()), "supersample = 1.5"),
        (lambda scene, bank: scenes.random_scenes(0, 160, 120, like=scene, seed=0), "n = 0"),
        (lambda scene, bank: scenes.random_scenes(1, 16, 12, like=vc.procedural_scene(640, 480), seed=0), "like: of 100 cameras"),
        (lambda scene, bank: experiment.make_case("procedural", n_test=0), "n_test = 0"),
        (lambda scene, bank: experiment.make_case("procedural", supersample=0), "supersample = 0"),
        (lambda scene, bank: match([], {"images": [], "annotations": []}, 0.0), "threshold = 0.0"),
        (lambda scene, bank: match([], {"images": [], "annotations": []}, kind="segm"), "kind = 'segm'"),
        (lambda scene, bank: baselines.hog_detect(torch.zeros(1, 3, 128, 64), enlarge=0.0), "enlarge = 0.0"),
        (lambda scene, bank: baselines.hog_detect(torch.zeros(1, 3, 100, 64), enlarge=1.0), "enlarge = 1.0: images of 64 x 100 .* window of 64 x 128; expected at least 1.28"),
        (lambda scene, bank: baselines.hog_detect(torch.zeros(1, 3, 200, 31)), "expected at least 2.06"),
        (lambda scene, bank: baselines.hog_detect(torch.zeros(3, 200, 100)), r"images: shape \(3, 200, 100\)"),
        (lambda scene, bank: vc.detect(torch.nn.Flatten(), torch.zeros(3, 120, 160)), r"images: shape \(3, 120, 160\)"),
        (lambda scene, bank: vc.decode(torch.zeros(1, 5, 30, 40)), r"output: shape \(1, 5, 30, 40\)"),
        (lambda scene, bank: vc.decode(torch.full((1, 23, 30, 40), math.nan)), "output: NaN in the maps"),
        (lambda scene, bank: vc.compile_scene(scene, bank, 5, generator=0), "generator = 0: expected a torch.Generator"),
        (lambda scene, bank: vc.draw_placements(scene, bank, 5, generator=0), "generator = 0"),
        (lambda scene, bank: vc.draw_light(scene, 5, generator=0), "generator = 0"),
        (lambda scene, bank: cameras.Tsai(math.nan), "kappa = nan"),
        (lambda scene, bank: cameras.Brown(k2=math.inf), "k2 = inf"),
    ],
)  # fmt: skip
def test_a_bad_number_is_named_before_any_work(scene, bank, call, message):
    with pytest.raises(ValueError, match=message):
        call(scene, bank)


def test_a_bar_is_shown_only_where_it_is_asked_for(scene, bank, small, capsys):
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4)
    for progress in (False, True):
        vc.compile_scene(scene, bank, 2, generator=torch.Generator(), progress=progress)
        vc.train(
            model,
            small,
            steps=2,
            batch_size=4,
            lr=1e-3,
            generator=torch.Generator(),
            progress=progress,
        )
        vc.detect(model, small.images[:2], progress=progress)
        said = "".join(capsys.readouterr())
        for what in ("rendered images", "steps of training", "images searched"):
            assert (what in said) is progress


def test_masks_of_another_size_than_the_pictures_are_refused(small, scene):
    wide = vc.procedural_scene(200, 150).regions(2)
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 2, 4, wide)
    with pytest.raises(ValueError, match=r"masks: \(37, 50\) cells"):
        vc.train(model, small, steps=1, batch_size=2, lr=1e-3, generator=torch.Generator())
    with pytest.raises(ValueError, match=r"images: \(30, 40\) cells .* masks have \(37, 50\)"):
        vc.detect(model, small.images[:1])


def test_an_exported_network_computes_the_same(scene, tmp_path):
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(8), 3, 4, scene.regions(3))
    torch.export.save(networks.export(model, 120, 160), tmp_path / "d.pt2")
    again = torch.export.load(tmp_path / "d.pt2").module()
    picture = torch.rand(1, 3, 120, 160)
    assert torch.allclose(again(picture), model.eval()(picture), atol=1e-5)


def test_the_layout_filter_drops_what_cannot_stand_there(scene):
    feet = torch.tensor([80.0, 100.0])
    tall = float(scene.person_height(feet.double()))

    def box(height, row=100.0):
        return [75.0, row - height, 85.0, row]

    boxes = torch.tensor([box(tall), box(0.6 * tall), box(1.5 * tall), box(20.0, 15.0)])
    people = vc.Detections(boxes, torch.ones(4))
    (kept,) = networks.layout_filter([people], scene)
    assert torch.equal(kept.boxes, boxes[:1])
    for ratio, stays in ((0.74, 0), (0.76, 1), (1.29, 1), (1.31, 0)):
        people = vc.Detections(torch.tensor([box(ratio * tall)]), torch.ones(1))
        assert len(networks.layout_filter([people], scene)[0]) == stays
    # feet on the lower edge of a row stand in that row
    strip = dataclasses.replace(scene, walkable=[[(-5, 8), (5, 8), (5, 20), (-5, 20)]], boxes=())
    last = int(strip.walkable_mask[:, 80].nonzero().max())
    for bottom, stays in ((last + 1.0, 1), (last + 1.1, 0)):
        tall = float(strip.person_height(torch.tensor([80.0, bottom]).double()))
        people = vc.Detections(torch.tensor([box(tall, bottom)]), torch.ones(1))
        assert len(networks.layout_filter([people], strip)[0]) == stays


# ---------------------------------------------------------------- evaluation


def noisy_detections(coco, seed=0, joints=False):
    """People moved, lost and invented, with scores."""
    generator = torch.Generator().manual_seed(seed)
    found = []
    for image in coco["images"]:
        here = [a for a in coco["annotations"] if a["image_id"] == image["id"]]
        boxes = torch.tensor([a["bbox"] for a in here]).view(-1, 4)
        boxes = torch.cat([boxes[:, :2], boxes[:, :2] + boxes[:, 2:]], 1)
        kept = torch.rand(len(boxes), generator=generator) < 0.85
        size = boxes[:, 3:] - boxes[:, 1:2]
        moved = boxes + 0.12 * size * torch.randn(boxes.shape, generator=generator)
        false = 100 * torch.rand(2, 2, generator=generator)
        false = torch.cat([false, false + 15], 1)
        everything = torch.cat([moved[kept], false])
        marks = torch.zeros(len(everything), 17, 3)
        if joints:
            truth = torch.tensor([a["keypoints"] for a in here]).view(-1, 17, 3)[kept]
            marks[: len(truth)] = truth + 0.3 * torch.randn(truth.shape, generator=generator)
        found.append(
            vc.Detections(
                everything,
                torch.rand(len(everything), generator=generator),
                marks if joints else None,
            )
        )
    return found


def by_pycocotools(found, coco, kind):
    """AP, AP50 and AP75 by the reference; NaN where it says -1."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    with contextlib.redirect_stdout(io.StringIO()):
        truth = COCO()
        truth.dataset = copy.deepcopy(coco)
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(to_results(found, coco)), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return [math.nan if value == -1 else float(value) for value in run.stats[:3]]


def random_set(seed):
    """Small images of people on a coarse grid: equal scores, exact overlaps, crowds, nobody."""
    draw = np.random.default_rng(seed)
    annotations, found = [], []
    n_images = int(draw.integers(1, 5))
    for image in range(n_images):
        people, seen = draw.integers(0, 5), draw.integers(0, 7)
        corner, size = 10 * draw.integers(0, 4, (people, 2)), 10 * draw.integers(1, 4, (people, 2))
        for box in np.concatenate([corner, size], 1).astype(float):
            marks = np.concatenate(
                [draw.integers(0, 60, (17, 2)), draw.integers(0, 3, (17, 1))], 1
            )
            marks[draw.random(17) < draw.choice([0.0, 0.5, 1.0])] = 0
            annotations.append({
                "id": len(annotations) + 1, "image_id": image, "category_id": 1,
                "bbox": box.tolist(), "area": float(box[2] * box[3] * draw.choice([0.5, 1.0])),
                "iscrowd": int(draw.random() < 0.25), "keypoints": marks.flatten().tolist(),
                "num_keypoints": int((marks[:, 2] > 0).sum()),
            })  # fmt: skip
        corner, size = 10 * draw.integers(0, 4, (seen, 2)), 10 * draw.integers(1, 4, (seen, 2))
        boxes = np.concatenate([corner, corner + size], 1)
        marks = draw.integers(0, 60, (seen, 17, 3)).astype(np.float32)
        for k in range(seen):
            if annotations and draw.random() < 0.5:  # near somebody, perhaps of another image
                entry = annotations[draw.integers(len(annotations))]
                marks[k] = np.reshape(entry["keypoints"], (17, 3)) + draw.normal(0, 3, (17, 3))
        found.append(
            vc.Detections(
                torch.tensor(boxes, dtype=torch.float32).view(-1, 4),
                torch.tensor(draw.choice([0.2, 0.5, 0.5, 0.9], seen), dtype=torch.float32),
                torch.from_numpy(marks),
            )
        )
    return found, labels.coco_frame(n_images, 60, 60, annotations)


@pytest.mark.parametrize("kind", ["bbox", "keypoints"])
def test_average_precision_is_pycocotools_bit_for_bit(kind):
    checked = 0
    for seed in range(150):
        found, coco = random_set(seed)
        if not any(len(people) for people in found):
            continue
        ours = list(coco_metrics(found, coco, kind).values())
        theirs = by_pycocotools(found, coco, kind)
        assert np.array_equal(ours, theirs, equal_nan=True), seed
        half = match(found, coco, kind=kind).interpolated().mean()
        assert np.array_equal(half, theirs[1], equal_nan=True), seed
        checked += 0 < theirs[0] < 1
    assert checked > (60 if kind == "bbox" else 12)


@pytest.mark.parametrize("seed", range(2))
def test_average_precision_of_renders_is_pycocotools(renders, seed):
    coco = vc.to_coco(renders)
    for entry in coco["annotations"][::4]:
        entry["iscrowd"] = 1
    found = noisy_detections(coco, seed, joints=True)
    for kind in ("bbox", "keypoints"):
        ours = list(coco_metrics(found, coco, kind).values())
        assert np.array_equal(ours, by_pycocotools(found, coco, kind))
        assert 0 < ours[1] < 0.95


def two_people(**more):
    """A data set of two people in one image, and who finds both."""
    boxes = torch.tensor([[50.0, 50, 150, 150], [200, 200, 300, 300]])
    coco = {"images": [{"id": 1, "width": 400, "height": 400}], "categories": [{"id": 1, "name": "person"}], "annotations": [
        {"id": k + 1, "image_id": 1, "category_id": 1, "bbox": [x0, y0, x1 - x0, y1 - y0], "area": 1e4, "iscrowd": 0} | more
        for k, (x0, y0, x1, y1) in enumerate(boxes.tolist())
    ]}  # fmt: skip
    return [vc.Detections(boxes, torch.tensor([0.9, 0.8]))], coco


def _each(change):
    def apply(coco):
        for entry in coco["annotations"]:
            change(entry)

    return apply


def _car(coco):
    coco["categories"].append({"id": 3, "name": "car"})
    coco["annotations"].append(
        coco["annotations"][0] | {"id": 9, "category_id": 3, "bbox": [0, 0, 20, 20]}
    )


@pytest.mark.parametrize(
    "change",
    [
        lambda coco: _each(lambda a: a.update(id=a["id"] - 1))(coco),
        lambda coco: _each(lambda a: a.update(id=f"p{a['id']}"))(coco),
        lambda coco: _each(lambda a: a.update(id=7))(coco),
        _each(lambda a: a.pop("id")),
        _each(lambda a: a.pop("area")),
        _each(lambda a: a.pop("iscrowd")),
        _each(lambda a: a.pop("category_id")),
        _car,
        lambda coco: (coco["categories"][0].update(id=7, name="pedestrian"), _each(lambda a: a.update(category_id=7))(coco)),
        lambda coco: (coco["categories"].insert(0, {"id": 1, "name": "car"}), coco["categories"][1].update(id="x", name="Person"), _each(lambda a: a.update(category_id="x"))(coco)),
        lambda coco: coco.pop("categories"),
        lambda coco: (coco["images"][0].update(id="a.jpg"), _each(lambda a: a.update(image_id="a.jpg"))(coco)),
        lambda coco: coco["images"][0].pop("width"),
        lambda coco: coco["annotations"].append(coco["annotations"][0] | {"iscrowd": 1, "bbox": [0, 300, 50, 50]}),
        lambda coco: coco["annotations"].append(coco["annotations"][0] | {"ignore": 1, "bbox": [0, 300, 50, 50]}),
    ],
)  # fmt: skip
def test_whoever_wrote_the_set_all_people_found_is_full_marks(change):
    found, coco = two_people()
    change(coco)
    before = copy.deepcopy(coco)
    result = vc.evaluate(found, coco)
    assert [result[name] for name in ("AP", "AP50", "AP75", "F1", "miss_rate")] == pytest.approx(
        [1, 1, 1, 1, 0], abs=1e-9
    )
    assert coco == before
    half = vc.evaluate([found[0][torch.tensor([0])]], coco)  # and one of two is half
    assert half["AP50"] == pytest.approx(51 / 101)
    assert half["miss_rate"] == pytest.approx(0.5)


@pytest.mark.parametrize("people", [100, 101, 150])
def test_everybody_of_a_crowded_image_counts(people):
    """COCO looks at the best hundred detections of an image only."""
    corner = torch.tensor([[20.0 * (k % 20), 20.0 * (k // 20)] for k in range(people)])
    boxes = torch.cat([corner, corner + 10], 1)
    coco = labels.coco_frame(2, 400, 400, [
        {"id": k, "image_id": 0, "category_id": 1, "bbox": [*corner[k].tolist(), 10, 10]} for k in range(people)
    ])  # fmt: skip
    nothing = vc.Detections(torch.zeros(0, 4), torch.zeros(0))
    assert coco_metrics([vc.Detections(boxes, torch.rand(people)), nothing], coco)["AP"] == 1
    # COCO's limit stays where nobody is lost by it: the 101st detection of an image is not seen
    one = labels.coco_frame(
        1, 400, 400, [{"id": 0, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10]}]
    )
    late = vc.Detections(
        torch.cat([boxes[1:101], boxes[:1]]), torch.linspace(1, 0.1, min(people, 101))
    )
    assert coco_metrics([late], one)["AP"] == pytest.approx(0 if people > 100 else 0.01)


def test_without_anybody_nothing_is_measured():
    found, coco = two_people(iscrowd=1)
    empty = labels.coco_frame(1, 400, 400, [])
    nothing = [vc.Detections(torch.zeros(0, 4), torch.zeros(0))]
    for people, truth in (
        (found, coco),
        (found, empty),
        (nothing, empty),
        ([], labels.coco_frame(0, 9, 9, [])),
    ):
        result = vc.evaluate(people, truth)
        assert all(math.isnan(result[name]) for name in ("AP", "AP50", "miss_rate", "F1"))


def test_images_without_people_count_their_false_alarms():
    found, coco = two_people()
    coco["images"].append({"id": 2, "width": 200, "height": 100})
    alarm = vc.Detections(torch.tensor([[0.0, 0, 5, 5]]), torch.tensor([0.95]))
    assert coco_metrics([*found, alarm], coco)["AP50"] == pytest.approx(2 / 3)
    beyond = vc.Detections(torch.tensor([[-50.0, -50, 900, 900]]), torch.tensor([0.95]))
    assert coco_metrics([*found, beyond], coco)["AP50"] == pytest.approx(2 / 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda f, c: f.pop(), "0 of them for 1 images"),
        (lambda f, c: f[0].scores.fill_(math.nan), r"predictions\[0\].scores"),
        (lambda f, c: f[0].boxes.mul_(math.inf), r"predictions\[0\].boxes"),
        (lambda f, c: f[0].boxes.neg_(), r"predictions\[0\].boxes"),
        (lambda f, c: c["images"].append(c["images"][0]), "image 1 has id 1"),
        (lambda f, c: c["annotations"][1].update(image_id="1"), "annotation 1 has image_id '1'"),
        (lambda f, c: c["annotations"][1].update(category_id=2), "annotation 1 has category_id 2"),
        (lambda f, c: c["annotations"][1].pop("bbox"), "annotation 1 has no bbox"),
        (lambda f, c: c["annotations"][1].update(bbox=[0, 0, -1, 5]), "annotation 1 has bbox"),
        (lambda f, c: c["annotations"][1].update(bbox=[0, 0, math.nan, 5]), "annotation 1 has bbox"),
        (lambda f, c: c["annotations"][1].update(area="big"), "annotation 1 has area 'big'"),
        (lambda f, c: c["annotations"][1].update(iscrowd="no"), "annotation 1 has iscrowd 'no'"),
        (lambda f, c: c["annotations"][1].update(keypoints=[1, 2, 2]), "3 numbers in keypoints"),
        (lambda f, c: c["categories"].__setitem__(slice(None), [{"id": 1, "name": "car"}, {"id": 2, "name": "bus"}]), "'car', 'bus'"),
        (lambda f, c: c.pop("images"), "images"),
        (lambda f, c: f.__setitem__(0, f[0].boxes), r"predictions\[0\]: Tensor, expected Detections"),
        (lambda f, c: f.__setitem__(0, vc.Detections(f[0].boxes.numpy(), f[0].scores)), r"predictions\[0\]\.boxes: ndarray"),
        (lambda f, c: f.__setitem__(0, vc.Detections(f[0].boxes, 0.9)), r"predictions\[0\]\.scores: float"),
        (lambda f, c: f.__setitem__(0, vc.Detections(f[0].boxes[0], f[0].scores)), r"boxes \(4,\)"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_named(change, message):
    found, coco = two_people()
    change(found, coco)
    for measure in (vc.evaluate, coco_metrics, match):
        with pytest.raises(ValueError, match=message):
            measure(found, coco)


def test_detections_that_are_no_list_are_named():
    found, coco = two_people()
    scene = vc.procedural_scene()
    for wrong, kind in ((found[0].boxes, "Tensor"), (found[0], "Detections"), ({}, "dict")):
        for measure in (vc.evaluate, coco_metrics, match, to_results):
            with pytest.raises(ValueError, match=f"predictions: {kind}, expected a list"):
                measure(wrong, coco)
        with pytest.raises(ValueError, match=f"found: {kind}, expected a list"):
            networks.layout_filter(wrong, scene)


@pytest.mark.parametrize("threshold", [0.5, 0.75, 0.25])
def test_an_overlap_of_just_the_threshold_is_a_match(threshold):
    """COCO compares with >=; a box of twice the size overlaps by exactly one half."""
    coco = labels.coco_frame(
        1, 99, 99, [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 12, 12]}]
    )
    for more, right in ((0.0, True), (1e-3, False)):
        box = torch.tensor([[0.0, 0.0, 12.0, 12.0 / threshold + more]])
        assert match([vc.Detections(box, torch.ones(1))], coco, threshold).right.tolist() == [
            right
        ]


def test_who_does_not_count_is_taken_last_and_takes_many():
    coco = labels.coco_frame(1, 99, 99, [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 40, 40], "iscrowd": 1},
        {"id": 2, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 8], "iscrowd": 0},
    ])  # fmt: skip
    boxes = torch.tensor(
        [[0.0, 0, 10, 10], [20, 20, 30, 30], [22, 22, 32, 32], [60, 60, 70, 70], [0, 0, 10, 9]]
    )
    result = match([vc.Detections(boxes, torch.linspace(1, 0.5, 5))], coco)
    # the person although the crowd holds all of the box; two of the crowd; a false alarm; and the
    # person is taken, so the last is one of the crowd
    assert result.right.tolist() == [True, False, False, False, False]
    assert result.ignored.tolist() == [False, True, True, False, True]
    assert result.person.tolist() == [1, -1, -1, -1, -1]
    # of a crowd the share of the detection counts, at the threshold too
    for inside, left_out in ((5.0, True), (4.9, False)):
        box = torch.tensor([[40.0 - inside, 0, 50.0 - inside, 10]])
        assert match([vc.Detections(box, torch.ones(1))], coco).ignored.tolist() == [left_out]


def test_of_people_who_overlap_alike_the_last_is_taken():
    coco = labels.coco_frame(1, 99, 99, [
        {"id": 1, "image_id": 0, "category_id": 1, "bbox": [x, 0, 10, 10]} for x in (0, 10)
    ])  # fmt: skip
    found = [vc.Detections(torch.tensor([[5.0, 0, 15, 10]]), torch.ones(1))]
    assert match(found, coco, 0.3).person.tolist() == [1]  # as pycocotools does


def test_joints_masks_and_metres_of_a_hand_worked_image():
    """A joint within a tenth of the *height* is found; hidden joints and false alarms are left out."""
    camera = level()
    boxes = torch.tensor(
        [[0.0, 10, 40, 110], [50, 10, 90, 110], [100, 10, 140, 110], [0, 0, 9, 9]]
    )
    ground = camera.backproject_ground(torch.stack([boxes[:3, [0, 2]].mean(1), boxes[:3, 3]], 1))
    marks = torch.zeros(17, 3)
    marks[:3] = torch.tensor([[20.0, 50, 2], [20, 50, 2], [20, 50, 1]])
    errors = (0.1, 0.5, 2.0)
    coco = labels.coco_frame(1, 160, 120, [
        {"id": k, "image_id": 0, "category_id": 1, "bbox": [x0, 10, 40, 100], "segmentation": [[x0, 10, x0 + 40, 10, x0 + 40, 60, x0, 60]],
         "ground": [float(ground[k, 0]), float(ground[k, 1]) + errors[k]]}
        for k, x0 in enumerate((0, 50, 100))
    ])  # fmt: skip
    coco["annotations"][0]["keypoints"] = marks.flatten().tolist()
    joints = torch.zeros(4, 17, 3)
    joints[0, :3, 0], joints[0, :3, 1] = torch.tensor([29.9, 30.1, 90.0]), 50.0
    found = [vc.Detections(boxes, torch.tensor([0.9, 0.8, 0.7, 0.6]), joints, torch.ones(30, 40))]
    result = vc.evaluate(found, coco, camera=camera)
    assert result["threshold"] == pytest.approx(0.7)
    assert result["F1"] == 1
    assert result["PCK"] == 0.5
    assert result["mask_IoU"] == 0.5
    assert result["ground_error"] == pytest.approx(
        0.5, abs=1e-5
    )  # the middle one, at the threshold


def test_precision_recall_and_counts_of_a_hand_worked_set():
    """Three people who count and one who does not; five detections, one of them left out."""
    boxes = torch.tensor([[10.0, 10, 30, 60], [40, 10, 60, 60], [70, 10, 90, 60]])
    rows = [[*box[:2], box[2] - box[0], box[3] - box[1]] for box in boxes.tolist()]
    coco = coco_files_set(rows, crowd=[70, 70, 20, 20])
    false, crowd = torch.tensor([[0.0, 80, 20, 95]]), torch.tensor([[70.0, 70, 90, 90]])
    found = [
        vc.Detections(
            torch.cat([boxes[:2], false, boxes[2:], crowd]),
            torch.tensor([0.9, 0.8, 0.7, 0.2, 0.95]),
        )
    ]
    for threshold, hits, false_positives in ((0.75, 2, 0), (0.5, 2, 1), (0.1, 3, 1), (0.99, 0, 0)):
        result = vc.evaluate(found, coco, threshold=threshold)
        expected = {
            "true_positives": hits, "false_positives": false_positives, "misses": 3 - hits,
            "people": 3, "images": 1, "recall": hits / 3, "threshold": threshold,
            "precision": hits / (hits + false_positives) if hits else math.nan,
            "F1": 2 * hits / (hits + false_positives + 3),
        }  # fmt: skip
        assert {name: result[name] for name in expected} == pytest.approx(expected, nan_ok=True)
    best = vc.evaluate(found, coco)
    p, r = best["precision"], best["recall"]
    assert (best["threshold"], best["F1"]) == (pytest.approx(0.2), pytest.approx(6 / 7))
    assert best["F1"] == pytest.approx(2 * p * r / (p + r))
    with pytest.raises(ValueError, match="threshold = nan"):
        vc.evaluate(found, coco, threshold=math.nan)


def coco_files_set(rows, crowd):
    return labels.coco_frame(1, 100, 100, [
        {"id": k, "image_id": 0, "category_id": 1, "bbox": box, "iscrowd": int(box == crowd)} for k, box in enumerate([*rows, crowd])
    ])  # fmt: skip


def test_equal_scores_make_one_threshold_whatever_their_order():
    coco = labels.coco_frame(
        1, 99, 99, [{"id": 1, "image_id": 0, "category_id": 1, "bbox": [0, 0, 10, 10]}]
    )
    boxes = torch.tensor([[0.0, 0, 10, 10], [50, 50, 60, 60]])
    for order in ([0, 1], [1, 0]):
        result = match([vc.Detections(boxes[order], torch.tensor([0.5, 0.5]))], coco)
        assert result.best_threshold() == (0.5, pytest.approx(2 / 3))
        assert result.miss_rate() == pytest.approx(math.exp((8 * 0 + math.log(1e-10)) / 9))


def test_masks_are_pycocotools_run_lengths():
    from pycocotools import mask as rle

    generator = np.random.default_rng(0)
    for share in (0.0, 0.02, 0.5, 0.98, 1.0):
        for shape in ((1, 1), (7, 5), (120, 160), (3, 400)):
            mask = generator.random(shape) < share
            theirs = rle.encode(np.asfortranarray(mask, dtype=np.uint8))
            ours = coco_files.encode_mask(mask)
            assert (ours["size"], ours["counts"].encode()) == (theirs["size"], theirs["counts"])
            assert np.array_equal(coco_files.decode_mask(ours).numpy(), mask)
            assert np.array_equal(coco_files.decode_mask(theirs).numpy(), mask)
    assert coco_files.decode_mask({"size": [2, 2], "counts": [1, 2, 1]}).tolist() == [
        [False, True],
        [True, False],
    ]
    assert coco_files.decode_mask([[2, 1, 6, 1, 6, 3, 2, 3]], (5, 8)).sum() == 8
    for bad in ({"size": [2, 2], "counts": [1, 2]}, [[1, 2, 3, 4]]):
        with pytest.raises(ValueError, match="segmentation"):
            coco_files.decode_mask(bad, (5, 8))


def perfect(renders, coco):
    boxes = renders.boxes_xyxy
    return [
        vc.Detections(boxes[here], torch.ones(int(here.sum())), renders.keypoints[here])
        for here in (renders.image_index == k for k in range(len(coco["images"])))
    ]


def test_the_truth_scores_full_marks(renders, scene):
    coco = vc.to_coco(renders)
    result = vc.evaluate(perfect(renders, coco), coco, camera=scene.camera)
    assert result["AP"] > 0.999
    assert result["PCK"] == 1
    assert result["keypoint_AP"] > 0.999
    assert result["miss_rate"] < 1e-9
    assert result["ground_error"] < 0.6  # a box's lower edge is a foot, not the middle of both


def test_detections_that_are_part_of_a_graph_are_measured_as_the_numbers_they_are(renders, scene):
    coco = vc.to_coco(renders)
    found = perfect(renders, coco)
    mask = torch.ones(30, 40)
    found = [vc.Detections(p.boxes, p.scores, p.keypoints, mask) for p in found]
    parts = [(p.boxes, p.scores, p.keypoints.float(), p.mask) for p in found]
    traced = [vc.Detections(*(v.clone().requires_grad_() for v in part)) for part in parts]
    assert vc.evaluate(traced, coco, camera=scene.camera) == pytest.approx(
        vc.evaluate(found, coco, camera=scene.camera), nan_ok=True
    )
    assert to_results(traced, coco) == to_results(found, coco)


@pytest.mark.parametrize(("shift", "threshold", "expected"), [(0.0, 1.1, 1), (200.0, None, 0)])
def test_joints_are_measured_though_no_box_is_a_hit(renders, shift, threshold, expected):
    coco = vc.to_coco(renders)
    by = torch.tensor([shift, shift, 0])
    found = [
        vc.Detections(people.boxes + shift, people.scores, people.keypoints + by)
        for people in perfect(renders, coco)
    ]
    result = vc.evaluate(found, coco, threshold=threshold)
    assert result["true_positives"] == 0
    assert math.isnan(result["PCK"])
    assert result["keypoint_AP"] == pytest.approx(expected, abs=1e-3)


def test_nothing_found_scores_nothing(renders):
    coco = vc.to_coco(renders)
    nothing = [vc.Detections(torch.zeros(0, 4), torch.zeros(0)) for _ in coco["images"]]
    result = vc.evaluate(nothing, coco)
    assert result["AP50"] == 0
    assert result["miss_rate"] == 1


def test_the_miss_rate_of_a_hand_worked_case():
    """Ten pictures with a person each: nine found, one false alarm ranked after five of them."""
    coco = labels.coco_frame(10, 100, 100, [
        {"id": k + 1, "image_id": k, "category_id": 1, "bbox": [10.0, 10.0, 20.0, 40.0], "area": 800.0, "iscrowd": 0}
        for k in range(10)
    ])  # fmt: skip
    right, wrong = [10.0, 10.0, 30.0, 50.0], [60.0, 10.0, 80.0, 50.0]
    found = [vc.Detections(torch.tensor([right]), torch.tensor([1 - 0.05 * k])) for k in range(9)]
    found[5] = vc.Detections(torch.tensor([right, wrong]), torch.tensor([0.75, 0.76]))
    found.append(vc.Detections(torch.zeros(0, 4), torch.zeros(0)))
    result = match(found, coco)
    # up to 0.1 false alarms a picture 5 of 10 are missed, from there on 1 of 10
    limits = np.logspace(-2, 0, 9)
    expected = math.exp(np.mean(np.log(np.where(limits < 0.1 - 1e-9, 0.5, 0.1))))
    assert abs(result.miss_rate() - expected) < 1e-9


def test_the_classical_detector_gives_boxes_in_the_pictures_own_pixels():
    blank = torch.full((1, 3, 160, 128), 0.5)
    (people,) = baselines.hog_detect(blank, enlarge=2.0)
    assert people.boxes.shape[1] == 4
    assert len(people) == len(people.scores)


def test_opencvs_detector_has_one_thread_and_the_caller_gets_its_own_back(monkeypatch):
    seen = []

    class Spy:
        def setSVMDetector(self, _): ...

        def detectMultiScale(self, *_, **__):
            seen.append(cv2.getNumThreads())
            return np.empty((0, 4)), np.empty(0)

    monkeypatch.setattr(cv2, "HOGDescriptor", Spy)
    before = cv2.getNumThreads()
    try:
        cv2.setNumThreads(3)
        baselines.hog_detect(torch.full((2, 3, 160, 128), 0.5))
        assert (seen, cv2.getNumThreads()) == ([1, 1], 3)
    finally:
        cv2.setNumThreads(before)


def test_the_margin_of_the_detectors_window_is_taken_off(monkeypatch):
    class Sees:
        """A detector that finds one window, in the enlarged picture."""

        def setSVMDetector(self, _): ...

        def detectMultiScale(self, frame, **_):
            assert frame.shape == (320, 256, 3)
            return np.array([[20, 40, 128, 256]]), np.array([1.0])

    monkeypatch.setattr(cv2, "HOGDescriptor", Sees)
    (people,) = baselines.hog_detect(torch.full((1, 3, 160, 128), 0.5), enlarge=2.0)
    # of 128 columns 14 % on each side, of 256 rows an eighth
    expected = torch.tensor([[20 + 17.92, 40 + 32, 148 - 17.92, 296 - 32]]) / 2
    assert torch.allclose(people.boxes, expected)


def test_background_subtraction_finds_a_lone_person(bank):
    scene = bare()
    dark = dataclasses.replace(people_at(bank, [(0.0, 8.0)]), colours=torch.full((1, 7, 3), 0.1))
    out = vc.render_people(scene, bank, dark, noon())
    image = torch.where(out.instance[:, None] > 0, out.image, scene.background)  # no shadow
    (people,) = baselines.subtract_background(image, scene)
    assert box_iou(people.boxes[:1], out.visible_boxes).item() > 0.8


# ---------------------------------------------------------------- places and cases


def test_pets_calibration_reads_the_published_ground_points(real_data):
    from companion.data.surveillance import load_pets

    clip = load_pets(real_data("pedestrian-frames"))
    camera = vc.Camera.from_tsai(clip.calibration)
    for number in (1, 224, 500):
        boxes, ground = clip.truth[number]
        feet = torch.stack([boxes[:, [0, 2]].mean(1), boxes[:, 3]], 1).double()
        assert (camera.backproject_ground(feet) - ground).abs().max() < 1e-3
    scene = datasets.pets_scene(clip)
    assert len(datasets.pets_truth(clip, scene, datasets.PETS_REPORTED)["annotations"]) == 347
    assert len(datasets.pets_truth(clip, scene, datasets.PETS_TUNING)["annotations"]) == 243
    assert torch.allclose(scene.camera.centre, camera.centre)


def test_town_centres_camera_is_where_it_is(real_data):
    from companion.data.surveillance import load_town_centre

    place = load_town_centre(real_data("trajectories"))
    camera = cameras.read_town_centre(place.calibration)
    assert abs(float(camera.centre[2]) - 7.84) < 0.01
    assert 1.0 < float(datasets.box_to_person(camera, place.boxes).median()) < 1.2
    # the planted fault: with t for the camera's place the boxes fit nobody
    wrong = dataclasses.replace(camera, t=-camera.R @ camera.t)
    assert not 1.0 < float(datasets.box_to_person(wrong, place.boxes).nanmedian()) < 1.2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "beach"}, "dataset"),
        ({"dataset": "folder"}, "scene_path"),
        ({"dataset": "procedural", "scene_path": "x"}, "scene_path"),
        ({"dataset": "folder", "scene_path": "x", "video_path": "y"}, "video_path"),
    ],
)
def test_a_case_that_cannot_be_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        experiment.make_case(**options)


def test_missing_data_says_what_to_put_where(tmp_path):
    for dataset, words in (("pets", "img1"), ("town_centre", "OpenTraj")):
        with pytest.raises(FileNotFoundError, match=words):
            experiment.make_case(dataset, data_root=str(tmp_path))


def test_a_scene_from_a_homography_serves_as_the_scene_itself(scene, tmp_path):
    scenes.save_scene(scene, tmp_path)
    file = tmp_path / "scene.json"
    text = json.loads(file.read_text())
    text["camera"] = {"homography": ground_homography(scene.camera).tolist()}
    file.write_text(json.dumps(text))
    again = vc.load_scene(tmp_path)
    assert torch.allclose(again.camera.centre, scene.camera.centre, atol=1e-6)
    assert torch.equal(again.walkable_mask, scene.walkable_mask)


def foreign_set(folder, renders, change=None):
    """The renders as a set of somebody else: ids as they come, a car, a person nobody asks for."""
    coco = vc.to_coco(renders)
    for entry in coco["images"]:
        entry["id"] = f"img-{entry['id']}"
    for k, entry in enumerate(coco["annotations"]):
        entry.update(id=k, image_id=f"img-{entry['image_id']}", category_id=44)
        del entry["area"], entry["iscrowd"]
    coco["categories"] = [{"id": 3, "name": "car"}, {"id": 44, "name": "Person"}]
    coco["annotations"].insert(1, {"category_id": 3, "image_id": "img-0", "bbox": [1, 2, 3, 4]})
    if change is not None:
        change(coco)
    file = folder / "foreign.json"
    file.write_text(json.dumps(coco), encoding="utf-8")
    return file


def test_somebody_elses_annotations_are_read_as_the_same_people(scene, renders, tmp_path):
    from companion.papers.visual_compiler.experiment import read_truth

    vc.write_coco(renders, vc.to_coco(renders), tmp_path)
    file = foreign_set(tmp_path, renders)
    pictures, truth = read_truth(str(tmp_path / "images"), str(file), scene)
    assert pictures.shape == (12, 3, 120, 160)
    assert [entry["id"] for entry in truth["images"]] == list(range(12))
    assert len(truth["annotations"]) == len(renders.image_index)
    assert [e["image_id"] for e in truth["annotations"]] == renders.image_index.tolist()
    result = vc.evaluate(perfect(renders, truth), truth)
    assert result["AP"] > 0.999


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda c: c["annotations"].clear(), "nobody is annotated"),
        (lambda c: [e.update(iscrowd=1) for e in c["annotations"]], "nobody is annotated"),
        (lambda c: c["images"][1].pop("file_name"), "image 1 has no 'file_name'"),
        (lambda c: c["images"][1].update(file_name="gone.png"), "gone.png is missing"),
        (lambda c: c["images"][1].update(file_name="foreign.json"), "foreign.json: no picture"),
        (lambda c: c["annotations"][0].update(image_id=0), "annotation 0 has image_id 0"),
        (lambda c: c.pop("annotations"), "gt_path"),
    ],
)  # fmt: skip
def test_a_truth_that_cannot_be_is_named(scene, renders, tmp_path, change, message):
    from companion.papers.visual_compiler.experiment import read_truth

    vc.write_coco(renders, vc.to_coco(renders), tmp_path)
    file = foreign_set(tmp_path / "images", renders, change)
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        read_truth(str(tmp_path / "images"), str(file), scene)


def run_chapter(folder, given, *, without=()):
    """The chapter's code as a script with these parameters, some packages made to be absent."""
    code = folder / "chapter.py"
    absent = f"import sys\nsys.modules.update(dict.fromkeys({list(without)!r}))\n"
    code.write_text(
        absent + executor.script(chapters.find("visual_compiler"), given), encoding="utf-8"
    )
    environment = {k: v for k, v in os.environ.items() if not k.startswith("COMPANION")}
    return subprocess.run(
        [sys.executable, str(code)], capture_output=True, text=True, timeout=300,
        env=environment | {"PYTHONPATH": str(ROOT / "src"), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_the_notebook_runs_without_warp_opencv_and_pycocotools(tmp_path):
    """What they do is left out or done by others; nothing crashes, no claim is made up."""
    given = {"n_train": 50, "n_test": 50, "steps": 10, "trunk_width": 4, "rivals": []}
    without = ("warp", "cv2", "pycocotools", "IPython")
    done = run_chapter(tmp_path, given, without=without)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "drawn by torch" in done.stdout
    assert "left out: OpenCV is not installed" in done.stdout
    assert "C7 not run here: " in done.stdout
    assert done.stdout.count("'why': 'OpenCV is not installed") == 1  # C7, as it is recorded


def test_the_notebook_compiles_a_users_scene(scene, renders, tmp_path):
    """The chapter's code, with tiny settings, on a scene and pictures read from disk."""
    scenes.save_scene(scene, tmp_path / "scene")
    vc.write_coco(renders, vc.to_coco(renders), tmp_path / "real")
    truth = foreign_set(tmp_path, renders)
    given = {
        "dataset": "folder", "scene_path": str(tmp_path / "scene"), "n_train": 50, "n_test": 50, "steps": 10,
        "video_path": str(tmp_path / "real" / "images"), "gt_path": str(truth),
        "out_dir": str(tmp_path / "out"), "rivals": [], "hog_pictures": 2, "hog_scales": [2.0],
    }  # fmt: skip
    done = run_chapter(tmp_path, given)
    assert done.returncode == 0, done.stderr[-2000:]
    assert "procedural, 160x120 pixels: 12 real test images" in done.stdout
    assert json.loads((tmp_path / "out" / "dataset" / "annotations.json").read_text())[
        "annotations"
    ]
    picture = torch.zeros(1, 3, 120, 160)
    program = torch.export.load(tmp_path / "out" / "detector.pt2").module()
    assert program(picture).shape == (1, networks.CHANNELS, 30, 40)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda b: b * 255, r"background: values from 0 to 255, expected \[0, 1\]"),
        (lambda b: b * torch.nan, "background: values from nan"),
        (
            lambda b: (b * 255).byte(),
            r"background: torch\.uint8, expected a floating-point tensor",
        ),
        (
            lambda b: b.numpy(),
            r"background: ndarray, expected a tensor: torch.from_numpy\(background\)",
        ),
    ],
)
def test_a_background_is_a_picture_in_zero_to_one(change, said):
    scene = vc.procedural_scene()
    picture = torch.zeros_like(scene.background)
    picture[0, 0, 0] = 1
    with pytest.raises(ValueError, match=said):
        dataclasses.replace(scene, background=change(picture))


def test_walkable_ground_is_polygons_and_no_mask():
    scene = vc.procedural_scene()
    with pytest.raises(ValueError, match="walkable: a tensor, expected polygons"):
        dataclasses.replace(scene, walkable=torch.ones(4, 4, dtype=torch.bool))
    with pytest.raises(ValueError, match="walkable: an array, expected polygons"):
        dataclasses.replace(scene, walkable=np.array(scene.walkable))


def _search(name, images, scene):
    if name == "detect":
        return vc.detect(vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4), images)
    return {
        "hog_detect": lambda: baselines.hog_detect(images, enlarge=2.0),
        "subtract_background": lambda: baselines.subtract_background(images, scene),
    }[name]()


@pytest.mark.parametrize("name", ["detect", "hog_detect", "subtract_background"])
def test_every_detector_refuses_what_is_no_picture(scene, name):
    picture = scene.background[None]
    cases = {
        r"images: shape \(3, 120, 160\)": scene.background,
        "images: 1 channels": picture[:, :1],
        r"images: values from .*, expected \[0, 1\], or uint8": 255 * picture,
        "images: values from .* to 1.1": picture + 1.1 - picture.max(),
    }
    if name == "subtract_background":
        cases[r"images: \(60, 160\) pixels, but the scene has \(120, 160\)"] = picture[:, :, :60]
    for message, images in cases.items():
        with pytest.raises(ValueError, match=message):
            _search(name, images, scene)


def test_detection_leaves_the_mode_and_refuses_what_is_no_picture():
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(4), 1, 4).train()
    pictures = torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    found = vc.detect(model, pictures, threshold=0.0)
    assert model.training
    doubled = vc.detect(model, pictures.double(), threshold=0.0)
    assert torch.equal(found[0].boxes, doubled[0].boxes)
    with pytest.raises(
        ValueError, match=r"images: values from .* to 2.*, expected \[0, 1\], or uint8"
    ):
        vc.detect(model, pictures * 255)
    with pytest.raises(ValueError, match="images: 1 channels, expected 3"):
        vc.detect(model, pictures[:, :1])


def test_a_turned_box_faces_where_its_side_faces():
    origin, ray = torch.tensor([0.0, -10, 1]).double(), torch.tensor([[0.0, 1, 0]]).double()
    at, normal = vc.scene.hit_box(origin, ray, vc.Box(0.0, 0.0, (4.0, 2.0, 3.0), yaw=0.3))
    assert at.item() == pytest.approx(10 - 1 / math.cos(0.3))
    assert normal[0].tolist() == pytest.approx([math.sin(0.3), -math.cos(0.3), 0])


def test_somebody_of_whom_nothing_shows_is_not_valid():
    out = vc.render.render_person(vc.procedural_scene(), (0.0, 7.0))
    assert vc.labels.is_valid(out).tolist() == [True]
    hidden = dataclasses.replace(out, instance=0 * out.instance)
    assert vc.labels.is_valid(hidden).tolist() == [False]


def test_the_size_of_a_sliver_is_a_pixel():
    boxes, marks = torch.tensor([[8.0, 0.0, 8.0, 32.0]]), torch.zeros(1, 17, 3)
    one, masks = torch.tensor([0]), torch.zeros(1, 8, 8, dtype=torch.bool)
    found = vc.labels.targets(boxes, marks, torch.tensor([True]), one, masks, (8, 8))
    assert found["size"].isfinite().all()
    assert found["size"][:, 0].max() == 0
