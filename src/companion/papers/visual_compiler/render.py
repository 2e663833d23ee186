"""Draw people into a scene, with everything about them known."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from companion.checks import above, generators, whole
from companion.papers.visual_compiler.bodies import PARTS, BodyBank
from companion.papers.visual_compiler.raster import NOBODY, rasterise
from companion.papers.visual_compiler.scene import Scene

STATURE = (1.72, 0.09)  # mean and standard deviation in metres
OVERCAST = 0.85  # ambient share of light where no shadow is known
APART = 0.5  # metres between two people of a picture
# how far clothing stands off the body, metres at padding 1
THICKNESS = {"torso": 0.025, "forearm": 0.012, "hips": 0.02, "shin": 0.02}
SKIN = ((0.86, 0.67, 0.55), (0.72, 0.52, 0.40), (0.45, 0.30, 0.22), (0.93, 0.78, 0.68))
HAIR = ((0.10, 0.08, 0.07), (0.25, 0.17, 0.11), (0.55, 0.43, 0.27), (0.45, 0.45, 0.45))
# ten colours of clothing, dark and light, plain and loud
CLOTHES = (
    (0.06, 0.06, 0.07), (0.13, 0.15, 0.22), (0.28, 0.28, 0.30), (0.55, 0.55, 0.56),
    (0.88, 0.87, 0.85), (0.45, 0.12, 0.12), (0.16, 0.30, 0.52), (0.20, 0.34, 0.22),
    (0.58, 0.47, 0.33), (0.75, 0.60, 0.25),
)  # fmt: skip


@dataclass(frozen=True, eq=False)
class Placements:
    """Who stands where in which picture; P people, sorted by picture.

    Args:
        image: (P,).
        body: (P,), entry of the bank.
        position: (P, 2), metres on the ground.
        yaw: (P,), radians; at yaw 0 a person faces -y, at pi/2 +x.
        stature: (P,), metres.
        colours: (P, parts, 3) in [0, 1].
        padding: (P,), thickness of clothing.
        n_images: images, empty ones included.

    Raises:
        ValueError: for tensors of other shapes.
    """

    image: Tensor
    body: Tensor
    position: Tensor
    yaw: Tensor
    stature: Tensor
    colours: Tensor
    padding: Tensor
    n_images: int

    def __post_init__(self) -> None:
        count = len(self.image)
        shapes = {
            "image": (), "body": (), "position": (2,), "yaw": (), "stature": (),
            "colours": (len(PARTS), 3), "padding": (),
        }  # fmt: skip
        for name, rest in shapes.items():
            found = tuple(getattr(self, name).shape)
            if found != (count, *rest):
                raise ValueError(f"{name}: shape {found}, expected {(count, *rest)}")

    def __len__(self) -> int:
        return len(self.image)

    def to(self, device: torch.device | str) -> Placements:
        """A copy with its tensors on a device."""
        moved: dict[str, Any] = {
            k: v.to(device) for k, v in vars(self).items() if isinstance(v, Tensor)
        }
        return dataclasses.replace(self, **moved)

    def of(self, start: int, stop: int) -> Placements:
        """The people of the pictures start <= picture < stop, numbered from 0."""
        rows = (self.image >= start) & (self.image < stop)
        part = {k: v[rows] for k, v in vars(self).items() if isinstance(v, Tensor)}
        part["image"] = part["image"] - start
        return Placements(**part, n_images=min(stop, self.n_images) - start)


@dataclass(frozen=True, eq=False)
class Light:
    """The light of B pictures, and what the sensor makes of it.

    Args:
        sun: (B, 3), unit vectors to the sun.
        ambient: (B,), share of light that comes from all sides.
        shadow: (B,), share of light that a cast shadow takes.
        gain: (B, 3), factor a channel.
        noise: (B,), standard deviation.
        level: (B,), brightness of a white wall in full light.

    Raises:
        ValueError: for a sun of another shape or, on the CPU, one that is not above the ground.
    """

    sun: Tensor
    ambient: Tensor
    shadow: Tensor
    gain: Tensor
    noise: Tensor
    level: Tensor

    def __post_init__(self) -> None:
        if self.sun.shape != (*self.sun.shape[:1], 3):
            raise ValueError(f"sun: shape {tuple(self.sun.shape)}, expected (B, 3)")
        # a GPU would have to be waited for
        if self.sun.device.type == "cpu" and not (up := self.sun[:, 2] > 0).all():
            low = self.sun[~up][0].tolist()
            raise ValueError(f"sun = {low}: expected directions above the ground, z above 0")

    def of(self, start: int, stop: int) -> Light:
        """The light of some of the pictures."""
        return Light(**{name: value[start:stop] for name, value in vars(self).items()})

    def to(self, device: torch.device | str) -> Light:
        """A copy on a device."""
        return Light(**{name: value.to(device) for name, value in vars(self).items()})


@dataclass(frozen=True, eq=False)
class Renders:
    """B pictures of P people, with exact labels.

    Args:
        image: (B, 3, H, W) in [0, 1].
        instance: (B, H, W), 0 for nobody, else 1 + the person's number.
        image_index: (P,).
        boxes_xyxy: (P, 4), of the whole person, hidden or not, cut at the picture's edge.
        visible_boxes: (P, 4), of the pixels seen; zeros if none.
        keypoints: (P, 17, 3), column, row and 2 (its pixel shows its own person), 1 (hidden) or
            0 (off the picture).
        visible_fraction: (P,), visible samples by solo samples: those that the person would
            fill alone.
        visible_samples, solo_samples: (P,), counted.
        ground: (P, 2), metres.
        stature: (P,), metres.
        foot_head: (P, 2, 2), pixels of the ground point and of the point `stature` above it.
    """

    image: Tensor
    instance: Tensor
    image_index: Tensor
    boxes_xyxy: Tensor
    visible_boxes: Tensor
    keypoints: Tensor
    visible_fraction: Tensor
    visible_samples: Tensor
    solo_samples: Tensor
    ground: Tensor
    stature: Tensor
    foot_head: Tensor

    def __len__(self) -> int:
        return len(self.image)


# ---------------------------------------------------------------- who, where, in what light


def draw_placements(
    scene: Scene,
    bank: BodyBank,
    n_images: int,
    *,
    max_people: int = 5,
    generator: torch.Generator,
    palette: Sequence[tuple[float, float, float]] = CLOTHES,
) -> Placements:
    """People for n_images pictures, 1 to max_people each.

    Feet are uniform in the picture over the walkable ground (uniform on the ground would crowd
    the far end); heading, body, phase of the step, stature and clothing are independent of it.
    Somebody who would stand within APART of another is moved, and in the end left out.

    Args:
        scene: where they stand.
        bank: bodies to draw from.
        n_images: at least 1.
        max_people: in an image, at least 1.
        generator: of the CPU.
        palette: colours of clothes, each of three values in [0, 1].

    Raises:
        ValueError: for numbers below 1, and a number as generator.
    """
    whole(1, n_images=n_images, max_people=max_people)
    generators(generator=generator)
    cells = scene.walkable_mask.nonzero()[:, [1, 0]].double()  # column, row

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    wanted = torch.randint(1, max_people + 1, (n_images,), generator=generator)
    place = torch.full((n_images, max_people, 2), torch.inf, dtype=torch.float64)
    for slot in range(max_people):
        for _ in range(8):
            pick = torch.randint(len(cells), (n_images,), generator=generator)
            spot = scene.camera.backproject_ground(cells[pick] + uniform(n_images, 2))
            free = (place - spot[:, None]).norm(dim=-1).nan_to_num(torch.inf).amin(1) > APART
            empty = torch.isinf(place[:, slot, 0])
            take = empty & free & spot.isfinite().all(1) & (slot < wanted)
            place[take, slot] = spot[take]
    image, seat = torch.isfinite(place[..., 0]).nonzero(as_tuple=True)
    count = len(image)
    mean, spread = STATURE
    stature = mean + spread * torch.randn(count, generator=generator, dtype=torch.float64)
    return Placements(
        image,
        torch.randint(len(bank), (count,), generator=generator),
        place[image, seat].float(),
        (2 * math.pi * uniform(count)).float(),
        stature.clamp(1.4, 2.05).float(),
        draw_colours(count, palette, generator),
        uniform(count).float(),
        n_images,
    )


def draw_colours(
    count: int, palette: Sequence[tuple[float, float, float]], generator: torch.Generator
) -> Tensor:
    """(count, parts, 3): skin, hair and clothes; sleeves and legs may be bare."""

    def pick(colours: Sequence[tuple[float, float, float]]) -> Tensor:
        chosen = torch.tensor(colours, dtype=torch.float32)[
            torch.randint(len(colours), (count,), generator=generator)
        ]
        jitter = 1 + 0.25 * (torch.rand(count, 1, generator=generator, dtype=torch.float32) - 0.5)
        return chosen * jitter + 0.06 * (
            torch.rand(count, 3, generator=generator, dtype=torch.float32) - 0.5
        )

    part = {"skin": pick(SKIN), "hair": pick(HAIR), "torso": pick(palette), "hips": pick(palette)}
    part["shoe"] = pick(CLOTHES[:5])
    bare = torch.rand(2, count, 1, generator=generator, dtype=torch.float32)
    part["forearm"] = torch.where(bare[0] < 0.4, part["skin"], part["torso"])
    part["shin"] = torch.where(bare[1] < 0.15, part["skin"], part["hips"])
    return torch.stack([part[name] for name in PARTS], 1).clamp(0.02, 1)


def fit_light(scene: Scene) -> dict[str, float]:
    """What the background tells of its light: level of a white wall, and ambient share.

    Ground is taken to reflect half of what a white wall does. Where the sun and the obstacles are
    known, the ambient share is the median of the ground in their shadow by that of the ground in
    the light; otherwise the sky is taken for overcast.
    """
    ground = scene.walkable_mask & scene.ground().cpu()
    grey = scene.background.cpu().mean(0)
    ground = ground if ground.any() else scene.walkable_mask
    ambient = OVERCAST
    if scene.sun is not None and scene.boxes:
        dark = ground & scene.shadowed()
        if dark.sum() >= 20 and (ground & ~dark).any():
            ambient = float(grey[dark].median() / grey[ground & ~dark].median())
            ground = ground & ~dark
    level = min(1.3, max(0.4, float(grey[ground].median()) / 0.5))
    return {"level": level, "ambient": min(OVERCAST, max(0.2, ambient))}


def draw_light(
    scene: Scene, n_images: int, *, randomise: bool = True, generator: torch.Generator
) -> Light:
    """Light for n_images images, around that of the background.

    Args:
        scene: whose background it is.
        n_images: at least 1.
        randomise: jitter the sun's place, the shares and the sensor's gain; without it all
            images have the fitted light.
        generator: of the CPU.

    Raises:
        ValueError: for a number below 1, and a number as generator.
    """
    whole(1, n_images=n_images)
    generators(generator=generator)
    fitted = fit_light(scene)
    spread = 1.0 if randomise else 0.0

    def jitter(low: float, high: float, *shape: int) -> Tensor:
        drawn = torch.rand((n_images, *shape), generator=generator, dtype=torch.float32)
        return (low + high) / 2 + spread * (high - low) * (drawn - 0.5)

    if scene.sun is None:
        azimuth, elevation = jitter(-math.pi, math.pi), jitter(0.6, 1.4)
    else:
        x, y, z = scene.sun
        azimuth = math.atan2(y, x) + jitter(-0.4, 0.4)
        elevation = (math.asin(z) + jitter(-0.2, 0.2)).clamp(0.25, 1.5)
    sun = torch.stack(
        [elevation.cos() * azimuth.cos(), elevation.cos() * azimuth.sin(), elevation.sin()], 1
    )
    ambient = (fitted["ambient"] + jitter(-0.15, 0.15)).clamp(0.2, 0.95)
    return Light(
        sun,
        ambient,
        (1 - ambient) * jitter(0.7, 1.2),
        1 + jitter(-0.05, 0.05, 3),
        jitter(0.005, 0.02),
        fitted["level"] * jitter(0.8, 1.2),
    )


# ---------------------------------------------------------------- drawing


def pose_people(bank: BodyBank, people: Placements) -> tuple[Tensor, Tensor]:
    """World coordinates of meshes (P, V, 3) and keypoints (P, 17, 3), in metres.

    Clothing pads the body along its normals; then it is scaled to its stature, turned, and put
    where it stands, the lowest vertex on the ground.
    """
    people = _alike(people, bank.vertices)
    thickness = torch.tensor([THICKNESS.get(name, 0.0) for name in PARTS], dtype=torch.float32)
    pad = thickness.to(bank.vertices)[bank.parts][:, None] * people.padding[:, None, None]
    vertices = bank.vertices[people.body] + pad * bank.vertex_normals[people.body]
    low, high = vertices[..., 2].amin(1), vertices[..., 2].amax(1)
    scale = (people.stature / (high - low))[:, None, None]
    c, s = people.yaw.cos(), people.yaw.sin()
    zero, one = torch.zeros_like(c), torch.ones_like(c)
    turn = torch.stack([c, -s, zero, s, c, zero, zero, zero, one], 1).view(-1, 3, 3)
    foot = torch.cat([people.position, zero[:, None]], 1)[:, None]
    drop = torch.stack([zero, zero, low], 1)[:, None]
    mesh, joints = (
        scale * (points - drop) @ turn.mT + foot
        for points in (vertices, bank.keypoints[people.body])
    )
    return mesh, joints


Rows = TypeVar("Rows", Placements, Light)


def _alike(rows: Rows, like: Tensor) -> Rows:
    """With all real numbers in the dtype of a tensor, and everything on its device."""
    columns: dict[str, Any] = {
        name: value.to(like) if isinstance(value, Tensor) and value.is_floating_point()
        else value.to(like.device) if isinstance(value, Tensor) else value
        for name, value in vars(rows).items()
    }  # fmt: skip
    return type(rows)(**columns)


def render_people(
    scene: Scene,
    bank: BodyBank,
    placements: Placements,
    light: Light,
    *,
    supersample: int = 2,
    backend: str = "auto",
    generator: torch.Generator | None = None,
) -> Renders:
    """Draw all images of these placements at once, on the device of the scene and the bank.

    Args:
        scene: what the camera sees without people.
        bank: their bodies.
        placements: who stands where.
        light: of each image.
        supersample: samples a pixel in each direction.
        backend: as `raster.rasterise`.
        generator: CPU generator of the sensor's noise and of the weave of the clothes; None for
            neither.

    Raises:
        ValueError: where somebody is out of view, has a body that the bank lacks or a stature that
            is not positive, and where placements and light differ in their number of images.
        KernelError: where Warp does not work.

    References:
        Lee et al. (2016), abstract; the renderer is this library's own.
    """
    check_supersample(supersample)
    people, light = _alike(placements, bank.vertices), _alike(light, bank.vertices)
    n, ss, camera = people.n_images, supersample, scene.camera
    if len(light.sun) != n:
        raise ValueError(f"light: for {len(light.sun)} images, but placements have {n}")
    for name, limit in (("body", len(bank)), ("image", n)):
        values = getattr(placements, name)
        if len(values) and values.device.type == "cpu":  # a GPU would have to be waited for
            low, high = (int(value) for value in values.aminmax())
            if low < 0 or high >= limit:
                raise ValueError(f"placements.{name} = {low} to {high}: expected 0 to {limit - 1}")
    tall = placements.stature
    if tall.device.type == "cpu" and not (tall > 0).all():
        raise ValueError(f"placements.stature = {float(tall.min()):g}: expected metres above 0")
    meshes, joints = pose_people(bank, people)
    uv, depth = camera.project(meshes)
    foot_head = _foot_head(camera, people)
    # at the picture's edge a body may lean out of it though the feet are in
    unseen = ~_touches(torch.cat([uv, foot_head], 1).nan_to_num(-1), camera.width, camera.height)
    unseen |= (depth <= 0).any(1)
    if unseen.any():
        p = int(unseen.nonzero()[0, 0])
        raise ValueError(
            f"placements: {int(unseen.sum())} people are out of view, the first at "
            f"({people.position[p, 0]:.2f}, {people.position[p, 1]:.2f}) m"
        )
    raster = rasterise(
        uv * ss, depth, bank.faces, people.image, scene.depth(ss), n, backend=backend
    )
    image = _shade(scene, bank, people, light, raster, meshes, ss, backend, generator)
    instance = _instances(raster, ss)
    return Renders(
        image,
        instance,
        people.image,
        *_boxes(uv, instance, camera.width, camera.height),
        _visibility(camera, joints, instance, people.image),
        raster.visible_samples() / raster.solo_samples().clamp(min=1),
        raster.visible_samples(),
        raster.solo_samples(),
        people.position,
        people.stature,
        foot_head,
    )


def render_scene(
    scene: Scene,
    bank: BodyBank,
    n_images: int,
    *,
    max_people: int = 5,
    supersample: int = 2,
    randomise_light: bool = True,
    palette: Sequence[tuple[float, float, float]] = CLOTHES,
    generator: torch.Generator,
) -> Renders:
    """Draw people and light at random, and render them: n_images labelled images of a scene.

    Args:
        scene: what the camera sees without people.
        bank: their bodies, on the scene's device.
        n_images: rendered at once, at least 1.
        max_people: in an image, at least 1.
        supersample: samples a pixel in each direction, 1 to 8.
        randomise_light: whether the light differs from image to image.
        palette: colours of clothes, each of three values in [0, 1].
        generator: of the CPU.

    Raises:
        ValueError: for numbers out of range, and a number as generator.
    """
    people = draw_placements(
        scene, bank, n_images, max_people=max_people, palette=palette, generator=generator
    )
    light = draw_light(scene, n_images, randomise=randomise_light, generator=generator)
    return render_people(scene, bank, people, light, supersample=supersample, generator=generator)


def render_person(
    scene: Scene,
    position: tuple[float, float],
    *,
    yaw: float = 0.0,
    stature: float = STATURE[0],
    body: int = 0,
    bank: BodyBank | None = None,
    light: Light | None = None,
    supersample: int = 2,
    seed: int = 0,
) -> Renders:
    """Draw one person into a scene, without the noise of a sensor.

    Args:
        scene: what the camera sees without people.
        position: x and y on the ground, metres.
        yaw: heading, radians; at 0 the person faces -y, at pi/2 +x.
        stature: metres, above 0.
        body: entry of the bank.
        bank: bodies; None: those of this package.
        light: of one image; None: that of the background.
        supersample: samples a pixel in each direction, 1 to 8.
        seed: of the colours of skin, hair and clothes.

    Returns:
        One image of one person, with exact labels.

    Raises:
        ValueError: for a stature out of range, and as `render_people`.

    >>> from companion.papers.visual_compiler.scene import procedural_scene
    >>> out = render_person(procedural_scene(), (0.0, 7.0), stature=1.8)
    >>> out.image.shape, out.keypoints.shape
    (torch.Size([1, 3, 120, 160]), torch.Size([1, 17, 3]))
    >>> bool(out.visible_fraction[0] > 0.99)
    True
    """
    above(0, stature=stature)
    bank = (BodyBank.load() if bank is None else bank).to(scene.device)
    generator = torch.Generator().manual_seed(seed)
    person = Placements(
        torch.tensor([0]), torch.tensor([body]), torch.tensor([tuple(position)]).float(),
        torch.tensor([float(yaw)]).float(), torch.tensor([float(stature)]).float(),
        draw_colours(1, CLOTHES, generator), torch.tensor([0.5]).float(), 1,
    )  # fmt: skip
    if light is None:
        light = draw_light(scene, 1, randomise=False, generator=generator)
    return render_people(scene, bank, person, light, supersample=supersample)


def check_supersample(supersample: int) -> None:
    """Raise ValueError unless this is a number of samples that pictures can be drawn with."""
    if supersample not in range(1, 9):
        raise ValueError(f"supersample = {supersample!r}: expected 1 to 8")


def _touches(uv: Tensor, width: int, height: int) -> Tensor:
    low, high = uv.amin(1), uv.amax(1)
    return (high > 0).all(1) & (low[:, 0] < width) & (low[:, 1] < height)


def _shade(scene, bank, people, light, raster, meshes, ss, backend, generator) -> Tensor:
    n, (height, width) = people.n_images, scene.background.shape[1:]
    device = scene.device
    matte = _shadows(scene, bank, people, light, meshes, ss, backend)
    lit = 1 - light.shadow[:, None, None] * matte
    image = scene.background * lit[:, None]

    # only samples that show somebody are shaded
    b, y, x, p, face = raster.hits
    c, s = people.yaw.cos(), people.yaw.sin()
    sun = light.sun[people.image]
    in_body = torch.stack(
        [c * sun[:, 0] + s * sun[:, 1], -s * sun[:, 0] + c * sun[:, 1], sun[:, 2]], 1
    )
    facing = torch.einsum("pfc,pc->pf", bank.face_normals[people.body], in_body).clamp(min=0)
    ambient = light.ambient[people.image][:, None]
    shade = light.level[people.image][:, None] * (ambient + (1 - ambient) * facing)
    if generator is not None:  # folds and weave
        folds = torch.rand(shade.shape, generator=generator, dtype=torch.float32).to(device)
        shade = shade * (0.9 + 0.2 * folds)
    colour = shade[p, face, None] * people.colours[p, bank.face_parts[face]]
    cell = (b * height + y // ss) * width + x // ss
    total = torch.zeros(n * height * width, 4, device=device, dtype=torch.float32)
    total.index_add_(0, cell, torch.cat([colour, torch.ones_like(colour[:, :1])], 1))
    total = (total / ss**2).view(n, height, width, 4).movedim(3, 1)
    image = total[:, :3] + (1 - total[:, 3:]) * image
    image = image * light.gain[:, :, None, None]
    if generator is not None:
        grain = torch.randn(image.shape, generator=generator, dtype=torch.float32).to(device)
        image = image + light.noise[:, None, None, None] * grain
    return image.clamp(0, 1)


def _shadows(scene, bank, people, light, meshes, ss, backend) -> Tensor:
    """(B, H, W): share of each pixel that a shadow covers, on visible ground only."""
    height, width = scene.background.shape[1:]
    sun = light.sun[people.image][:, None]
    flat = meshes - sun * (meshes[..., 2:] / sun[..., 2:])
    flat[..., 2] = 0
    uv, depth = scene.camera.project(flat)
    blank = torch.full(
        (ss * height, ss * width), torch.inf, device=scene.device, dtype=torch.float32
    )
    raster = rasterise(
        uv * ss, depth, bank.faces, people.image, blank, people.n_images, backend=backend
    )
    b, y, x, *_ = raster.hits
    on_ground = scene.ground(ss)[y, x].float() / ss**2
    cell = (b * height + y // ss) * width + x // ss
    total = torch.zeros(people.n_images * height * width, device=scene.device, dtype=torch.float32)
    return total.index_add_(0, cell, on_ground).view(people.n_images, height, width)


def _instances(raster, ss: int) -> Tensor:
    """(B, H, W): the nearest person of a pixel if people fill half of it."""
    n, height, width = raster.keys.shape
    keys = raster.keys.view(n, height // ss, ss, width // ss, ss)
    nobody = torch.iinfo(torch.int64).max
    front = torch.full((n, height // ss, width // ss), nobody, device=keys.device)
    count = torch.zeros_like(front, dtype=torch.uint8)
    for row in range(ss):
        for column in range(ss):
            sample = keys[:, :, row, :, column]
            person = (sample & NOBODY) != NOBODY
            count += person
            front = torch.where(person, torch.minimum(front, sample), front)
    number = (front & NOBODY).div(raster.n_faces, rounding_mode="floor") + 1
    return torch.where(2 * count >= ss * ss, number, 0).to(torch.int32)


def _boxes(uv: Tensor, instance: Tensor, width: int, height: int) -> tuple[Tensor, Tensor]:
    limit = uv.new_tensor([width, height])
    # what the lens does not show has no pixel
    low = torch.minimum(uv.nan_to_num(torch.inf).amin(1).clamp(min=0), limit)
    high = torch.minimum(uv.nan_to_num(-torch.inf).amax(1).clamp(min=0), limit)
    count = len(uv)
    where = instance.nonzero()
    owner = instance[tuple(where.T)].long() - 1
    pixel = where[:, [2, 1]]
    index = owner[:, None].expand(-1, 2)
    start = torch.full((count, 2), max(width, height), device=uv.device)
    start = start.scatter_reduce(0, index, pixel, "amin")
    stop = torch.zeros_like(start).scatter_reduce(0, index, pixel + 1, "amax")
    seen = torch.cat([start, stop], 1).float()
    return torch.cat([low, high], 1), torch.where((stop > 0).all(1)[:, None], seen, 0.0)


def _visibility(camera, joints: Tensor, instance: Tensor, image: Tensor) -> Tensor:
    uv, _ = camera.project(joints)
    size = uv.new_tensor([camera.width, camera.height])
    inside = ((uv >= 0) & (uv < size)).all(-1)
    column, row = torch.minimum(uv.nan_to_num(0).clamp(min=0), size - 1).long().unbind(-1)
    owner = instance[image[:, None], row, column]
    own = torch.arange(1, len(joints) + 1, device=uv.device)[:, None]
    state = torch.where(owner == own, 2, 1) * inside
    return torch.cat([uv.nan_to_num(0), state[..., None]], -1)


def _foot_head(camera, people: Placements) -> Tensor:
    foot = torch.cat([people.position, torch.zeros_like(people.position[:, :1])], 1)
    head = foot.clone()
    head[:, 2] = people.stature
    return camera.project(torch.stack([foot, head], 1))[0]
