"""Simulated walkers: people who head for way points and push each other aside.

A social-force model in the manner of Helbing and Molnár (1995): every walker relaxes to a
preferred velocity and is repelled by the others, more by those ahead than by those behind. What
drives them is known, so a forecast of such a scene can be held to the truth.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from companion.checks import above, whole

MOST_SUBSTEPS = 1000  # of one step: more is a dt_s in another unit
LONGEST = 100_000  # steps of the integrator, minutes of computing


@dataclass(frozen=True)
class Repulsion:
    """How two walkers at a distance d (metres) push each other: strength · exp((reach − d) / decay).

    Args:
        strength: m/s².
        reach_m: metres.
        decay_m: metres.
        behind: the share that is felt of somebody straight behind, against 1 straight ahead.
        sidestep: a part of the push that goes to the walker's right instead of away from the other.
    """

    strength: float
    reach_m: float
    decay_m: float
    behind: float = 1.0
    sidestep: float = 0.0


def social_force(
    start: Tensor,
    waypoints: Tensor,
    speed: Tensor,
    repulsion: Repulsion,
    *,
    steps: int,
    dt_s: float = 0.4,
    substep_s: float = 0.1,
    relaxation_s: float = 0.5,
    arrival_m: float = 0.8,
) -> Tensor:
    """Walk all scenes at once and give the positions at every step.

    Args:
        start: shape (..., agents, 2), metres.
        waypoints: shape (..., agents, points, 2), headed for in turn; everybody stops at the last.
        speed: shape (..., agents), preferred, m/s; walkers start with it.
        repulsion: how walkers push each other.
        steps: how many of dt_s seconds, at least 1.
        dt_s: seconds to a step, at most a thousand substeps.
        substep_s: longest of the semi-implicit Euler steps, seconds.
        relaxation_s: time in which a velocity relaxes, seconds.
        arrival_m: distance from which on the next way point counts, metres.

    Returns:
        Shape (..., steps + 1, agents, 2), the start first.

    Raises:
        ValueError: for shapes that do not fit, positions of integers, times that are not above 0,
            a number of steps that is not whole, and too many substeps.

    References:
        Helbing and Molnár (1995).
    """
    agents = start.shape[-2]
    if waypoints.shape[-3] != agents or speed.shape[-1] != agents:
        raise ValueError(
            f"start, waypoints, speed = {tuple(start.shape)}, {tuple(waypoints.shape)}, "
            f"{tuple(speed.shape)}: expected (..., n, 2), (..., n, points, 2) and (..., n)"
        )
    if not torch.promote_types(start.dtype, waypoints.dtype).is_floating_point:
        raise ValueError(
            f"start, waypoints: {start.dtype}, {waypoints.dtype}, expected floating-point metres"
        )
    whole(1, steps=steps)
    times = {"dt_s": dt_s, "substep_s": substep_s, "relaxation_s": relaxation_s}
    above(0, **times)
    if dt_s > MOST_SUBSTEPS * substep_s:
        raise ValueError(
            f"dt_s = {dt_s!r}: expected at most {MOST_SUBSTEPS * substep_s:g} s, "
            f"{MOST_SUBSTEPS} substeps of {substep_s:g} s"
        )
    if not steps * dt_s <= LONGEST * substep_s:
        raise ValueError(
            f"dt_s = {dt_s!r}, steps = {steps!r}: expected at most {LONGEST:,} steps of "
            f"{substep_s:g} s in all"
        )
    substeps = math.ceil(dt_s / substep_s - 1e-9)
    tick = dt_s / substeps
    last = waypoints.shape[-2] - 1

    position = start.clone()
    target = torch.zeros(speed.shape, dtype=torch.long, device=start.device)
    velocity = speed[..., None] * _unit(waypoints[..., 0, :] - position)
    path = [position]
    for _ in range(steps):
        for _ in range(substeps):
            goal = waypoints.gather(
                -2, target[..., None, None].expand(*target.shape, 1, 2)
            ).squeeze(-2)
            offset = goal - position
            distance = offset.norm(dim=-1)
            # the last goal is approached ever more slowly
            wanted = torch.where(target == last, speed.minimum(distance / relaxation_s), speed)
            push = _push(position, velocity, repulsion)
            relax = (wanted[..., None] * _unit(offset) - velocity) / relaxation_s
            velocity = velocity + tick * (relax + push)
            position = position + tick * velocity
            target = (target + (distance < arrival_m)).clamp(max=last)
        path.append(position)
    return torch.stack(path, -3)


def _push(position: Tensor, velocity: Tensor, repulsion: Repulsion) -> Tensor:
    """The acceleration (..., agents, 2) of everybody by everybody else."""
    away = position[..., :, None, :] - position[..., None, :, :]  # from j to i
    distance = away.norm(dim=-1)
    alone = torch.eye(position.shape[-2], dtype=torch.bool, device=position.device)
    strength = repulsion.strength * ((repulsion.reach_m - distance) / repulsion.decay_m).exp()
    strength = strength.masked_fill(alone, 0.0)
    away, heading = _unit(away), _unit(velocity)
    ahead = -(away * heading[..., :, None, :]).sum(-1)  # cosine to the other
    strength = strength * (repulsion.behind + (1 - repulsion.behind) * (1 + ahead) / 2)
    push = (strength[..., None] * away).sum(-2)
    if repulsion.sidestep:
        right = torch.stack([heading[..., 1], -heading[..., 0]], -1)
        push = push + repulsion.sidestep * strength.sum(-1, keepdim=True) * right
    return push


def _unit(vectors: Tensor) -> Tensor:
    return vectors / vectors.norm(dim=-1, keepdim=True).clamp_min(1e-9)


def simulate_crossing(
    n_scenes: int,
    *,
    n_agents: int = 4,
    radius_m: float = 3.2,
    speeds_mps: tuple[float, ...] = (0.8, 1.2, 1.6),
    steps: int = 15,
    dt_s: float = 0.4,
    seed: int = 0,
) -> tuple[Tensor, Tensor, Tensor]:
    """People on a circle who all want to the other side, so that they meet in the middle.

    They start evenly around the circle, turned and shaken by a random angle, and give way to the
    right for 40 % of a push of 6 exp((0.6 − d) / 0.45) m/s².

    Args:
        n_scenes: at least 1.
        n_agents: of a scene, at least 1.
        radius_m: of the circle, metres, above 0.
        speeds_mps: the preferred speeds to draw from, m/s.
        steps: at least 1.
        dt_s: seconds to a step.
        seed: of everything.

    Returns:
        Positions (scenes, steps + 1, agents, 2) and goals (scenes, agents, 2) in metres, and the
        index of each walker's speed (scenes, agents); float64.

    Raises:
        ValueError: for counts below 1 and for a radius or speeds that are not above 0.
    """
    whole(1, n_scenes=n_scenes, n_agents=n_agents, steps=steps)
    if not speeds_mps or not all(0 < speed < math.inf for speed in speeds_mps):
        raise ValueError(f"speeds_mps = {speeds_mps!r}: expected speeds above 0, at least one")
    above(0, radius_m=radius_m)
    generator = torch.Generator().manual_seed(seed)

    def uniform(*shape: int) -> Tensor:
        return torch.rand(shape, generator=generator, dtype=torch.float64)

    share = 2 * math.pi / n_agents
    angle = share * torch.arange(n_agents, dtype=torch.float64) + 2 * math.pi * uniform(
        n_scenes, 1
    )
    angle = angle + share * 0.5 * (uniform(n_scenes, n_agents) - 0.5)
    start = radius_m * torch.stack([angle.cos(), angle.sin()], -1)
    kind = torch.randint(len(speeds_mps), (n_scenes, n_agents), generator=generator)
    speed = torch.tensor(speeds_mps, dtype=torch.float64)[kind]
    give_way = Repulsion(strength=6.0, reach_m=0.6, decay_m=0.45, sidestep=0.4)
    paths = social_force(start, -start[..., None, :], speed, give_way, steps=steps, dt_s=dt_s)
    return paths, -start, kind
