"""A scene: what the camera sees without people, where people can stand, and what hides them."""

from __future__ import annotations

import dataclasses
import functools
import json
import math
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from companion.checks import tensors, whole
from companion.data.root import CorruptDataError
from companion.files import write_whole
from companion.papers.visual_compiler.camera import Brown, Camera

STRIDE = 4  # pixels a cell of the network's maps
REFERENCE_STATURE = 1.75  # metres, of the person whose height in the image gives the scale


@dataclass(frozen=True)
class Box:
    """An obstacle or a wall, standing on the ground.

    Args:
        x, y: its middle, metres.
        size: length, width, height, metres.
        yaw: radians, of the length from the x axis.

    Raises:
        ValueError: for a size that is not positive, and numbers that are not finite.
    """

    x: float
    y: float
    size: tuple[float, float, float]
    yaw: float = 0.0

    def __post_init__(self) -> None:
        for name in ("x", "y", "yaw"):
            if not math.isfinite(value := getattr(self, name)):
                raise ValueError(f"{name} = {value!r}: expected a finite number")
        if len(self.size) != 3 or not all(0 < side < math.inf for side in self.size):
            raise ValueError(
                f"size = {self.size!r}: expected length, width and height in metres, above 0"
            )


@dataclass(frozen=True)
class Occluder:
    """Something upright that is known only by its outline in the picture.

    Args:
        polygon: (column, row) corners in pixels.
        foot: the pixel where it stands; its distance is that of the ground there.
    """

    polygon: tuple[tuple[float, float], ...]
    foot: tuple[float, float]


@dataclass(frozen=True, eq=False)
class Scene:
    """One fixed camera's view, with its layout.

    Args:
        background: (3, H, W) in [0, 1], without people.
        camera: of an image of this size.
        walkable: polygons of (x, y) in metres.
        boxes, occluders: what stands there.
        sun: direction to the light, if known; it is made a unit vector.
        min_height: people who would be lower than this many pixels are not placed.
        name: for titles.

    Raises:
        ValueError: for a background that is no floating-point tensor with values in [0, 1], where
            calibration and picture do not fit, for a polygon that is none, a sun without a
            direction or not above the ground, an occluder whose foot is not on the ground, and where
            no walkable ground is seen.
    """

    background: Tensor
    camera: Camera
    walkable: Sequence[Sequence[tuple[float, float]]]
    boxes: Sequence[Box] = ()
    occluders: Sequence[Occluder] = ()
    sun: tuple[float, float, float] | None = None
    min_height: float = 0.0
    name: str = "scene"

    def __post_init__(self) -> None:
        tensors(background=self.background)
        if not self.background.is_floating_point():
            raise ValueError(
                f"background: {self.background.dtype}, expected a floating-point tensor in [0, 1]; "
                "bytes are / 255"
            )
        if not ((self.background >= 0) & (self.background <= 1)).all():
            raise ValueError(
                f"background: values from {self.background.min():g} to {self.background.max():g}, "
                "expected [0, 1]"
            )
        if hasattr(self.walkable, "shape"):
            what = "a tensor" if isinstance(self.walkable, Tensor) else "an array"
            raise ValueError(
                f"walkable: {what}, expected polygons of (x, y) in metres, a list of each"
            )
        expected = (3, self.camera.height, self.camera.width)
        if tuple(self.background.shape) != expected:
            raise ValueError(
                f"background: a picture of shape {tuple(self.background.shape)} does not fit the "
                f"camera's {expected}; resize one of them (camera.resize)"
            )
        if not self.walkable:
            raise ValueError("walkable = []: expected at least one polygon of ground")
        for polygon in self.walkable:
            if len(polygon) < 3:
                raise ValueError(f"walkable: {polygon!r} is no polygon, it needs three corners")
            ground = torch.tensor([[*corner, 0.0] for corner in polygon], dtype=torch.float64)
            if not ground.isfinite().all():
                raise ValueError(f"walkable: {polygon!r}, expected finite corners")
            if (self.camera.project(ground)[1] <= 0).all():
                raise ValueError(f"walkable: the polygon {polygon!r} lies behind the camera")
        if self.sun is not None:
            length = math.hypot(*self.sun)
            if len(self.sun) != 3 or not 0 < length < math.inf:
                raise ValueError(f"sun = {self.sun!r}: expected x, y, z, finite and not all 0")
            if self.sun[2] <= 0:  # nor on the horizon, where shadows have no end
                raise ValueError(f"sun = {self.sun!r}: expected a z above 0, over the ground")
            if abs(length - 1) > 1e-6:
                object.__setattr__(self, "sun", _unit(*self.sun))
        for k, occluder in enumerate(self.occluders):
            foot = torch.tensor(occluder.foot, dtype=torch.float64)
            if not self.camera.backproject_ground(foot).isfinite().all():
                raise ValueError(
                    f"occluders[{k}]: foot = {occluder.foot!r}, where no ground is seen; expected "
                    "a pixel below the horizon"
                )
        if not self.walkable_mask.any():
            raise ValueError(
                "walkable: none of it is seen, or no person there would be at least "
                f"{self.min_height:g} px tall"
            )

    @property
    def device(self) -> torch.device:
        """Where the background is."""
        return self.background.device

    def depth(self, scale: int = 1) -> Tensor:
        """(scale·H, scale·W) float32: depth of walls and obstacles, inf where there are none.

        Ground hides nobody who stands on it, so it does not count.
        """
        return self._surfaces(scale)[0]

    def ground(self, scale: int = 1) -> Tensor:
        """(scale·H, scale·W) bool: where the ground is seen."""
        return self._surfaces(scale)[1]

    @functools.cached_property
    def walkable_mask(self) -> Tensor:
        """(H, W) bool: pixels where a person's feet may be, seen or hidden by an obstacle."""
        points = self.camera.backproject_ground(self.camera.pixel_grid())
        inside = torch.zeros(points.shape[:2], dtype=torch.bool)
        for polygon in self.walkable:
            inside |= inside_polygon(points, polygon)
        for box in self.boxes:
            local = _to_box(points, box).abs()
            inside &= ~(local < torch.tensor(box.size[:2]) / 2 + 0.3).all(-1)
        if self.min_height > 0:
            inside &= self.person_height(self.camera.pixel_grid()) >= self.min_height
        return inside

    def person_height(self, feet: Tensor, stature: float = REFERENCE_STATURE) -> Tensor:
        """(...) rows between feet at pixels (..., 2) and the head above them; NaN off the ground."""
        ground = self.camera.backproject_ground(feet)
        head = torch.cat([ground, torch.full_like(ground[..., :1], stature)], -1)
        return feet[..., 1] - self.camera.project(head)[0][..., 1]

    def regions(self, n: int, overlap: float = 0.25) -> Tensor:
        """(n, H/4, W/4): smooth masks of n regions that add up to 1 in every cell.

        Bands of rows, each with the same share of the walkable pixels; from six regions on, also
        columns. Neighbours cross-fade over `overlap` of a band.

        Args:
            n: regions, at least 1.
            overlap: share of a band over which neighbours cross-fade.

        Raises:
            ValueError: for no region.
        """
        whole(1, n=n)
        columns = max(c for c in range(1, int(math.sqrt(n)) + 1) if n % c == 0) if n >= 6 else 1
        mask = self.walkable_mask
        rows = _fades(mask.sum(1), n // columns, overlap)
        across = _fades(mask.sum(0), columns, overlap)
        parts = rows[:, None, :, None] * across[None, :, None, :]
        return parts.flatten(0, 1).to(self.device)

    def shadowed(self) -> Tensor:
        """(H, W) bool: ground points that the boxes keep from the sun.

        Raises:
            ValueError: for a scene whose sun is not known.
        """
        if self.sun is None:
            raise ValueError("sun = None: expected the direction to the light, x, y, z")
        ground = self.camera.backproject_ground(self.camera.pixel_grid())
        points = torch.cat([ground, torch.zeros_like(ground[..., :1])], -1)
        to_sun = torch.tensor(self.sun, dtype=torch.float64)
        dark = torch.zeros(points.shape[:2], dtype=torch.bool)
        for box in self.boxes:
            dark |= _in_shadow(points, to_sun, box)
        return dark

    def resize(self, s: float) -> Scene:
        """The same scene with a picture s times as large."""
        camera = self.camera.resize(s)
        by = camera.width / self.camera.width, camera.height / self.camera.height
        background = torch.nn.functional.interpolate(
            self.background[None],
            (camera.height, camera.width),
            mode="area" if s < 1 else "bilinear",
        )[0]
        occluders = tuple(
            Occluder(
                tuple((u * by[0], v * by[1]) for u, v in o.polygon),
                (o.foot[0] * by[0], o.foot[1] * by[1]),
            )
            for o in self.occluders
        )
        return dataclasses.replace(
            self,
            background=background,
            camera=camera,
            occluders=occluders,
            min_height=self.min_height * s,
        )

    def to(self, device: torch.device | str) -> Scene:
        """A copy with its background on a device; geometry is computed on the CPU and moved."""
        return dataclasses.replace(self, background=self.background.to(device))

    def _surfaces(self, scale: int) -> tuple[Tensor, Tensor]:
        cache = self.__dict__.setdefault("_cache", {})
        if scale not in cache:
            grid = self.camera.pixel_grid(scale)
            rays = self.camera.rays(grid)
            depth = torch.full(rays.shape[:2], torch.inf, dtype=torch.float64)
            for box in self.boxes:
                depth = torch.minimum(depth, hit_box(self.camera.centre, rays, box)[0])
            for occluder in self.occluders:
                foot = torch.tensor(occluder.foot, dtype=torch.float64)
                spot = torch.cat([self.camera.backproject_ground(foot), torch.zeros(1)])
                there = inside_polygon(grid, occluder.polygon)
                at = self.camera.project(spot)[1]
                depth = torch.where(there, torch.minimum(depth, at), depth)
            down = -self.camera.centre[2] / rays[..., 2]
            seen = (rays[..., 2] < 0) & (down <= depth)
            cache[scale] = depth.float().to(self.device), seen.to(self.device)
        return cache[scale]


def inside_polygon(points: Tensor, polygon: Sequence[tuple[float, float]]) -> Tensor:
    """(...) bool: which of (..., 2) points lie in a polygon, by the parity of crossings."""
    x, y = points.unbind(-1)
    inside = torch.zeros_like(x, dtype=torch.bool)
    for (x0, y0), (x1, y1) in zip(polygon, [*polygon[1:], polygon[0]], strict=True):
        if y0 != y1:
            crosses = (y0 > y) != (y1 > y)
            inside ^= crosses & (x < x0 + (y - y0) * (x1 - x0) / (y1 - y0))
    return inside


def hit_box(origin: Tensor, rays: Tensor, box: Box) -> tuple[Tensor, Tensor]:
    """Where rays (..., 3) from a point first meet a box.

    Returns:
        The multiple of the ray (inf for a miss) and the outward normal (..., 3) there.
    """
    rotate = _turn(box.yaw)
    half = torch.tensor(box.size, dtype=torch.float64) / 2
    middle = torch.tensor([box.x, box.y, box.size[2] / 2], dtype=torch.float64)
    start = rotate.T @ (origin - middle)
    direction = rays @ rotate
    direction = torch.where(direction == 0, 1e-12, direction)
    near, far = (-half - start) / direction, (half - start) / direction
    enter, axis = torch.minimum(near, far).max(-1)
    leave = torch.maximum(near, far).amin(-1)
    hit = (enter <= leave) & (enter > 0)
    normal = torch.nn.functional.one_hot(axis, 3).double() * -direction.sign()
    return torch.where(hit, enter, torch.inf), normal @ rotate.T


def _turn(yaw: float) -> Tensor:
    c, s = math.cos(yaw), math.sin(yaw)
    return torch.tensor([[c, -s, 0], [s, c, 0], [0, 0, 1]], dtype=torch.float64)


def _to_box(points: Tensor, box: Box) -> Tensor:
    """(..., 2) ground points in a box's own axes."""
    return (points - torch.tensor([box.x, box.y])) @ _turn(box.yaw)[:2, :2]


def _fades(weight: Tensor, n: int, overlap: float) -> Tensor:
    """(n, cells): bands along one axis of equal weight, cross-fading, adding up to 1."""
    total = weight.double().cumsum(0)
    cells = torch.arange(len(weight) // STRIDE, dtype=torch.float64) + 0.5
    if n == 1:
        return torch.ones(1, len(cells), dtype=torch.float32)
    shares = total[-1] * torch.arange(1, n, dtype=torch.float64) / n
    edges = torch.searchsorted(total, shares).double() / STRIDE
    ends = torch.cat([torch.zeros(1), edges, torch.tensor([float(len(cells))])])
    width = (overlap * torch.minimum(ends[1:-1] - ends[:-2], ends[2:] - ends[1:-1])).clamp(min=0.5)
    steps = ((cells - edges[:, None]) / width[:, None] + 0.5).clamp(0, 1)  # (n - 1, cells)
    steps = torch.cat([torch.ones_like(steps[:1]), steps, torch.zeros_like(steps[:1])])
    return (steps[:-1] - steps[1:]).float()


# ---------------------------------------------------------------- a scene on disk


def save_scene(scene: Scene, folder: str | os.PathLike) -> None:
    """Write ``scene.json`` and ``background.png`` into a folder (8 bits a channel).

    Raises:
        ValueError: for a lens that is not OpenCV's (`Brown`).
    """
    from PIL import Image

    folder = Path(folder)
    camera = _calibration(scene.camera)
    layout = {
        "name": scene.name,
        "camera": camera,
        "walkable": [[list(corner) for corner in polygon] for polygon in scene.walkable],
        "boxes": [dataclasses.asdict(box) for box in scene.boxes],
        "occluders": [dataclasses.asdict(occluder) for occluder in scene.occluders],
        "sun": scene.sun,
        "min_height": scene.min_height,
    }
    # a scene takes numbers of NumPy and PyTorch as well; what cannot be written leaves no folder
    text = json.dumps(layout, indent=1, default=_as_list) + "\n"
    folder.mkdir(parents=True, exist_ok=True)
    pixels = (scene.background.cpu() * 255).round().to(torch.uint8).movedim(0, 2).numpy()
    part = folder / "background.part.png"
    Image.fromarray(pixels).save(part)
    part.replace(folder / "background.png")
    write_whole(folder / "scene.json", text)


def _as_list(value: Any) -> Any:
    if not hasattr(value, "tolist"):
        raise TypeError(f"{value!r} cannot be written into scene.json")
    return value.tolist()


def _calibration(camera: Camera) -> dict:
    """The camera as `load_scene` reads it."""
    lens, K = camera.lens, camera.K.clone()
    pose = {"R": camera.R.tolist(), "t": camera.t.tolist()}
    if lens is None:
        return {"K": K.tolist(), **pose}
    if not isinstance(lens, Brown):
        raise ValueError(
            f"camera: lens = {lens!r}, expected OpenCV's (Brown), which a file can tell, or "
            "none, as of an undistorted picture (camera.ideal())"
        )
    K[:2, 2] -= 0.5  # OpenCV's pixel i has its centre at i
    dist = [lens.k1, lens.k2, lens.p1, lens.p2, lens.k3]
    return {"opencv": {"K": K.tolist(), **pose, "dist": dist}}


def load_scene(folder: str | os.PathLike) -> Scene:
    """Read a scene from a folder with ``scene.json`` and ``background.png``.

    The camera is given as ``{"K", "R", "t"}`` (pixel centres at i + 1/2), as ``{"opencv": {"K",
    "R", "t", "dist"}}`` (the camera keeps its lens), or as ``{"homography": ...}``, the 3 by 3 map
    from the ground in metres to pixels. The background and outlines in it are as the camera takes
    them, and so are all pictures and boxes of this scene. Only ``camera`` and ``walkable`` are
    needed.

    Raises:
        FileNotFoundError: for a folder that lacks one of the two.
        CorruptDataError: for a file that cannot be read.
        ValueError: as `Scene` does.
    """
    from PIL import Image

    folder = Path(folder)
    for name in ("scene.json", "background.png"):
        if not (folder / name).is_file():
            raise FileNotFoundError(f"scene_path = {str(folder)!r}: it has no {name}")
    try:
        with Image.open(folder / "background.png") as picture:
            pixels = torch.from_numpy(np.array(picture.convert("RGB")))
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise CorruptDataError(f"{folder / 'background.png'}: cannot be read ({error})") from error
    background = pixels.movedim(2, 0).float() / 255
    size = background.shape[2], background.shape[1]
    try:
        text = json.loads((folder / "scene.json").read_text(encoding="utf-8"))
        given = text["camera"]
        if "homography" in given:
            camera = Camera.from_homography(given["homography"], *size)
        elif "opencv" in given:
            k = given["opencv"]
            camera = Camera.from_opencv(k["K"], k["R"], k["t"], size, k.get("dist"))
        else:
            camera = Camera(given["K"], given["R"], given["t"], *size)
        layout: dict[str, Any] = {
            "walkable": [[tuple(corner) for corner in polygon] for polygon in text["walkable"]],
            "boxes": tuple(
                Box(b["x"], b["y"], tuple(b["size"]), b.get("yaw", 0.0))
                for b in text.get("boxes", ())
            ),
            "occluders": tuple(
                Occluder(tuple(map(tuple, o["polygon"])), tuple(o["foot"]))
                for o in text.get("occluders", ())
            ),
            "sun": tuple(text["sun"]) if text.get("sun") else None,
            "min_height": float(text.get("min_height", 0.0)),
            "name": str(text.get("name", folder.name)),
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise CorruptDataError(f"{folder / 'scene.json'}: cannot be read ({error!r})") from error
    return Scene(background, camera, **layout)


def undistort(picture: Tensor, camera: Camera) -> Tensor:
    """The picture (3, H, W) that the camera would have taken without its lens.

    Black where the lens showed nothing.
    """
    if camera.lens is None:
        return picture
    source = camera.distort(camera.pixel_grid())
    size = torch.tensor([camera.width, camera.height])
    place = (2 * source / size - 1).float().to(picture.device)
    straight = torch.nn.functional.grid_sample(
        picture[None], place[None].nan_to_num(0), mode="bilinear", padding_mode="border",
        align_corners=False,
    )[0]  # fmt: skip
    return torch.where(place.isfinite().all(-1), straight, 0.0)


# ---------------------------------------------------------------- procedural scenes


def procedural_scene(width: int = 160, height: int = 120) -> Scene:
    """The quick profile's scene: a yard with three obstacles and two walls.

    f = 150 px at 160 x 120, camera 3.2 m above the ground, pitched down by 16 degrees.
    """
    s = width / 160
    camera = Camera.level(150.0 * s, 3.2, math.radians(16), width, height)
    boxes = (
        Box(-1.6, 8.5, (1.1, 0.7, 1.0), 0.3),
        Box(2.2, 12.0, (1.6, 0.8, 1.2), -0.2),
        Box(-0.4, 19.0, (2.4, 0.9, 1.4), 0.1),
        Box(-6.6, 17.0, (24.0, 0.3, 2.6), math.pi / 2),
        Box(0.0, 33.0, (30.0, 0.4, 3.0), 0.0),
    )
    walkable = [[(-6.0, 4.0), (9.0, 4.0), (14.0, 32.0), (-6.0, 32.0)]]
    sun = _unit(0.55, -0.35, 0.75)
    generator = torch.Generator().manual_seed(7)
    background = paint(camera, boxes, sun, generator=generator)
    return Scene(background, camera, walkable, boxes, sun=sun, name="procedural")


def random_scenes(n: int, width: int, height: int, *, like: Scene, seed: int) -> list[Scene]:
    """Scenes of other cameras, for a detector that knows pedestrians but not the place.

    Heights, pitches, focal lengths, grounds, walls and light are drawn; people are seen in the
    sizes that they have in `like`.

    Args:
        n: scenes, at least 1.
        width, height: of the images, pixels.
        like: scene whose people's sizes are taken.
        seed: of all that is drawn.

    Raises:
        ValueError: for n below 1, and where hardly any drawn camera sees people of these sizes.
    """
    whole(1, n=n, width=width, height=height)
    generator = torch.Generator().manual_seed(seed)

    def draw(low: float, high: float) -> float:
        return low + (high - low) * float(torch.rand((), generator=generator, dtype=torch.float32))

    tall = like.person_height(like.camera.pixel_grid())[like.walkable_mask]
    tall = tall[tall.isfinite()]
    low, high = tall.quantile(0.02).item(), tall.quantile(0.98).item()
    scenes: list[Scene] = []
    tried = 0
    while len(scenes) < n:
        tried += 1
        if tried > 100 * n:
            raise ValueError(
                f"like: of {tried - 1} cameras drawn for {width} x {height} pixels {len(scenes)} "
                f"see people {low:.0f} to {high:.0f} px tall, expected {n}"
            )
        lift, pitch = draw(2.0, 8.0), math.radians(draw(6, 38))
        f = width * draw(0.7, 2.2)
        camera = Camera.level(f, lift, pitch, width, height)
        # distances at which a person has the sizes wanted, as far as the picture shows them
        near, far = f * REFERENCE_STATURE / high, f * REFERENCE_STATURE / low
        wide = 0.6 * far * width / f + 1
        boxes = [
            Box(
                draw(-wide, wide),
                draw(near, far),
                (draw(0.5, 3), draw(0.4, 1), draw(0.8, 2.5)),
                draw(0, 3),
            )
            for _ in range(int(draw(0, 6)))
        ]
        boxes.append(
            Box(
                draw(-5, 5),
                far * draw(1.0, 1.4) + 1,
                (4 * wide, 0.4, draw(1.5, 6)),
                draw(-0.2, 0.2),
            )
        )
        walkable = [[(-wide, near), (wide, near), (wide, far), (-wide, far)]]
        sun = _unit(draw(-1, 1), draw(-1, 1), draw(0.4, 1.2))
        try:
            scene = Scene(
                paint(camera, boxes, sun, generator=generator, plain=False),
                camera, walkable, tuple(boxes), sun=sun, name=f"random {len(scenes)}",
            )  # fmt: skip
        except ValueError:  # nothing to stand on in view: draw another
            continue
        if scene.walkable_mask.double().mean() > 0.08:
            scenes.append(scene)
    return scenes


def paint(
    camera: Camera,
    boxes: Sequence[Box],
    sun: tuple[float, float, float],
    *,
    generator: torch.Generator,
    plain: bool = True,
    ambient: float = 0.55,
) -> Tensor:
    """(3, H, W): a picture of ground, boxes and sky, with cast shadows; colours are drawn.

    Args:
        camera: from which it is seen.
        boxes: that stand there.
        sun: unit vector to the light.
        generator: of the CPU, for colours and noise.
        ambient: share of light that comes from all sides, 0 to 1.
        plain: paving and warm walls; otherwise ground, walls and sky have any colour.
    """

    def draw(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    scale = 2
    rays = camera.rays(camera.pixel_grid(scale))
    depth = torch.full(rays.shape[:2], torch.inf, dtype=torch.float64)
    normal = torch.zeros_like(rays)
    owner = torch.full(rays.shape[:2], -1)
    for number, box in enumerate(boxes):
        at, across = hit_box(camera.centre, rays, box)
        closer = at < depth
        depth, owner = torch.where(closer, at, depth), torch.where(closer, number, owner)
        normal = torch.where(closer[..., None], across, normal)
    down = torch.where(rays[..., 2] < 0, -camera.centre[2] / rays[..., 2], torch.inf)
    is_ground = down < depth
    reach = torch.where(is_ground, down, depth).clamp(max=1e4)
    points = camera.centre + reach[..., None] * rays
    normal[is_ground] = torch.tensor([0.0, 0.0, 1.0], dtype=torch.float64)

    tint = 0.12 * (draw(3) - 0.5)
    ground = 0.3 + 0.35 * draw(1) + tint if not plain else torch.tensor([0.52, 0.50, 0.47])
    albedo = torch.empty_like(points)
    tile = 0.8 + 2 * draw(1) if not plain else torch.tensor(1.2)
    seam = (points[..., :2] / tile).frac().abs().amin(-1) < 0.06 / tile
    albedo[:] = torch.where(seam[..., None], 0.82, 1.0) * ground
    patches = torch.nn.functional.interpolate(
        draw(1, 1, 9, 12), size=points.shape[:2], mode="bicubic", align_corners=False
    )[0, 0]
    albedo *= (0.8 + 0.4 * patches)[..., None]
    for number in range(len(boxes)):
        colour = 0.25 + 0.5 * draw(1) + 0.25 * (draw(3) - 0.5)
        courses = (points[..., 2] / 0.3).frac() < 0.12
        brick = torch.where(courses[..., None], 0.85, 1.0) * colour
        albedo = torch.where((owner == number)[..., None], brick, albedo)

    to_sun = torch.tensor(sun, dtype=torch.float64)
    lit = (normal @ to_sun).clamp(min=0)
    start = points + 1e-4 * normal
    for box in boxes:
        lit = torch.where(_in_shadow(start, to_sun, box), 0.0, lit)
    facing = torch.where(is_ground, to_sun[2], 1.0)
    colour = albedo * (ambient + (1 - ambient) * lit / facing)[..., None]
    sky = torch.tensor([0.66, 0.76, 0.86]) * (1.0 if plain else 0.5 + 0.5 * draw(1))
    nothing = torch.isinf(depth) & torch.isinf(down)
    picture = torch.where(nothing[..., None], sky, colour).movedim(2, 0).float()
    picture = torch.nn.functional.avg_pool2d(picture[None], scale)[0]
    grain = torch.randn(picture.shape, generator=generator, dtype=torch.float32) * 0.012
    return (picture + grain).clamp(0, 1)


def _in_shadow(points: Tensor, to_sun: Tensor, box: Box) -> Tensor:
    """(...) bool: whether the way from points to the sun meets a box."""
    rotate = _turn(box.yaw)
    half = torch.tensor(box.size, dtype=torch.float64) / 2
    middle = torch.tensor([box.x, box.y, box.size[2] / 2], dtype=torch.float64)
    start, direction = (points - middle) @ rotate, to_sun @ rotate
    near, far = (-half - start) / direction, (half - start) / direction
    enter = torch.minimum(near, far).amax(-1)
    leave = torch.maximum(near, far).amin(-1)
    return (enter < leave) & (leave > 1e-3)


def _unit(x: float, y: float, z: float) -> tuple[float, float, float]:
    length = math.sqrt(sum(value * value for value in (x, y, z)))
    return x / length, y / length, z / length
