"""Training these networks: AdamW in one cycle for the short runs, SGD for the paper's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.checks import above, at_least, generators, images, one_of, whole
from companion.progress import Progress, progress_bar
from companion.training import (
    LOOK_EVERY,
    DivergenceError,
    check_classes,
    check_labels,
    shuffled_batches,
    upload,
)

AMP = ("off", "bf16")
RECIPES = ("adamw", "sgd")


def fit(
    model: nn.Module,
    x: Tensor,
    y: Tensor,
    *,
    steps: int,
    lr: float,
    generator: torch.Generator,
    batch_size: int = 64,
    weight_decay: float = 0.01,
    recipe: str = "adamw",
    halve_every: int = 0,
    amp: str = "off",
    augment: Callable[[Tensor, torch.Generator], Tensor] | None = None,
    progress: bool | Progress = False,
) -> nn.Module:
    """Minimise the cross-entropy; leaves the model in inference mode and returns it.

    Args:
        model: a classifier.
        x: images in [0, 1], (images, channels, height, width), on the model's device.
        y: class indices, (images,).
        steps: of the optimiser.
        lr: learning rate, above 0.
        generator: of the CPU, for the order of the images and the augmentation.
        batch_size: images per step.
        weight_decay: at least 0.
        recipe: "adamw" with a one-cycle schedule that peaks at `lr`; "sgd" with momentum of
            0.9, as in the official code.
        halve_every: steps of "sgd" after which the rate is halved; 0: never.
        amp: "bf16" runs the forward pass under autocast.
        augment: function (batch, generator) -> batch.
        progress: show a bar; or a bar to move on.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: for arguments out of range, a number as generator, other numbers of images
            and labels, and labels that are no class.
    """
    one_of(RECIPES, recipe=recipe)
    one_of(AMP, amp=amp)
    whole(0, steps=steps, halve_every=halve_every)
    above(0, lr=lr)
    at_least(0, weight_decay=weight_decay)
    generators(generator=generator)
    images(x=x)
    if len(x) != len(y):
        raise ValueError(f"x, y: {len(x)} images and {len(y)} classes, expected as many of both")
    check_labels(x, y=y)
    y = y.long()
    optimizer: torch.optim.Optimizer
    schedule: torch.optim.lr_scheduler.LRScheduler
    if recipe == "adamw":
        optimizer = torch.optim.AdamW(model.parameters(), lr, weight_decay=weight_decay)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, lr, total_steps=max(steps, 2))
    else:
        optimizer = torch.optim.SGD(
            model.parameters(), lr, momentum=0.9, weight_decay=weight_decay
        )
        schedule = torch.optim.lr_scheduler.StepLR(optimizer, halve_every or steps + 1, 0.5)
    order = shuffled_batches(len(x), batch_size, generator, x.device)
    model.train()
    with progress_bar(progress, steps, "steps of training") as bar:
        for step in range(1, steps + 1):
            index = next(order)
            batch = x[index] if augment is None else augment(x[index], generator)
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(x.device.type, torch.bfloat16, enabled=amp == "bf16"):
                logits = model(batch)
                if step == 1:
                    check_classes(logits, y, name="y")
                loss = cross_entropy(logits, y[index])
            loss.backward()
            optimizer.step()
            schedule.step()
            if (step % LOOK_EVERY == 0 or step == steps) and not torch.isfinite(loss):
                raise DivergenceError(
                    f"the training loss is not finite by step {step}: lower lr = {lr}"
                )
            bar.update()
    return model.eval()


def flip(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image of a batch with probability 1/2, by a generator of the CPU."""
    coin = upload(torch.rand(len(batch), generator=generator) < 0.5, batch.device)
    return torch.where(coin[:, None, None, None], batch.flip(-1), batch)
