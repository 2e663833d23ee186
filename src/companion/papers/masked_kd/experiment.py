"""Images in batches, training a teacher, distilling students, and their metrics."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.checks import generators, one_of, tensor_of_labels, whole
from companion.checks import images as check_images
from companion.data.files import open_picture
from companion.data.root import MissingDataError
from companion.device import starting_workers
from companion.papers.masked_kd.architecture import token_grid
from companion.papers.masked_kd.attention import cls_attention
from companion.papers.masked_kd.distillation import (
    AMP,
    MaskedDistiller,
    autocast,
    kl_from_teacher,
)
from companion.papers.masked_kd.tokens import resize_scores, select_tokens, token_drop
from companion.progress import Progress, progress_bar
from companion.training import LOOK_EVERY, DivergenceError, evaluation_mode, shuffled_batches

Augment = Callable[[Tensor, torch.Generator], Tensor]
MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # of ImageNet's pixels, as timm uses


@dataclass(frozen=True, eq=False)
class LabelledImages:
    """Labelled images in memory.

    Args:
        train_x, test_x: (n, C, H, W).
        train_y, test_y: (n,).
        augment: (batch, generator) -> batch.

    Raises:
        ValueError: for an empty part, one with a label too many or too few, or labels that are no
            tensor.
    """

    train_x: Tensor
    train_y: Tensor
    test_x: Tensor
    test_y: Tensor
    augment: Augment | None = None

    def __post_init__(self) -> None:
        for part in ("train", "test"):
            images, labels = getattr(self, f"{part}_x"), getattr(self, f"{part}_y")
            tensor_of_labels(**{f"{part}_y": labels})
            if not 1 <= len(images) == len(labels):
                raise ValueError(
                    f"{part}_x, {part}_y: {len(images)} images and {len(labels)} labels, "
                    "expected as many of both, at least one"
                )

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training batches in a new order every epoch."""
        for index in shuffled_batches(len(self.train_x), size, generator, self.train_x.device):
            batch = self.train_x[index]
            yield (
                batch if self.augment is None else self.augment(batch, generator),
                self.train_y[index],
            )

    def test_batches(self, size: int = 500) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images once, in order."""
        yield from zip(self.test_x.split(size), self.test_y.split(size), strict=True)


class Folder:
    """Labelled images on disk, train/<class>/ and val/<class>/, decoded as they are needed.

    Training images are cropped at random, flipped and, with `augment`, changed by
    torchvision's RandAugment; test images are cropped in the middle. Normalised as timm's
    models expect.

    Args:
        folder: with train/ and val/, each with one subfolder a class.
        size: side of the images in pixels.
        device: where batches go.
        workers: processes that decode; None: one a core, at most eight.
        augment: whether to change training images by RandAugment.

    Raises:
        MissingDataError: for a folder without them.
        ValueError: for classes in one of train/ and val/ only.
    """

    def __init__(
        self,
        folder: Path | str,
        size: int = 224,
        *,
        device: torch.device | str = "cpu",
        workers: int | None = None,
        augment: bool = True,
    ) -> None:
        from torchvision import transforms as tf
        from torchvision.datasets import ImageFolder

        tail = [tf.ToTensor(), tf.Normalize(MEAN, STD)]
        changes = [tf.RandomResizedCrop(size, scale=(0.08, 1)), tf.RandomHorizontalFlip()]
        middle = [tf.Resize(round(size / 0.875)), tf.CenterCrop(size)]
        recipes = {
            "train": [*changes, *([tf.RandAugment()] if augment else []), *tail],
            "val": middle + tail,
        }
        self.sets = {}
        for part, recipe in recipes.items():
            try:
                place, loader = str(Path(folder) / part), partial(open_picture, mode="RGB")
                self.sets[part] = ImageFolder(place, tf.Compose(recipe), loader=loader)
            except FileNotFoundError as error:
                raise MissingDataError(
                    f"data_root = {str(folder)!r}: expected {part}/ with one subfolder of "
                    "images a class"
                ) from error
        self.classes = self.sets["train"].classes
        # each part numbers the classes that it has: two lists would give one class two numbers
        train, val = (set(images.classes) for images in self.sets.values())
        if train != val:
            raise ValueError(
                f"data_root = {str(folder)!r}: {sorted(train - val)[:5]} in train/ only, "
                f"{sorted(val - train)[:5]} in val/ only, expected the same classes in both"
            )
        self.device = torch.device(device)
        self.workers = min(8, os.cpu_count() or 1) if workers is None else workers

    def _loader(self, part: str, size: int, generator: torch.Generator | None):
        return torch.utils.data.DataLoader(
            self.sets[part], size, shuffle=generator is not None, generator=generator,
            num_workers=self.workers, drop_last=generator is not None,
            pin_memory=self.device.type == "cuda",
        )  # fmt: skip

    @staticmethod
    def _read(loader: torch.utils.data.DataLoader) -> Iterator[tuple[Tensor, Tensor]]:
        with starting_workers():
            return iter(loader)

    def batches(self, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
        """Endless training batches in a new order every epoch.

        Raises:
            ValueError: for a batch larger than the set.
        """
        if size > len(self.sets["train"]):
            raise ValueError(f"batch_size = {size!r}: there are {len(self.sets['train'])} images")
        loader = self._loader("train", size, generator)
        while True:
            for x, y in self._read(loader):
                yield x.to(self.device, non_blocking=True), y.to(self.device, non_blocking=True)

    def test_batches(self, size: int = 256) -> Iterator[tuple[Tensor, Tensor]]:
        """The test images once, in order."""
        for x, y in self._read(self._loader("val", size, None)):
            yield x.to(self.device), y.to(self.device)


@dataclass(eq=False)
class Distillation:
    """The result of a distillation.

    Args:
        student: trained.
        loss: of every step.
        masked: whether the teacher was masked, every step.
        checks: (steps done, value) of every call of the monitor.
    """

    student: nn.Module
    loss: list[float] = field(default_factory=list)
    masked: list[bool] = field(default_factory=list)
    checks: list[tuple[int, object]] = field(default_factory=list)


def _optimiser(model: nn.Module, steps: int, lr: float, weight_decay: float):
    parameters = list(model.parameters())
    # on a CPU, too: the same numbers from fewer calls
    together = all(p.device.type == "cpu" for p in parameters) or None
    optimizer = torch.optim.AdamW(parameters, lr, weight_decay=weight_decay, foreach=together)
    # its first and last steps are its slowest, so that short runs need no warm-up of their own
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    return optimizer, schedule


def train_teacher(
    model: nn.Module,
    images: LabelledImages | Folder,
    steps: int,
    *,
    generator: torch.Generator,
    lr: float = 3e-3,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    amp: torch.dtype | None = None,
    progress: bool | Progress = False,
) -> nn.Module:
    """Train on labels alone, by AdamW under a one-cycle rate.

    Args:
        model: a classifier.
        images: to train on.
        steps: of the optimiser, at least 0.
        generator: of the CPU, for the order of the images.
        lr: peak of the learning rate.
        batch_size: images per step.
        weight_decay: of AdamW.
        amp: as `MaskedDistiller`.
        progress: show a bar; or a bar to move on.

    Returns:
        The model.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: for numbers out of range, and a number as generator.
    """
    whole(0, steps=steps)
    one_of(AMP, amp=amp)
    generators(generator=generator)
    optimizer, schedule = _optimiser(model, steps, lr, weight_decay)
    batches = images.batches(batch_size, generator)
    model.train()
    with progress_bar(progress, steps, "steps of the teacher") as bar:
        for step in range(1, steps + 1):
            x, y = next(batches)
            with autocast(x, amp):
                loss = cross_entropy(model(x), y)
            _descend(loss, optimizer, schedule)
            bar.update()
            if (step % LOOK_EVERY == 0 or step == steps) and not loss.isfinite():
                raise DivergenceError(
                    f"the loss of the teacher is not finite by step {step}: lower lr = {lr}"
                )
    return model


def distil(
    distiller: MaskedDistiller,
    images: LabelledImages | Folder,
    steps: int,
    *,
    generator: torch.Generator,
    lr: float = 3e-3,
    batch_size: int = 128,
    weight_decay: float = 0.05,
    monitor: Callable[[nn.Module], object] | None = None,
    monitor_every: int = 0,
    progress: bool | Progress = False,
) -> Distillation:
    """Train the distiller's student, by AdamW under a one-cycle rate.

    Args:
        distiller: holds student, teacher and method.
        images, steps, generator, lr, batch_size, weight_decay, progress: as `train_teacher`.
        monitor: called with the student before the first step, every `monitor_every` steps and
            after the last one.
        monitor_every: steps between two calls; 0: at the end only.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: for numbers out of range, and a number as generator.
    """
    whole(0, steps=steps, monitor_every=monitor_every)
    generators(generator=generator)
    student = distiller.student
    optimizer, schedule = _optimiser(student, steps, lr, weight_decay)
    batches = images.batches(batch_size, generator)
    run, losses = Distillation(student), []
    with progress_bar(progress, steps, "steps of a student") as bar:
        for done in range(steps + 1):
            if monitor is not None and (
                done == steps or (monitor_every and done % monitor_every == 0)
            ):
                with evaluation_mode(student), torch.no_grad():
                    run.checks.append((done, monitor(student)))
            if done == steps:
                break
            if done == 0:  # what looks at it in between leaves its modes as they were
                student.train()
            x, y = next(batches)
            step = distiller(x, y)
            _descend(step.loss, optimizer, schedule)
            losses.append(step.loss.detach())
            run.masked.append(step.keep is not None)
            bar.update()
            if len(losses) == LOOK_EVERY or done + 1 == steps:
                run.loss += torch.stack(losses).tolist()
                losses.clear()
                if not torch.tensor(run.loss[-LOOK_EVERY:]).isfinite().all():
                    raise DivergenceError(
                        f"the loss of a distillation is not finite by step {done + 1}: "
                        f"lower lr = {lr}"
                    )
    return run


def _descend(loss: Tensor, optimizer, schedule) -> None:
    optimizer.zero_grad(set_to_none=True)
    loss.backward()
    optimizer.step()
    schedule.step()


@torch.no_grad()
def student_scores(student: nn.Module, images: Tensor, *, layer: int = -1) -> Tensor:
    """Attention of the student's CLS token to each patch, in inference mode; (B, N).

    Args:
        student: a vision transformer, see `cls_attention`.
        images: (B, C, H, W).
        layer: block of the student; -1 is the last.

    Raises:
        ValueError: for what is no batch of images, and as `cls_attention`.
    """
    check_images(images=images)
    with evaluation_mode(student), cls_attention(student, layer) as attention:
        student(images)
        return attention.scores


@torch.no_grad()
def predict(model: nn.Module, images: LabelledImages | Folder) -> tuple[Tensor, Tensor]:
    """Logits and labels of all test images, (n, K) and (n,)."""
    with evaluation_mode(model):
        outputs, labels = zip(
            *((model(x).float(), y) for x, y in images.test_batches()), strict=True
        )
    return torch.cat(outputs), torch.cat(labels)


def scores_of_all(
    student: nn.Module, teacher: nn.Module, images: LabelledImages | Folder
) -> Tensor:
    """`student_scores` of all test images on the teacher's grid, (n, N)."""
    return torch.cat(
        [
            resize_scores(
                student_scores(student, x), token_grid(student, x), token_grid(teacher, x)
            )
            for x, _ in images.test_batches()
        ]
    )


@torch.no_grad()
def predict_masked(
    teacher: nn.Module,
    images: LabelledImages | Folder,
    keep: int,
    mode: str = "top",
    *,
    student: nn.Module | None = None,
    scores: Tensor | None = None,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, Tensor]:
    """Logits of the teacher on `keep` patches of every test image, and those patches.

    Args:
        teacher: a vision transformer, see `token_drop`.
        images: with the test images.
        keep: patches of each image.
        mode: as `select_tokens`, by the attention of `student`.
        student: whose attention chooses; "random" needs none.
        scores: (n, N), instead of a student what `scores_of_all` found of it, for several `keep`.
        generator: of the CPU, so that patches of "random" are the same another time.

    Returns:
        (n, K) and (n, keep).

    Raises:
        ValueError: without a student or scores where they are needed.
    """
    if mode != "random" and scores is None:
        if student is None:
            raise ValueError(f"student = None: mode = {mode!r} needs one whose attention chooses")
        scores = scores_of_all(student, teacher, images)
    logits, chosen, done = [], [], 0
    with evaluation_mode(teacher), token_drop(teacher) as masked:
        for x, _ in images.test_batches():
            if scores is None or mode == "random":
                rows, columns = token_grid(teacher, x)
                some = torch.zeros(len(x), rows * columns, device=x.device)
            else:
                some = scores[done : done + len(x)]
            done += len(x)
            chosen.append(select_tokens(some, keep, mode, generator))
            logits.append(masked(x, chosen[-1]).float())
    return torch.cat(logits), torch.cat(chosen)


def accuracy(logits: Tensor, labels: Tensor) -> float:
    """Fraction classified rightly; an output that is not finite is a mistake."""
    right = (logits.argmax(1) == labels) & logits.isfinite().all(1)
    return right.sum().item() / len(right)  # a count, as not every device has float64


def metrics(logits: Tensor, labels: Tensor, teacher_logits: Tensor) -> dict[str, float]:
    """Accuracy (a fraction), mean negative log-likelihood, and mean KL from the full teacher.

    KL(teacher || student) in nats, at temperature 1.
    """
    return {
        "accuracy": accuracy(logits, labels),
        "NLL": cross_entropy(logits, labels).item(),
        "KL": kl_from_teacher(logits, teacher_logits).item(),
    }
