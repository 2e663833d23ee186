"""COCO data sets as others write them: who counts as a person, and masks as run lengths."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.papers.visual_compiler.bodies import KEYPOINTS
from companion.papers.visual_compiler.scene import inside_polygon

PEOPLE = ("person", "pedestrian")  # names of the category that counts


def people_of(coco: Mapping) -> dict:
    """The people of a COCO data set, brought into one form.

    The category is the one named person, else pedestrian, else the only one there is; what is of
    another category is left out. Images are numbered from 0 in their order, annotations from 1,
    whatever ids they had. A missing `area` is that of the box, a missing `iscrowd` is 0, and
    `ignore` counts as `iscrowd`. `position` tells where the annotation was in the given list,
    `person` of the data set the category's id.

    Raises:
        ValueError: naming the entry, for what cannot be understood: no such category, two
            images of one id, an annotation of an unknown image or category, a box that is none.
    """
    for name in ("images", "annotations"):
        if not isinstance(coco, Mapping) or not isinstance(coco.get(name), list):
            raise ValueError(f"coco: expected a mapping with a list of {name!r}")
    number: dict[object, int] = {}
    for k, entry in enumerate(coco["images"]):
        if "id" not in entry or entry["id"] in number:
            raise ValueError(
                f"coco: image {k} has {_stated(entry, 'id')}, expected one of its own"
            )
        number[entry["id"]] = k
    known, person = _categories(coco)
    people: list[dict[str, Any]] = []
    for k, entry in enumerate(coco["annotations"]):
        kind = entry.get("category_id", person)
        if kind != person and kind in known:
            continue
        if kind != person:
            raise ValueError(
                f"coco: annotation {k} has category_id {kind!r}, but the categories are {known!r}"
            )
        if entry.get("image_id") not in number:
            raise ValueError(
                f"coco: annotation {k} has {_stated(entry, 'image_id')}, which no image has"
            )
        box = _box(k, entry)
        people.append(
            dict(entry) | {
                "id": len(people) + 1, "image_id": number[entry["image_id"]], "category_id": 1,
                "bbox": box, "area": _area(k, entry, box), "position": k,
                "iscrowd": int(_flag(k, entry, "iscrowd") or _flag(k, entry, "ignore")),
            } | _joints(k, entry)
        )  # fmt: skip
    images = [dict(entry) | {"id": k} for k, entry in enumerate(coco["images"])]
    return dict(coco) | {
        "images": images, "annotations": people, "categories": [{"id": 1, "name": "person"}],
        "person": person,
    }  # fmt: skip


def _categories(coco: Mapping) -> tuple[list, object]:
    """All ids of categories, and that of the people."""
    listed = coco.get("categories")
    if not listed:  # then the annotations must agree
        found = list({entry.get("category_id") for entry in coco["annotations"]})
        if len(found) > 1:
            raise ValueError(
                f"coco: no categories are listed, and annotations have category_id {found!r}"
            )
        return found, found[0] if found else 1
    known = [entry.get("id") for entry in listed]
    names = [str(entry.get("name", "")).strip().lower() for entry in listed]
    for name in PEOPLE:
        if names.count(name) == 1:
            return known, known[names.index(name)]
    if len(known) == 1:
        return known, known[0]
    raise ValueError(
        f"coco: expected one category named {' or '.join(PEOPLE)}, or a single one; "
        f"it has {', '.join(repr(name) for name in names)}"
    )


def _stated(entry: Mapping, key: str) -> str:
    return f"{key} {entry[key]!r}" if key in entry else f"no {key}"


def _box(k: int, entry: Mapping) -> list[float]:
    try:
        box = [float(value) for value in entry["bbox"]]
    except (KeyError, TypeError, ValueError):
        box = []
    if len(box) != 4 or not all(map(math.isfinite, box)) or min(box[2:]) < 0:
        raise ValueError(
            f"coco: annotation {k} has {_stated(entry, 'bbox')}, expected x, y, width and height"
        )
    return box


def _area(k: int, entry: Mapping, box: list[float]) -> float:
    area = entry.get("area")
    area = box[2] * box[3] if area is None else area
    if isinstance(area, bool) or not isinstance(area, (int, float)) or not 0 <= area < math.inf:
        raise ValueError(f"coco: annotation {k} has area {area!r}, expected a number from 0 on")
    return float(area)


def _flag(k: int, entry: Mapping, key: str) -> bool:
    value = entry.get(key, 0)
    if value not in (0, 1, None):
        raise ValueError(f"coco: annotation {k} has {key} {value!r}, expected 0 or 1")
    return bool(value)


def _joints(k: int, entry: Mapping) -> dict:
    if not entry.get("keypoints"):
        return {}
    marks = entry["keypoints"]
    if len(marks) != 3 * len(KEYPOINTS):
        raise ValueError(
            f"coco: annotation {k} has {len(marks)} numbers in keypoints, expected x, y and "
            f"visibility of {len(KEYPOINTS)} joints"
        )
    return {"num_keypoints": entry.get("num_keypoints", sum(v > 0 for v in marks[2::3]))}


# ---------------------------------------------------------------- masks


def encode_mask(mask: np.ndarray) -> dict:
    """Encode a mask (H, W) as COCO's compressed run lengths, `size` and `counts`.

    Runs go down the columns, empty cells first; from the fourth on each is stored as its difference
    to the last run but one, in groups of five bits from the lowest.
    """
    flat = np.asarray(mask, dtype=bool).flatten(order="F")
    change = np.flatnonzero(np.diff(flat, prepend=False))
    runs = np.diff(change, prepend=0, append=len(flat)).tolist()
    text = []
    for k, run in enumerate(runs):
        left = run - runs[k - 2] if k > 2 else run
        while True:
            group, left = left & 31, left >> 5
            more = left != (-1 if group & 16 else 0)
            text.append(chr(48 + group + 32 * more))
            if not more:
                break
    return {"size": list(mask.shape), "counts": "".join(text)}


def decode_mask(segmentation: Mapping | list, size: tuple[int, int] | None = None) -> Tensor:
    """(H, W) bool: a mask from run lengths, compressed or not, or from polygons in pixels.

    Args:
        size: height, width; needed for polygons.

    Raises:
        ValueError: for what is none of these.
    """
    if isinstance(segmentation, list):
        if size is None or not all(len(part) >= 6 for part in segmentation):
            raise ValueError("segmentation: polygons need three corners and the picture's size")
        grid = torch.meshgrid(*(torch.arange(n) + 0.5 for n in size), indexing="ij")
        mask = torch.zeros(size, dtype=torch.bool)
        for part in segmentation:
            corners = list(zip(part[::2], part[1::2], strict=True))
            mask |= inside_polygon(torch.stack(grid[::-1], -1), corners)
        return mask
    counts, (height, width) = segmentation["counts"], segmentation["size"]
    runs = counts if isinstance(counts, list) else _runs(counts)
    if sum(runs) != height * width or (runs and min(runs) < 0):
        raise ValueError(f"segmentation: runs of {sum(runs)} cells for {height} by {width}")
    flat = np.repeat(np.arange(len(runs)) % 2 == 1, runs)
    return torch.from_numpy(flat.reshape(width, height).T.copy())


def _runs(counts: str | bytes) -> list[int]:
    text = counts if isinstance(counts, bytes) else counts.encode("ascii")
    runs: list[int] = []
    value = shift = 0
    for byte in text:
        group = byte - 48
        value |= (group & 31) << shift
        shift += 5
        if group & 32:
            continue
        if group & 16:
            value -= 1 << shift
        runs.append(value + runs[-2] if len(runs) > 2 else value)
        value = shift = 0
    return runs
