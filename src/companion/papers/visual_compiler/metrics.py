"""How good detections are: average precision, miss rate, joints, masks and metres.

Average precision is COCO's, number for number that of pycocotools, which the tests compare with;
but data sets whose ids start from 0, or with more people than COCO looks at, are measured rightly.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from companion.papers.visual_compiler.camera import Camera
from companion.papers.visual_compiler.coco import decode_mask, people_of
from companion.papers.visual_compiler.network import Detections, check_detections

NEAR_JOINT = 0.1  # of the box's height: a joint this near is found
# COCO's: thresholds of the overlap, recalls, most detections of an image, spread of its 17 joints
THRESHOLDS = np.linspace(0.5, 0.95, 10)
RECALLS = np.linspace(0, 1, 101)
MOST = {"bbox": 100, "keypoints": 20}
SPREAD = np.array(
    [26, 25, 25, 35, 35, 79, 79, 72, 72, 62, 62, 107, 107, 87, 87, 89, 89]
) / 1000  # fmt: skip


@dataclass(frozen=True, eq=False)
class Matches:
    """All detections of a test set, best first, each with the person that it matches.

    Without a person who counts nothing can be missed, and every measure is NaN.

    Args:
        score: (D,), descending.
        right: (D,) bool, whether the detection matches a person who counts.
        ignored: (D,) bool, whether it matches one who does not, and is left out.
        image, rank: (D,), where the detection is.
        person: (D,), position of its annotation in the data set, -1 for none.
        people: number of those who count.
        images: number of images.
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
        """(D,) bool: which detections are not left out."""
        return ~self.ignored

    def counts(self, threshold: float) -> dict[str, int]:
        """Detections of at least this score by what they are, and the people whom none matches."""
        chosen = self.counted & (self.score >= threshold)
        hits = int((chosen & self.right).sum())
        return {
            "true_positives": hits,
            "false_positives": int(chosen.sum()) - hits,
            "misses": self.people - hits,
        }

    def precision_recall(self) -> tuple[np.ndarray, np.ndarray]:
        """Precision and recall down to each detection that counts, best first."""
        right = self.right[self.counted]
        hits = right.cumsum()
        return hits / (np.arange(1, len(right) + 1) + np.spacing(1)), hits / max(self.people, 1)

    def interpolated(self) -> np.ndarray:
        """(101,): the highest precision at each of COCO's recalls or beyond it."""
        precision, recall = self.precision_recall()
        if not self.people:
            return np.full(len(RECALLS), np.nan)
        best = np.maximum.accumulate(precision[::-1])[::-1]
        at = np.searchsorted(recall, RECALLS, side="left")
        return np.append(best, 0.0)[np.minimum(at, len(best))]

    def miss_rate(self) -> float:
        """Log-average miss rate over 10^-2 to 10^0 false positives a picture (nine points)."""
        if not self.people:
            return math.nan
        right, last = self.right[self.counted], self._ends()
        false = ((~right).cumsum() / max(self.images, 1))[last]
        missed = (1 - right.cumsum() / self.people)[last]
        logs = []
        for limit in np.logspace(-2, 0, 9):
            allowed = np.flatnonzero(false <= limit)
            logs.append(math.log(max(missed[allowed[-1]] if len(allowed) else 1.0, 1e-10)))
        return math.exp(sum(logs) / len(logs))

    def best_threshold(self) -> tuple[float, float]:
        """The score at which F1 is highest, and that F1."""
        if not self.people:
            return 1.0, math.nan
        last = self._ends()
        if not len(last):
            return 1.0, 0.0
        precision, recall = (part[last] for part in self.precision_recall())
        f1 = 2 * precision * recall / np.maximum(precision + recall, 1e-9)
        best = int(f1.argmax())
        return float(self.score[self.counted][last[best]]), float(f1[best])

    def _ends(self) -> np.ndarray:
        """The last of each run of equal scores: no threshold takes a part of them."""
        score = self.score[self.counted]
        return np.flatnonzero(np.append(score[1:] != score[:-1], True)[: len(score)])


def match(
    found: Sequence[Detections], coco: Mapping, threshold: float = 0.5, kind: str = "bbox"
) -> Matches:
    """Match detections to people as COCO does, one picture at a time, best score first.

    A detection takes the person who counts and is most like it, if by at least `threshold`;
    else one who does not count, and is left out.

    Args:
        found: detections, one entry an image, boxes in its pixels.
        coco: data set of anybody's, see `people_of`.
        threshold: least overlap (or similarity of joints) of a match, above 0, at most 1.
        kind: "bbox" compares boxes by their intersection over union, with a crowd (`iscrowd`)
            by the share of the detection that lies inside; "keypoints" compares joints by
            COCO's measure, and people without any do not count.

    Raises:
        ValueError: for what are no detections, or not one entry an image, for scores or boxes
            that are not finite, and as `people_of` does.
    """
    if not 0 < threshold <= 1:
        raise ValueError(f"threshold = {threshold!r}: expected above 0, at most 1")
    return _match(found, people_of(coco), [threshold], kind, None)[0]


def coco_metrics(
    found: Sequence[Detections], coco: Mapping, kind: str = "bbox"
) -> dict[str, float]:
    """COCO's AP, AP50 and AP75, of boxes ("bbox") or joints ("keypoints").

    As in COCO, the best 100 boxes or 20 poses of an image count, but never fewer than the
    people that any image has. NaN without a person who counts.

    Raises:
        ValueError: as `match` does.
    """
    clean = people_of(coco)
    images = np.array([entry["image_id"] for entry in clean["annotations"]], dtype=int)
    most = max(MOST.get(kind, 0), int(np.bincount(images, minlength=1).max()))
    curves = [part.interpolated() for part in _match(found, clean, THRESHOLDS, kind, most)]
    return {
        "AP": float(np.mean(curves)), "AP50": float(curves[0].mean()),
        "AP75": float(curves[5].mean()),
    }  # fmt: skip


def _match(
    found: Sequence[Detections],
    clean: dict,
    thresholds: Sequence[float] | np.ndarray,
    kind: str,
    most: int | None,
) -> list[Matches]:
    """`match` for several thresholds, of a data set from `people_of`."""
    if kind not in MOST:
        raise ValueError(f"kind = {kind!r}: expected {' or '.join(map(repr, MOST))}")
    _check_detections(found, clean)
    by_image: list[list[dict]] = [[] for _ in found]
    for entry in clean["annotations"]:
        by_image[entry["image_id"]].append(entry)
    alike = _box_overlap if kind == "bbox" else _joint_similarity
    rows: list[list[tuple]] = [[] for _ in thresholds]
    count = 0
    for image, (people, here) in enumerate(zip(found, by_image, strict=True)):
        crowd = [bool(entry["iscrowd"]) for entry in here]
        ignore = crowd
        if kind == "keypoints":
            ignore = [entry["iscrowd"] or not entry.get("num_keypoints") for entry in here]
        count += len(here) - sum(map(bool, ignore))
        scores = _array(people.scores)
        ranks = np.argsort(-scores, kind="stable")[:most]
        similar = alike(people, here, np.array(crowd, dtype=bool))[ranks].tolist()
        ranks, scores = ranks.tolist(), scores.tolist()
        for threshold, out in zip(thresholds, rows, strict=True):
            chosen = _assign(similar, ignore, crowd, threshold)
            for rank, k in zip(ranks, chosen, strict=True):
                right = k >= 0 and not ignore[k]
                person = here[k]["position"] if right else -1
                out.append((scores[rank], right, k >= 0 and not right, image, rank, person))
    return [_columns(part, count, len(found)) for part in rows]


def _assign(
    similar: list[list[float]], ignore: list[bool], crowd: list[bool], threshold: float
) -> list[int]:
    """For each detection, best first, the person it takes or -1; those who count come first."""
    free = [True] * len(ignore)
    groups = [[k for k, out in enumerate(ignore) if bool(out) is kind] for kind in (False, True)]
    least = min(threshold, 1 - 1e-10)  # rounding may keep a perfect match just below 1
    chosen = []
    for row in similar:
        taken = -1
        for group in groups:
            best = least
            for k in group if taken < 0 else ():
                if free[k] and row[k] >= best:  # COCO takes the last of equals
                    taken, best = k, row[k]
        if taken >= 0 and not crowd[taken]:
            free[taken] = False
        chosen.append(taken)
    return chosen


def _columns(rows: list[tuple], people: int, images: int) -> Matches:
    rows = sorted(rows, key=lambda row: -row[0])
    columns = list(zip(*rows, strict=True)) or [()] * 6
    kinds: tuple[type, ...] = (float, bool, bool, int, int, int)
    arrays: list[np.ndarray] = [np.array(c, dtype=k) for c, k in zip(columns, kinds, strict=True)]
    score, right, ignored, image, rank, person = arrays
    return Matches(score, right, ignored, image, rank, person, people, images)


def _check_detections(found: Sequence[Detections], clean: dict) -> None:
    check_detections(predictions=found)
    if len(found) != len(clean["images"]):
        raise ValueError(f"predictions: {len(found)} of them for {len(clean['images'])} images")
    if not found:
        return
    image = np.arange(len(found)).repeat([len(people.boxes) for people in found])
    scores = np.concatenate([_array(people.scores) for people in found])
    boxes = np.concatenate([_array(people.boxes) for people in found])
    if not (fine := np.isfinite(scores)).all():
        k = image[~fine][0]
        raise ValueError(f"predictions[{k}].scores: expected finite numbers, not NaN")
    fine = np.isfinite(boxes).all(1) & (boxes[:, 2:] >= boxes[:, :2]).all(1)
    if not fine.all():
        raise ValueError(
            f"predictions[{image[~fine][0]}].boxes: expected finite x0, y0, x1, y1 with "
            "x0 <= x1, y0 <= y1"
        )


def _array(values: Tensor) -> np.ndarray:
    """Also of a tensor that is part of a graph, such as a network's own boxes."""
    return values.detach().cpu().numpy()


def _as_coco(boxes: np.ndarray) -> np.ndarray:
    """x, y, width and height of x0, y0, x1, y1, in float64, so that COCO's rounding is ours."""
    boxes = boxes.astype(np.float64)
    return np.concatenate([boxes[:, :2], boxes[:, 2:] - boxes[:, :2]], 1)


def _box_overlap(people: Detections, here: list[dict], crowd: np.ndarray) -> np.ndarray:
    """(k, n): intersection over union; over the detection alone where the person is a crowd."""
    one = _as_coco(_array(people.boxes))[:, None]
    other = np.array([entry["bbox"] for entry in here], dtype=np.float64).reshape(1, -1, 4)
    low = np.maximum(one[..., :2], other[..., :2])
    high = np.minimum(one[..., :2] + one[..., 2:], other[..., :2] + other[..., 2:])
    sides = np.maximum(high - low, 0)
    shared = sides[..., 0] * sides[..., 1]
    area = one[..., 2] * one[..., 3]
    union = np.where(crowd, area, area + other[..., 2] * other[..., 3] - shared)
    return np.divide(shared, union, out=np.zeros_like(shared), where=union > 0)


def _joint_similarity(people: Detections, here: list[dict], crowd: np.ndarray) -> np.ndarray:
    """(k, n): COCO's similarity of joints; of those that are off the box where none is marked."""
    if people.keypoints is None:
        raise ValueError("predictions: these detections have no keypoints")
    found = _array(people.keypoints).astype(np.float64)
    similar = np.zeros((len(found), len(here)))
    for k, entry in enumerate(here):
        marks = np.array(entry.get("keypoints") or [0.0] * 51, dtype=np.float64).reshape(-1, 3)
        seen = marks[:, 2] > 0
        if seen.any():
            gap = found[..., :2] - marks[:, :2]
        else:
            x, y, w, h = entry["bbox"]
            low, high = np.array([x - w, y - h]), np.array([x + 2 * w, y + 2 * h])
            gap = np.maximum(0, low - found[..., :2]) + np.maximum(0, found[..., :2] - high)
            seen[:] = True
        far = (gap**2).sum(-1) / (2 * SPREAD) ** 2 / (entry["area"] + np.spacing(1)) / 2
        similar[:, k] = np.exp(-far[:, seen]).sum(1) / seen.sum()
    return similar


def to_results(found: Sequence[Detections], coco: Mapping) -> list[dict]:
    """Detections in COCO's result format: box, score, and keypoints where there are any.

    For evaluation by others: image ids are the data set's own, the category is that of people.

    Raises:
        ValueError: as `match`.
    """
    clean = people_of(coco)
    _check_detections(found, clean)
    category = clean["person"]
    results = []
    for entry, people in zip(coco["images"], found, strict=True):
        boxes = _as_coco(_array(people.boxes)).tolist()
        for k, box in enumerate(boxes):
            row = {"image_id": entry["id"], "category_id": category, "bbox": box}
            row["score"] = people.scores[k].item()
            if people.keypoints is not None:
                row["keypoints"] = people.keypoints[k].flatten().tolist()
            results.append(row)
    return results


def evaluate(
    predictions: Sequence[Detections],
    coco: Mapping,
    *,
    camera: Camera | None = None,
    threshold: float | None = None,
) -> dict[str, float]:
    """All metrics of detections against a COCO data set.

    Args:
        predictions: detections, one entry an image, in the order of the data set's images.
        coco: data set of anybody's, see `people_of`.
        camera: of the images, for errors on the ground.
        threshold: score from which a detection is a person; None: that of the best F1.

    Returns:
        "AP", "AP50", "AP75" and "keypoint_AP", COCO's average precisions. "miss_rate",
        log-averaged over 10^-2 to 10^0 false positives an image. At the threshold and an
        intersection over union of 0.5: "threshold", "F1", "precision", "recall",
        "true_positives", "false_positives" and "misses". Of the true positives: "PCK", the share
        of visible joints within a tenth of the box's height; "mask_IoU" with the visible person;
        "ground_error", the median of metres between the feet. "people" who count, "images".
        NaN where data set or detections lack what is needed, as for nearly all if nobody is
        annotated who counts.

    Raises:
        ValueError: as `match` does, and for a threshold that is not finite.

    >>> found = Detections(torch.tensor([[10.0, 10, 30, 60], [50, 0, 60, 20]]), torch.tensor([0.9, 0.4]))
    >>> coco = {"images": [{"id": 1}], "annotations": [
    ...     {"image_id": 1, "bbox": [10, 10, 20, 50]}, {"image_id": 1, "bbox": [80, 10, 20, 50]}]}
    >>> result = evaluate([found], coco)
    >>> {name: result[name] for name in ("precision", "recall", "true_positives", "misses")}
    {'precision': 1.0, 'recall': 0.5, 'true_positives': 1, 'misses': 1}
    """
    if threshold is not None and not math.isfinite(threshold):
        raise ValueError(f"threshold = {threshold!r}: expected a finite score, or None")
    boxes = coco_metrics(predictions, coco)
    found = match(predictions, coco)
    best, f1 = found.best_threshold()
    threshold = best if threshold is None else threshold
    counts = found.counts(threshold)
    hits, positives = (
        counts["true_positives"],
        counts["true_positives"] + counts["false_positives"],
    )
    precision = hits / positives if positives and found.people else math.nan
    recall = hits / found.people if found.people else math.nan
    if threshold != best:
        f1 = 2 * hits / (positives + found.people) if found.people else math.nan
    out = dict(boxes) | {"miss_rate": found.miss_rate(), "F1": f1, "threshold": threshold}
    out |= {"precision": precision, "recall": recall} | counts
    out |= {"people": found.people, "images": found.images}
    near, overlaps, metres = [], [], []
    chosen = found.right & (found.score >= threshold)
    for image, rank, person in zip(
        found.image[chosen], found.rank[chosen], found.person[chosen], strict=True
    ):
        truth, people = coco["annotations"][person], predictions[image]
        if people.keypoints is not None and truth.get("keypoints"):
            marks = torch.tensor(truth["keypoints"]).view(-1, 3)
            gap = (people.keypoints[rank, :, :2] - marks[:, :2]).norm(dim=1)
            near += (gap < NEAR_JOINT * truth["bbox"][3])[marks[:, 2] == 2].tolist()
        if people.mask is not None and truth.get("segmentation"):
            overlaps.append(_mask_iou(people, int(rank), truth, coco["images"][image]))
        if camera is not None and "ground" in truth:
            place = people[torch.tensor([rank])].ground(camera)[0].detach()
            metres.append(float((place - torch.tensor(truth["ground"])).norm()))
    out["PCK"] = float(np.mean(near)) if near else math.nan
    out["mask_IoU"] = float(np.mean(overlaps)) if overlaps else math.nan
    out["ground_error"] = float(np.nanmedian(metres)) if metres else math.nan
    marked = any(entry.get("keypoints") for entry in coco["annotations"])
    has_joints = marked and all(people.keypoints is not None for people in predictions)
    out["keypoint_AP"] = (
        coco_metrics(predictions, coco, "keypoints")["AP"] if has_joints else math.nan
    )
    return out


def _mask_iou(people: Detections, rank: int, truth: Mapping, image: Mapping) -> float:
    size = (image["height"], image["width"]) if "height" in image and "width" in image else None
    other = decode_mask(truth["segmentation"], size)
    mask = people.person_mask(rank, *other.shape)
    return float((mask & other).sum() / (mask | other).sum().clamp(min=1))
