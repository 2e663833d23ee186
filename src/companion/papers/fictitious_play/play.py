"""Fictitious play: everybody responds to what they have come to expect of the others."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import at_least, whole
from companion.papers.fictitious_play.crowd import SIGMAS_M, Crowd, Weights, check_weights
from companion.papers.fictitious_play.grid import speed_kernel
from companion.papers.fictitious_play.planning import Policy, plan
from companion.papers.fictitious_play.social import expected_others, smooth
from companion.progress import Progress

UPDATES = ("simultaneous", "sequential")


@dataclass(frozen=True, eq=False)
class Forecast:
    """What N agents are expected to do in T steps.

    Args:
        policy: their last responses.
        occupancy: shape (T + 1, N, H, W), what is expected of them: where play averages, the mean
            of all rounds' forecasts.
        response: shape (T + 1, N, H, W), occupancy of `policy` itself.
        gaps: shape (rounds, N), total variation between each round's response and what had been
            expected, the largest over the steps.
    """

    policy: Policy
    occupancy: Tensor
    response: Tensor
    gaps: Tensor

    @property
    def tv_history(self) -> list[float]:
        """The largest gap of any agent in each round."""
        return [float(gap.max()) for gap in self.gaps]

    def sample(self, n: int, generator: torch.Generator) -> Tensor:
        """Draw paths; agents are independent of each other.

        Args:
            n: paths an agent, at least 1.
            generator: a CPU generator.

        Returns:
            Cells of shape (n, T + 1, N, 2).

        Raises:
            ValueError: for n below 1 and a seed in place of a generator.
        """
        return self.policy.sample(n, generator)


def social_reward(
    crowd: Crowd, weights: Weights, others: Tensor, sigmas_m: Sequence[float] = SIGMAS_M
) -> Tensor:
    """-Σ_m w_m G_m * others for the steps' ends.

    Args:
        crowd: N pedestrians.
        weights: of whom only the social ones count.
        others: shape (T + 1, N, H, W), as `expected_others` makes it of occupancies.
        sigmas_m: widths of the Gaussians, one a social weight.

    Returns:
        Shape (T, N, H, W), nats.

    Raises:
        ValueError: for another number of widths.
    """
    if len(weights.social) != len(sigmas_m):
        raise ValueError(
            f"sigmas_m = {list(sigmas_m)!r}: expected {len(weights.social)} widths for the social weights"
        )
    total = torch.zeros_like(others[1:])
    for weight, sigma in zip(weights.social, sigmas_m, strict=True):
        if weight:
            total -= weight * smooth(others[1:], sigma, crowd.grid.cell_m)
    return total


def respond(
    crowd: Crowd, weights: Weights, horizon: int, others: Tensor | None = None, sigmas_m: Sequence[float] = SIGMAS_M
) -> tuple[Policy, Tensor]:  # fmt: skip
    """Best responses to what is expected of the others.

    Args:
        crowd: N pedestrians.
        weights: what they care about.
        horizon: T, steps, at least 1.
        others: shape (T + 1, N, H, W), for each agent the sum of the others' expected occupancies
            (see `expected_others`); None: no others are there.
        sigmas_m: widths of the Gaussians, one a social weight.

    Returns:
        The policy, and its occupancy (T + 1, N, H, W).

    Raises:
        ValueError: for numbers out of range, and as `plan`.
    """
    whole(1, horizon=horizon)
    check_weights(weights)
    kernel = speed_kernel(
        crowd.grid, crowd.dt_s, crowd.speed, weights.speed, radius_cells=crowd.radius_cells
    )
    reward = crowd.ground(weights, horizon)
    if others is not None:
        reward = reward + social_reward(crowd, weights, others, sigmas_m)
    return plan(kernel, reward, -weights.goal * crowd.distances(), crowd.start)


class FictitiousPlay:
    """Repeated best responses of all agents of a crowd.

    Args:
        crowd: N pedestrians.
        weights: what they care about.
        horizon: T, steps, at least 1.
        sigmas_m: widths of the Gaussians, one a social weight.
        iterations: rounds after the single-agent forecast; 0 leaves it at that.
        average: respond to the mean of all earlier forecasts (fictitious play) or to the last one.
        update: "simultaneous", or "sequential": within a scene one agent after the other, each
            seeing what those before it have just changed.
        tolerance: stop when no response is further than this from what was expected (total
            variation).
        mask_groups: members of one walking group do not mind each other.

    Raises:
        ValueError: for an unknown update or numbers out of range.

    References:
        Ma et al. (2017) for the principle; the features are a reconstruction.
    """

    def __init__(
        self, crowd: Crowd, weights: Weights, horizon: int, *, sigmas_m: Sequence[float] = SIGMAS_M, iterations: int = 10,
        average: bool = True, update: str = "simultaneous", tolerance: float = 0.0, mask_groups: bool = True,
    ) -> None:  # fmt: skip
        if update not in UPDATES:
            raise ValueError(f"update = {update!r}: expected one of {UPDATES}")
        whole(0, iterations=iterations)
        whole(1, horizon=horizon)
        check_weights(weights)
        at_least(0, tolerance=tolerance)
        self.crowd, self.weights, self.horizon = crowd, weights, horizon
        self.sigmas_m, self.iterations, self.average = tuple(sigmas_m), iterations, average
        self.update, self.tolerance = update, tolerance
        self.mask = crowd.pair_mask(mask_groups)

    def run(
        self,
        watch: Callable[[int, Tensor, Tensor], None] | None = None,
        *,
        progress: bool = False,
    ) -> Forecast:
        """Play, and return the forecast.

        Args:
            watch: called after each round with its number, the responses' occupancies and what is now
                expected; round 0 is the single-agent forecast.
            progress: show a bar that counts rounds.

        Raises:
            ValueError: as `plan`.
        """
        policy, response = respond(self.crowd, self.weights.alone(), self.horizon)
        expected, gaps = response.clone(), []
        if watch:
            watch(0, response, expected)
        with Progress(self.iterations, "rounds of play", show=progress) as bar:
            for k in range(1, self.iterations + 1):
                if self.update == "simultaneous":
                    policy, response = self._all_respond(expected)
                    gap = _total_variations(response, expected)
                    self._believe(expected, response, k, slice(None))
                else:
                    policy, response, gap = self._one_after_the_other(expected, k)
                gaps.append(gap)
                bar.update()
                if watch:
                    watch(k, response, expected)
                if gap.max() < self.tolerance:
                    break
        none = expected.new_zeros(0, len(self.crowd))
        return Forecast(policy, expected, response, torch.stack(gaps) if gaps else none)

    def _all_respond(self, expected: Tensor) -> tuple[Policy, Tensor]:
        others = expected_others(expected, self.mask)
        return respond(self.crowd, self.weights, self.horizon, others, self.sigmas_m)

    def _believe(self, expected: Tensor, response: Tensor, k: int, who) -> None:
        """D̄ ← D̄ + (D - D̄) / (k + 1), in place; without averaging, D̄ ← D."""
        rate = 1 / (k + 1) if self.average else 1.0
        step = response - expected[:, who]
        expected[:, who] += rate * step  # eq. (8.5)

    def _one_after_the_other(self, expected: Tensor, k: int) -> tuple[Policy, Tensor, Tensor]:
        turn = _turns(self.crowd.scene)
        gap, parts, response = expected.new_zeros(len(turn)), {}, torch.empty_like(expected)
        for rank in range(int(turn.max()) + 1):
            who = (turn == rank).nonzero().flatten()
            others = expected_others(expected, self.mask)[:, who]
            part, moved = respond(
                self.crowd.take(who), self.weights, self.horizon, others, self.sigmas_m
            )
            gap[who] = _total_variations(moved, expected[:, who])
            response[:, who] = moved
            self._believe(expected, moved, k, who)
            parts[rank] = who, part
        return _joined(parts), response, gap


def _total_variations(one: Tensor, other: Tensor) -> Tensor:
    """Of each agent, the largest over the steps, (N,)."""
    return 0.5 * (one - other).abs().sum((2, 3)).amax(0)


def _turns(scene: Tensor) -> Tensor:
    """Each agent's place in the order of its scene, (N,)."""
    same = scene[:, None] == scene
    return same.tril(-1).sum(1)


def _joined(parts: dict[int, tuple[Tensor, Policy]]) -> Policy:
    """One policy of agents that were planned in parts."""
    order = torch.cat([who for who, _ in parts.values()]).argsort()
    pieces = [policy for _, policy in parts.values()]
    return Policy(
        torch.cat([p.log_kernel for p in pieces])[order],
        torch.cat([p.reward for p in pieces], 1)[:, order],
        torch.cat([p.values for p in pieces], 1)[:, order],
        torch.cat([p.start for p in pieces])[order],
    )


def exploitability(
    crowd: Crowd, weights: Weights, policy: Policy, D: Tensor, sigmas_m: Sequence[float] = SIGMAS_M, *, mask_groups: bool = True
) -> Tensor:  # fmt: skip
    """What each agent would gain by responding to what the others really do.

    It is the path divergence KL(π_i || best response to D_-i), computed without paths:
    V'_0(s_0) - V_0(s_0) - Σ_t <D_{t+1}, r'_t - r_t>, with r' and V' those of the best response.

    Args:
        crowd: N pedestrians.
        weights: what they care about.
        policy: theirs.
        D: shape (T + 1, N, H, W), occupancy of `policy` itself (`Forecast.response`).
        sigmas_m: widths of the Gaussians, one a social weight.
        mask_groups: members of one walking group do not mind each other.

    Returns:
        Shape (N,), nats; zero for all agents exactly at a logit equilibrium.

    Raises:
        ValueError: as `respond`.
    """
    others = expected_others(D, crowd.pair_mask(mask_groups))
    best, _ = respond(crowd, weights, len(D) - 1, others, sigmas_m)
    agents = torch.arange(len(crowd), device=crowd.start.device)
    where = (agents, crowd.start[:, 0], crowd.start[:, 1])
    # blocked cells are minus infinity in both rewards, and nobody is there
    change = torch.where(D[1:] > 0, best.reward - policy.reward, 0)
    return best.values[0][where] - policy.values[0][where] - (D[1:] * change).sum((0, 2, 3))
