"""The camera: world to pixels and back to the ground, with a lens or without.

World: metres, z up, ground z = 0. Camera: x right, y down, z forward. Pixels: (u, v), column
first, the centre of pixel i at i + 1/2, so that the picture covers [0, width] x [0, height].
"""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from xml.etree import ElementTree

import numpy as np
import torch
from numpy.polynomial import Polynomial
from torch import Tensor

from companion.data.root import CorruptDataError
from companion.device import has_float64

NEWTON = (
    20  # most steps of undistorting; OpenCV's five fixed-point ones leave 0.07 px on a strong lens
)


class Lens(Protocol):
    """A distortion of normalised picture coordinates (x_c / z_c, y_c / z_c).

    A polynomial lens folds: beyond some radius it would bring far points back into the picture,
    which no glass does. Outside of the range in which it is one to one, both ways give NaN.
    """

    def distort(self, xy: Tensor) -> Tensor:
        """Where ideal points (..., 2) come to lie."""

    def undistort(self, xy: Tensor) -> Tensor:
        """The ideal points of distorted ones, (..., 2)."""


@dataclass(frozen=True)
class Brown:
    """The polynomial lens of OpenCV: radial k1, k2, k3 and tangential p1, p2.

    Raises:
        ValueError: for a coefficient that is not finite.

    >>> lens = Brown(k1=-0.3)
    >>> xy = torch.tensor([[0.5, 0.2]], dtype=torch.float64)
    >>> torch.allclose(lens.undistort(lens.distort(xy)), xy)
    True
    """

    k1: float = 0.0
    k2: float = 0.0
    p1: float = 0.0
    p2: float = 0.0
    k3: float = 0.0

    def __post_init__(self) -> None:
        for name, value in vars(self).items():
            if not math.isfinite(value):
                raise ValueError(f"{name} = {value!r}: expected a finite coefficient")

    @functools.cached_property
    def reach(self) -> float:
        """Largest ideal radius up to which the lens does not fold, in any direction."""
        t = Polynomial([0, 1])
        r2 = t * t
        radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
        slope = self.k1 + r2 * (2 * self.k2 + 3 * self.k3 * r2)  # by r²
        directions = 1 if self.p1 == self.p2 == 0 else 180
        nearest = math.inf
        for angle in np.arange(directions) * 2 * np.pi / directions:
            c, s = np.cos(angle), np.sin(angle)
            # the Jacobian is symmetric; its determinant is 1 at the middle, 0 where the lens folds
            xx = radial + 2 * c * c * r2 * slope + (2 * self.p1 * s + 6 * self.p2 * c) * t
            yy = radial + 2 * s * s * r2 * slope + (6 * self.p1 * s + 2 * self.p2 * c) * t
            xy = 2 * c * s * r2 * slope + 2 * (self.p1 * c + self.p2 * s) * t
            roots = (xx * yy - xy * xy).trim().roots()
            real = roots.real[(abs(roots.imag) < 1e-9 * (1 + abs(roots))) & (roots.real > 0)]
            nearest = min(nearest, *real, math.inf)
        return float(nearest)

    def distort(self, xy: Tensor) -> Tensor:
        """Where an ideal point (..., 2) comes to lie; NaN beyond `reach`."""
        inside = xy.square().sum(-1, keepdim=True) <= self.reach * self.reach
        return torch.where(inside, self._bend(xy), torch.nan)

    def undistort(self, xy: Tensor) -> Tensor:
        """The ideal point of a distorted one, by Newton's method; NaN where there is none."""
        goal = xy.reshape(-1, 2)
        ideal = self._newton(goal)
        reached = self._reached(ideal, goal)[:, 0]
        if not reached.all():  # near a fold, or where the lens magnifies, Newton's steps run away
            lost = (~reached).nonzero()[:, 0]
            again = self._search(goal[lost])
            ideal[lost] = torch.where(self._reached(again, goal[lost]), again, torch.nan)
        return ideal.view(xy.shape)

    def _newton(self, goal: Tensor) -> Tensor:
        """(n, 2) ideal points of (n, 2), each improved until its step is below the rounding."""
        x, y = (part.clone() for part in goal.unbind(1))
        u, v = goal.unbind(1)
        at: slice | Tensor = slice(None)  # the points that still move
        settled = 4 * torch.finfo(goal.dtype).eps
        for _ in range(NEWTON):
            a, b = x[at], y[at]
            r2 = a * a + b * b
            radial = 1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))
            slope = 2 * (self.k1 + r2 * (2 * self.k2 + 3 * self.k3 * r2))
            ab = a * b
            p, q = self.p1 * b + self.p2 * a, self.p1 * a + self.p2 * b
            off_x = a * radial + 2 * self.p1 * ab + self.p2 * (r2 + 2 * a * a) - u[at]
            off_y = b * radial + 2 * self.p2 * ab + self.p1 * (r2 + 2 * b * b) - v[at]
            # the Jacobian, which is symmetric
            xx = radial + slope * a * a + 2 * p + 4 * self.p2 * a
            yy = radial + slope * b * b + 2 * p + 4 * self.p1 * b
            xy = slope * ab + 2 * q
            per = 1 / (xx * yy - xy * xy)
            step_x, step_y = (yy * off_x - xy * off_y) * per, (xx * off_y - xy * off_x) * per
            x[at], y[at] = a - step_x, b - step_y
            moving = torch.maximum(step_x.abs(), step_y.abs()) > settled * (1 + r2.sqrt())
            if not moving.any():
                break
            if not moving.all():
                at = moving.nonzero()[:, 0] if isinstance(at, slice) else at[moving]
        return torch.stack([x, y], 1)

    def _bend(self, xy: Tensor) -> Tensor:
        radial, tangential = self._terms(xy)
        return xy * radial + tangential

    def _reached(self, ideal: Tensor, xy: Tensor) -> Tensor:
        size = xy.abs().amax(-1, keepdim=True).clamp(min=1)
        return (self.distort(ideal) - xy).abs().amax(-1, keepdim=True) < 1e-6 * size

    def _search(self, xy: Tensor) -> Tensor:
        """Bisection along the radius, which is exact without tangential terms; they follow."""
        goal = xy.square().sum(-1, keepdim=True).sqrt()
        unit = xy / goal.clamp(min=1e-30)
        high = torch.full_like(goal, min(self.reach, 1e6))
        ideal, aim = xy, goal
        for _ in range(20):
            low, top = torch.zeros_like(goal), high
            for _ in range(64):
                r = (low + top) / 2
                r2 = r * r
                short = r * (1 + r2 * (self.k1 + r2 * (self.k2 + r2 * self.k3))) < aim
                low, top = torch.where(short, r, low), torch.where(short, top, r)
            ideal = unit * low
            if self.p1 == self.p2 == 0:
                break
            left = xy - self._terms(ideal)[1]
            aim = left.square().sum(-1, keepdim=True).sqrt()
            unit = left / aim.clamp(min=1e-30)
        return ideal

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

    Args:
        kappa: in normalised coordinates, the file's kappa1 (1/mm²) times the focal length (mm)
            squared.

    Raises:
        ValueError: for a coefficient that is not finite.
    """

    kappa: float = 0.0

    def __post_init__(self) -> None:
        if not math.isfinite(self.kappa):
            raise ValueError(f"kappa = {self.kappa!r}: expected a finite coefficient")

    @property
    def reach(self) -> float:
        """Largest distorted radius up to which the lens does not fold."""
        return math.inf if self.kappa >= 0 else (-3 * self.kappa) ** -0.5

    def undistort(self, xy: Tensor) -> Tensor:
        """The ideal point of a distorted one, in closed form; NaN beyond `reach`."""
        r2 = xy.square().sum(-1, keepdim=True)
        return torch.where(r2 <= self.reach * self.reach, xy * (1 + self.kappa * r2), torch.nan)

    def distort(self, xy: Tensor) -> Tensor:
        """Where an ideal point comes to lie, r + kappa r³ = its radius; NaN where nothing does.

        By Newton's method, which for a positive kappa comes down to the root from above; for a
        negative one, where it fails near the fold, by the formula of the triple angle.
        """
        ideal = xy.square().sum(-1, keepdim=True).sqrt()
        if self.kappa < 0:
            r = 2 * self.reach * (torch.asin(1.5 / self.reach * ideal) / 3).sin()
        else:
            r = ideal
            if self.kappa > 0:
                r = torch.minimum(r, (ideal / self.kappa) ** (1 / 3))
            for _ in range(20):
                r = r - (r + self.kappa * r**3 - ideal) / (1 + 3 * self.kappa * r * r)
        return torch.where(ideal > 0, xy * (r / ideal.clamp(min=1e-30)), xy)


@dataclass(frozen=True, eq=False)
class Camera:
    """A fixed camera, X_c = R X + t.

    Points and pixels may be tensors, arrays or lists of any real dtype: whole numbers count as
    float64 (float32 on a device without it), half precision as float32.

    Args:
        K: (3, 3), focal lengths, skew and principal point in pixels, upper triangular.
        R: (3, 3) rotation; one that was rounded to five digits is made exact.
        t: (3,), metres; it is *not* the camera's place, which is `centre`.
        width, height: of the picture.
        lens: its distortion, None for a pinhole. All tensors are float64, on the CPU wherever a
            device lacks that.

    Raises:
        ValueError: for shapes that do not fit, an R that is no rotation, or a focal length that
            is not positive.
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
        (fx, _, _), (low, fy, _), last = self.K.tolist()
        if not (fx > 0 and fy > 0 and low == 0 and last == [0, 0, 1]):
            raise ValueError(
                f"K = {self.K.tolist()}: expected positive focal lengths, 0 below the diagonal "
                "and a last row 0, 0, 1"
            )
        off = float((self.R @ self.R.T - torch.eye(3).to(self.R)).abs().max())
        if off > 1e-4 or torch.linalg.det(self.R) < 0:
            raise ValueError(
                f"R = {self.R.tolist()}: expected a rotation matrix (R Rᵀ is {off:.2g} off)"
            )
        if off > 1e-6:
            U, _, Vh = torch.linalg.svd(self.R)
            object.__setattr__(self, "R", U @ Vh)
        if self.width < 1 or self.height < 1:
            raise ValueError(f"width, height = {self.width}, {self.height}: expected at least 1")

    @property
    def centre(self) -> Tensor:
        """Where the camera is, C = -Rᵀt, (3,) in metres; its last entry is the height."""
        return -self.R.T @ self.t

    def project(self, X: Tensor) -> tuple[Tensor, Tensor]:
        """Pixels (..., 2) and depths (...) of world points (..., 3).

        The depth is z_c in metres. Pixels are NaN for a point that the camera cannot see: behind
        it (z_c <= 0), or so far from the axis that the lens does not show it.
        """
        X = _real("X", X, 3)
        R, t = _like(self.R, X), _like(self.t, X)
        camera = X @ R.T + t  # eq. (10.1)
        depth = camera[..., 2]
        ahead = torch.where(depth > 0, depth, torch.nan)
        xy = camera[..., :2] / ahead[..., None]
        if self.lens is not None:
            xy = self.lens.distort(xy)
        return self._to_pixels(xy), depth

    def _to_pixels(self, xy: Tensor) -> Tensor:
        K = _like(self.K, xy)
        uv = xy * K.diagonal()[:2] + K[:2, 2]
        return uv if self.skew == 0 else uv + xy[..., 1:] * _like(self._slant, xy)

    def _to_plane(self, uv: Tensor) -> Tensor:
        K = _like(self.K, uv)
        xy = (uv - K[:2, 2]) / K.diagonal()[:2]
        return xy if self.skew == 0 else xy - xy[..., 1:] * _like(self._slant, uv) / K[0, 0]

    def distort(self, uv: Tensor) -> Tensor:
        """Where the lens brings the pixels (..., 2) of the ideal camera; NaN where nowhere."""
        xy = self._to_plane(_real("uv", uv, 2))
        return self._to_pixels(xy if self.lens is None else self.lens.distort(xy))

    @property
    def skew(self) -> float:
        """Pixels that u grows by where y_c / z_c grows by 1."""
        return float(self.K[0, 1])

    @property
    def _slant(self) -> Tensor:
        return torch.tensor([self.skew, 0.0], dtype=torch.float64)

    def rays(self, uv: Tensor) -> Tensor:
        """World directions (..., 3) of pixels (..., 2), scaled so that depth grows by 1 along them.

        NaN where the lens shows nothing.
        """
        xy = self._to_plane(_real("uv", uv, 2))
        if self.lens is not None:
            xy = self.lens.undistort(xy)
        return torch.cat([xy, torch.ones_like(xy[..., :1])], -1) @ _like(self.R, xy)

    def backproject_ground(self, uv: Tensor) -> Tensor:
        """Ground points (..., 2) in metres of pixels (..., 2).

        NaN at and above the horizon, and where the lens shows nothing.
        """
        ray = self.rays(uv)
        centre = _like(self.centre, ray)
        down = torch.where(ray[..., 2:] < 0, ray[..., 2:], torch.nan)
        return centre[:2] - centre[2] / down * ray[..., :2]  # eq. (10.2)

    def pixel_grid(self, scale: int = 1) -> Tensor:
        """Centres (scale·height, scale·width, 2) of all samples, in pixels of this camera."""
        v = (torch.arange(scale * self.height, dtype=torch.float64) + 0.5) / scale
        u = (torch.arange(scale * self.width, dtype=torch.float64) + 0.5) / scale
        return torch.stack(torch.meshgrid(v, u, indexing="ij")[::-1], -1)

    def resize(self, s: float) -> Camera:
        """The same camera with a picture s times as large, rounded to whole pixels.

        Raises:
            ValueError: for a factor that is not above 0.
        """
        if not s > 0:
            raise ValueError(f"s = {s!r}: expected a factor above 0")
        width, height = max(1, round(s * self.width)), max(1, round(s * self.height))
        by = torch.tensor([width / self.width, height / self.height, 1.0], dtype=torch.float64)
        return dataclasses.replace(self, K=self.K * by[:, None], width=width, height=height)

    def ideal(self) -> Camera:
        """The same camera without its lens."""
        return dataclasses.replace(self, lens=None)

    def to(self, device: torch.device | str) -> Camera:
        """A copy with its tensors on a device, or on the CPU where that has no float64."""
        if not has_float64(device):
            device = "cpu"
        return dataclasses.replace(
            self, K=self.K.to(device), R=self.R.to(device), t=self.t.to(device)
        )

    # ------------------------------------------------------------ ways to make one

    @classmethod
    def level(cls, f: float, height_m: float, pitch: float, width: int, height: int) -> Camera:
        """A camera that does not roll, above the origin, looking along +y and down.

        Args:
            f: focal length, pixels.
            height_m: metres above the ground.
            pitch: radians downwards.
            width, height: of the image, pixels.
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

        Args:
            K: (3, 3), in pixels.
            R: matrix (3, 3) or rotation vector of 3.
            t: of 3.
            size: width, height.
            dist: none, four or five of k1, k2, p1, p2, k3; more only if they are 0. Rows and
                columns, as OpenCV gives them, are as good as vectors.

        Raises:
            ValueError: for another number of coefficients, and as the class.

        >>> camera = Camera.from_opencv(
        ...     [[150, 0, 79.5], [0, 150, 59.5], [0, 0, 1]], [1.85, 0, 0], [0, 3.08, 0.88], (160, 120)
        ... )
        >>> [round(value, 2) for value in camera.centre.tolist()]
        [0.0, 0.0, 3.2]
        """
        given = () if dist is None else torch.as_tensor(dist, dtype=torch.float64).flatten()
        numbers = [float(k) for k in given]
        if len(numbers) not in (0, 4, 5) and (len(numbers) < 4 or any(numbers[5:])):
            raise ValueError(
                f"dist = {dist!r}: expected 0, 4 or 5 coefficients k1, k2, p1, p2, k3"
            )
        K = torch.as_tensor(K, dtype=torch.float64).clone()
        if K.shape != (3, 3):
            raise ValueError(f"K = {K.tolist()}: expected (3, 3), all finite")
        R = torch.as_tensor(R, dtype=torch.float64)
        t = torch.as_tensor(t, dtype=torch.float64)
        K[:2, 2] += 0.5
        lens = Brown(*numbers[:5]) if any(numbers) else None
        R = rotation_vector(R.flatten()) if R.numel() == 3 else R
        return cls(K, R, t.flatten() if t.numel() == 3 else t, *size, lens)

    @classmethod
    def from_tsai(cls, path: str | os.PathLike) -> Camera:
        """Read a Tsai calibration as an XML file of the PETS 2009 set.

        The pixel coordinates are those in which the set's boxes are given.

        Raises:
            CorruptDataError: for a file that has another form.
        """
        try:
            root = ElementTree.parse(path).getroot()
            number = {
                key: float(value)
                for name in ("Geometry", "Intrinsic", "Extrinsic")
                # one that is missing is caught below
                for key, value in root.find(name).attrib.items()  # type: ignore[union-attr]
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
            return cls(K, turn[2] @ turn[1] @ turn[0], t / 1000, *size, lens)
        except (
            ElementTree.ParseError, AttributeError, KeyError, ValueError, ArithmeticError,
        ) as error:  # fmt: skip
            raise CorruptDataError(f"{path}: no Tsai calibration ({error!r})") from error

    @classmethod
    def from_homography(cls, H: Tensor, width: int, height: int) -> Camera:
        """The camera of a ground homography, with square pixels and a central principal point.

        The picture's lower edge must show ground.

        Args:
            H: (3, 3), ground (X, Y, 1) in metres to pixels (u, v, 1); seen from above, Y is a
                quarter turn to the left of X. With H ~ K [r1 r2 t] and
                r1, r2 orthonormal, two equations are linear in 1/f²; they are solved by least
                squares.
            width, height: of the image, pixels.

        Raises:
            ValueError: where they have no solution: a camera that looks straight down, or a
                matrix that is no view of a plane; and where the camera would see the ground in
                the upper part of its picture only, or not at all: axes of a map with Y down.
        """
        H = torch.as_tensor(H, dtype=torch.float64)
        if H.shape != (3, 3) or not H.isfinite().all() or torch.linalg.matrix_rank(H) < 3:
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
        camera = cls(K, R, t, width, height)
        # with Y the other way round, the same pixels would be ground behind the camera
        if camera.backproject_ground(K.new_tensor([width / 2, height])).isnan().any():
            raise ValueError(
                f"H = {H.tolist()}: no ground is seen at the picture's lower edge; its ground axes "
                "are left-handed (negate one or swap them), or the picture is upside down"
            )
        return camera


def _real(name: str, values: Tensor, columns: int) -> Tensor:
    """(..., columns), in float32 or float64."""
    values = torch.as_tensor(values)
    if values.ndim == 0 or values.shape[-1] != columns:
        raise ValueError(f"{name}: shape {tuple(values.shape)}, expected (..., {columns})")
    if values.is_complex() or values.dtype == torch.bool:
        raise ValueError(f"{name}: {values.dtype}, expected real numbers")
    if not values.is_floating_point():
        return values.to(torch.float64 if has_float64(values.device) else torch.float32)
    return values if values.dtype in (torch.float32, torch.float64) else values.float()


def _like(constant: Tensor, values: Tensor) -> Tensor:
    """In the dtype of some values, then on their device, which may lack the constant's dtype."""
    return constant.to(values.dtype).to(values.device)


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

    It is for 1920 x 1080 pixels, in OpenCV's convention, with a quaternion (x, y, z, w) and X_c
    = R X + t.

    Raises:
        CorruptDataError: for a file that has another form.
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
        return Camera.from_opencv(K, R, t, (1920, 1080), dist)
    except (KeyError, ValueError) as error:
        raise CorruptDataError(f"{path}: no calibration of Town Centre ({error!r})") from error


def height_law(f: float, h: float, pitch: float, d: float, H: float) -> float:
    """Rows that a person takes up under a level camera, H d (f - d s c) / (f h - H d s c).

    Args:
        f: pixels.
        h: the camera's height.
        pitch: radians downwards, with sine s and cosine c.
        d: rows of the feet below the horizon.
        H: stature, in the unit of h.
    """
    sc = math.sin(pitch) * math.cos(pitch)
    return H * d * (f - d * sc) / (f * h - H * d * sc)
