"""Labels as training targets and as COCO data sets."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from companion.checks import generators, whole
from companion.files import write_whole
from companion.papers.visual_compiler.bodies import KEYPOINTS, BodyBank
from companion.papers.visual_compiler.coco import encode_mask
from companion.papers.visual_compiler.raster import drawing_device
from companion.papers.visual_compiler.render import (
    CLOTHES,
    Renders,
    check_supersample,
    render_scene,
)
from companion.papers.visual_compiler.scene import STRIDE, Scene
from companion.progress import Progress, progress_bar
from companion.training import upload

LEAST_SHARE = 0.3  # people who show less of themselves are neither asked for nor punished
LEAST_PIXELS = 12
AT_ONCE = 64  # pictures rendered together, at most
SAMPLES = AT_ONCE * 640 * 480 * 2**2  # of these pictures; the renderer's tensors take 2 GB then
SKELETON = [
    [16, 14], [14, 12], [17, 15], [15, 13], [12, 13], [6, 12], [7, 13], [6, 7], [6, 8], [7, 9],
    [8, 10], [9, 11], [2, 3], [1, 2], [1, 3], [2, 4], [3, 5],
]  # fmt: skip


@dataclass(frozen=True, eq=False)
class TrainingSet:
    """Rendered pictures with their labels, kept on the CPU: 40,000 of 640 x 360 are 28 GB.

    Args:
        images: (n, 3, H, W), uint8.
        masks: (n, H/4, W/4) bool, where people fill most of a cell.
        boxes: (P, 4), x0, y0, x1, y1 in pixels.
        keypoints: (P, 17, 3), column, row and visibility.
        valid: (P,) bool, seen well enough to be learned.
        first: (n + 1,), where the people of each picture begin.
    """

    images: Tensor
    masks: Tensor
    boxes: Tensor
    keypoints: Tensor
    valid: Tensor
    first: Tensor

    def __len__(self) -> int:
        return len(self.images)

    def part(self, n: int) -> TrainingSet:
        """A copy of the first n pictures, so that the rest can be forgotten."""
        people = int(self.first[min(n, len(self))])
        rows = {
            name: getattr(self, name)[:people].clone() for name in ("boxes", "keypoints", "valid")
        }
        return TrainingSet(
            self.images[:n].clone(),
            self.masks[:n].clone(),
            first=self.first[: n + 1].clone(),
            **rows,
        )

    def batch(
        self, index: Tensor, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Pictures (b, 3, H, W) in [0, 1] and the targets of their cells, made on a device."""
        index = index.cpu()
        counts = self.first[index + 1] - self.first[index]
        image = torch.arange(len(index)).repeat_interleave(counts)
        within = torch.arange(len(image))
        within = within - (counts.cumsum(0) - counts)[image]
        people = self.first[index][image] + within
        pictures = upload(self.images[index], device).float() / 255
        rows = (self.boxes[people], self.keypoints[people], self.valid[people], image)
        boxes, keypoints, valid, image, masks = (
            upload(part, device) for part in (*rows, self.masks[index])
        )
        h, w = masks.shape[1:]
        return pictures, targets(boxes, keypoints, valid, image, masks, (h, w))


def gaussians(centre: Tensor, spread: Tensor, cells: int) -> Tensor:
    """(..., cells): bell curves of height 1 at `centre`, in cells; cell i has its middle at i + 1/2."""
    grid = torch.arange(cells, device=centre.device, dtype=torch.float32) + 0.5
    return torch.exp(-0.5 * ((grid - centre[..., None]) / spread[..., None]).square())


def targets(
    boxes: Tensor,
    keypoints: Tensor,
    valid: Tensor,
    image: Tensor,
    masks: Tensor,
    size: tuple[int, int],
) -> dict[str, Tensor]:
    """What each cell of b pictures should say, from the labels of P people in pixels.

    Bells are products of one-dimensional ones, so nothing is looped over.

    Args:
        boxes: (P, 4), x0, y0, x1, y1 in pixels.
        keypoints: (P, 17, 3), column, row and visibility.
        valid: (P,) bool, seen well enough to be learned.
        image: (P,), the image of each person.
        masks: (b, h, w) bool, where people fill most of a cell.
        size: rows h and columns w of cells.

    Returns:
        Heat (b, h, w), 1 where a centre is; positive (b, h, w), the cells of centres; weight
        (b, h, w), 0 around people who are left out; blob (b, h, w), where offsets and sizes
        are learned; offset and size (b, 2, h, w); joints (b, 17, h, w); mask (b, h, w).
    """
    h, w = size
    b = len(masks)
    centre = (boxes[:, :2] + boxes[:, 2:]) / 2 / STRIDE
    extent = (boxes[:, 2:] - boxes[:, :2]) / STRIDE
    spread = (extent / 6).clamp(min=0.7)
    bell = (
        gaussians(centre[:, 1], spread[:, 1], h)[:, :, None]
        * gaussians(centre[:, 0], spread[:, 0], w)[:, None]
    )
    column = centre[:, 0].long().clamp(0, w - 1)
    row = centre[:, 1].long().clamp(0, h - 1)

    # nothing is picked by a mask here: a GPU would have to be asked how much that is
    def highest(maps: Tensor) -> Tensor:
        """The largest of P maps (P, h, w), none below 0, for each picture, (b, h, w)."""
        out = torch.zeros(b, h * w, dtype=maps.dtype, device=maps.device)
        index = image[:, None].expand(-1, h * w)
        return out.scatter_reduce(0, index, maps.flatten(1), "amax").view(b, h, w)

    peaks = highest(bell * valid[:, None, None])
    positive = torch.zeros(b * h * w, device=boxes.device, dtype=torch.float32)
    place = (image * h + row) * w + column
    positive = positive.scatter_reduce(0, place, valid.float(), "amax").view(b, h, w)
    heat = torch.maximum(peaks, positive)
    weight = ((highest(bell * ~valid[:, None, None]) < 0.3) | (positive > 0)).float()

    # each cell of a blob answers for the person whose bell is highest there
    # (the last of them, where bells are equally high); 0 is nobody
    own = valid[:, None, None] & (bell >= peaks[image] - 1e-6) & (bell > 0.4)
    number = torch.arange(1, len(boxes) + 1, device=boxes.device)
    person = highest(own * number[:, None, None])
    blob = (person > 0).float()

    def of_person(rows: Tensor) -> Tensor:  # (P, 2) to (b, 2, h, w); nobody has zeros
        return torch.cat([rows.new_zeros(1, 2), rows])[person].movedim(-1, 1)

    y, x = (torch.arange(size, device=boxes.device, dtype=torch.float32) + 0.5 for size in (h, w))
    cell = torch.stack([x.expand(h, w), y[:, None].expand(h, w)])
    offset = torch.where(person[:, None] > 0, of_person(centre) - cell, 0.0)
    extents = of_person((extent * STRIDE).clamp(min=1).log())

    seen = (keypoints[..., 2] == 2) & valid[:, None]
    at = keypoints[..., :2] / STRIDE
    narrow = (extent[:, 1] / 24).clamp(min=0.6)[:, None].expand(-1, at.shape[1])
    marks = (
        gaussians(at[..., 1], narrow, h)[..., :, None]
        * gaussians(at[..., 0], narrow, w)[..., None, :]
    )
    marks = (marks * seen[..., None, None]).flatten(1)
    joints = torch.zeros(b, marks.shape[1], device=boxes.device, dtype=torch.float32)
    joints = joints.scatter_reduce(0, image[:, None].expand(-1, marks.shape[1]), marks, "amax")
    return {
        "heat": heat, "positive": positive, "weight": weight, "blob": blob, "offset": offset,
        "size": extents, "joints": joints.view(b, -1, h, w), "mask": masks.float(),
    }  # fmt: skip


def is_valid(renders: Renders) -> Tensor:
    """(P,) bool: who shows enough to be learned, and to be missed when not found."""
    shown = torch.bincount(renders.instance.flatten().long(), minlength=len(renders.stature) + 1)
    return (renders.visible_fraction >= LEAST_SHARE) & (shown[1:] >= LEAST_PIXELS)


def group_size(height: int, width: int, supersample: int) -> int:
    """Pictures of this size that are rendered together: AT_ONCE, fewer of large ones.

    Random numbers are drawn a group at a time, so it must not depend on the device.
    """
    return max(1, min(AT_ONCE, SAMPLES // (height * width * supersample**2)))


def compile_scene(
    scenes: Scene | Sequence[Scene],
    bank: BodyBank,
    n: int,
    *,
    max_people: int = 5,
    supersample: int = 2,
    randomise_light: bool = True,
    palette: Sequence[tuple[float, float, float]] = CLOTHES,
    generator: torch.Generator,
    device: torch.device | str = "cpu",
    progress: bool | Progress = False,
) -> TrainingSet:
    """Render n labelled images, spread evenly over the scenes, and keep what training needs.

    They are drawn on `raster.drawing_device` of the device, several together, and kept on the
    CPU.

    Args:
        scenes: one, or several whose images have one size.
        bank: bodies of the people.
        n: images.
        max_people: in an image, of 1 to this many.
        supersample: samples a pixel in each direction, 1 to 8.
        randomise_light: whether the light differs from image to image.
        palette: colours of clothes, each of three values in [0, 1].
        generator: of the CPU.
        device: to draw on.
        progress: show a bar; or a bar to move on.

    Returns:
        Images and labels for `train`.

    Raises:
        ValueError: for fewer than one picture, person or scene, for another number of samples
            than `render_people` takes, and where the picture sizes of the scenes differ.
    """
    scenes = [scenes] if isinstance(scenes, Scene) else list(scenes)
    whole(1, n=n, max_people=max_people, scenes=len(scenes))
    generators(generator=generator)
    check_supersample(supersample)
    sizes = sorted({tuple(scene.background.shape) for scene in scenes})
    if len(sizes) != 1:
        raise ValueError(f"scenes: expected pictures of one size, not {sizes}")
    device = drawing_device(device)
    *_, height, width = sizes[0]
    at_once = group_size(height, width, supersample)
    shares = [n // len(scenes) + (k < n % len(scenes)) for k in range(len(scenes))]
    parts: dict[str, list[Tensor]] = {field.name: [] for field in dataclasses.fields(TrainingSet)}
    del parts["images"]
    images = torch.empty((n, *sizes[0]), dtype=torch.uint8)
    done = 0
    bank = bank.to(device)
    with progress_bar(progress, n, "rendered images") as bar:
        for scene, share in zip(scenes, shares, strict=True):
            here = scene.to(device)
            for start in range(0, share, at_once):
                count = min(at_once, share - start)
                out = render_scene(
                    here, bank, count, max_people=max_people, supersample=supersample,
                    randomise_light=randomise_light, palette=palette, generator=generator,
                )  # fmt: skip
                filled = torch.nn.functional.avg_pool2d((out.instance > 0).float(), STRIDE)
                images[done : done + count] = (out.image * 255).round().to(torch.uint8)
                done += count
                parts["masks"].append((filled >= 0.5).cpu())
                parts["boxes"].append(out.boxes_xyxy.cpu())
                parts["keypoints"].append(out.keypoints.cpu())
                parts["valid"].append(is_valid(out).cpu())
                parts["first"].append(torch.bincount(out.image_index.cpu(), minlength=count))
                bar.update(count)
    counts = torch.cat(parts.pop("first"))
    first = torch.cat([counts.new_zeros(1), counts.cumsum(0)])
    rows = {name: torch.cat(rows) for name, rows in parts.items()}
    return TrainingSet(images, first=first, **rows)


# ---------------------------------------------------------------- COCO


def to_coco(
    renders: Renders, *, scene: Scene | None = None, info: Mapping[str, object] | None = None
) -> dict:
    """The labels of renders as a COCO data set: boxes, run-length masks and 17 keypoints.

    People who show too little are `iscrowd`, which evaluations leave out. Beyond COCO every
    person has `visible_fraction`, `ground` (metres) and `stature` (metres), and the data set
    has the camera if a scene is given: `K`, `R`, `t`, and `lens` in words if it has one.

    Args:
        renders: images with exact labels.
        scene: of the images, for its camera.
        info: more for the header, such as seed and the bank's checksum.
    """
    height, width = renders.image.shape[2:]
    valid = is_valid(renders).tolist()
    annotations = []
    instance = renders.instance.cpu().numpy()
    for p, image in enumerate(renders.image_index.tolist()):
        mask = instance[image] == p + 1
        x0, y0, x1, y1 = renders.boxes_xyxy[p].tolist()
        marks = renders.keypoints[p].clone()
        marks[marks[:, 2] == 0] = 0
        annotations.append(
            {
                "id": p + 1,
                "image_id": image,
                "category_id": 1,
                "bbox": [x0, y0, x1 - x0, y1 - y0],
                "area": float(mask.sum()),
                "segmentation": encode_mask(mask),
                "keypoints": marks.flatten().tolist(),
                "num_keypoints": int((marks[:, 2] > 0).sum()),
                "iscrowd": int(not valid[p]),
                "visible_fraction": float(renders.visible_fraction[p]),
                "ground": renders.ground[p].tolist(),
                "stature": float(renders.stature[p]),
            }
        )
    out = coco_frame(len(renders), width, height, annotations)
    if scene is not None:
        camera = scene.camera
        out["info"]["camera"] = {name: getattr(camera, name).tolist() for name in ("K", "R", "t")}
        if camera.lens is not None:
            out["info"]["camera"]["lens"] = repr(camera.lens)
    out["info"] |= dict(info or {})
    return out


def coco_frame(n_images: int, width: int, height: int, annotations: list[dict]) -> dict:
    """A COCO data set of one category, person, around these annotations.

    Args:
        n_images: number of images.
        width, height: of each, pixels.
        annotations: of COCO, with image_id from 0.
    """
    return {
        "info": {"description": "people rendered into a scene"},
        "images": [
            {"id": k, "file_name": f"{k:06d}.png", "width": width, "height": height}
            for k in range(n_images)
        ],
        "categories": [
            {"id": 1, "name": "person", "keypoints": list(KEYPOINTS), "skeleton": SKELETON}
        ],
        "annotations": annotations,
    }


def write_coco(renders: Renders, coco: dict, folder: str | os.PathLike) -> None:
    """Write pictures and ``annotations.json`` into a folder; the annotations come last."""
    from PIL import Image

    folder = Path(folder)
    (folder / "images").mkdir(parents=True, exist_ok=True)
    for entry, image in zip(coco["images"], renders.image.cpu(), strict=True):
        pixels = (image * 255).round().to(torch.uint8).movedim(0, 2).numpy()
        Image.fromarray(pixels).save(folder / "images" / entry["file_name"])
    write_whole(folder / "annotations.json", json.dumps(coco) + "\n")
