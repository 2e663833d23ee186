"""Two real places: the camera of PETS 2009 S2-L1, and Oxford Town Centre."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from companion.data.surveillance import PetsClip, TownCentre
from companion.papers.visual_compiler.camera import Camera, read_town_centre
from companion.papers.visual_compiler.labels import coco_frame
from companion.papers.visual_compiler.scene import Occluder, Scene, undistort

PETS_TUNING = range(1, 197, 5)  # frames to choose settings on
PETS_REPORTED = range(201, 792, 10)  # frames to report
PETS_SCALE = 0.5  # of 768 x 576 pixels
PETS_LEAST = 48  # rows of a person of 1.75 m at full size: smaller ones are not annotated
# outlines in the full picture of what people walk behind
PETS_OCCLUDERS = (
    Occluder(((423, 100), (430, 100), (438, 393), (429, 393)), (433, 392)),  # lamp post
    Occluder(((413, 202), (445, 202), (445, 244), (413, 244)), (433, 392)),  # its sign
    Occluder(((504, 338), (511, 338), (509, 451), (506, 451)), (507, 470)),  # tripod
    Occluder(((503, 378), (508, 378), (462, 470), (459, 469)), (507, 470)),
    Occluder(((506, 380), (511, 380), (526, 481), (522, 481)), (507, 470)),
)
# the street and its pavements in the undistorted frame, as shares of its width and height
TOWN_CENTRE_STREET = ((0.0, 0.38), (0.36, 0.03), (1.0, 0.03), (1.0, 1.0), (0.0, 1.0))


def pets_scene(clip: PetsClip) -> Scene:
    """The scene of PETS 2009 S2-L1, view 001, at half size.

    Its background is the median of the whole clip, which is transductive but unlabelled. Ground
    on which a person would be less than PETS_LEAST rows tall is left out.
    """
    camera = Camera.from_tsai(clip.calibration).resize(PETS_SCALE)
    background = clip.background(size=(camera.width, camera.height))
    occluders = tuple(
        Occluder(
            tuple((PETS_SCALE * u, PETS_SCALE * v) for u, v in o.polygon),
            (PETS_SCALE * o.foot[0], PETS_SCALE * o.foot[1]),
        )
        for o in PETS_OCCLUDERS
    )
    ground = [(-60.0, -60.0), (60.0, -60.0), (60.0, 60.0), (-60.0, 60.0)]
    return Scene(
        background, camera, [ground], occluders=occluders,
        min_height=PETS_LEAST * PETS_SCALE, name="PETS 2009 S2-L1",
    )  # fmt: skip


def pets_truth(clip: PetsClip, scene: Scene, numbers: Sequence[int]) -> dict:
    """The boxes and ground points of some frames as a COCO data set at the scene's size.

    Everybody counts, hidden or not.
    """
    annotations: list[dict[str, Any]] = []
    for image, number in enumerate(numbers):
        boxes, ground = clip.truth[number]
        for box, place in zip((boxes * PETS_SCALE).tolist(), ground.tolist(), strict=True):
            x0, y0, x1, y1 = box
            annotations.append(
                {
                    "id": len(annotations) + 1, "image_id": image, "category_id": 1,
                    "bbox": [x0, y0, x1 - x0, y1 - y0], "area": (x1 - x0) * (y1 - y0),
                    "iscrowd": 0, "ground": place,
                }
            )  # fmt: skip
    return coco_frame(len(numbers), scene.camera.width, scene.camera.height, annotations)


def town_centre_scene(place: TownCentre, width: int = 640) -> Scene:
    """Oxford Town Centre without its lens, from the one frame there is.

    People stand in it already, blurred: a place for geometry and composites, not for testing.
    The walkable ground is the street in front of the camera, cut off where people get small.
    """
    camera = read_town_centre(place.calibration)
    full = camera.resize(place.frame.shape[2] / camera.width)
    frame = undistort(place.frame, full)
    corners = torch.tensor(TOWN_CENTRE_STREET, dtype=torch.float64)
    corners = corners * torch.tensor([full.width, full.height])
    street = [tuple(corner) for corner in full.ideal().backproject_ground(corners).tolist()]
    scene = Scene(frame, full.ideal(), [street], min_height=60.0, name="Town Centre")
    return scene.resize(width / scene.camera.width)


def box_to_person(camera: Camera, boxes: torch.Tensor, stature: float = 1.75) -> torch.Tensor:
    """(n,): height of each box by that of a person who stands at the middle of its lower edge."""
    feet = torch.stack([boxes[:, [0, 2]].mean(1), boxes[:, 3]], 1).double()
    ground = camera.backproject_ground(feet)
    head = torch.cat([ground, torch.full_like(ground[:, :1], stature)], 1)
    tall = (camera.project(head)[0] - feet).norm(dim=1)
    return (boxes[:, 3] - boxes[:, 1]) / tall
