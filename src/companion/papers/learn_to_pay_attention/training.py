"""Training these networks: AdamW in one cycle for the short runs, SGD for the paper's."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from companion.checks import whole
from companion.papers.learn_to_pay_attention.attention import one_of
from companion.progress import Progress
from companion.training import LOOK_EVERY, DivergenceError, shuffled_batches, upload

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
    bar: Progress | None = None,
) -> nn.Module:
    """Minimise the cross-entropy; leaves the model in inference mode and returns it.

    Args:
        x, y: images in [0, 1] and class indices, on the model's device.
        recipe: "adamw" with a one-cycle schedule that peaks at `lr`; "sgd" with momentum of
            0.9, the rate halved after every `halve_every` steps (0: never), as in the official
            code.
        amp: "bf16" runs the forward pass under autocast.
        augment: function (batch, generator) -> batch.

    Raises:
        DivergenceError: for a loss that is not finite.
        ValueError: for numbers out of range or a label too many or too few.
    """
    one_of("recipe", recipe, RECIPES)
    one_of("amp", amp, AMP)
    whole(0, steps=steps, halve_every=halve_every)
    if len(x) != len(y):
        raise ValueError(f"x, y: {len(x)} images and {len(y)} classes, expected as many of both")
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
    for step in range(1, steps + 1):
        index = next(order)
        batch = x[index] if augment is None else augment(x[index], generator)
        optimizer.zero_grad(set_to_none=True)
        with torch.autocast(x.device.type, torch.bfloat16, enabled=amp == "bf16"):
            loss = cross_entropy(model(batch), y[index])
        loss.backward()
        optimizer.step()
        schedule.step()
        if (step % LOOK_EVERY == 0 or step == steps) and not torch.isfinite(loss):
            raise DivergenceError(
                f"the training loss is not finite by step {step}: lower lr = {lr}"
            )
        if bar is not None:
            bar.update()
    return model.eval()


def flip(batch: Tensor, generator: torch.Generator) -> Tensor:
    """Mirror every image with probability 1/2."""
    coin = upload(torch.rand(len(batch), generator=generator) < 0.5, batch.device)
    return torch.where(coin[:, None, None, None], batch.flip(-1), batch)
