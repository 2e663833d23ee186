"""The rasteriser as one Warp kernel, the same source for CPU and CUDA.

Imported by `companion.papers.visual_compiler.raster` when it is first needed: importing Warp and
compiling the kernel take seconds. The compiled kernel is kept in the user's cache folder.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
import warp as wp


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep back what Warp's native code writes to stderr: that there is no GPU, which we know."""
    kept = os.dup(2)
    nowhere = os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)


# fused multiply-add rounds otherwise on every machine, and may change who is nearest
wp.set_module_options({"fuse_fp": False})
wp.config.log_level = wp.LOG_ERROR  # else it greets on stdout
if torch.cuda.is_available():
    wp.init()
else:
    with _quiet():
        wp.init()


@wp.kernel
def rasterise(
    corners: wp.array3d(dtype=wp.int32),
    inverse_depth: wp.array2d(dtype=wp.float32),
    faces: wp.array2d(dtype=wp.int32),
    image: wp.array(dtype=wp.int32),
    boxes: wp.array2d(dtype=wp.int32),
    offset: wp.array(dtype=wp.int64),
    sub: wp.int32,
    keys: wp.array3d(dtype=wp.int64),
    cover: wp.array(dtype=wp.uint8),
):
    p, f = wp.tid()
    i = faces[f, 0]
    j = faces[f, 1]
    k = faces[f, 2]
    iz0 = inverse_depth[p, i]
    iz1 = inverse_depth[p, j]
    iz2 = inverse_depth[p, k]
    if iz0 <= 0.0 or iz1 <= 0.0 or iz2 <= 0.0:
        return
    ax = corners[p, i, 0]
    ay = corners[p, i, 1]
    bx = corners[p, j, 0]
    by = corners[p, j, 1]
    cx = corners[p, k, 0]
    cy = corners[p, k, 1]
    area = wp.int64(bx - ax) * wp.int64(cy - ay) - wp.int64(by - ay) * wp.int64(cx - ax)
    if area == wp.int64(0):
        return
    if area < wp.int64(0):  # seen from behind: swap two corners
        bx, cx = cx, bx
        by, cy = cy, by
        iz1, iz2 = iz2, iz1
        area = -area
    half = sub / 2
    # samples whose centres can lie inside; boxes are the person's part of the picture
    x0 = wp.max((wp.min(wp.min(ax, bx), cx) + half - 1) // sub, boxes[p, 0])
    y0 = wp.max((wp.min(wp.min(ay, by), cy) + half - 1) // sub, boxes[p, 1])
    x1 = wp.min((wp.max(wp.max(ax, bx), cx) + half) // sub + 1, boxes[p, 2])
    y1 = wp.min((wp.max(wp.max(ay, by), cy) + half) // sub + 1, boxes[p, 3])
    # top-left rule: a sample on an edge belongs to the face below or to the right of it
    ta = wp.int64(1)
    tb = wp.int64(1)
    tc = wp.int64(1)
    if by < ay or (by == ay and bx > ax):
        tc = wp.int64(0)
    if cy < by or (cy == by and cx > bx):
        ta = wp.int64(0)
    if ay < cy or (ay == cy and ax > cx):
        tb = wp.int64(0)
    low = wp.int64(p) * wp.int64(faces.shape[0]) + wp.int64(f)
    b = image[p]
    per = 1.0 / wp.float32(area)
    for y in range(y0, y1):
        py = y * sub + half
        for x in range(x0, x1):
            px = x * sub + half
            ea = wp.int64(cx - bx) * wp.int64(py - by) - wp.int64(cy - by) * wp.int64(px - bx)
            eb = wp.int64(ax - cx) * wp.int64(py - cy) - wp.int64(ay - cy) * wp.int64(px - cx)
            ec = area - ea - eb
            if ea >= ta and eb >= tb and ec >= tc:
                iz = (wp.float32(ea) * iz0 + wp.float32(eb) * iz1 + wp.float32(ec) * iz2) * per
                key = (wp.int64(wp.cast(1.0 / iz, wp.int32)) << wp.int64(32)) | low
                wp.atomic_min(keys, b, y, x, key)
                place = offset[p] + wp.int64((y - boxes[p, 1]) * (boxes[p, 2] - boxes[p, 0]))
                cover[place + wp.int64(x - boxes[p, 0])] = wp.uint8(1)
