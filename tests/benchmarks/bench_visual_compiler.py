"""The renderer against its torch twin and a painter's algorithm; the pipeline as it grows."""

import contextlib
import copy
import io

import cv2
import numpy as np
import pytest
import torch

from companion.papers import visual_compiler as vc
from companion.papers.visual_compiler.camera import Brown
from companion.papers.visual_compiler.labels import coco_frame
from companion.papers.visual_compiler.metrics import match, to_results
from companion.papers.visual_compiler.network import CHANNELS
from companion.papers.visual_compiler.raster import rasterise

BANK = vc.BodyBank.load()


def crowd(people, images, width, height):
    """Projected meshes of people about half as tall as the picture."""
    generator = torch.Generator().manual_seed(0)
    mesh = BANK.vertices[torch.randint(len(BANK), (people,), generator=generator)]
    z = 4 + 4 * torch.rand(people, 1, generator=generator) + mesh[..., 1]
    size = torch.tensor([float(width), float(height)])
    at = torch.rand(people, 1, 2, generator=generator) * size + torch.tensor([0.0, height / 4])
    uv = torch.stack([mesh[..., 0], -mesh[..., 2]], -1) * height * 1.4 / z[..., None] + at
    return uv, z, torch.arange(people) % images, torch.full((height, width), torch.inf)


def draw(case, images, backend):
    uv, z, image, static = case
    return rasterise(uv, z, BANK.faces, image, static, images, backend=backend)


def paint(case, images):
    """OpenCV fills the faces of each picture from the farthest to the nearest."""
    uv, z, image, static = case
    out = []
    for b in range(images):
        mine = (image == b).nonzero()[:, 0]
        corners = uv[mine][:, BANK.faces].reshape(-1, 3, 2)
        depth = z[mine][:, BANK.faces].mean(-1).reshape(-1)
        order = depth.argsort(descending=True)
        owner = mine.repeat_interleave(len(BANK.faces))[order].tolist()
        canvas = np.full(tuple(static.shape), -1, np.int32)
        points = (corners[order] * 16 - 8).round().to(torch.int32).numpy()
        for triangle, p in zip(points, owner, strict=True):
            cv2.fillConvexPoly(canvas, triangle, p, shift=4)
        out.append(canvas)
    return np.stack(out)


@pytest.mark.parametrize(
    ("people", "images", "width", "height", "rounds"),
    [(80, 20, 160, 90, 8), (14, 1, 1280, 720, 5), (80, 20, 640, 360, 4)],
)
def test_the_kernel_and_its_torch_twin(people, images, width, height, rounds, compare):
    case = crowd(people, images, width, height)
    ours, theirs = (draw(case, images, backend) for backend in ("warp", "torch"))
    assert torch.equal(ours.cover, theirs.cover)
    compare(
        f"z-buffer by Warp, {people} people in {images} picture(s) of {width}x{height}",
        lambda: draw(case, images, "warp"),
        "the same in torch (scatter_reduce)",
        lambda: draw(case, images, "torch"),
        rounds=rounds,
        aim=0.2,
        peers=["torch"],
        agreement="the same coverage to the sample",
    )


@pytest.mark.parametrize(
    ("people", "images", "width", "height"), [(80, 20, 160, 90), (14, 1, 1280, 720)]
)
def test_the_kernel_and_a_painter(people, images, width, height, compare):
    case = crowd(people, images, width, height)
    seen = draw(case, images, "warp").person.numpy()
    agree = (seen == paint(case, images)).mean()
    assert agree > 0.9  # the painter widens every face by its border
    compare(
        f"z-buffer by Warp, {people} people in {images} picture(s) of {width}x{height}",
        lambda: draw(case, images, "warp"),
        "faces sorted by depth and filled by OpenCV, no depth map",
        lambda: paint(case, images),
        rounds=6,
        aim=1.0,
        peers=["opencv-python-headless"],
        agreement=f"{100 * agree:.0f} % of samples agree",
    )


@pytest.mark.parametrize(
    ("people", "images", "width", "height"), [(80, 20, 160, 90), (14, 1, 1280, 720)]
)
def test_the_kernel_and_embree(people, images, width, height, compare):
    """Embree casts a ray through the centre of every sample, into a scene built for each picture."""
    rtcore, construction = (
        pytest.importorskip(f"embreex.{name}") for name in ("rtcore_scene", "mesh_construction")
    )
    case = crowd(people, images, width, height)
    uv, z, image, _ = case
    space = torch.cat([uv * z[..., None], z[..., None]], -1)  # as seen from the origin, f = 1
    rows, columns = torch.meshgrid(torch.arange(height), torch.arange(width), indexing="ij")
    rays = torch.stack([columns + 0.5, rows + 0.5, torch.ones(height, width)], -1).reshape(-1, 3)
    rays = rays.numpy().astype(np.float32)
    origin = np.zeros_like(rays)

    def cast():
        out = []
        for b in range(images):
            mine = (image == b).nonzero()[:, 0]
            number = torch.arange(len(mine))[:, None, None] * uv.shape[1]
            faces = (BANK.faces + number).reshape(-1, 3).numpy().astype(np.int32)
            corners = space[mine].reshape(-1, 3).numpy().astype(np.float32)
            scene = rtcore.EmbreeScene()
            construction.TriangleMesh(scene, corners, faces)
            hit = torch.from_numpy(scene.run(origin, rays, query="INTERSECT")).long()
            person = mine[(hit // len(BANK.faces)).clamp(min=0)]
            out.append(torch.where(hit < 0, -1, person).view(height, width))
        return torch.stack(out)

    agree = (draw(case, images, "warp").person == cast()).double().mean().item()
    assert agree > 0.99
    compare(
        f"z-buffer by Warp, {people} people in {images} picture(s) of {width}x{height}",
        lambda: draw(case, images, "warp"),
        "Embree, a ray a sample",
        cast,
        rounds=8,
        aim=1.0,
        peers=["embreex"],
        agreement=f"{100 * agree:.2f} % of samples see the same person",
    )


def test_undistortion(compare):
    """A strong lens, that of Town Centre; OpenCV iterated until it is as exact."""
    lens = Brown(-0.6, 4.7, -0.0005, -0.008)
    K, dist = (
        np.array([[2696.36, 0, 959.5], [0, 2696.36, 539.5], [0, 0, 1]]),
        np.array([*vars(lens).values()]),
    )
    draw = torch.Generator().manual_seed(0)
    uv = torch.rand(20000, 2, generator=draw, dtype=torch.float64) * torch.tensor([1920.0, 1080.0])
    xy = (uv - torch.from_numpy(K[:2, 2])) / K[0, 0]
    until = (cv2.TERM_CRITERIA_COUNT | cv2.TERM_CRITERIA_EPS, 100, 1e-12)

    def peer():
        return cv2.undistortPointsIter(
            uv.numpy()[:, None], K, dist[:5], np.eye(3), np.eye(3), until
        )

    assert np.abs(lens.undistort(xy).numpy() - peer()[:, 0]).max() < 1e-9
    compare(
        "20,000 points undistorted, a strong lens of Brown's",
        lambda: lens.undistort(xy),
        "OpenCV's undistortPointsIter, to 1e-12",
        peer,
        rounds=20,
        aim=2.0,
        reason="ours is tensor by tensor, OpenCV a compiled loop",
        peers=["opencv-python-headless"],
        agreement="equal to 1e-9",
    )


def detections(images, people):
    """A data set of people in random boxes, and noisy detections with false alarms."""
    draw = torch.Generator().manual_seed(0)
    annotations, found = [], []
    for image in range(images):
        corner = 300 * torch.rand(people, 2, generator=draw)
        size = 20 + 60 * torch.rand(people, 2, generator=draw)
        annotations += [
            {"id": len(annotations) + 1 + k, "image_id": image, "category_id": 1, "iscrowd": 0,
             "bbox": [*corner[k].tolist(), *size[k].tolist()], "area": float(size[k].prod())}
            for k in range(people)
        ]  # fmt: skip
        false = 300 * torch.rand(2 * people, 2, generator=draw)
        near = torch.cat([corner, corner + size], 1)
        near = near + 3 * torch.randn(near.shape, generator=draw)
        boxes = torch.cat([near, torch.cat([false, false + 40], 1)])
        found.append(vc.Detections(boxes, torch.rand(len(boxes), generator=draw)))
    return found, coco_frame(images, 400, 400, annotations)


@pytest.mark.parametrize(("images", "people"), [(200, 5), (20, 50)])
def test_average_precision(images, people, compare):
    coco_api, evaluation = (
        pytest.importorskip(f"pycocotools.{name}") for name in ("coco", "cocoeval")
    )
    found, coco = detections(images, people)
    results = to_results(found, coco)

    def peer():
        with contextlib.redirect_stdout(io.StringIO()):
            truth = coco_api.COCO()
            truth.dataset = coco
            truth.createIndex()
            run = evaluation.COCOeval(truth, truth.loadRes(copy.deepcopy(results)), "bbox")
            run.params.iouThrs, run.params.maxDets = np.array([0.5]), [100, 100, 200]
            run.params.areaRng, run.params.areaRngLbl = [[0, 1e10]], ["all"]
            run.evaluate()
            run.accumulate()
        precision = run.eval["precision"][0, :, 0, 0, -1]
        return precision.mean()

    def ours():
        return match(found, coco).interpolated().mean()

    assert ours() == peer()
    compare(
        f"AP50 of {3 * people} detections and {people} people in each of {images} images",
        ours,
        "pycocotools, at this threshold and for all sizes only",
        peer,
        rounds=8,
        aim=1.0,
        peers=["pycocotools"],
        agreement="the same number to the last bit",
    )


def labelled(people, width, count=16):
    """Labels of some pictures, after the scene's depth map is there."""
    scene = vc.procedural_scene(width, width * 3 // 4)
    generator = torch.Generator().manual_seed(0)
    return lambda: vc.compile_scene(scene, BANK, count, max_people=people, generator=generator)


def test_growth_with_the_people(grow):
    sizes = [5, 10, 20, 40]
    grow("16 labelled pictures of 160×120", "people at most", sizes, lambda n: labelled(n, 160))


def test_growth_with_the_pixels(grow):
    widths = {w * (w * 3 // 4): w for w in (80, 160, 320, 640)}
    what = "16 labelled pictures, at most 5 people"
    grow(what, "pixels", list(widths), lambda n: labelled(5, widths[n]))


def test_regions_as_a_dense_product_and_as_groups(compare):
    scene = vc.procedural_scene()
    regions, width = 3, 16
    masks = scene.regions(regions)
    hidden = torch.rand(8, regions * width, 30, 40, requires_grad=True)
    weight = torch.rand(CHANNELS, regions * width, requires_grad=True)
    wide = masks.repeat_interleave(width, 0)

    def dense():
        return torch.nn.functional.conv2d(hidden * wide, weight[:, :, None, None])

    def grouped():
        stacked = weight.view(CHANNELS, regions, width).movedim(1, 0).reshape(-1, width, 1, 1)
        each = torch.nn.functional.conv2d(hidden, stacked, groups=regions)
        return (each.view(8, regions, CHANNELS, 30, 40) * masks[:, None]).sum(1)

    assert torch.allclose(dense(), grouped(), atol=1e-4)
    compare(
        "heads of 3 regions, forward and backward: mask times hidden, one dense 1x1 product",
        lambda: torch.autograd.grad(dense().sum(), [hidden, weight]),
        "a grouped 1x1 convolution, then the masks",
        lambda: torch.autograd.grad(grouped().sum(), [hidden, weight]),
        rounds=20,
        aim=1.0,
        agreement="equal to 1e-4",
    )
