"""The recipe: from OpenCV's numbers and one image of an empty place to a detector and COCO."""

import json
import math

import cv2
import numpy as np
import torch
from recipe import run

from companion.papers import visual_compiler as vc


def test_the_recipe_compiles_a_detector_from_opencvs_numbers(tmp_path):
    width, height, tilt = 120, 88, math.radians(100)
    rotation = cv2.Rodrigues(np.array([[tilt], [0.0], [0.0]]))[0]
    calibration = {
        "K": np.array([[130.0, 0, 59.5], [0, 130.0, 43.5], [0, 0, 1]]),
        "R": cv2.Rodrigues(rotation)[0],
        "t": -rotation @ np.array([[0.0], [0.0], [3.0]]),
        "dist": np.array([[-0.05, 0.01, 0.0, 0.0, 0.0]]),
        "size": (width, height),
    }
    draw = torch.Generator().manual_seed(0)
    noise = torch.rand(3, 11, 15, generator=draw)
    background = 0.4 + 0.2 * torch.nn.functional.interpolate(noise[None], (height, width))[0]
    walkable = [[(-4, 5), (4, 5), (8, 20), (-8, 20)]]
    # others, rendered from the same view, stand for the images of the camera
    camera = vc.Camera.from_opencv(**calibration)
    seen = vc.render_scene(
        vc.Scene(background, camera, walkable), vc.BodyBank.load(), 20,
        generator=torch.Generator().manual_seed(9),
    )  # fmt: skip
    given = {
        "background": background, "walkable": walkable, "n_renders": 80, "steps": 90,
        "images": seen.image, "truth": vc.to_coco(seen), "folder": tmp_path / "set",
    } | calibration  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        names, printed = run("visual_compiler", **given)
    result = vc.evaluate(vc.detect(names["model"], seen.image), given["truth"])
    assert result["AP50"] > 0.5
    assert result["true_positives"] + result["misses"] == result["people"]
    for name in ("'precision'", "'recall'", "'false_positives'", "'ground_error'"):
        assert name in printed
    coco = json.loads((tmp_path / "set" / "annotations.json").read_text())
    assert len(coco["images"]) == 50 == len(list((tmp_path / "set" / "images").iterdir()))
    assert np.allclose(coco["info"]["camera"]["R"], rotation)
