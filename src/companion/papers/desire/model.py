"""Both modules together: training in two stages, forecasts, and how good their ranks are."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from companion.checks import above, number, random_source, whole
from companion.data.trajectories import TrajectoryWindows
from companion.papers.desire.generator import Regressor, SampleGenerator, kl_divergence
from companion.papers.desire.ranking import (
    RankRefine,
    ranking_loss,
    refinement_loss,
    target_distribution,
)
from companion.progress import Progress
from companion.training import DivergenceError, shuffled_batches, upload

CLIP = 1.0
LAST_RATE = 0.05  # of the first, where the learning rate's decay ends


@dataclass(frozen=True, eq=False)
class Forecast:
    """What a model expects, after every refinement.

    Args:
        samples: shape (refinements + 1, scenes, agents, samples, steps, 2), IT0 first.
        scores: shape (refinements + 1, scenes, agents, samples).
        mask: shape (scenes, agents), who is there.
    """

    samples: Tensor
    scores: Tensor
    mask: Tensor

    def best(self, iteration: int = -1) -> Tensor:
        """The best scored path of every agent.

        Args:
            iteration: refinements, or -1 for the last.

        Returns:
            Shape (scenes, agents, steps, 2).

        Raises:
            ValueError: for an iteration that was not run.
        """
        self._check(iteration)
        top = self.scores[iteration].argmax(-1)
        return pick(self.samples[iteration], top)

    def _check(self, iteration: int) -> None:
        count = len(self.samples)
        if not -count <= iteration < count:
            raise ValueError(f"iteration = {iteration}: expected {-count} to {count - 1}")

    def jointly_best(self, iteration: int = -1) -> Tensor:
        """The paths of the sample whose scores, summed over the agents, are best.

        Args:
            iteration: refinements, or -1 for the last.

        Returns:
            Shape (scenes, agents, steps, 2).

        Raises:
            ValueError: for an iteration that was not run.
        """
        self._check(iteration)
        scores = self.scores[iteration].masked_fill(~self.mask[..., None], 0.0).sum(1)
        top = scores.argmax(-1)[:, None].expand(-1, self.mask.shape[1])
        return pick(self.samples[iteration], top)


def pick(samples: Tensor, index: Tensor) -> Tensor:
    """Pick one sample of each agent.

    Args:
        samples: shape (..., samples, steps, 2).
        index: shape (...).

    Returns:
        Shape (..., steps, 2).
    """
    where = index[..., None, None, None].expand(*index.shape, 1, *samples.shape[-2:])
    return samples.gather(-3, where).squeeze(-3)


class Desire(nn.Module):
    """Draw futures from the generator, rank and refine them with the ranker.

    Several rankers may share one generator; only training gives the generator a future.

    Args:
        generator: the first module.
        ranker: the second, of the same width and steps to predict.

    Raises:
        ValueError: for two of different widths or steps to predict.

    References:
        Lee et al. (2017), CVPR.
    """

    def __init__(self, generator: SampleGenerator, ranker: RankRefine) -> None:
        super().__init__()
        widths = generator.past_encoder.gru.hidden_size, ranker.gru.hidden_size
        if widths[0] != widths[1]:
            raise ValueError(
                f"hidden = {widths[1]}: the generator's is {widths[0]}, expected the same"
            )
        if generator.decoder.pred_len != ranker.pred_len:
            raise ValueError(
                f"pred_len = {ranker.pred_len}: the generator's is {generator.decoder.pred_len}, "
                "expected the same"
            )
        self.generator, self.ranker = generator, ranker

    @torch.no_grad()
    def predict(
        self,
        windows: TrajectoryWindows,
        n_samples: int = 20,
        n_refine: int = 4,
        *,
        generator: torch.Generator,
        batch: int = 64,
        progress: bool = False,
    ) -> Forecast:
        """Draw, rank, refine n_refine times. Reads the past, the mask and the raster only.

        Args:
            windows: the scenes.
            n_samples: futures an agent, at least 1.
            n_refine: refinements, at least 0.
            generator: a CPU generator of the draws, which absent agents do not use.
            batch: scenes at a time, at least 1.
            progress: show a bar that counts scenes.

        Raises:
            ValueError: for numbers out of range, no scene, windows of another time step (by over
                1 %) or unit than those of the training, and a seed in place of a generator.
        """
        self.generator.check(windows)
        self.ranker.check(windows)
        whole(1, batch=batch, n_samples=n_samples)
        whole(0, n_refine=n_refine)
        random_source(generator=generator)
        if not len(windows):
            raise ValueError("windows: expected at least one scene")
        all_samples, all_scores = [], []
        with Progress(len(windows), "scenes", show=progress) as bar:
            for first in range(0, len(windows), batch):
                part = windows[first : first + batch]
                h_x, samples = draw_futures(self.generator, part, n_samples, generator=generator)
                features = self.ranker.fusion.encode(part)
                last = part.past[:, :, -1]
                paths, ranks = [], []
                for iteration in range(n_refine + 1):
                    scores, delta = self.ranker(samples, last, h_x, features, part.mask)
                    paths.append(samples)
                    ranks.append(scores)
                    if iteration < n_refine:
                        samples = samples + delta
                all_samples.append(torch.stack(paths))
                all_scores.append(torch.stack(ranks))
                bar.update(len(part))
        return Forecast(torch.cat(all_samples, 1), torch.cat(all_scores, 1), windows.mask)


@torch.no_grad()
def draw_futures(
    generator_module: SampleGenerator,
    windows: TrajectoryWindows,
    n_samples: int,
    *,
    generator: torch.Generator,
    future: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """Encode the past and draw futures.

    Everybody who is not there gets zeros and uses no random numbers.

    Args:
        generator_module: the first module.
        windows: the scenes.
        n_samples: futures an agent.
        generator: a CPU generator.
        future: shape (scenes, agents, steps, 2), draws z from the posterior, for training.

    Returns:
        H_X (scenes, agents, hidden) and samples (scenes, agents, n_samples, steps, 2).
    """
    there = windows.mask
    past = windows.past[there]
    h_x = generator_module.encode(past)
    if future is None:
        paths = generator_module.sample(past, n_samples, generator=generator, h_x=h_x)
    else:
        seen = future[there]
        paths, *_ = generator_module.reconstruct(past, seen, n_samples, generator=generator)
    everybody = h_x.new_zeros(*there.shape, h_x.shape[-1])
    samples = paths.new_zeros(*there.shape, *paths.shape[1:])
    everybody[there], samples[there] = h_x, paths
    return everybody, samples


# ---------------------------------------------------------------- training


@dataclass
class Trace:
    """Means over each epoch, by name, of a training run."""

    epochs: dict[str, list[float]] = field(default_factory=dict)

    def add(self, means: dict[str, float]) -> None:
        for name, value in means.items():
            self.epochs.setdefault(name, []).append(value)

    def last(self, name: str) -> float:
        """The mean over the last epoch."""
        return self.epochs[name][-1]


def _descend(
    models: Sequence[nn.Module],
    losses: Callable[[Tensor], Iterable[dict[str, Tensor]]],
    *,
    count: int,
    epochs: int,
    batch: int,
    lr: float,
    generator: torch.Generator,
    device: torch.device,
    what: str,
    progress: bool,
) -> list[Trace]:
    """Minimise each model's loss by Adam, clipped, at a rate that decays on a cosine.

    losses: of the indices of a batch, in the models' order; "loss" is what is minimised.

    Raises DivergenceError for a loss that is not finite, and ValueError for numbers out of range.
    """
    whole(0, epochs=epochs)
    whole(1, batch=batch)
    above(0, lr=lr)
    random_source(generator=generator)
    batch = min(batch, count)
    per_epoch = math.ceil(count / batch)
    total = epochs * per_epoch

    def rate(step: int) -> float:
        return LAST_RATE + (1 - LAST_RATE) * (1 + math.cos(math.pi * step / max(total, 1))) / 2

    runs = []
    for model in models:
        parameters = [p for p in model.parameters() if p.requires_grad]
        optimizer = torch.optim.Adam(parameters, lr, fused=True)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, rate)
        runs.append((parameters, optimizer, schedule, Trace()))
    order: Iterator[Tensor] = shuffled_batches(count, batch, generator, device)
    with Progress(total * len(runs), what, show=progress and total > 0) as bar:
        for _ in range(epochs):
            sums: list[dict[str, Tensor]] = [{} for _ in runs]
            for _ in range(per_epoch):
                each = zip(runs, losses(next(order)), sums, strict=True)
                for (parameters, optimizer, schedule, _), found, so_far in each:
                    optimizer.zero_grad(set_to_none=True)
                    found["loss"].backward()
                    nn.utils.clip_grad_norm_(parameters, CLIP)
                    optimizer.step()
                    schedule.step()
                    for name, value in found.items():
                        so_far[name] = so_far.get(name, 0.0) + value.detach()
                    bar.update()
            for (*_, trace), so_far in zip(runs, sums, strict=True):
                means = {name: (value / per_epoch).item() for name, value in so_far.items()}
                if not math.isfinite(means["loss"]):
                    raise DivergenceError(f"the training loss is not finite: lower lr = {lr}")
                trace.add(means)
    return [trace for *_, trace in runs]


def turned(angle: Tensor, flip: Tensor, paths: Tensor) -> Tensor:
    """Paths (agents, steps, 2) mirrored where flip (agents,) is -1, then turned by the angle."""
    x, y = paths[..., 0], paths[..., 1] * flip[:, None]
    cos, sin = angle.cos()[:, None], angle.sin()[:, None]
    return torch.stack([cos * x - sin * y, sin * x + cos * y], -1)


def _present(windows: TrajectoryWindows, pred_len: int) -> tuple[Tensor, Tensor]:
    """Past and future of everybody who is there, (agents, steps, 2)."""
    if windows.future.shape[-2] != pred_len:
        raise ValueError(
            f"pred_len = {pred_len}: the windows have {windows.future.shape[-2]} steps to predict"
        )
    if not windows.mask.any():
        raise ValueError("windows.mask: it is True nowhere, so there is nobody to learn from")
    return windows.past[windows.mask], windows.future[windows.mask]


def _augmented(past: Tensor, future: Tensor, generator: torch.Generator) -> tuple[Tensor, Tensor]:
    drawn = upload(torch.rand((2, len(past)), generator=generator).to(past.dtype), past.device)
    angle, flip = 2 * math.pi * drawn[0], torch.where(drawn[1] < 0.5, -1.0, 1.0).to(past)
    return turned(angle, flip, past), turned(angle, flip, future)


def train_generator(
    model: SampleGenerator,
    windows: TrajectoryWindows,
    *,
    epochs: int,
    generator: torch.Generator,
    n_samples: int = 5,
    kl_weight: float = 1 / 12,
    lr: float = 2e-3,
    batch: int = 128,
    augment: bool = False,
    progress: bool = False,
) -> Trace:
    """First stage: minimise the distance of posterior samples plus kl_weight times the KL.

    The distance is the mean over samples and steps, in the model's unit.

    Args:
        model: the first module, trained in place; it remembers the windows' time step and unit.
        windows: scenes to learn from.
        epochs: at least 0.
        generator: a CPU generator, of batches and draws.
        n_samples: futures an agent, at least 1.
        kl_weight: of the KL, beside the mean distance in metres.
        lr: Adam's first rate, above 0; it decays to 5 %.
        batch: agents at a time, at least 1.
        augment: turn and mirror everybody at random.
        progress: show a bar.

    Returns:
        The trace of loss, rec and kl (nats).

    Raises:
        ValueError: for numbers out of range, and windows of other steps or without anybody.
        DivergenceError: for a loss that is not finite.
    """
    past, future = _present(windows, model.decoder.pred_len)
    whole(1, n_samples=n_samples)

    def losses(index: Tensor) -> dict[str, Tensor]:
        x, y = past[index], future[index]
        if augment:
            x, y = _augmented(x, y, generator)
        samples, mean, log_sigma = model.reconstruct(x, y, n_samples, generator=generator)
        rec = refinement_loss(samples, y).mean() / model.unit
        kl = kl_divergence(mean, log_sigma).mean()
        loss = rec + kl_weight * kl  # eq. (9.2)
        return {"loss": loss, "rec": rec, "kl": kl}

    (trace,) = _descend(
        [model], lambda index: [losses(index)], count=len(past), epochs=epochs, batch=batch, lr=lr,
        generator=generator, device=past.device, what="steps of the generator", progress=progress,
    )  # fmt: skip
    if epochs:
        model.trained_on = float(windows.frame_dt_s), windows.unit
    return trace


def train_regressor(
    model: Regressor,
    windows: TrajectoryWindows,
    *,
    epochs: int,
    generator: torch.Generator,
    lr: float = 2e-3,
    batch: int = 128,
    augment: bool = False,
    progress: bool = False,
) -> Trace:
    """Minimise the mean squared distance of the one path of RNN ED.

    Args:
        model: trained in place.
        windows: scenes to learn from.
        epochs: at least 0.
        generator: a CPU generator, of the batches.
        lr: as in `train_generator`.
        batch: as in `train_generator`.
        augment: as in `train_generator`.
        progress: show a bar.

    Returns:
        The trace of the loss.

    Raises:
        ValueError: as `train_generator`.
        DivergenceError: for a loss that is not finite.
    """
    past, future = _present(windows, model.decoder.pred_len)
    unit = model.decoder.unit

    def losses(index: Tensor) -> dict[str, Tensor]:
        x, y = past[index], future[index]
        if augment:
            x, y = _augmented(x, y, generator)
        return {"loss": ((model(x) - y) / unit).square().sum(-1).mean()}

    return _descend(
        [model], lambda index: [losses(index)], count=len(past), epochs=epochs, batch=batch, lr=lr,
        generator=generator, device=past.device, what="steps of the regressor", progress=progress,
    )[0]  # fmt: skip


def train_ranker(
    model: Desire,
    windows: TrajectoryWindows,
    *,
    epochs: int,
    generator: torch.Generator,
    n_samples: int = 8,
    rank_samples: str = "posterior",
    reg_weighting: str = "uniform",
    q_scale: float = 1.0,
    lr: float = 2e-3,
    batch: int = 32,
    augment: bool = False,
    progress: bool = False,
) -> Trace:
    """Second stage: the generator is fixed, the ranker learns L_CE + L_reg on its samples.

    Args:
        model: both modules; the ranker is trained in place and remembers the windows' time step
            and unit.
        windows: scenes to learn from.
        epochs: at least 0.
        generator: a CPU generator, of batches and draws.
        n_samples: futures an agent, at least 1.
        rank_samples: "posterior" (they have seen the future and lie near it) or "prior" (as at test
            time).
        reg_weighting: "uniform", or "q", by which near samples are pulled most.
        q_scale: temperature of q in metres (units of the model), above 0.
        lr: Adam's first rate, above 0; it decays to 5 %.
        batch: scenes at a time, at least 1.
        augment: give each batch one of the eight symmetries of the square.
        progress: show a bar.

    Returns:
        The trace of loss, ce, entropy (of q) and reg.

    Raises:
        ValueError: for other words, numbers out of range, windows of another time step or unit
            than the generator's, and for scenes without a raster if the ranker reads one.
        DivergenceError: for a loss that is not finite.
    """
    return train_rankers(
        [model], windows, epochs=epochs, generator=generator, n_samples=n_samples,
        rank_samples=rank_samples, reg_weighting=[reg_weighting], q_scale=q_scale, lr=lr,
        batch=batch, augment=augment, progress=progress,
    )[0]  # fmt: skip


def train_rankers(
    models: Sequence[Desire],
    windows: TrajectoryWindows,
    *,
    epochs: int,
    generator: torch.Generator,
    n_samples: int = 8,
    rank_samples: str = "posterior",
    reg_weighting: Sequence[str],
    q_scale: float = 1.0,
    lr: float = 2e-3,
    batch: int = 32,
    augment: bool = False,
    progress: bool = False,
) -> list[Trace]:
    """Train the rankers of one generator on the same samples, drawn once; each as by `train_ranker`.

    Args:
        models: at least one, all with the same generator module.
        windows: the training set.
        epochs, generator, n_samples, rank_samples, q_scale, lr, batch: as `train_ranker`.
        reg_weighting: one word a model.
        augment, progress: as `train_ranker`.

    Returns:
        A trace a model.

    Raises:
        ValueError: for no models, for models of several generators, for words that are not one a
            model, and as `train_ranker`.
        DivergenceError: for a loss that is not finite.
    """
    choices = [("rank_samples", rank_samples, ("posterior", "prior"))]
    choices += [("reg_weighting", weighting, ("uniform", "q")) for weighting in reg_weighting]
    for name, value, allowed in choices:
        if value not in allowed:
            raise ValueError(
                f"{name} = {value!r}: expected one of {', '.join(map(repr, allowed))}"
            )
    whole(1, n_samples=n_samples)
    above(0, q_scale=q_scale)
    if not models or len(models) != len(reg_weighting):
        raise ValueError(
            f"models: {len(models)}, with {len(reg_weighting)} of reg_weighting: expected one word a "
            "model, and at least one"
        )
    sampler = models[0].generator
    if any(model.generator is not sampler for model in models):
        raise ValueError("models: expected all with the same generator")
    _present(windows, models[0].ranker.pred_len)
    sampler.check(windows)
    rankers = [model.ranker for model in models]

    def losses(index: Tensor) -> Iterator[dict[str, Tensor]]:
        part = windows[index]
        if augment:
            part = symmetric(part, int(torch.randint(8, (), generator=generator)))
        seen = part.future if rank_samples == "posterior" else None
        h_x, samples = draw_futures(sampler, part, n_samples, generator=generator, future=seen)
        last, there = part.past[:, :, -1], part.mask
        for ranker, weighting in zip(rankers, reg_weighting, strict=True):
            features = ranker.fusion.encode(part)
            truth = part.future / ranker.unit
            scores, delta = ranker(samples, last, h_x, features, there)
            q = target_distribution(samples / ranker.unit, truth, q_scale)
            weight = q if weighting == "q" else None
            ce = ranking_loss(scores, q)[there].mean()
            reg = refinement_loss((samples + delta) / ranker.unit, truth, weight)[there].mean()
            entropy = -(q * q.clamp_min(1e-12).log()).sum(-1)[there].mean()
            yield {"loss": ce + reg, "ce": ce, "entropy": entropy, "reg": reg}

    traces = _descend(
        rankers, losses, count=len(windows), epochs=epochs, batch=batch, lr=lr,
        generator=generator, device=windows.past.device, what="ranker steps", progress=progress,
    )  # fmt: skip
    if epochs:
        for ranker in rankers:
            ranker.trained_on = float(windows.frame_dt_s), windows.unit
    return traces


def symmetric(windows: TrajectoryWindows, which: int) -> TrajectoryWindows:
    """Scenes under one of the eight symmetries of the square, rasters and all.

    Args:
        windows: the scenes.
        which: 0 to 7; 4 and more mirror y, then which % 4 quarter turns from x towards y.

    Raises:
        ValueError: for another number.
    """
    if which not in range(8):
        raise ValueError(f"which = {which!r}: expected 0 to 7")

    def points(at: Tensor) -> Tensor:
        x, y = at[..., 0], at[..., 1]
        if which >= 4:
            y = -y
        for _ in range(which % 4):
            x, y = -y, x
        return torch.stack([x, y], -1)

    raster = windows.raster
    if raster is not None:
        raster = raster.flip(-2) if which >= 4 else raster
        raster = raster.rot90(-(which % 4), (-2, -1))  # rows run along y
    return dataclasses.replace(
        windows,
        past=points(windows.past),
        future=points(windows.future),
        origin_m=points(windows.origin_m),
        raster=raster,
    )


# ---------------------------------------------------------------- measures of ranks


def oracle_error(
    samples: Tensor,
    truth: Tensor,
    *,
    mode: str,
    scores: Tensor | None = None,
    share: float = 0.1,
) -> Tensor:
    """The "top 10 %" error at every step, in one of the readings of the paper.

    Of K samples n = max(1, share · K) count.

    Args:
        samples: shape (..., samples, steps, 2).
        truth: shape (..., steps, 2).
        mode: "min_ranked", the nearest at each step of the n best scored; "mean_closest", the mean
            of the n nearest at each step; "last_closest", the n-th nearest at each step.
        scores: shape (..., samples), for "min_ranked".
        share: above 0, up to 1.

    Returns:
        Shape (..., steps).

    Raises:
        ValueError: for another mode, a share out of range, or "min_ranked" without scores or with
            scores of another shape.
    """
    number(lambda part: 0 < part <= 1, "a fraction above 0, up to 1", share=share)
    count = max(1, round(share * samples.shape[-3]))
    error = (samples - truth[..., None, :, :]).norm(dim=-1)
    if mode == "min_ranked":
        if scores is None:
            raise ValueError("scores = None: mode 'min_ranked' needs the scores of the samples")
        if scores.shape != samples.shape[:-2]:
            raise ValueError(
                f"scores {tuple(scores.shape)}: expected one a sample, {tuple(samples.shape[:-2])}"
            )
        top = (
            scores.topk(count, -1)
            .indices[..., None]
            .expand(*scores.shape[:-1], count, error.shape[-1])
        )
        return error.gather(-2, top).amin(-2)
    nearest = error.topk(count, -2, largest=False, sorted=True).values
    if mode == "mean_closest":
        return nearest.mean(-2)
    if mode == "last_closest":
        return nearest[..., -1, :]
    raise ValueError(
        f"mode = {mode!r}: expected one of 'min_ranked', 'mean_closest', 'last_closest'"
    )


@dataclass(frozen=True, eq=False)
class Calibration:
    """Whether scores are calibrated: one row a bin of the predicted share.

    Args:
        predicted: mean softmax of the scores.
        target: mean of q.
        nearest: how often the sample is the nearest of all.
        count: samples in the bin.
    """

    predicted: Tensor
    target: Tensor
    nearest: Tensor
    count: Tensor


def calibration(scores: Tensor, q: Tensor, distance: Tensor, *, bins: int = 8) -> Calibration:
    """Compare p = softmax(scores) with q and with being nearest.

    Bins hold equally many samples, up to ties.

    Args:
        scores: shape (agents, samples).
        q: likewise.
        distance: likewise, of each sample from the truth.
        bins: 1 up to the number of samples.

    Raises:
        ValueError: for bins out of range.
    """
    if not 1 <= bins <= scores.numel():
        raise ValueError(f"bins = {bins!r}: expected 1 to {scores.numel()}, the number of samples")
    p = scores.softmax(-1)
    hit = torch.zeros_like(p).scatter(-1, distance.argmin(-1, keepdim=True), 1.0)
    order = p.flatten().argsort()
    parts = order.tensor_split(bins)
    predicted, target, nearest = (
        torch.stack([t.flatten()[part].mean() for part in parts]) for t in (p, q, hit)
    )
    return Calibration(predicted, target, nearest, torch.tensor([len(part) for part in parts]))
