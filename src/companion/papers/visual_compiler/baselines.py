"""Detectors that need no scene: OpenCV's histogram of gradients, and background subtraction."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
import torch
from torch import Tensor

from companion.checks import above, whole
from companion.papers.visual_compiler.network import Detections, check_pictures, suppress
from companion.papers.visual_compiler.scene import Scene
from companion.progress import Progress, progress_bar

# rows and columns of what is too small for a person, and of a gap in one; these and the threshold
# were chosen on the tuning frames of PETS 2009 S2-L1
OPEN, CLOSE = (2, 2), (5, 3)
# the trained window holds a person with a margin on each side
WINDOW = (64, 128)  # its width and height, in pixels
MARGIN = torch.tensor([0.14, 0.125])  # of the window's width and height


def without_opencv() -> str:
    """Why OpenCV's detectors cannot run here, "" if they can."""
    try:
        import cv2
    except ImportError:
        return "OpenCV is not installed (opencv-python-headless<5)"
    if not hasattr(cv2, "HOGDescriptor"):
        return "OpenCV 5 has no HOG detector: install opencv-python-headless<5"
    return ""


def hog_detect(
    images: Tensor,
    *,
    enlarge: float = 1.0,
    overlap: float = 0.4,
    output_width: int | None = None,
    progress: bool | Progress = False,
) -> list[Detections]:
    """People by OpenCV's HOG detector, trained on real people (Dalal and Triggs).

    Args:
        overlap: greatest intersection over union of two boxes.
        progress: show a bar; or a bar to move on.
        images: (n, 3, H, W) in [0, 1] or uint8.
        enlarge: factor before detection; the window is 64 by 128 pixels, so smaller people are
            missed.
        output_width: boxes come back, less the window's margin, in pixels of an image of this
            width; None: the images' own.

    Raises:
        ValueError: for what is no batch of colour images in [0, 1] or uint8, images below the
            window, and numbers out of range.
        ImportError: without OpenCV, or where it has no HOG detector.

    References:
        Dalal and Triggs (2005), Histograms of oriented gradients for human detection.
    """
    check_pictures(images)
    above(0, enlarge=enlarge)
    height, width = images.shape[2:]
    if round(width * enlarge) < WINDOW[0] or round(height * enlarge) < WINDOW[1]:
        least = max(WINDOW[0] / width, WINDOW[1] / height)
        raise ValueError(
            f"enlarge = {enlarge!r}: images of {width} x {height} pixels are then below the "
            f"detector's window of {WINDOW[0]} x {WINDOW[1]}; expected at least {least:.3g}"
        )
    if output_width is not None:
        whole(1, output_width=output_width)
    missing = without_opencv()
    if missing:
        raise ImportError(missing)
    import cv2

    hog = cv2.HOGDescriptor()
    # missing in OpenCV's stubs
    people = cv2.HOGDescriptor_getDefaultPeopleDetector()  # type: ignore[attr-defined]
    hog.setSVMDetector(people)
    per = enlarge * width / (output_width or width)  # searched pixels a pixel of the boxes
    limit = torch.tensor([width, height, width, height]) * (enlarge / per)
    found = []
    with (
        progress_bar(progress, len(images), "images searched by HOG") as bar,
        _one_thread_of_opencv(),
    ):
        for picture in images:
            frame = _as_frame(picture)
            if enlarge != 1:
                size = round(width * enlarge), round(height * enlarge)
                frame = cv2.resize(frame, size, interpolation=cv2.INTER_LINEAR)
            rectangles, weights = hog.detectMultiScale(
                frame,
                hitThreshold=-0.5,
                winStride=(8, 8),
                padding=(16, 16),
                scale=1.08,
                groupThreshold=0,
            )
            windows = torch.as_tensor(np.asarray(rectangles), dtype=torch.float32).view(-1, 4)
            scores = torch.as_tensor(np.asarray(weights), dtype=torch.float32).view(-1)
            corner, side = windows[:, :2], windows[:, 2:]
            boxes = torch.cat([corner + MARGIN * side, corner + (1 - MARGIN) * side], 1) / per
            boxes = torch.minimum(boxes.clamp(min=0), limit)
            keep = suppress(boxes, scores, overlap)
            found.append(Detections(boxes[keep], scores[keep]))
            bar.update()
    return found


@contextmanager
def _one_thread_of_opencv() -> Iterator[None]:
    """Several threads of its detector now and then give a box the score of another."""
    import cv2

    threads = cv2.getNumThreads()
    cv2.setNumThreads(1)
    try:
        yield
    finally:
        cv2.setNumThreads(threads)


def subtract_background(
    images: Tensor, scene: Scene, *, threshold: float = 0.2, smallest: int = 20
) -> list[Detections]:
    """People as what differs from the scene's background: connected pieces, scored by fill.

    Args:
        images: (n, 3, H, W) in [0, 1] or uint8.
        scene: whose background it is.
        threshold: difference of the strongest channel that counts.
        smallest: pixels of a piece.

    Raises:
        ValueError: for what is no batch of colour images in [0, 1] or uint8 of the scene's size.
    """
    import cv2

    check_pictures(images, empty=True)
    background = scene.background.cpu()
    if images.shape[1:] != background.shape:
        raise ValueError(
            f"images: {tuple(images.shape[2:])} pixels, but the scene has "
            f"{tuple(background.shape[1:])}"
        )
    speck = np.ones(OPEN, np.uint8)
    found = []
    for picture in images:
        picture = picture.float() / 255 if picture.dtype == torch.uint8 else picture
        moving = ((picture.cpu() - background).abs().amax(0) > threshold).numpy().astype(np.uint8)
        # an opening by an even kernel, whose two steps must shift in opposite directions
        moving = cv2.dilate(cv2.erode(moving, speck, anchor=(0, 0)), speck, anchor=(1, 1))
        moving = cv2.morphologyEx(moving, cv2.MORPH_CLOSE, np.ones(CLOSE, np.uint8))
        _, _, stats, _ = cv2.connectedComponentsWithStats(moving)
        x, y, w, h, area = torch.from_numpy(stats[1:]).float().unbind(1)
        big = area >= smallest
        boxes = torch.stack([x, y, x + w, y + h], 1)[big]
        expected = scene.person_height(torch.stack([x + w / 2, y + h], 1).double()).float()
        # a piece as tall as a person there is the surer one
        fit = -(h / expected.nan_to_num(1.0).clamp(min=1)).log().abs()
        score = (fit.exp() * (area / (w * h)).sqrt())[big]
        order = score.argsort(descending=True)
        found.append(Detections(boxes[order], score[order]))
    return found


def _as_frame(picture: Tensor) -> np.ndarray:
    """(H, W, 3) uint8 in OpenCV's order of channels."""
    if picture.dtype != torch.uint8:
        picture = (picture * 255).round().to(torch.uint8)
    return np.ascontiguousarray(picture.movedim(0, 2).cpu().numpy()[..., ::-1])
