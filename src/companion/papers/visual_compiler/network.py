"""The network: a shared trunk, heads that vary over the picture, and what they say of people."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import binary_cross_entropy_with_logits, interpolate, max_pool2d, pad

from companion.checks import above, at_least, generators, whole
from companion.checks import images as check_images
from companion.papers.visual_compiler.bodies import KEYPOINTS
from companion.papers.visual_compiler.camera import Camera
from companion.papers.visual_compiler.labels import TrainingSet
from companion.papers.visual_compiler.scene import REFERENCE_STATURE, STRIDE, Scene
from companion.progress import Progress, progress_bar
from companion.training import (
    LOOK_EVERY,
    DivergenceError,
    evaluation_mode,
    shuffled_batches,
)

# channels of a cell: centre, offset, log size, keypoints, mask
CENTRE, OFFSET, SIZE, MASK = 0, slice(1, 3), slice(3, 5), 5 + len(KEYPOINTS)
JOINTS = slice(5, MASK)
CHANNELS = MASK + 1
WEIGHTS = {"centre": 1.0, "box": 2.0, "joints": 0.1, "mask": 2.0}


def make_trunk(width: int = 24) -> nn.Sequential:
    """Features at a quarter of the picture's size, (b, 3, H, W) to (b, width, H/4, W/4).

    Dilated convolutions let a cell see about 60 pixels in each direction.

    Raises:
        ValueError: for a width below 2.
    """
    if width < 2:
        raise ValueError(f"width = {width!r}: expected at least 2 channels")

    def block(inputs: int, outputs: int, stride: int = 1, dilation: int = 1) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, stride, dilation, dilation, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]

    layers = [block(3, width // 2, 2), block(width // 2, width, 2)]
    layers += [block(width, width, dilation=d) for d in (1, 2, 4)]
    return nn.Sequential(*[module for layer in layers for module in layer])


class SpatiallyVaryingFCN(nn.Module):
    """A fully convolutional network whose heads belong to regions of the picture.

    y(p) = Σ_r m_r(p) (W_r σ(V_r * φ)(p) + b_r): every cell blends the heads of the regions in
    which it lies. With one region it is an ordinary, location-agnostic network.

    Args:
        trunk: (b, 3, H, W) -> (b, F, H/4, W/4), see `make_trunk`.
        n_regions: heads, at least 1.
        head_width: hidden channels of a head, at least 1.
        masks: (n_regions, H/4, W/4), adding up to 1, see `Scene.regions`; None for a single
            region. Outputs are (b, 23, H/4, W/4), rounded down.

    Raises:
        ValueError: for numbers below 1, and masks that do not fit.

    References:
        Lee et al. (2016), abstract; Hattori et al. (2015) for a detector that varies over the
        image. The layers are this library's own.

    >>> from companion.papers.visual_compiler.scene import procedural_scene
    >>> masks = procedural_scene().regions(3)
    >>> model = SpatiallyVaryingFCN(make_trunk(), 3, 16, masks)
    >>> output = model(torch.rand(2, 3, 120, 160))
    >>> output.shape
    torch.Size([2, 23, 30, 40])
    >>> [len(people.boxes) for people in decode(output, threshold=0.99)]
    [0, 0]
    """

    masks: Tensor | None
    neighbours: Tensor  # (2, pairs), the regions whose cells touch

    def __init__(
        self, trunk: nn.Module, n_regions: int, head_width: int, masks: Tensor | None = None
    ) -> None:
        super().__init__()
        for name, value in (("n_regions", n_regions), ("head_width", head_width)):
            if value < 1:
                raise ValueError(f"{name} = {value!r}: expected at least 1")
        if masks is None and n_regions != 1:
            raise ValueError(f"n_regions = {n_regions!r}: expected masks, or 1")
        if masks is not None:
            if masks.ndim != 3:
                shape = tuple(masks.shape)
                raise ValueError(f"masks: shape {shape}, expected (n_regions, H/4, W/4)")
            if len(masks) != n_regions:
                raise ValueError(f"masks: {len(masks)} of them for n_regions = {n_regions}")
            if (masks.sum(0) - 1).abs().max() > 1e-4:
                raise ValueError("masks: expected a partition of unity, adding up to 1 everywhere")
        self.trunk, self.n_regions, self.head_width = trunk, n_regions, head_width
        every = trunk.named_modules(remove_duplicate=False)  # the last may be used before, too
        features = [m.out_channels for _, m in every if isinstance(m, nn.Conv2d)][-1]
        self.hidden = nn.Conv2d(features, n_regions * head_width, 3, padding=1)
        self.out = nn.Conv2d(n_regions * head_width, CHANNELS, 1, bias=False)
        self.bias = nn.Parameter(torch.zeros(n_regions, CHANNELS))
        with torch.no_grad():  # nearly all cells hold nothing
            self.bias[:, CENTRE] = self.bias[:, JOINTS] = -4.0
            self.bias[:, MASK] = -2.0
            self.bias[:, SIZE] = 3.0
        self.register_buffer("masks", None if masks is None else masks.to(self.bias.dtype))
        pairs = torch.zeros(2, 0, dtype=torch.long) if masks is None else _neighbours(masks)
        self.register_buffer("neighbours", pairs, persistent=False)

    def forward(self, pictures: Tensor) -> Tensor:
        """Maps (b, 23, H/4, W/4) of images (b, 3, H, W) in [0, 1].

        Raises:
            ValueError: for images of another size than the masks'.
        """
        # a strip of less than a cell at the right or the bottom has no say
        height, width = (size // STRIDE for size in pictures.shape[2:])
        if self.masks is not None and self.masks.shape[1:] != (height, width):
            raise ValueError(
                f"images: {(height, width)} cells of {STRIDE} pixels, but the masks have "
                f"{tuple(self.masks.shape[1:])}"
            )
        # eq. (10.4), σ(V_r * φ)
        features = torch.relu(self.hidden(self.trunk(pictures - 0.5)))
        features = features[..., :height, :width]
        if self.masks is None:
            return self.out(features) + self.bias[0, :, None, None]
        # eq. (10.4), the sum: masks, then one product, which beats a grouped one
        masks = self.masks.repeat_interleave(self.head_width, 0)
        bias = torch.einsum("rc,rhw->chw", self.bias, self.masks)
        return self.out(features * masks) + bias

    def variation(self) -> Tensor:
        """Squared difference of the heads of neighbouring regions, summed: 0 if all agree.

        Neighbours are two regions that have the highest masks of cells side by side.
        """
        heads = self.out.weight[:, :, 0, 0].view(CHANNELS, self.n_regions, self.head_width)
        one, other = (heads.index_select(1, part) for part in self.neighbours)
        return (other - one).square().sum()


def _neighbours(masks: Tensor) -> Tensor:
    """(2, pairs): each two regions with cells side by side or one above the other, once."""
    owner = masks.argmax(0)
    beside = torch.stack([owner[:, :-1].flatten(), owner[:, 1:].flatten()])
    below = torch.stack([owner[:-1].flatten(), owner[1:].flatten()])
    pairs = torch.cat([beside, below], 1).sort(0).values
    return pairs[:, pairs[0] < pairs[1]].unique(dim=1).contiguous()


def losses(output: Tensor, target: dict[str, Tensor]) -> dict[str, Tensor]:
    """The four parts of the loss, each a mean or a mean a person."""
    people = target["positive"].sum().clamp(min=1)
    logit = output[:, CENTRE]
    p = logit.sigmoid()
    log_p, log_q = (torch.nn.functional.logsigmoid(s * logit) for s in (1, -1))
    positive = target["positive"]
    hit = positive * (1 - p).square() * log_p
    miss = (1 - positive) * target["weight"] * (1 - target["heat"]) ** 4 * p.square() * log_q
    blob = target["blob"][:, None]
    box = ((output[:, OFFSET] - target["offset"]).abs() * blob).sum()
    box = box + ((output[:, SIZE] - target["size"]).abs() * blob).sum()
    joints = target["joints"]
    marks = binary_cross_entropy_with_logits(
        output[:, JOINTS], joints, weight=1 + 9 * joints, reduction="sum"
    )
    return {
        "centre": -(hit + miss).sum() / people,
        "box": box / blob.sum().clamp(min=1),
        "joints": marks / (people * joints.shape[1]),
        "mask": binary_cross_entropy_with_logits(output[:, MASK], target["mask"]),
    }


def train(
    model: SpatiallyVaryingFCN,
    data: TrainingSet,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    gamma: float = 0.0,
    device: torch.device | str = "cpu",
    progress: bool | Progress = False,
) -> list[float]:
    """Train by AdamW with a warm-up and a cosine.

    Args:
        model: to be trained, in place.
        data: of `compile_scene`.
        steps: of the optimiser, at least 1.
        batch_size: images per step.
        lr: peak of the learning rate, above 0.
        generator: of the CPU, for the order of the images.
        gamma: weight of `variation`, which keeps neighbouring regions alike.
        device: where the network goes and a batch at a time follows it.
        progress: show a bar; or a bar to move on.

    Returns:
        The loss of every step.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: for a batch that is larger than the data or a number out of its range.
    """
    return train_together(
        [model], data, steps=steps, batch_size=batch_size, lr=lr, generator=generator,
        gamma=gamma, device=device, progress=progress,
    )[0]  # fmt: skip


def train_together(
    models: Sequence[SpatiallyVaryingFCN],
    data: TrainingSet,
    *,
    steps: int,
    batch_size: int,
    lr: float,
    generator: torch.Generator,
    gamma: float = 0.0,
    device: torch.device | str = "cpu",
    progress: bool | Progress = False,
) -> list[list[float]]:
    """Train several networks on the same batches, which are made once; each as by `train`.

    Args:
        models: to be trained, in place.
        data, steps, batch_size, lr, generator, gamma, device: as `train`.
        progress: show a bar; or a bar to move on, by a step of every network.

    Returns:
        The loss of every step, a list a network.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: as `train`.
    """
    if not 1 <= batch_size <= len(data):
        raise ValueError(f"batch_size = {batch_size!r}: expected 1 to {len(data)}, the pictures")
    whole(1, steps=steps)
    above(0, lr=lr)
    at_least(0, gamma=gamma)
    generators(generator=generator)
    cells = data.masks.shape[1:]
    runs: list[tuple[Any, Any, Any, list[Tensor]]] = []
    for model in models:
        if model.masks is not None and model.masks.shape[1:] != cells:
            raise ValueError(
                f"masks: {tuple(model.masks.shape[1:])} cells, but the pictures have {tuple(cells)}"
            )
    for model in models:
        # torch's overloads lack memory_format
        model.to(device, memory_format=torch.channels_last).train()  # type: ignore[call-overload]
        optimiser = torch.optim.AdamW(model.parameters(), lr, weight_decay=1e-4)
        # a warm-up of just one step would divide by zero
        warm = 0.25 if steps == 4 else min(0.2, 10 / steps + 0.1)
        schedule = torch.optim.lr_scheduler.OneCycleLR(
            optimiser, lr, total_steps=steps + 1, pct_start=warm
        )
        runs.append((model, optimiser, schedule, []))
    order = shuffled_batches(len(data), batch_size, generator)
    with progress_bar(progress, steps * len(runs), "steps of training") as bar:
        for step in range(1, steps + 1):
            pictures, target = data.batch(next(order), device)
            pictures = pictures.contiguous(memory_format=torch.channels_last)
            for model, optimiser, schedule, kept in runs:
                optimiser.zero_grad(set_to_none=True)
                part = losses(model(pictures.to(model.bias.dtype)), target)
                loss: Any = sum(WEIGHTS[name] * value for name, value in part.items())
                if gamma:
                    loss = loss + gamma * model.variation()
                loss.backward()
                optimiser.step()
                schedule.step()
                kept.append(loss.detach())
                bar.update()
                if (step % LOOK_EVERY == 0 or step == steps) and not (
                    torch.stack(kept[-LOOK_EVERY:]).isfinite().all()
                ):
                    raise DivergenceError(
                        f"the loss is not finite by step {step}: lower lr = {lr}"
                    )
    return [torch.stack(kept).tolist() for *_, kept in runs]


# ---------------------------------------------------------------- from maps to people


@dataclass(frozen=True, eq=False)
class Detections:
    """The people found in one picture, best first.

    Args:
        boxes: (k, 4), x0, y0, x1, y1 in pixels.
        scores: (k,).
        keypoints: (k, 17, 3), column, row, score; None from a detector of boxes only.
        mask: (H/4, W/4) logit, or None.
    """

    boxes: Tensor
    scores: Tensor
    keypoints: Tensor | None = None
    mask: Tensor | None = None

    def __len__(self) -> int:
        return len(self.boxes)

    def __getitem__(self, rows: Tensor) -> Detections:
        keypoints = None if self.keypoints is None else self.keypoints[rows]
        return Detections(self.boxes[rows], self.scores[rows], keypoints, self.mask)

    @property
    def feet(self) -> Tensor:
        """(k, 2) the middle of each box's lower edge, in pixels."""
        return torch.stack([self.boxes[:, [0, 2]].mean(1), self.boxes[:, 3]], 1)

    def person_mask(self, k: int, height: int, width: int) -> Tensor:
        """(H, W) bool: the mask inside one person's box.

        Raises:
            ValueError: without a mask, and for a picture of another size than the detector saw.
        """
        if self.mask is None:
            raise ValueError("these detections have no mask")
        cells = self.mask.shape[-2] * STRIDE, self.mask.shape[-1] * STRIDE
        if (height // STRIDE, width // STRIDE) != tuple(self.mask.shape[-2:]):
            raise ValueError(
                f"height, width = {height}, {width}: the mask is for about {cells[0]}, {cells[1]}"
            )
        full = interpolate(self.mask[None, None], cells, mode="bilinear")[0, 0] > 0
        # a picture may have a strip that is less than a cell
        full = pad(full, (0, width - cells[1], 0, height - cells[0]))
        x0, y0, x1, y1 = self.boxes[k].round().long().tolist()
        inside = torch.zeros_like(full)
        inside[max(y0, 0) : max(y1, 0), max(x0, 0) : max(x1, 0)] = True
        return full & inside

    def ground(self, camera: Camera) -> Tensor:
        """(k, 2) where these people stand, metres."""
        return camera.backproject_ground(self.feet.double())


def check_detections(**given: object) -> None:
    """Raise ValueError for what is no list of `Detections` whose boxes and scores are tensors."""
    for name, found in given.items():
        if not isinstance(found, Sequence):
            raise ValueError(
                f"{name}: {type(found).__name__}, expected a list of Detections, one an image"
            )
        for k, people in enumerate(found):
            if not isinstance(people, Detections):
                raise ValueError(
                    f"{name}[{k}]: {type(people).__name__}, expected Detections(boxes, scores)"
                )
            boxes, scores = people.boxes, people.scores
            for part, value in (("boxes", boxes), ("scores", scores)):
                if not isinstance(value, Tensor):
                    raise ValueError(
                        f"{name}[{k}].{part}: {type(value).__name__}, expected a tensor"
                    )
            if boxes.shape != (*boxes.shape[:1], 4) or scores.shape != boxes.shape[:1]:
                raise ValueError(
                    f"{name}[{k}]: boxes {tuple(boxes.shape)} and scores {tuple(scores.shape)}, "
                    "expected (k, 4) and (k,)"
                )


def decode(
    output: Tensor, *, top: int = 40, threshold: float = 0.02, overlap: float = 0.5
) -> list[Detections]:
    """People from the maps (b, 23, h, w): peaks of the centre map, their boxes, joints and masks.

    A peak is a cell that none of its eight neighbours exceeds. Of two boxes that overlap (IoU) by
    more than `overlap` the weaker goes. A joint is the weighted mean of its map around the
    highest cell in the box.

    Args:
        output: of `SpatiallyVaryingFCN`.
        top: most people of an image.
        threshold: people score more than this, 0 to 1.
        overlap: greatest intersection over union of two boxes, 0 to 1.

    Raises:
        ValueError: for maps of another shape or with NaN, no people, and numbers out of range.
    """
    if output.dim() != 4 or output.shape[1] != CHANNELS:
        raise ValueError(f"output: shape {tuple(output.shape)}, expected (b, {CHANNELS}, h, w)")
    whole(1, top=top)
    for name, value in (("threshold", threshold), ("overlap", overlap)):
        if not 0 <= value <= 1:
            raise ValueError(f"{name} = {value!r}: expected 0 to 1")
    output = output.detach().float().cpu()
    if output.isnan().any():  # no cell would be a peak: a street without people
        raise ValueError("output: NaN in the maps, as of a network whose training diverged")
    heat = output[:, CENTRE].sigmoid()
    peak = heat * (max_pool2d(heat[:, None], 3, 1, 1)[:, 0] == heat)
    found = []
    for maps, score in zip(output, peak, strict=True):
        h, w = score.shape
        value, place = score.flatten().topk(min(top, h * w))
        place, value = place[value > threshold], value[value > threshold]
        row, column = place // w, place % w
        middle = torch.stack([column, row], 1).float() + 0.5 + maps[OFFSET, row, column].T
        extent = maps[SIZE, row, column].T.clamp(max=8).exp()
        middle = middle * STRIDE
        boxes = torch.cat([middle - extent / 2, middle + extent / 2], 1)
        limit = torch.tensor([w, h, w, h], dtype=torch.float32) * float(STRIDE)
        boxes = torch.minimum(boxes.clamp(min=0), limit)
        keep = suppress(boxes, value, overlap)
        boxes, value = boxes[keep], value[keep]
        joints = find_joints(maps[JOINTS], boxes)
        found.append(Detections(boxes, value, joints, maps[MASK]))
    return found


def find_joints(maps: Tensor, boxes: Tensor) -> Tensor:
    """(k, 17, 3): column, row and score of each joint in each box, from logits (17, h, w)."""
    n, h, w = maps.shape
    if not len(boxes):
        return torch.zeros(0, n, 3, dtype=torch.float32)
    p = maps.sigmoid()
    cell = boxes / STRIDE
    rows, columns = (torch.arange(n, dtype=torch.float32) + 0.5 for n in (h, w))
    in_rows = (rows > cell[:, 1:2] - 0.5) & (rows < cell[:, 3:4] + 0.5)  # (k, h)
    in_columns = (columns > cell[:, 0:1] - 0.5) & (columns < cell[:, 2:3] + 0.5)
    inside = p * (in_rows[:, None, :, None] & in_columns[:, None, None, :])  # (k, 17, h, w)
    score, place = inside.flatten(2).max(2)
    row, column = place // w, place % w
    near = ((rows - 0.5 - row[..., None]).abs() <= 1)[..., :, None]
    near = near & ((columns - 0.5 - column[..., None]).abs() <= 1)[..., None, :]
    share = torch.where(near, inside, 0.0)
    total = share.sum((2, 3)).clamp(min=1e-9)
    x = (share.sum(2) * columns).sum(2) / total
    y = (share.sum(3) * rows).sum(2) / total
    return torch.stack([x * STRIDE, y * STRIDE, score], 2)


def suppress(boxes: Tensor, scores: Tensor, overlap: float) -> Tensor:
    """Indices of the boxes that stay, best first: greedy non-maximum suppression."""
    from torchvision.ops import nms

    return nms(boxes, scores, overlap)


def check_pictures(images: Tensor, *, empty: bool = False) -> None:
    """Raise ValueError for what is no batch of colour images in [0, 1] or uint8.

    empty: whether a batch without images will do.
    """
    check_images(images=images, empty=empty)
    if images.shape[1] != 3:
        raise ValueError(f"images: {images.shape[1]} channels, expected 3")
    if (
        images.numel()
        and images.dtype != torch.uint8
        and not 0 <= images.min() <= images.max() <= 1
    ):
        low, high = images.min().item(), images.max().item()
        raise ValueError(f"images: values from {low:g} to {high:g}, expected [0, 1], or uint8")


@torch.no_grad()
def detect(
    model: nn.Module,
    images: Tensor,
    *,
    batch_size: int = 32,
    progress: bool | Progress = False,
    **options: Any,
) -> list[Detections]:
    """Find people in images.

    Args:
        model: a trained network; it is used in inference mode and stays as it is.
        images: (n, 3, H, W), in [0, 1] or uint8.
        batch_size: images at once.
        progress: show a bar; or a bar to move on.
        options: of `decode`.

    Returns:
        An entry an image, the people best first.

    Raises:
        ValueError: for what is no batch of colour images in [0, 1] or uint8, images of another
            size than the model's masks, and as `decode`.
    """
    check_pictures(images, empty=True)
    whole(1, batch_size=batch_size)
    decode(torch.zeros(0, CHANNELS, 1, 1), **options)  # refuses options before the search
    like = next(model.parameters())
    found: list[Detections] = []
    with (
        evaluation_mode(model),
        progress_bar(progress, len(images), "images searched") as bar,
    ):
        for part in images.split(batch_size):
            part = part.to(like.device)
            part = part.to(like.dtype) / 255 if part.dtype == torch.uint8 else part.to(like.dtype)
            found += decode(model(part.contiguous(memory_format=torch.channels_last)), **options)
            bar.update(len(part))
    return found


def layout_filter(
    found: Sequence[Detections], scene: Scene, *, low: float = 0.75, high: float = 1.3
) -> list[Detections]:
    """Drop what cannot be a person here: feet off the walkable ground, or the wrong height.

    Args:
        found: detections, one entry an image of the scene's size.
        scene: whose layout it is.
        low, high: allowed height of the box by that of a person of 1.75 m who stands there.

    Raises:
        ValueError: for what is no list of detections.
    """
    check_detections(found=found)
    kept = []
    height, width = scene.walkable_mask.shape
    for people in found:
        feet = people.feet.double()
        column = feet[:, 0].long().clamp(0, width - 1)
        row = (feet[:, 1] - 1e-3).long().clamp(0, height - 1)
        ratio = (people.boxes[:, 3] - people.boxes[:, 1]) / scene.person_height(
            feet, REFERENCE_STATURE
        )
        kept.append(people[scene.walkable_mask[row, column] & (ratio > low) & (ratio < high)])
    return kept


def export(model: SpatiallyVaryingFCN, height: int, width: int) -> torch.export.ExportedProgram:
    """The trained network as a program that runs without this library, for one picture size."""
    # torch's overloads lack memory_format
    model.cpu().eval().to(memory_format=torch.contiguous_format)  # type: ignore[call-overload]
    size = torch.zeros(1, 3, height, width, dtype=model.bias.dtype)
    return torch.export.export(model, (size,))
