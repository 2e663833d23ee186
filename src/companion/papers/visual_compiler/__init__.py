"""Visual Compiler (arXiv 1612.05234): a detector for one camera from renders of its scene alone.

World coordinates are metres with z up and the ground at z = 0; pixels are (column, row) with the
centre of pixel i at i + 1/2. What only the chapter needs is in the submodules: `baselines`,
`camera` (lenses, calibrations), `coco`, `datasets`, `experiment`, `labels`, `metrics`,
`network`, `raster`, `scene`.

On your own work::

    import torch
    from companion.papers import visual_compiler as vc

    scene = vc.Scene(background, vc.Camera.from_opencv(K, R, t, size, dist), walkable)
    bank, draw = vc.BodyBank.load(), torch.Generator().manual_seed(0)
    data = vc.compile_scene(scene, bank, n_renders, generator=draw)
    model = vc.SpatiallyVaryingFCN(vc.make_trunk(), 3, 16, scene.regions(3))
    vc.train(model, data, steps=steps, batch_size=8, lr=5e-3, generator=draw)
    renders = vc.render_scene(scene, bank, 50, generator=draw)
    vc.write_coco(renders, vc.to_coco(renders, scene=scene), folder)
    print(vc.evaluate(vc.detect(model, images), truth, camera=scene.camera))

References:
    Lee, Weng, Boddeti, Zhang, Beainy, Kitani and Kanade (2016), Visual Compiler: synthesizing a
    scene-specific pedestrian detector and pose estimator.
"""

from companion.papers.visual_compiler.bodies import BodyBank
from companion.papers.visual_compiler.camera import Camera
from companion.papers.visual_compiler.labels import compile_scene, to_coco, write_coco
from companion.papers.visual_compiler.metrics import evaluate
from companion.papers.visual_compiler.network import (
    Detections,
    SpatiallyVaryingFCN,
    decode,
    detect,
    make_trunk,
    train,
)
from companion.papers.visual_compiler.render import (
    Light,
    Placements,
    Renders,
    draw_light,
    draw_placements,
    render_people,
    render_person,
    render_scene,
)
from companion.papers.visual_compiler.scene import (
    Box,
    Occluder,
    Scene,
    load_scene,
    procedural_scene,
    save_scene,
)

__all__ = [
    "BodyBank",
    "Box",
    "Camera",
    "Detections",
    "Light",
    "Occluder",
    "Placements",
    "Renders",
    "Scene",
    "SpatiallyVaryingFCN",
    "compile_scene",
    "decode",
    "detect",
    "draw_light",
    "draw_placements",
    "evaluate",
    "load_scene",
    "make_trunk",
    "procedural_scene",
    "render_people",
    "render_person",
    "render_scene",
    "save_scene",
    "to_coco",
    "train",
    "write_coco",
]
