"""How good detections are: average precision, miss rate, joints, masks and metres."""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.papers.visual_compiler.camera import Camera
from companion.papers.visual_compiler.network import Detections

NEAR_JOINT = 0.1  # of the box's height: a joint this near is found


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a test set, best first, each with the person that it found.

    score, right, ignored: (D,). image, rank: (D,), where the detection is. person: (D,), position
    of its annotation in the data set, -1 for none. people: those that count. images: how many.
    """

    score: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    image: np.ndarray
    rank: np.ndarray
    person: np.ndarray
    people: int
    images: int

    @property
    def counted(self) -> np.ndarray:
        return ~self.ignored

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Of the detections that count, best first."""
        right = self.right[self.counted]
        hits = right.cumsum()
        return hits / np.arange(1, len(right) + 1), hits / max(self.people, 1)

    def average_precision(self) -> float:
        """Mean of COCO's 101 interpolated precisions."""
        precision, recall = self.precision_recall()
        if not len(precision):
            return 0.0
        best = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(recall, np.linspace(0, 1, 101), side="left")
        return float(np.concatenate([best, [0.0]])[np.minimum(at, len(best))].mean())

    def miss_rate(self) -> float:
        """Log-average miss rate over 10^-2 to 10^0 false positives a picture (nine points)."""
        right = self.right[self.counted]
        false = (~right).cumsum() / max(self.images, 1)
        missed = 1 - right.cumsum() / max(self.people, 1)
        logs = []
        for limit in np.logspace(-2, 0, 9):
            allowed = np.flatnonzero(false <= limit)
            logs.append(math.log(max(missed[allowed[-1]] if len(allowed) else 1.0, 1e-10)))
        return math.exp(sum(logs) / len(logs))

    def best_threshold(self) -> tuple[float, float]:
        """The score at which F1 is highest, and that F1."""
        precision, recall = self.precision_recall()
        if not len(precision):
            return 1.0, 0.0
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        best = int(f1.argmax())
        return float(self.score[self.counted][best]), float(f1[best])


def iou(boxes: Tensor, others: Tensor) -> Tensor:
    """(n, m): intersection over union of x0, y0, x1, y1 boxes."""
    return _overlap(boxes, others, of_first=False)


def _overlap(boxes: Tensor, others: Tensor, *, of_first: bool) -> Tensor:
    low = torch.maximum(boxes[:, None, :2], others[None, :, :2])
    high = torch.minimum(boxes[:, None, 2:], others[None, :, 2:])
    shared = (high - low).clamp(min=0).prod(2)
    one, other = ((b[:, 2:] - b[:, :2]).prod(1) for b in (boxes, others))
    union = one[:, None] if of_first else one[:, None] + other[None] - shared
    return shared / union.clamp(min=1e-9)


def match(found: Sequence[Detections], coco: dict, threshold: float = 0.5) -> Matches:
    """Match detections to people as COCO does, one picture at a time, best score first.

    A detection takes the person who counts and overlaps it most, if by at least `threshold`; else
    one who does not count (`iscrowd`), of whom it must lie inside by as much, and is left out.
    """
    by_image: list[list[int]] = [[] for _ in found]
    numbers = {entry["id"]: k for k, entry in enumerate(coco["images"])}
    for k, entry in enumerate(coco["annotations"]):
        by_image[numbers[entry["image_id"]]].append(k)
    rows = []
    for image, (people, here) in enumerate(zip(found, by_image, strict=True)):
        truth = torch.tensor([coco["annotations"][k]["bbox"] for k in here]).view(-1, 4)
        truth = torch.cat([truth[:, :2], truth[:, :2] + truth[:, 2:]], 1)
        crowd = [bool(coco["annotations"][k]["iscrowd"]) for k in here]
        both = iou(people.boxes, truth).tolist()
        within = _overlap(people.boxes, truth, of_first=True).tolist()
        free = [not c for c in crowd]
        for rank in people.scores.argsort(descending=True, stable=True).tolist():
            best, chosen = threshold, -1
            for j, is_free in enumerate(free):
                if is_free and both[rank][j] >= best:
                    best, chosen = both[rank][j], j
            ignored = chosen < 0 and any(
                c and within[rank][j] >= threshold for j, c in enumerate(crowd)
            )
            if chosen >= 0:
                free[chosen] = False
            person = here[chosen] if chosen >= 0 else -1
            rows.append((float(people.scores[rank]), chosen >= 0, ignored, image, rank, person))
    rows.sort(key=lambda row: -row[0])
    columns = list(zip(*rows, strict=True)) or [[] for _ in range(6)]
    kinds = (float, bool, bool, int, int, int)
    count = sum(not entry["iscrowd"] for entry in coco["annotations"])
    return Matches(
        *(np.array(c, dtype=k) for c, k in zip(columns, kinds, strict=True)), count, len(found)
    )


def to_results(found: Sequence[Detections], coco: dict) -> list[dict]:
    """Detections in COCO's result format: box, score, and keypoints where there are any."""
    results = []
    for entry, people in zip(coco["images"], found, strict=True):
        for k, (x0, y0, x1, y1) in enumerate(people.boxes.tolist()):
            row = {"image_id": entry["id"], "category_id": 1, "score": float(people.scores[k])}
            row["bbox"] = [x0, y0, x1 - x0, y1 - y0]
            if people.keypoints is not None:
                row["keypoints"] = people.keypoints[k].flatten().tolist()
            results.append(row)
    return results


def coco_metrics(found: Sequence[Detections], coco: dict, kind: str = "bbox") -> dict[str, float]:
    """AP, AP50 and AP75 by pycocotools, of boxes ("bbox") or joints ("keypoints")."""
    from pycocotools.coco import COCO
    from pycocotools.cocoeval import COCOeval

    results = to_results(found, coco)
    if not results:
        return {"AP": 0.0, "AP50": 0.0, "AP75": 0.0}
    with contextlib.redirect_stdout(io.StringIO()):  # it reports its progress
        truth = COCO()
        truth.dataset = coco
        truth.createIndex()
        run = COCOeval(truth, truth.loadRes(results), kind)
        run.evaluate()
        run.accumulate()
        run.summarize()
    return {"AP": float(run.stats[0]), "AP50": float(run.stats[1]), "AP75": float(run.stats[2])}


def evaluate(
    predictions: Sequence[Detections], coco: dict, *, camera: Camera | None = None
) -> dict[str, float]:
    """All measures of detections against a COCO data set, a list entry a picture.

    AP, AP50, AP75 and keypoint_AP are COCO's. miss_rate is log-averaged. Of the people found
    (IoU 0.5) at the threshold of the best F1: PCK, the share of visible joints within a tenth of
    the box's height; mask_IoU against the visible person; ground_error, median metres between
    feet on the ground, if a camera is given. NaN where the data set or the detections lack it.
    """
    boxes = coco_metrics(predictions, coco)
    found = match(predictions, coco)
    threshold, f1 = found.best_threshold()
    out = dict(boxes) | {"miss_rate": found.miss_rate(), "F1": f1, "threshold": threshold}
    size = coco["images"][0]["height"], coco["images"][0]["width"]
    near, overlaps, metres = [], [], []
    chosen = found.right & (found.score >= threshold)
    for image, rank, person in zip(
        found.image[chosen], found.rank[chosen], found.person[chosen], strict=True
    ):
        truth, people = coco["annotations"][person], predictions[image]
        if people.keypoints is not None and "keypoints" in truth:
            marks = torch.tensor(truth["keypoints"]).view(-1, 3)
            gap = (people.keypoints[rank, :, :2] - marks[:, :2]).norm(dim=1)
            near += (gap < NEAR_JOINT * truth["bbox"][3])[marks[:, 2] == 2].tolist()
        if people.mask is not None and "segmentation" in truth:
            overlaps.append(_mask_iou(people.person_mask(int(rank), *size), truth))
        if camera is not None and "ground" in truth:
            place = people[torch.tensor([rank])].ground(camera)[0]
            metres.append(float((place - torch.tensor(truth["ground"])).norm()))
    out["PCK"] = float(np.mean(near)) if near else math.nan
    out["mask_IoU"] = float(np.mean(overlaps)) if overlaps else math.nan
    out["ground_error"] = float(np.nanmedian(metres)) if metres else math.nan
    has_joints = bool(near) and all(p.keypoints is not None for p in predictions)
    out["keypoint_AP"] = (
        coco_metrics(predictions, coco, "keypoints")["AP"] if has_joints else math.nan
    )
    return out


def _mask_iou(mask: Tensor, truth: dict) -> float:
    from pycocotools import mask as rle

    other = torch.from_numpy(rle.decode(truth["segmentation"]).astype(bool))
    return float((mask & other).sum() / (mask | other).sum().clamp(min=1))
