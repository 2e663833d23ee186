"""The z-buffer: triangles to samples, exactly, by Warp or by torch.

Corners are snapped to 1/256 of a sample and the edge functions are integers, so that coverage is
the same on every machine and in both implementations: no sample is lost or counted twice where
faces meet. Depth is interpolated as 1/z, by the same roundings everywhere: multiplications and
additions are not fused, so that who is nearest is the same too. The nearest face of a sample is
found by an atomic minimum over 64-bit keys, which does not depend on the order of the faces.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from companion.device import has_float64

SUB = 256  # steps of a corner within a sample
NOBODY = 2**32 - 1  # low word of a key: static geometry, or nothing
NEAR = 0.1  # metres: faces that come closer are not drawn
FAR_CORNER = 2**22  # samples from the picture: faces that reach farther are not drawn
CHUNK = 4_000_000  # candidate samples that the torch twin holds at a time


class KernelError(RuntimeError):
    """Raised where Warp cannot build or load its kernel; torch can do the work instead."""


def pick_backend(backend: str = "auto") -> str:
    """What draws: "auto" takes Warp where it is installed, else torch, which draws the same.

    Raises:
        ValueError: for a name that is none.
        KernelError: for Warp where it is not installed.
    """
    if backend not in ("auto", "warp", "torch"):
        raise ValueError(f"backend = {backend!r}: expected 'auto', 'warp' or 'torch'")
    there = find_spec("warp") is not None
    if backend == "warp" and not there:
        raise KernelError("backend = 'warp': Warp is not installed (pip install warp-lang)")
    return ("warp" if there else "torch") if backend == "auto" else backend


def drawing_device(device: torch.device | str) -> torch.device:
    """Where to draw for a network on a device: there, but for Apple's GPUs on the CPU.

    Warp does not know those, and they lack float64 and minima of 64-bit keys.
    """
    device = torch.device(device)
    return device if has_float64(device) else torch.device("cpu")


def drawing_code() -> Callable:
    """The function that draws here, to be read: Warp's kernel, or its twin in torch."""
    if pick_backend() == "torch":
        return _draw_with_torch
    from companion.papers.visual_compiler import kernels

    return kernels.rasterise.func


@dataclass(frozen=True, eq=False)
class Raster:
    """What was drawn, at sample resolution.

    Args:
        keys: (B, H, W), int64: bits of the float32 depth in the high word; in the low word
            person times faces plus face, or NOBODY.
        cover: flat uint8, one rectangle a person: what the person covers when alone.
        boxes: (P, 4) of these rectangles, x0, y0, x1, y1 in samples.
        offset: (P,) where they begin.
        n_faces: faces a person.
    """

    keys: Tensor
    cover: Tensor
    boxes: Tensor
    offset: Tensor
    n_faces: int

    @property
    def depth(self) -> Tensor:
        """(B, H, W) float32, metres along the optical axis; inf where there is nothing."""
        return (self.keys >> 32).to(torch.int32).view(torch.float32)

    @property
    def person(self) -> Tensor:
        """(B, H, W) number of the person that a sample shows, -1 for none."""
        low = self.keys & NOBODY
        return torch.where(low == NOBODY, -1, low // self.n_faces)

    @functools.cached_property
    def hits(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """Picture, row, column, person and face of every sample that shows somebody."""
        b, y, x = ((self.keys & NOBODY) != NOBODY).nonzero(as_tuple=True)
        low = self.keys[b, y, x] & NOBODY
        person = low.div(self.n_faces, rounding_mode="floor")
        return b, y, x, person, low - person * self.n_faces

    def visible_samples(self) -> Tensor:
        """(P,) samples that show a person."""
        return torch.bincount(self.hits[3], minlength=len(self.boxes))

    def solo_samples(self) -> Tensor:
        """(P,) samples that would show a person if nothing else were there."""
        total = torch.cat([self.cover.new_zeros(1, dtype=torch.int64), self.cover.cumsum(0)])
        size = (self.boxes[:, 2] - self.boxes[:, 0]) * (self.boxes[:, 3] - self.boxes[:, 1])
        return total[self.offset + size] - total[self.offset]


def depth_key(depth: Tensor) -> Tensor:
    """Keys of static geometry at these depths (float32, metres; inf for none)."""
    return (depth.float().contiguous().view(torch.int32).long() << 32) | NOBODY


def rasterise(
    uv: Tensor,
    depth: Tensor,
    faces: Tensor,
    image: Tensor,
    static: Tensor,
    n_images: int,
    *,
    backend: str = "auto",
) -> Raster:
    """Draw P meshes of one topology into n_images pictures.

    Faces that come nearer than NEAR, that reach out of all proportion, or with a corner that is
    NaN, are left out.

    Args:
        uv: (P, V, 2), corners in samples, the centre of sample i at i + 1/2.
        depth: (P, V), metres.
        faces: (F, 3).
        image: (P,), the picture of each mesh.
        static: (H, W) depth of what else is there, inf for nothing.
        n_images: images that are drawn.
        backend: as `pick_backend`.

    Raises:
        KernelError: where Warp does not work.
    """
    backend = pick_backend(backend)
    height, width = static.shape
    inside = (depth > NEAR) & (uv.abs().amax(-1) < FAR_CORNER)
    corners = torch.where(inside[..., None], uv * SUB, 0.0).round().to(torch.int32)
    inverse = torch.where(inside, 1 / depth.clamp(min=NEAR), 0.0).float()
    boxes = _person_boxes(corners, inside, width, height)
    size = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    offset = torch.cat([size.new_zeros(1), size.cumsum(0)])
    keys = depth_key(static).expand(n_images, -1, -1).contiguous()
    cover = torch.zeros(int(offset[-1]) + 1, dtype=torch.uint8, device=uv.device)
    out = Raster(keys, cover, boxes, offset[:-1], len(faces))
    if len(uv):
        draw = _draw_with_torch if backend == "torch" else _draw_with_warp
        draw(corners.contiguous(), inverse, faces, image, out)
    return out


def _person_boxes(corners: Tensor, inside: Tensor, width: int, height: int) -> Tensor:
    """(P, 4) samples that a mesh can reach, within the picture; empty where it is not seen."""
    big = torch.iinfo(torch.int32).max
    low = torch.where(inside[..., None], corners, big).amin(1).long()
    high = torch.where(inside[..., None], corners, -big).amax(1).long()
    limit = torch.tensor([width, height], device=corners.device)
    start = low.div(SUB, rounding_mode="floor").clamp(min=0).minimum(limit)
    stop = (high.div(SUB, rounding_mode="floor") + 1).minimum(limit).maximum(start)
    return torch.cat([start, stop], 1)


def _draw_with_warp(
    corners: Tensor, inverse: Tensor, faces: Tensor, image: Tensor, out: Raster
) -> None:
    try:
        import warp as wp

        from companion.papers.visual_compiler import kernels

        wp.launch(
            kernels.rasterise,
            dim=(len(corners), len(faces)),
            inputs=[
                wp.from_torch(corners),
                wp.from_torch(inverse.contiguous()),
                wp.from_torch(faces.to(torch.int32).contiguous()),
                wp.from_torch(image.to(torch.int32).contiguous()),
                wp.from_torch(out.boxes.to(torch.int32).contiguous()),
                wp.from_torch(out.offset.contiguous()),
                SUB,
                wp.from_torch(out.keys),
                wp.from_torch(out.cover),
            ],
            device=wp.device_from_torch(corners.device),
        )
    except (ImportError, RuntimeError, OSError) as error:
        raise KernelError(
            f"Warp cannot build its kernel here ({str(error).splitlines()[0]}); backend='torch' "
            "draws the same without a compiler, ten times as slowly"
        ) from error


def _draw_with_torch(
    corners: Tensor, inverse: Tensor, faces: Tensor, image: Tensor, out: Raster
) -> None:
    """The same as the kernel: list all (face, sample) candidates, test them, scatter the minimum."""
    n_people, n_faces = len(corners), len(faces)
    _, height, width = out.keys.shape
    xy = corners[:, faces].long().flatten(0, 1)  # (people · faces, 3, 2)
    iz = inverse[:, faces].flatten(0, 1)
    a, b, c = xy.unbind(1)
    area = _cross(b - a, c - a)
    back = area < 0
    xy = torch.where(back[:, None, None], xy[:, [0, 2, 1]], xy)
    iz = torch.where(back[:, None], iz[:, [0, 2, 1]], iz)
    area = area.abs()
    person = torch.arange(n_people, device=xy.device).repeat_interleave(n_faces)
    frame = out.boxes[person]
    half = SUB // 2
    first = (xy.amin(1) + half - 1).div(SUB, rounding_mode="floor").maximum(frame[:, :2])
    last = ((xy.amax(1) + half).div(SUB, rounding_mode="floor") + 1).minimum(frame[:, 2:])
    span = (last - first).clamp(min=0)
    count = span.prod(1) * ((area > 0) & (iz > 0).all(1))
    live = count.nonzero()[:, 0]
    keys, cover = out.keys.view(-1), out.cover
    ends = count[live].cumsum(0)
    while len(live):
        taken = max(1, int(torch.searchsorted(ends, ends[0] - count[live[0]] + CHUNK)))
        now, live, ends = live[:taken], live[taken:], ends[taken:]
        face = now.repeat_interleave(count[now])
        within = torch.arange(len(face), device=face.device)
        within -= (count[now].cumsum(0) - count[now]).repeat_interleave(count[now])
        x = first[face, 0] + within % span[face, 0]
        y = first[face, 1] + within // span[face, 0]
        point = torch.stack([x, y], 1) * SUB + half
        corner = xy[face]
        inside = torch.ones_like(x, dtype=torch.bool)
        weight = []
        for k in range(3):
            start, stop = corner[:, (k + 1) % 3], corner[:, (k + 2) % 3]
            edge = _cross(stop - start, point - start)
            dx, dy = (stop - start).unbind(1)
            top_left = (dy < 0) | ((dy == 0) & (dx > 0))
            inside &= edge >= (~top_left).long()
            weight.append(edge)
        face, x, y = face[inside], x[inside], y[inside]
        a, b, c = (torch.stack(weight, 1)[inside].float() * iz[face]).unbind(1)
        depth = 1 / ((a + b + c) * (1 / area[face].float()))  # the kernel's order of roundings
        key = (depth.view(torch.int32).long() << 32) | face
        p = person[face]
        keys.scatter_reduce_(0, (image[p].long() * height + y) * width + x, key, "amin")
        row = out.boxes[p]
        cover[out.offset[p] + (y - row[:, 1]) * (row[:, 2] - row[:, 0]) + x - row[:, 0]] = 1


def _cross(a: Tensor, b: Tensor) -> Tensor:
    return a[..., 0] * b[..., 1] - a[..., 1] * b[..., 0]
