"""The bank of bodies: small meshes of walking people, derived once from public-domain data."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
import io
import os
import zlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from zipfile import BadZipFile

import numpy as np
import torch
from torch import Tensor

from companion.data.root import CorruptDataError
from companion.files import write_whole

BANK = Path(__file__).with_name("bodies.npz")
PARTS = ("skin", "hair", "torso", "forearm", "hips", "shin", "shoe")
STEP = 1e-4  # metres a unit of the stored integers
KEYPOINTS = [
    "nose",
    "left_eye",
    "right_eye",
    "left_ear",
    "right_ear",
    "left_shoulder",
    "right_shoulder",
    "left_elbow",
    "right_elbow",
    "left_wrist",
    "right_wrist",
    "left_hip",
    "right_hip",
    "left_knee",
    "right_knee",
    "left_ankle",
    "right_ankle",
]  # COCO's order


@dataclass(frozen=True, eq=False)
class BodyBank:
    """N posed bodies with one topology, in metres: z up, facing -y, lowest vertex at z = 0.

    Args:
        vertices: (N, V, 3).
        faces: (F, 3), counter-clockwise seen from outside.
        parts: (V,), index into PARTS.
        keypoints: (N, 17, 3), COCO's joints.
        phases: poses a body; entry n is body n // phases in phase n % phases.
        checksum: sha256 of the file.
    """

    vertices: Tensor
    faces: Tensor
    parts: Tensor
    keypoints: Tensor
    phases: int
    checksum: str = ""

    def __len__(self) -> int:
        return len(self.vertices)

    @property
    def bodies(self) -> int:
        """Different people, each in `phases` poses."""
        return len(self) // self.phases

    @functools.cached_property
    def stature(self) -> Tensor:
        """(N,) height of the mesh in metres."""
        return self.vertices[..., 2].amax(1)

    @functools.cached_property
    def face_parts(self) -> Tensor:
        """(F,) the part of a face, that of its first vertex."""
        return self.parts[self.faces[:, 0]]

    @functools.cached_property
    def vertex_normals(self) -> Tensor:
        """(N, V, 3) unit normals, pointing outwards."""
        a, b, c = (self.vertices[:, self.faces[:, k]] for k in range(3))
        across = torch.linalg.cross(b - a, c - a)  # twice the area long
        total = torch.zeros_like(self.vertices)
        for k in range(3):
            total.index_add_(1, self.faces[:, k], across)
        return torch.nn.functional.normalize(total, dim=-1)

    @functools.cached_property
    def face_normals(self) -> Tensor:
        """(N, F, 3) unit normals of the faces, smoothed over their corners."""
        corners = self.vertex_normals[:, self.faces]
        return torch.nn.functional.normalize(corners.sum(2), dim=-1)

    def split(self, held_out: int) -> tuple[BodyBank, BodyBank]:
        """The bank without its last bodies, and these.

        Raises:
            ValueError: unless both have a body.
        """
        if not 1 <= held_out < self.bodies:
            raise ValueError(f"held_out = {held_out!r}: expected 1 to {self.bodies - 1}")
        cut = (self.bodies - held_out) * self.phases
        first, last = (
            dataclasses.replace(self, vertices=self.vertices[s], keypoints=self.keypoints[s])
            for s in (slice(cut), slice(cut, None))
        )
        return first, last

    def to(self, device: torch.device | str) -> BodyBank:
        """A copy with its tensors on a device."""
        return dataclasses.replace(
            self,
            **{
                name: getattr(self, name).to(device)
                for name in ("vertices", "faces", "parts", "keypoints")
            },
        )

    @classmethod
    def load(cls, path: str | os.PathLike = BANK) -> BodyBank:
        """Read a bank; the one that comes with this package by default.

        Raises:
            FileNotFoundError: where there is no such file.
            CorruptDataError: for a file of another form.
        """
        path = Path(path)
        raw = path.read_bytes()
        try:
            with np.load(io.BytesIO(raw), allow_pickle=False) as file:
                data = {name: torch.from_numpy(file[name]) for name in file.files}
            bank = cls(
                data["vertices"].float() * STEP,
                data["faces"].long(),
                data["parts"].long(),
                data["keypoints"].float() * STEP,
                int(data["phases"]),
                hashlib.sha256(raw).hexdigest(),
            )
        except (KeyError, ValueError, OSError, EOFError, BadZipFile, zlib.error) as error:
            raise CorruptDataError(f"{path}: no bank of bodies ({error})") from error
        if bank.vertices.ndim != 3 or bank.faces.max() >= bank.vertices.shape[1]:
            raise CorruptDataError(f"{path}: the faces name vertices that are not there")
        return bank


def write_bank(
    path: str | os.PathLike,
    vertices: Tensor,
    faces: Tensor,
    parts: Tensor,
    keypoints: Tensor,
    phases: int,
) -> None:
    """Store a bank; coordinates as 16-bit integers of 0.1 mm, so within ±3.2 m.

    Args:
        path: of the file.
        vertices, faces, parts, keypoints, phases: as `BodyBank`.

    Raises:
        ValueError: for coordinates that do not fit.
    """
    scaled = {"vertices": vertices / STEP, "keypoints": keypoints / STEP}
    if max(float(value.abs().max()) for value in scaled.values()) > np.iinfo(np.int16).max:
        raise ValueError("vertices: expected coordinates within 3.2 m of the origin")
    rounded: dict[str, Any] = {
        name: value.round().numpy().astype(np.int16) for name, value in scaled.items()
    }
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        faces=faces.numpy().astype(np.uint16),
        parts=parts.numpy().astype(np.uint8),
        phases=np.int64(phases),
        **rounded,
    )
    write_whole(Path(path), buffer.getvalue())
