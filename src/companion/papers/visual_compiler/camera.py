"""The camera: world to pixels and back to the ground, with a lens or without.

World: metres, z up, ground z = 0. Camera: x right, y down, z forward. Pixels: (u, v), column
first, the centre of pixel i at i + 1/2, so that the picture covers [0, width] x [0, height].
"""

from __future__ import annotations

import dataclasses
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import torch
from torch import Tensor

from companion.data.root import CorruptDataError

ITERATIONS = 100  # of undistorting; OpenCV's five leave 0.07 px on a strong lens


class Lens(Protocol):
    """A distortion of normalised picture coordinates (x_c / z_c, y_c / z_c)."""

    def distort(self, xy: Tensor) -> Tensor: ...
    def undistort(self, xy: Tensor) -> Tensor: ...


@dataclass(frozen=True)
class Brown:
    """The polynomial lens of OpenCV: radial k1, k2, k3 and tangential p1, p2."""

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0

    def distort(self, xy: Tensor) -> Tensor:
        """Where an ideal point (..., 2) comes to lie."""
        radial, tangential = self._terms(xy)
        return xy * radial + tangential

    def undistort(self, xy: Tensor) -> Tensor:
        """The ideal point of a distorted one, by fixed-point iteration; NaN where there is none."""
        ideal = xy
        for _ in range(ITERATIONS):
            radial, tangential = self._terms(ideal)
            ideal = (xy - tangential) / radial
        reached = (self.distort(ideal) - xy).abs().amax(-1, keepdim=True) < 1e-6
        return torch.where(reached, ideal, torch.nan)

    def _terms(self, xy: Tensor) -> tuple[Tensor, Tensor]:
        x, y = xy.unbind(-1)
        r2 = x * x + y * y
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        tangential = torch.stack(
            [
                2 * self.p1 * x * y + self.p2 * (r2 + 2 * x * x),
                self.p1 * (r2 + 2 * y * y) + 2 * self.p2 * x * y,
            ],
            -1,
        )
        return radial[..., None], tangential


@dataclass(frozen=True)
class Tsai:
    """Tsai's lens: the ideal point is the distorted one times 1 + kappa r², r distorted.

    kappa: in normalised coordinates, the file's kappa1 (1/mm²) times the focal length (mm) squared.
    """

    kappa: float = 0.0

    def undistort(self, xy: Tensor) -> Tensor:
        """The ideal point of a distorted one, in closed form."""
        return xy * (1 + self.kappa * xy.square().sum(-1, keepdim=True))

    def distort(self, xy: Tensor) -> Tensor:
        """Where an ideal point comes to lie: Newton's method for r + kappa r³ = its radius."""
        ideal = xy.square().sum(-1, keepdim=True).sqrt()
        r = ideal
        for _ in range(20):
            r = r - (r + self.kappa * r**3 - ideal) / (1 + 3 * self.kappa * r * r)
        return torch.where(ideal > 0, xy * (r / ideal.clamp(min=1e-30)), xy)


@dataclass(frozen=True, eq=False)
class Camera:
    """A fixed camera, X_c = R X + t.

    K: (3, 3), focal lengths and principal point in pixels, no skew. R: (3, 3) rotation. t: (3,),
    metres; it is *not* the camera's place, which is `centre`. width, height: of the picture.
    lens: its distortion, None for a pinhole. All tensors are float64.

    Raises ValueError for shapes that do not fit, an R that is no rotation, or a focal length
    that is not positive.
    """

    K: Tensor
    R: Tensor
    t: Tensor
    width: int
    height: int
    lens: Lens | None = None

    def __post_init__(self) -> None:
        for name, shape in (("K", (3, 3)), ("R", (3, 3)), ("t", (3,))):
            value = torch.as_tensor(getattr(self, name), dtype=torch.float64)
            if value.shape != shape or not value.isfinite().all():
                raise ValueError(f"{name} = {value.tolist()}: expected {shape}, all finite")
            object.__setattr__(self, name, value)
        if not (self.K[0, 0] > 0 and self.K[1, 1] > 0 and self.K[2, 2] == 1):
            raise ValueError(
                f"K = {self.K.tolist()}: expected positive focal lengths and a last row 0, 0, 1"
            )
        off = (self.R @ self.R.T - torch.eye(3, dtype=torch.float64)).abs().max()
        if off > 1e-6 or torch.linalg.det(self.R) < 0:
            raise ValueError(f"R = {self.R.tolist()}: expected a rotation matrix")
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width, height = {self.width}, {self.height}: expected at least 1")

    @property
    def centre(self) -> Tensor:
        """Where the camera is, C = -Rᵀt, (3,) in metres; its last entry is the height."""
        return -self.R.T @ self.t

    def project(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (..., 2) and depths (...) of world points (..., 3).

        The depth is z_c in metres; a point with z_c <= 0 is behind the camera and has NaN pixels.
        """
        R, t = self.R.to(X), self.t.to(X)
        camera = X @ R.T + t
        depth = camera[..., 2]
        xy = camera[..., :2] / torch.where(depth > 0, depth, torch.nan)[..., None]
        if self.lens is not None:
            xy = self.lens.distort(xy)
        K = self.K.to(X)
        return xy * K.diagonal()[:2] + K[:2, 2], depth

    def rays(self, uv: Tensor) -> Tensor:
        """World directions (..., 3) of pixels (..., 2), scaled so that depth grows by 1 along them."""
        K = self.K.to(uv)
        xy = (uv - K[:2, 2]) / K.diagonal()[:2]
        if self.lens is not None:
            xy = self.lens.undistort(xy)
        return torch.cat([xy, torch.ones_like(xy[..., :1])], -1) @ self.R.to(uv)

    def backproject_ground(self, uv: Tensor) -> Tensor:
        """Ground points (..., 2) in metres of pixels (..., 2); NaN at and above the horizon."""
        ray = self.rays(uv)
        centre = self.centre.to(uv)
        down = torch.where(ray[..., 2:] < 0, ray[..., 2:], torch.nan)
        return centre[:2] - centre[2] / down * ray[..., :2]

    def pixel_grid(self, scale: int = 1) -> Tensor:
        """Centres (scale·height, scale·width, 2) of all samples, in pixels of this camera."""
        v = (torch.arange(scale * self.height, dtype=torch.float64) + 0.5) / scale
        u = (torch.arange(scale * self.width, dtype=torch.float64) + 0.5) / scale
        return torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], -1)

    def resize(self, s: float) -> Camera:
        """The same camera with a picture s times as large, rounded to whole pixels."""
        if not s > 0:
            raise ValueError(f"s = {s!r}: expected a factor above 0")
        width, height = max(1, round(s * self.width)), max(1, round(s * self.height))
        by = torch.tensor([width / self.width, height / self.height, 1.0], dtype=torch.float64)
        return dataclasses.replace(self, K=self.K * by[:, None], width=width, height=height)

    def ideal(self) -> Camera:
        """The same camera without its lens."""
        return dataclasses.replace(self, lens=None)

    def ground_homography(self) -> Tensor:
        """(3, 3): ground (X, Y, 1) to pixels (u, v, 1), up to the third component; pinhole only."""
        return self.K @ torch.stack([self.R[:, 0], self.R[:, 1], self.t], 1)

    def to(self, device: torch.device | str) -> Camera:
        """A copy with its tensors on a device."""
        return dataclasses.replace(
            self, K=self.K.to(device), R=self.R.to(device), t=self.t.to(device)
        )

    # ------------------------------------------------------------ ways to make one

    @classmethod
    def level(cls, f: float, height_m: float, pitch: float, width: int, height: int) -> Camera:
        """A camera that does not roll, above the origin, looking along +y and down.

        f: pixels. height_m: metres above the ground. pitch: radians downwards.
        """
        c, s = math.cos(pitch), math.sin(pitch)
        R = torch.tensor([[1.0, 0, 0], [0, -s, -c], [0, c, -s]], dtype=torch.float64)
        t = -R @ torch.tensor([0, 0, height_m], dtype=torch.float64)
        K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float64)
        return cls(K, R, t, width, height)

    @classmethod
    def from_opencv(
        cls, K: Tensor, R: Tensor, t: Tensor, size: tuple[int, int], dist: tuple[float, ...] = ()
    ) -> Camera:
        """A calibration in OpenCV's convention, in which pixel i has its centre at i.

        R: matrix (3, 3) or rotation vector (3,). size: width, height. dist: none, four or five of
        k1, k2, p1, p2, k3.
        """
        if len(dist) not in (0, 4, 5):
            raise ValueError(
                f"dist = {dist!r}: expected 0, 4 or 5 coefficients k1, k2, p1, p2, k3"
            )
        K = torch.as_tensor(K, dtype=torch.float64).clone()
        R = torch.as_tensor(R, dtype=torch.float64)
        K[:2, 2] += 0.5
        lens = Brown(*map(float, dist)) if any(dist) else None
        return cls(K, R if R.ndim == 2 else rotation_vector(R), t, *size, lens)

    @classmethod
    def from_tsai(cls, path: str | os.PathLike) -> Camera:
        """Read a Tsai calibration as an XML file of the PETS 2009 set.

        The pixel coordinates are those in which the set's boxes are given.
        Raises CorruptDataError for a file that has another form.
        """
        try:
            root = ElementTree.parse(path).getroot()
            number = {
                key: float(value)
                for name in ("Geometry", "Intrinsic", "Extrinsic")
                for key, value in root.find(name).attrib.items()
            }
            f = number["focal"]
            K = torch.zeros(3, 3, dtype=torch.float64)
            K[0, 0], K[0, 2] = f * number["sx"] / number["dpx"], number["cx"]
            K[1, 1], K[1, 2] = f / number["dpy"], number["cy"]
            K[2, 2] = 1
            turn = [_about(axis, number["r" + "xyz"[axis]]) for axis in range(3)]
            t = torch.tensor([number["tx"], number["ty"], number["tz"]], dtype=torch.float64)
            size = int(number["width"]), int(number["height"])
            lens = Tsai(number["kappa1"] * f * f)
        except (ElementTree.ParseError, AttributeError, KeyError, ValueError) as error:
            raise CorruptDataError(f"{path}: no Tsai calibration ({error!r})") from error
        return cls(K, turn[2] @ turn[1] @ turn[0], t / 1000, *size, lens)

    @classmethod
    def from_homography(cls, H: Tensor, width: int, height: int) -> Camera:
        """The camera of a ground homography, with square pixels and a central principal point.

        H: (3, 3), ground (X, Y, 1) in metres to pixels (u, v, 1). With H ~ K [r1 r2 t] and
        r1, r2 orthonormal, two equations are linear in 1/f²; they are solved by least squares.

        Raises ValueError where they have no solution: a camera that looks straight down, or a
        matrix that is no view of a plane.
        """
        H = torch.as_tensor(H, dtype=torch.float64)
        if H.shape != (3, 3) or torch.linalg.matrix_rank(H) < 3:
            raise ValueError(f"H = {H.tolist()}: expected an invertible (3, 3) matrix")
        shift = torch.eye(3, dtype=torch.float64)
        shift[:2, 2] = -torch.tensor([width / 2, height / 2], dtype=torch.float64)
        a, b, c = (shift @ H / torch.linalg.norm(H[2])).unbind(1)
        left = torch.stack([a[:2] @ b[:2], a[:2] @ a[:2] - b[:2] @ b[:2]])
        right = -torch.stack([a[2] * b[2], a[2] ** 2 - b[2] ** 2])
        inverse = (left @ right) / (left @ left)
        if not inverse > 1e-12:
            raise ValueError(
                f"H = {H.tolist()}: no focal length fits; a camera that looks straight down "
                "needs its own calibration"
            )
        f = float(inverse.rsqrt())
        K = torch.tensor([[f, 0, width / 2], [0, f, height / 2], [0, 0, 1]], dtype=torch.float64)
        scale = torch.tensor([1 / f, 1 / f, 1], dtype=torch.float64)
        a, b, c = a * scale, b * scale, c * scale
        norm = (a.norm() * b.norm()).sqrt()
        U, _, Vh = torch.linalg.svd(torch.stack([a, b, torch.linalg.cross(a, b) / norm], 1) / norm)
        # H is known up to its sign: the camera is above the ground
        found = [(U @ Vh, c / norm)]
        flip = torch.diag(torch.tensor([-1.0, -1.0, 1.0], dtype=torch.float64))
        found.append((found[0][0] @ flip, -found[0][1]))
        R, t = max(found, key=lambda pose: float((-pose[0].T @ pose[1])[2]))
        return cls(K, R, t, width, height)


def rotation_vector(r: Tensor) -> Tensor:
    """The rotation (3, 3) about an axis (3,) by its length in radians (Rodrigues)."""
    x, y, z = torch.as_tensor(r, dtype=torch.float64).tolist()
    cross = torch.tensor([[0, -z, y], [z, 0, -x], [-y, x, 0]], dtype=torch.float64)
    return torch.linalg.matrix_exp(cross)


def rotation_quaternion(xyzw: Tensor) -> Tensor:
    """The rotation (3, 3) of a quaternion in the order x, y, z, w; its length does not matter."""
    q = torch.as_tensor(xyzw, dtype=torch.float64)
    x, y, z, w = (q / q.norm()).tolist()
    return torch.tensor(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ],
        dtype=torch.float64,
    )


def _about(axis: int, angle: float) -> Tensor:
    r = torch.zeros(3, dtype=torch.float64)
    r[axis] = angle
    return rotation_vector(r)


def horizon_row(camera: Camera, pitch: float) -> float:
    """Row of the horizon of a level camera, v_h = c_y - f tan(pitch)."""
    return float(camera.K[1, 2] - camera.K[1, 1] * math.tan(pitch))


def read_town_centre(path: str | os.PathLike) -> Camera:
    """Read the calibration of Oxford Town Centre, ``TownCentre-calibration-ci.txt``.

    It is for 1920 x 1080 pixels, in OpenCV's convention, with a quaternion (x, y, z, w) and
    X_c = R X + t. Raises CorruptDataError for a file that has another form.
    """
    number = {}
    try:
        for line in Path(path).read_text(encoding="ascii").splitlines():
            if line.strip():
                key, value = line.split("=")
                number[key.strip()] = float(value)
        R = rotation_quaternion(torch.tensor([number[f"Rotation{a}"] for a in "XYZW"]).double())
        t = torch.tensor([number[f"Translation{a}"] for a in "XYZ"], dtype=torch.float64)
        K = torch.eye(3, dtype=torch.float64)
        K[0, 0], K[1, 1] = number["FocalLengthX"], number["FocalLengthY"]
        K[0, 2], K[1, 2] = number["PrincipalPointX"], number["PrincipalPointY"]
        dist = tuple(number[f"Distortion{name}"] for name in ("K1", "K2", "P1", "P2"))
    except (KeyError, ValueError) as error:
        raise CorruptDataError(f"{path}: no calibration of Town Centre ({error!r})") from error
    return Camera.from_opencv(K, R, t, (1920, 1080), dist)


def height_law(f: float, h: float, pitch: float, d: float, H: float) -> float:
    """Rows that a person takes up under a level camera, H d (f - d s c) / (f h - H d s c).

    f: pixels. h: the camera's height. pitch: radians downwards, with sine s and cosine c. d: rows
    of the feet below the horizon. H: stature, in the unit of h.
    """
    sc = math.sin(pitch) * math.cos(pitch)
    return H * d * (f - d * sc) / (f * h - H * d * sc)
