"""One place to be tried: its scene, what to train on, and pictures with the truth to test on."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from companion.checks import one_of, whole
from companion.data.root import CorruptDataError
from companion.data.surveillance import load_pets, load_town_centre
from companion.papers.visual_compiler.bodies import BodyBank
from companion.papers.visual_compiler.coco import people_of
from companion.papers.visual_compiler.datasets import (
    PETS_REPORTED,
    pets_scene,
    pets_truth,
    town_centre_scene,
)
from companion.papers.visual_compiler.labels import to_coco, write_coco
from companion.papers.visual_compiler.network import SpatiallyVaryingFCN, export
from companion.papers.visual_compiler.raster import rasterise
from companion.papers.visual_compiler.render import (
    Renders,
    check_supersample,
    render_scene,
)
from companion.papers.visual_compiler.scene import Scene, load_scene, procedural_scene

DATASETS = ("procedural", "pets", "town_centre", "folder")
HELD_OUT = 6  # bodies that only test pictures show
TEST_SEED = 10_000  # test pictures are drawn apart from training pictures


@dataclass(frozen=True, eq=False)
class Case:
    """A scene with test pictures.

    Args:
        pictures: (n, 3, H, W) uint8.
        truth: COCO data set of them.
        bank: bodies to train with.
        renders: the test pictures' full labels, None where they are real.
        checksums: of what was read.
        as_taken: the pictures in their full size, if that is another.
    """

    scene: Scene
    pictures: Tensor
    truth: dict
    bank: BodyBank
    renders: Renders | None
    checksums: dict[str, str]
    as_taken: Tensor | None = None

    @property
    def real(self) -> bool:
        """Whether the test images are real."""
        return self.renders is None


def make_case(
    dataset: str,
    *,
    data_root: str = "",
    scene_path: str = "",
    video_path: str = "",
    gt_path: str = "",
    width: int = 160,
    n_test: int = 200,
    max_people: int = 5,
    supersample: int = 2,
    seed: int = 0,
) -> Case:
    """Set the place up, and render its test pictures unless there are real ones.

    Args:
        dataset: "procedural" and "town_centre" (`width` pixels wide), "pets" (real frames at
            half size), or "folder": the scene in scene_path, tested on the pictures of
            video_path with the COCO file gt_path, or on renders without these.
        data_root: folder of the data sets; "": see `companion.data.root`.
        scene_path: folder for `load_scene`.
        video_path: real images as the scene's camera takes them, lens and all: a folder or a
            video file.
        gt_path: COCO file of their annotations, in the pixels of these images.
        width: of the images of two data sets, pixels.
        n_test: test images.
        max_people: in a rendered image.
        supersample: samples a pixel in each direction, 1 to 8.
        seed: of the rendered test images.

    Raises:
        ValueError: for a name or a combination that is none, a number below 1, and as the
            loaders do.
    """
    whole(1, width=width, n_test=n_test, max_people=max_people)
    check_supersample(supersample)
    one_of(DATASETS, dataset=dataset)
    if bool(scene_path) != (dataset == "folder"):
        raise ValueError(
            f"scene_path = {scene_path!r}: expected a folder with dataset 'folder', else nothing"
        )
    if bool(video_path) != bool(gt_path) or (video_path and dataset != "folder"):
        raise ValueError(
            f"video_path = {video_path!r}, gt_path = {gt_path!r}: expected both or neither, "
            "and only with dataset 'folder'"
        )
    bank = BodyBank.load()
    checksums = {"bodies": bank.checksum}
    if dataset == "pets":
        clip = load_pets(data_root)
        scene = pets_scene(clip)
        numbers = list(PETS_REPORTED)[:n_test]
        size = scene.camera.width, scene.camera.height
        truth = pets_truth(clip, scene, numbers)
        checksums["PETS ground truth"] = clip.checksum
        pictures = clip.frames(numbers, size)
        return Case(scene, pictures, truth, bank, None, checksums, clip.frames(numbers))
    if dataset == "procedural":
        scene = procedural_scene(width, width * 3 // 4)
    elif dataset == "town_centre":
        scene = town_centre_scene(load_town_centre(data_root), width)
    else:
        scene = load_scene(scene_path)
        if video_path:
            pictures, truth = read_truth(video_path, gt_path, scene)
            return Case(scene, pictures, truth, bank, None, checksums)
    seen, unseen = bank.split(HELD_OUT)
    renders = render_test(scene, unseen, n_test, max_people, supersample, seed)
    truth = to_coco(renders, scene=scene, info={"seed": seed, "bodies": bank.checksum})
    pictures = (renders.image * 255).round().to(torch.uint8)
    return Case(scene, pictures, truth, seen, renders, checksums)


def render_test(
    scene: Scene, bank: BodyBank, n: int, max_people: int, supersample: int, seed: int
) -> Renders:
    """Test images of a scene, the same for a seed whatever is trained.

    Args:
        scene, bank: what is rendered.
        n: images.
        max_people: in an image.
        supersample: samples a pixel in each direction, 1 to 8.
        seed: of people, light and noise.
    """
    generator = torch.Generator().manual_seed(TEST_SEED + seed)
    return render_scene(
        scene, bank, n, max_people=max_people, supersample=supersample, generator=generator
    )


def read_truth(video_path: str, gt_path: str, scene: Scene) -> tuple[Tensor, dict]:
    """Real pictures, from a folder of files or a video, that a COCO file annotates.

    The COCO file's images name files of the folder, or give the video's frame as "frame". Pictures
    must have the scene's size, and be as its camera takes them. The truth comes back in the form
    of `people_of`.

    Raises:
        FileNotFoundError: for a file that is missing.
        CorruptDataError: for one that cannot be read.
        ValueError: for pictures of another size than the scene's, and where no person who counts
            is annotated, as nothing could be measured.
    """
    if not Path(gt_path).is_file():
        raise FileNotFoundError(f"gt_path = {gt_path!r}: there is no such file")
    try:
        truth = people_of(json.loads(Path(gt_path).read_text(encoding="utf-8")))
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise CorruptDataError(f"gt_path = {gt_path!r}: no COCO annotations ({error})") from error
    entries = truth["images"]
    if all(entry["iscrowd"] for entry in truth["annotations"]):
        raise ValueError(f"gt_path = {gt_path!r}: nobody is annotated who counts")
    source = Path(video_path)
    key = "file_name" if source.is_dir() else "frame"
    for k, entry in enumerate(entries):
        if not isinstance(entry.get(key), str if source.is_dir() else int):
            raise CorruptDataError(f"gt_path = {gt_path!r}: image {k} has no {key!r}")
    if source.is_dir():
        frames = [_read_picture(source / entry["file_name"]) for entry in entries]
    else:
        frames = _read_video(source, [entry["frame"] for entry in entries])
    for frame, entry in zip(frames, entries, strict=True):
        if frame.shape[1:] != scene.background.shape[1:]:
            raise ValueError(
                f"{entry.get('file_name', video_path)}: {tuple(frame.shape[1:])} pixels, but the "
                f"scene has {tuple(scene.background.shape[1:])}"
            )
    return torch.stack(frames), truth


def _read_picture(path: Path) -> Tensor:
    from PIL import Image

    try:
        with Image.open(path) as picture:
            return torch.from_numpy(np.array(picture.convert("RGB"))).movedim(2, 0)
    except FileNotFoundError:
        raise FileNotFoundError(f"video_path: {path} is missing") from None
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptDataError(f"{path}: no picture that can be read ({error})") from error


def _read_video(path: Path, numbers: Sequence[int]) -> list[Tensor]:
    if not path.is_file():
        raise FileNotFoundError(f"video_path = {str(path)!r}: there is no such folder or file")
    if min(numbers) < 0:
        raise ValueError(f"gt_path: frame {min(numbers)}, expected from 0 on")
    try:
        import cv2
    except ImportError as error:
        raise ValueError(
            f"video_path = {str(path)!r}: reading a video needs opencv-python-headless; "
            "without it give a folder of pictures"
        ) from error

    video = cv2.VideoCapture(str(path))
    frames: dict[int, Tensor] = {}
    try:
        for number in range(max(numbers) + 1):
            there, frame = video.read()
            if not there:
                raise CorruptDataError(f"{path}: it ends before frame {number}")
            if number in numbers:
                frames[number] = torch.from_numpy(frame[..., ::-1].copy()).movedim(2, 0)
    finally:
        video.release()
    return [frames[number] for number in numbers]


def first_pictures(coco: dict, n: int) -> dict:
    """The data set of the first n pictures."""
    kept = coco["images"][:n]
    ids = {entry["id"] for entry in kept}
    people = [entry for entry in coco["annotations"] if entry["image_id"] in ids]
    return coco | {"images": kept, "annotations": people}


def write_products(
    folder: str | os.PathLike, model: SpatiallyVaryingFCN, case: Case, renders: Renders
) -> list[str]:
    """Write a COCO data set of renders and the trained detector; return what was written.

    ``dataset/`` holds pictures and annotations.json; ``detector.pt2`` is the exported network for
    one picture in [0, 1] as the scene's camera takes it, lens and all; `decode` reads its output.

    Args:
        folder: to write into; made if it is missing.
        model: the trained detector.
        case: whose scene and checksums are written.
        renders: images with labels of the data set.
    """
    folder = Path(folder)
    coco = to_coco(renders, scene=case.scene, info=case.checksums)
    write_coco(renders, coco, folder / "dataset")
    _, height, width = case.scene.background.shape
    part = folder / "detector.part.pt2"
    torch.export.save(export(model, height, width), part)
    part.replace(folder / "detector.pt2")
    return ["dataset/annotations.json", "detector.pt2"]


def overlaps(scene: Scene, meshes: Tensor, faces: Tensor, supersample: int) -> dict[str, int]:
    """Count the samples of two people, drawn together and alone, for the identity of visible areas.

    Args:
        scene: whose camera sees them.
        meshes: (2, V, 3) in world coordinates, the first one nearer.
        faces: (F, 3) of both.
        supersample: samples a pixel in each direction.

    Returns:
        Front and back as seen together, front_alone, back_alone, and their overlap.
    """
    uv, depth = scene.camera.project(meshes)
    static = scene.depth(supersample)
    zero = torch.zeros(2, dtype=torch.long)
    both = rasterise(uv * supersample, depth, faces, zero, static, 1)
    alone = [
        rasterise(uv[p : p + 1] * supersample, depth[p : p + 1], faces, zero[:1], static, 1)
        for p in range(2)
    ]
    shown = [out.person[0] == 0 for out in alone]  # eq. (10.3), term by term
    front, back = both.visible_samples().tolist()
    return {
        "front": front, "back": back,
        "front alone": int(shown[0].sum()), "back alone": int(shown[1].sum()),
        "overlap": int((shown[0] & shown[1]).sum()),
    }  # fmt: skip
