"""Soft value iteration on a grid with a finite horizon: backward, forward, single paths.

Shapes: T steps, N agents, H rows, W columns, steps of up to R cells. The reward r_t(s') is
received on entering s' at step t + 1; a step off the grid has probability zero. All rewards and
values are in nats.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import conv2d, pad

from companion.checks import one_dtype, random_source, whole

FORMS = ("convolution", "logsumexp")
MARGIN = 60.0  # nats above the smallest normal number at which a value is still trusted


def soft_value_iteration(
    log_kernel: Tensor, reward: Tensor, terminal: Tensor, *, form: str = "convolution"
) -> Tensor:
    """V_t(s) = log Σ_a exp(κ(a) + r_t(s+a) + V_{t+1}(s+a)), from V_T = terminal.

    Differentiable.

    Args:
        log_kernel: shape (N, 2R+1, 2R+1), κ, which does not depend on the cell.
        reward: shape (T, N, H, W), nats; minus infinity where nobody can stand.
        terminal: shape (N, H, W), nats.
        form: "convolution" is one grouped convolution a step; values more than about 650 nats
            (float64; 30 in float32) below an agent's best one are not to be trusted. "logsumexp" is
            exact everywhere and slower.

    Returns:
        Shape (T + 1, N, H, W).

    Raises:
        ValueError: for shapes or dtypes that disagree, and another form.

    References:
        Ziebart et al. (2008), the backward pass of maximum-entropy inverse optimal control.

    >>> free = torch.zeros(1, 3, 3), torch.zeros(2, 1, 3, 3), torch.zeros(1, 3, 3)
    >>> soft_value_iteration(*free)[0, 0].exp().round().tolist()  # paths of two steps
    [[25.0, 35.0, 25.0], [35.0, 49.0, 35.0], [25.0, 35.0, 25.0]]
    """
    _check(log_kernel, reward, terminal, form)
    backup = _backup_by_convolution if form == "convolution" else _backup_by_logsumexp
    values = [terminal]
    for r in reward.unbind(0)[::-1]:
        values.append(backup(log_kernel, r + values[-1]))
    return torch.stack(values[::-1])


def occupancy(
    log_kernel: Tensor, reward: Tensor, values: Tensor, start: Tensor, *, form: str = "convolution"
) -> Tensor:
    """Where the agents are at each step under the policy of `values`.

    D_{t+1}(s') = Σ_a D_t(s'-a) π_t(a|s'-a), from all mass on the start.

    Args:
        log_kernel: as in `soft_value_iteration`.
        reward: as in `soft_value_iteration`.
        values: what it returned for the same kernel and reward.
        start: cells of shape (N, 2).
        form: as in `soft_value_iteration`.

    Returns:
        Shape (T + 1, N, H, W), every map summing to 1.

    Raises:
        ValueError: for shapes or dtypes that disagree, and a start off the grid.
    """
    if len(values) != len(reward) + 1:
        raise ValueError(
            f"values {tuple(values.shape)}: expected {len(reward) + 1} maps for {len(reward)} steps"
        )
    _check(log_kernel, reward, values[-1], form)
    _check_start(start, values[-1])
    forward = _forward_by_convolution if form == "convolution" else _forward_by_logsumexp
    now = torch.zeros_like(values[0])
    now[torch.arange(len(start), device=start.device), start[:, 0], start[:, 1]] = 1
    maps = [now]
    for t, r in enumerate(reward):
        maps.append(forward(log_kernel, r + values[t + 1], values[t], maps[-1]))
    return torch.stack(maps)


def _check(log_kernel: Tensor, reward: Tensor, terminal: Tensor, form: str) -> None:
    if form not in FORMS:
        raise ValueError(f"form = {form!r}: expected one of {FORMS}")
    if reward.ndim != 4 or reward.shape[1:] != terminal.shape or len(terminal) != len(log_kernel):
        raise ValueError(
            f"log_kernel {tuple(log_kernel.shape)}, reward {tuple(reward.shape)}, terminal {tuple(terminal.shape)}: "
            "expected (N, k, k), (T, N, H, W) and (N, H, W)"
        )
    if log_kernel.shape[1] != log_kernel.shape[2] or log_kernel.shape[1] % 2 == 0:
        raise ValueError(f"log_kernel {tuple(log_kernel.shape)}: expected (N, k, k) with odd k")
    one_dtype(log_kernel=log_kernel, reward=reward, terminal=terminal)


def _check_start(start: Tensor, terminal: Tensor) -> None:
    agents, *size = terminal.shape
    if tuple(start.shape) != (agents, 2) or start.is_floating_point():
        raise ValueError(
            f"start: {start.dtype} of shape {tuple(start.shape)}, expected whole cells ({agents}, 2)"
        )
    outside = ((start < 0) | (start >= torch.tensor(size, device=start.device))).any(-1)
    if outside.any():
        raise ValueError(f"start: agents {_some(outside)} are off the grid {tuple(size)}")


def _correlate(maps: Tensor, kernels: Tensor) -> Tensor:
    """Σ_a kernel(a) map(s + a) for each agent; beyond the border there is nothing."""
    radius = kernels.shape[-1] // 2
    return conv2d(maps[None], kernels[:, None], padding=radius, groups=len(kernels))[0]


def _highest(q: Tensor) -> Tensor:
    return q.detach().amax((1, 2), keepdim=True)


def _backup_by_convolution(log_kernel: Tensor, q: Tensor) -> Tensor:
    shift, top = _highest(q), _highest(log_kernel)
    steps = (log_kernel - top).exp()
    total = _correlate((q - shift).exp(), steps)  # eq. (8.1)
    least = torch.finfo(q.dtype).tiny
    return shift + top + total.clamp_min(least).log()


def _forward_by_convolution(log_kernel: Tensor, q: Tensor, value: Tensor, now: Tensor) -> Tensor:
    shift, top = _highest(q), _highest(log_kernel)
    # arrivals: the step is seen from its end
    kernel = (log_kernel - top).exp().flip(1, 2)
    leaving = now * (shift + top - value).exp()
    arriving = _correlate(leaving, kernel)  # eq. (8.3)
    return (q - shift).exp() * arriving


def _offsets(log_kernel: Tensor):
    """(i, j, κ) of every step, i and j counted from the window's corner."""
    size = log_kernel.shape[-1]
    return [(i, j, log_kernel[:, i, j, None, None]) for i in range(size) for j in range(size)]


def _backup_by_logsumexp(log_kernel: Tensor, q: Tensor) -> Tensor:
    radius, (height, width) = log_kernel.shape[-1] // 2, q.shape[-2:]
    padded = pad(q, (radius,) * 4, value=-torch.inf)
    each = [k + padded[:, i : i + height, j : j + width] for i, j, k in _offsets(log_kernel)]
    with torch.no_grad():
        shut = functools.reduce(torch.maximum, each).isneginf()
    each[0] = each[0].masked_fill(shut, 0)  # logsumexp has no gradient where all is -inf
    return torch.stack(each).logsumexp(0).masked_fill(shut, -torch.inf)


def _forward_by_logsumexp(log_kernel: Tensor, q: Tensor, value: Tensor, now: Tensor) -> Tensor:
    radius, (height, width) = log_kernel.shape[-1] // 2, q.shape[-2:]
    padded = pad(q, (radius,) * 4, value=-torch.inf)
    arrivals = torch.zeros_like(padded)
    for i, j, k in _offsets(log_kernel):
        window = (slice(None), slice(i, i + height), slice(j, j + width))
        chance = (k + padded[window] - value).exp()
        arrivals[window] += torch.where(now > 0, now * chance, 0)
    return arrivals[:, radius : radius + height, radius : radius + width]


def start_value(log_kernel: Tensor, reward: Tensor, terminal: Tensor, start: Tensor) -> Tensor:
    """V_0 at each agent's start cell, in log space if any of them would underflow.

    Args:
        log_kernel: as in `soft_value_iteration`.
        reward: as in `soft_value_iteration`.
        terminal: as in `soft_value_iteration`.
        start: cells of shape (N, 2).

    Returns:
        Shape (N,), nats.

    Raises:
        ValueError: as `soft_value_iteration`.
    """
    agents = torch.arange(len(start), device=start.device)
    where = (agents, start[:, 0], start[:, 1])
    first = soft_value_iteration(log_kernel, reward, terminal)[0]
    if not _sunk(first, first[where]).any():
        return first[where]
    return soft_value_iteration(log_kernel, reward, terminal, form="logsumexp")[0][where]


def _sunk(first: Tensor, at_start: Tensor) -> Tensor:
    """Agents whose start value is too far below their best one for the convolution form."""
    span = -torch.tensor(torch.finfo(first.dtype).tiny, dtype=torch.float64).log().item()
    allowed = span - min(MARGIN, span / 2)
    return ~(first.amax((1, 2)) - at_start < allowed)


@dataclass(frozen=True, eq=False)
class Policy:
    """What N agents do in T steps: π_t(a|s) = exp(κ(a) + r_t(s+a) + V_{t+1}(s+a) - V_t(s)).

    Args:
        log_kernel: shape (N, 2R+1, 2R+1).
        reward: shape (T, N, H, W).
        values: shape (T + 1, N, H, W).
        start: cells of shape (N, 2).
    """

    log_kernel: Tensor
    reward: Tensor
    values: Tensor
    start: Tensor

    def log_prob(self, cells: Tensor) -> Tensor:
        """Log probabilities (N,) of paths (T + 1, N, 2); see `path_log_prob`."""
        return path_log_prob(cells, self.log_kernel, self.reward, self.values)

    @torch.no_grad()
    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw paths, independently of the other agents.

        Args:
            n: paths an agent, at least 1.
            generator: a CPU generator.

        Returns:
            Cells of shape (n, T + 1, N, 2).

        Raises:
            ValueError: for n below 1 and a seed in place of a generator.
        """
        whole(1, n=n)
        random_source(generator=generator)
        horizon, agents, _, width = self.reward.shape
        radius, size = self.log_kernel.shape[-1] // 2, self.log_kernel.shape[-1]
        device = self.reward.device
        reach = torch.arange(size, device=device)
        wide = width + 2 * radius  # cells are counted in the padded map from here on
        steps = (reach[:, None] * wide + reach).flatten()
        who = torch.arange(agents, device=device)[:, None]
        cells = self.start.expand(n, agents, 2)
        paths = [cells]
        for t in range(horizon):
            q = pad(self.reward[t] + self.values[t + 1], (radius,) * 4, value=-torch.inf)
            corner = cells[..., 0] * wide + cells[..., 1]
            logits = q.flatten(1)[who, corner[..., None] + steps] + self.log_kernel.flatten(1)
            chosen = torch.multinomial(
                logits.softmax(-1).flatten(0, 1).cpu(), 1, generator=generator
            )
            chosen = chosen.to(device).view(n, agents)
            cells = cells + torch.stack([chosen // size - radius, chosen % size - radius], -1)
            paths.append(cells)
        return torch.stack(paths, 1)


def path_log_prob(
    cells: Tensor, log_kernel: Tensor, reward: Tensor, values: Tensor, *, each_step: bool = False
) -> Tensor:
    """Log probability of each agent's path, minus infinity if a step of it is infeasible.

    Infeasible are steps of more than R cells, off the grid, or where the reward forbids.

    Args:
        cells: paths of shape (T + 1, N, 2).
        log_kernel: as in `soft_value_iteration`.
        reward: as in `soft_value_iteration`.
        values: what it returned for the same kernel and reward.
        each_step: of every step alone.

    Returns:
        Shape (N,), or (T, N) for every step alone; nats.

    Raises:
        ValueError: for paths of another shape, and for cells that are not whole numbers.
    """
    horizon, agents, height, width = reward.shape
    if tuple(cells.shape) != (horizon + 1, agents, 2):
        raise ValueError(
            f"cells {tuple(cells.shape)}: expected {(horizon + 1, agents, 2)} for this reward"
        )
    if cells.is_floating_point():
        raise ValueError(f"cells: {cells.dtype}, expected whole numbers (Grid.to_cell)")
    radius = log_kernel.shape[-1] // 2
    move = cells[1:] - cells[:-1] + radius
    size = torch.tensor([height, width], device=cells.device)
    on_grid = ((cells >= 0) & (cells < size)).all(-1)
    feasible = on_grid[1:] & on_grid[:-1] & ((move >= 0) & (move <= 2 * radius)).all(-1)
    move = move.clamp(0, 2 * radius)
    row, column = cells.clamp_min(0).minimum(size - 1).unbind(-1)
    who = torch.arange(agents, device=cells.device).expand(horizon, -1)
    when = torch.arange(horizon, device=cells.device)[:, None]
    to, fro = (who, row[1:], column[1:]), (who, row[:-1], column[:-1])
    steps = log_kernel[who, move[..., 0], move[..., 1]]
    steps = steps + reward[(when, *to)]
    steps = steps + values[(when + 1, *to)]
    steps = steps - values[(when, *fro)]  # eq. (8.2)
    steps = torch.where(feasible, steps, -torch.inf)
    return steps if each_step else steps.sum(0)


@torch.no_grad()
def plan(log_kernel: Tensor, reward: Tensor, terminal: Tensor, start: Tensor):
    """Best responses to fixed rewards.

    Agents for whom the convolution form underflows are planned again in log space.

    Args:
        log_kernel: as in `soft_value_iteration`.
        reward: as in `soft_value_iteration`.
        terminal: as in `soft_value_iteration`.
        start: cells of shape (N, 2).

    Returns:
        The policy, and its occupancy (T + 1, N, H, W).

    Raises:
        ValueError: for no agents and, naming them, if one starts off the grid or has no way to
            go; as `soft_value_iteration` besides.
    """
    if not len(start):
        raise ValueError("start: expected at least one agent")
    _check_start(start, terminal)
    values = soft_value_iteration(log_kernel, reward, terminal)
    maps = occupancy(log_kernel, reward, values, start)
    agents = torch.arange(len(start), device=start.device)
    sunk = _sunk(values[0], values[0][agents, start[:, 0], start[:, 1]]) | _leaky(maps)
    if sunk.any():
        parts = log_kernel[sunk], reward[:, sunk]
        values[:, sunk] = soft_value_iteration(*parts, terminal[sunk], form="logsumexp")
        maps[:, sunk] = occupancy(*parts, values[:, sunk], start[sunk], form="logsumexp")
        if _leaky(maps).any():
            raise ValueError(f"reward: agents {_some(_leaky(maps))} cannot move from their start")
    return Policy(log_kernel, reward, values, start), maps


def _leaky(maps: Tensor) -> Tensor:
    """Agents whose occupancy does not sum to 1 at every step."""
    error = (maps.sum((2, 3)) - 1).abs()
    return ~(error < torch.finfo(maps.dtype).eps ** 0.5).all(0)


def _some(mask: Tensor) -> list[int]:
    return mask.nonzero().flatten().tolist()[:5]
