"""Ranking and refinement: a score for every hypothesis and a correction of its path.

Shapes: hypotheses are (scenes, agents, samples, steps, 2). Hypotheses of one index belong
together: sample k of all agents is one joint future of the scene.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import grid_sample

from companion.checks import above, boolean, one_dtype, whole
from companion.data.trajectories import TrajectoryWindows
from companion.papers.desire.trained import OnWindows

VELOCITY, SCENE, SOCIAL = 16, 32, 48
RINGS, WEDGES, R_MIN, R_MAX = 6, 6, 0.5, 4.0


# ---------------------------------------------------------------- neighbours


def log_polar_bins(
    position: Tensor,
    mask: Tensor | None = None,
    *,
    rings: int = RINGS,
    wedges: int = WEDGES,
    r_min: float = R_MIN,
    r_max: float = R_MAX,
) -> Tensor:
    """The cell of j on a log-polar grid around i.

    Cells are numbered ring by ring; who is nearer than r_min counts in ring 0, who is at r_max or
    beyond in none.

    Args:
        position: shape (..., agents, 2).
        mask: boolean, shape (..., agents), who is there.
        rings: at least 1.
        wedges: at least 1.
        r_min: radius of the innermost ring, above 0.
        r_max: radius of the grid, above r_min.

    Returns:
        Shape (..., agents, agents), -1 for no cell.

    Raises:
        ValueError: for numbers out of range, and a mask that is not boolean.

    >>> log_polar_bins(torch.tensor([[0.0, 0.0], [1.0, 0.1], [9.0, 0.0]]))[0].tolist()
    [-1, 15, -1]
    """
    whole(1, rings=rings, wedges=wedges)
    if not 0 < r_min < r_max < math.inf:
        raise ValueError(f"r_min, r_max = {r_min!r}, {r_max!r}: expected 0 < r_min < r_max")
    offset = position[..., None, :, :] - position[..., :, None, :]
    distance = offset.norm(dim=-1)
    ring = (distance.clamp_min(1e-9) / r_min).log() * (rings / math.log(r_max / r_min))
    ring = ring.floor().clamp(0, rings - 1)
    angle = torch.atan2(offset[..., 1], offset[..., 0])
    wedge = (wedges * (angle + math.pi) / (2 * math.pi)).floor().clamp(0, wedges - 1)
    near = distance < r_max
    near &= ~torch.eye(position.shape[-2], dtype=torch.bool, device=position.device)
    if mask is not None:
        boolean(mask=mask)
        near &= mask[..., :, None] & mask[..., None, :]
    return torch.where(near, (ring * wedges + wedge).long(), -1)


def log_polar_pool(
    position: Tensor,
    state: Tensor,
    mask: Tensor | None = None,
    *,
    rings: int = RINGS,
    wedges: int = WEDGES,
    r_min: float = R_MIN,
    r_max: float = R_MAX,
) -> Tensor:
    """Mean state of the neighbours in every cell.

    Only pairs that are near are touched, so the cost grows with them and not with all cells.

    Args:
        position: shape (scenes, agents, 2).
        state: shape (scenes, agents, width).
        mask: boolean, shape (scenes, agents), who is there.
        rings: as in `log_polar_bins`.
        wedges: as in `log_polar_bins`.
        r_min: as in `log_polar_bins`.
        r_max: as in `log_polar_bins`.

    Returns:
        Shape (scenes, agents, rings · wedges, width).

    Raises:
        ValueError: for shapes that disagree, and as `log_polar_bins`.
    """
    if state.ndim != 3 or tuple(position.shape) != (*state.shape[:2], 2):
        raise ValueError(
            f"position, state = {tuple(position.shape)}, {tuple(state.shape)}: expected "
            "(scenes, agents, 2) and (scenes, agents, width)"
        )
    scenes, agents, width = state.shape
    cells = rings * wedges
    kinds: dict[str, Any] = {"rings": rings, "wedges": wedges, "r_min": r_min, "r_max": r_max}
    bins = log_polar_bins(position, mask, **kinds)
    scene, i, j = (bins >= 0).nonzero(as_tuple=True)
    target = (scene * agents + i) * cells + bins[scene, i, j]
    count = torch.bincount(target, minlength=scenes * agents * cells)
    message = state.flatten(0, 1)[scene * agents + j] / count[target, None]
    pooled = state.new_zeros(scenes * agents * cells, width).index_add(0, target, message)
    return pooled.view(scenes, agents, cells, width)


@dataclass(frozen=True, eq=False)
class Neighbours:
    """Who is near whom, in which cell: one row a pair; found once for all steps of a path.

    Args:
        source: rows of the flattened states.
        target: likewise.
        share: 1 / how many share target and cell.
        slot: index into a table (cells, most, width) that holds the pairs cell by cell.
        most: pairs of the fullest cell.
    """

    source: Tensor
    target: Tensor
    share: Tensor
    slot: Tensor
    most: int

    @classmethod
    def find(cls, bins: Tensor, cells: int) -> Neighbours:
        """From cells (scenes, agents, agents) as `log_polar_bins` gives them."""
        scenes, agents, _ = bins.shape
        scene, i, j = (bins >= 0).nonzero(as_tuple=True)
        cell = bins[scene, i, j]
        order = cell.argsort()
        scene, i, j, cell = scene[order], i[order], j[order], cell[order]
        target = scene * agents + i
        together = target * cells + cell
        count = torch.bincount(together, minlength=scenes * agents * cells)[together]
        filled = torch.bincount(cell, minlength=cells)
        most = max(1, int(filled.max()))
        place = torch.arange(len(cell), device=bins.device) - (filled.cumsum(0) - filled)[cell]
        return cls(scene * agents + j, target, 1.0 / count, cell * most + place, most)

    def projected_mean(self, state: Tensor, weight: Tensor) -> Tensor:
        """What a linear layer makes of the pooled states.

        Every message is multiplied by the weights of its own cell only, cell by cell in one batched
        product, and summed up at its target: empty cells cost next to nothing.

        Args:
            state: shape (rows, width).
            weight: shape (out, cells * width), as of a layer on the pooled table.

        Returns:
            Shape (rows, out).
        """
        width = state.shape[1]
        cells = weight.shape[1] // width
        message = state[self.source] * self.share[:, None].to(state.dtype)
        table = state.new_zeros(cells * self.most, width).index_copy(0, self.slot, message)
        by_cell = weight.view(-1, cells, width).permute(1, 2, 0)
        out = torch.bmm(table.view(cells, self.most, width), by_cell).flatten(0, 1)
        return out.new_zeros(len(state), out.shape[1]).index_add(0, self.target, out[self.slot])


# ---------------------------------------------------------------- the scene


@dataclass(frozen=True, eq=False)
class FeatureMap:
    """Features of the ground, and where it lies.

    Args:
        features: shape (rasters, channels, rows, columns), every second cell of a raster.
        index: shape (scenes,), the raster of a scene.
        origin: shape (scenes, 2), its origin in the world.
        meters_per_cell: of the raster.
        cells: its rows and columns.
    """

    features: Tensor
    index: Tensor
    origin: Tensor
    meters_per_cell: float
    cells: tuple[int, int]

    def at(self, points: Tensor) -> Tensor:
        """Read the features at points; 0 beyond the edge.

        Args:
            points: shape (scenes, ..., 2).

        Returns:
            Shape (scenes, ..., channels).
        """
        rows, columns = self.features.shape[-2:]
        world = points + self.origin.to(points).view(-1, *(1,) * (points.ndim - 2), 2)
        # feature (r, c) looks at the raster's cell (2r, 2c), the first of a pair
        cell = self.meters_per_cell
        half = torch.tensor([columns, rows], dtype=points.dtype, device=points.device) * cell
        height, width = self.cells
        # the last feature of an odd number of cells has no pair
        first = [(0.5 + width / 2 - columns) * cell, (0.5 + height / 2 - rows) * cell]
        grid = (world + world.new_tensor(first)) / half
        found = points.new_empty(*points.shape[:-1], self.features.shape[1])
        for raster in self.index.unique().tolist():
            here = self.index == raster
            where = grid[here].reshape(1, -1, 1, 2)
            read = grid_sample(self.features[raster, None], where, align_corners=False)
            found[here] = read[0, :, :, 0].T.reshape(*grid[here].shape[:-1], -1)
        return found


class SceneContextFusion(nn.Module):
    """What the ranker reads of a hypothesis at each step.

    Args:
        channels: of the raster; 0 leaves the scene out.
        social: pool the neighbours' states.
        hidden: width of the states.
        unit: the length of a metre in the positions.

    References:
        Lee et al. (2017), "Scene context fusion".
    """

    def __init__(
        self, channels: int, *, social: bool, hidden: int = 48, unit: float = 1.0
    ) -> None:
        super().__init__()
        self.unit, self.has_scene, self.has_social = unit, channels > 0, social
        self.velocity = nn.Linear(2, VELOCITY)
        self.width = VELOCITY + SCENE * self.has_scene + SOCIAL * social
        if channels:
            self.scene = nn.Sequential(
                nn.Conv2d(channels, 16, 5, stride=2, padding=2),
                nn.ReLU(),
                nn.Conv2d(16, SCENE, 5, padding=2),
                nn.ReLU(),
                nn.Conv2d(SCENE, SCENE, 5, padding=2),
                nn.ReLU(),
            )
        if social:
            self.social = nn.Linear(RINGS * WEDGES * hidden, SOCIAL)

    def encode(self, windows: TrajectoryWindows) -> FeatureMap | None:
        """The features of the rasters of some scenes; None if the scene is left out.

        Every raster is encoded once, and only those that the scenes use.

        Args:
            windows: the scenes.

        Raises:
            ValueError: for scenes without a raster or its scale, or one of other channels.
        """
        if not self.has_scene:
            return None
        if windows.raster is None or windows.raster_index is None:
            raise ValueError(
                "windows.raster = None: a ranker with scene needs a picture of the ground; "
                "without one make it with channels = 0"
            )
        if windows.meters_per_cell is None:
            raise ValueError(
                "windows.meters_per_cell = None: expected the side of a raster's cell"
            )
        if windows.raster.shape[1] != self.scene[0].in_channels:
            raise ValueError(
                f"channels = {self.scene[0].in_channels}: the pictures of the ground have "
                f"{windows.raster.shape[1]}"
            )
        used, index = windows.raster_index.unique(return_inverse=True)
        features = self.scene(windows.raster[used])
        rows, columns = windows.raster.shape[-2:]
        return FeatureMap(
            features, index, windows.origin_m, windows.meters_per_cell, (rows, columns)
        )

    def of_paths(
        self, samples: Tensor, last_pos: Tensor, feature_map: FeatureMap | None
    ) -> Tensor:
        """The part that no state enters.

        Args:
            samples: shape (scenes, agents, samples, steps, 2).
            last_pos: shape (scenes, agents, 2).
            feature_map: as `encode` gives it.

        Returns:
            Shape (scenes, agents, samples, steps, width).

        Raises:
            ValueError: without a feature map, if there is a scene.
        """
        start = last_pos[:, :, None, None].expand(*samples.shape[:3], 1, 2)
        step = torch.cat([start, samples], -2).diff(dim=-2) / self.unit
        parts = [self.velocity(step).relu()]
        if self.has_scene:
            if feature_map is None:
                raise ValueError("feature_map = None: a ranker with scene needs one")
            parts.append(feature_map.at(samples))
        return torch.cat(parts, -1)

    def neighbours(self, position: Tensor, mask: Tensor | None) -> list[Neighbours]:
        """Who is near whom at each step of positions (scenes, agents, steps, 2)."""
        there = None if mask is None else mask[:, None]
        bins = log_polar_bins(position.transpose(1, 2) / self.unit, there)
        return [Neighbours.find(step, RINGS * WEDGES) for step in bins.unbind(1)]

    def of_neighbours(self, near: Neighbours, state: Tensor) -> Tensor:
        """(rows, 48) of the states (rows, hidden) at the step before."""
        return (near.projected_mean(state, self.social.weight) + self.social.bias).relu()


# ---------------------------------------------------------------- scores and corrections


class RankRefine(OnWindows):
    """A GRU that runs along every hypothesis, sums up its rewards and corrects its path.

    Args:
        pred_len: steps, at least 1.
        channels: of the raster, 0 for no scene.
        social: see the neighbours.
        hidden: width of the GRU, that of the generator.
        unit: the length of a metre in the positions, above 0.

    Raises:
        ValueError: for numbers out of range.

    References:
        Lee et al. (2017), "IOC-based ranking and refinement".
    """

    def __init__(
        self,
        pred_len: int,
        *,
        channels: int = 0,
        social: bool = False,
        hidden: int = 48,
        unit: float = 1.0,
    ) -> None:
        super().__init__()
        whole(1, pred_len=pred_len, hidden=hidden)
        whole(0, channels=channels)
        above(0, unit=unit)
        self.unit, self.pred_len = unit, pred_len
        self.fusion = SceneContextFusion(channels, social=social, hidden=hidden, unit=unit)
        self.gru = nn.GRU(self.fusion.width, hidden, batch_first=True)
        self.reward = nn.Linear(hidden, 1)
        self.correction = nn.Linear(hidden, 2 * pred_len)

    def forward(
        self,
        samples: Tensor,
        last_pos: Tensor,
        h_x: Tensor,
        feature_map: FeatureMap | None = None,
        mask: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Score hypotheses and correct their paths; those who are not there get zeros.

        Args:
            samples: shape (scenes, agents, samples, steps, 2).
            last_pos: shape (scenes, agents, 2).
            h_x: shape (scenes, agents, hidden).
            feature_map: as `SceneContextFusion.encode` gives it.
            mask: boolean, shape (scenes, agents), who is there; all by default.

        Returns:
            Scores (scenes, agents, samples) and corrections of the shape of the samples.

        Raises:
            ValueError: for shapes or dtypes that disagree, and a mask that is not boolean.
        """
        if samples.ndim != 5 or tuple(samples.shape[3:]) != (self.pred_len, 2):
            raise ValueError(
                f"samples {tuple(samples.shape)}: expected (scenes, agents, samples, "
                f"{self.pred_len}, 2)"
            )
        people = tuple(samples.shape[:2])
        for name, value, width in (("last_pos", last_pos, 2), ("h_x", h_x, self.gru.hidden_size)):
            if tuple(value.shape) != (*people, width):
                raise ValueError(f"{name} {tuple(value.shape)}: expected {(*people, width)}")
        one_dtype(samples=samples, last_pos=last_pos, h_x=h_x, weights=self.reward.weight)
        if mask is not None:
            boolean(people, mask=mask)
        if mask is not None and not self.fusion.has_social and not mask.all():
            return self._present_only(samples, last_pos, h_x, feature_map, mask)
        chi = self.fusion.of_paths(samples, last_pos, feature_map)
        start = h_x[:, :, None].expand(*samples.shape[:3], -1)
        if self.fusion.has_social:
            states = self._stepwise(chi, start, samples, mask)
        else:
            first = start.flatten(0, 2)[None].contiguous()
            flat = self.gru(chi.flatten(0, 2), first)[0]
            states = flat.unflatten(0, samples.shape[:3])
        rewards = self.reward(states).squeeze(-1)
        scores = rewards.sum(-1)  # eq. (9.3)
        delta = self.unit * self.correction(states[..., -1, :])
        delta = delta.unflatten(-1, samples.shape[-2:])
        if mask is None:
            return scores, delta
        return scores * mask[..., None], delta * mask[..., None, None, None]

    def _present_only(
        self,
        samples: Tensor,
        last_pos: Tensor,
        h_x: Tensor,
        feature_map: FeatureMap | None,
        mask: Tensor,
    ) -> tuple[Tensor, Tensor]:
        """Where nobody sees anybody, everybody is a scene of his own and padding costs nothing."""
        if feature_map is not None:
            scene = mask.nonzero()[:, 0]
            feature_map = replace(
                feature_map, index=feature_map.index[scene], origin=feature_map.origin[scene]
            )
        alone = [tensor[mask][:, None] for tensor in (samples, last_pos, h_x)]
        found = self(*alone, feature_map)
        scores, delta = samples.new_zeros(samples.shape[:3]), torch.zeros_like(samples)
        scores[mask], delta[mask] = (tensor[:, 0] for tensor in found)
        return scores, delta

    def _stepwise(
        self, chi: Tensor, start: Tensor, samples: Tensor, mask: Tensor | None
    ) -> Tensor:
        """All states (scenes, agents, samples, steps, hidden) where each step needs the last."""
        scenes, agents, count = samples.shape[:3]

        def joint(tensor: Tensor) -> Tensor:  # one scene a sample: (scenes * samples, agents, ..)
            return tensor.transpose(1, 2).flatten(0, 1)

        there = None if mask is None else joint(mask[:, :, None].expand(-1, -1, count))
        near = self.fusion.neighbours(joint(samples), there)
        state, chi = joint(start).flatten(0, 1), joint(chi).flatten(0, 1)
        states = []
        for step, found in enumerate(near):
            seen = self.fusion.of_neighbours(found, state)
            step_in = torch.cat([chi[:, step], seen], -1)
            state = self.gru(step_in[:, None], state[None].contiguous())[1][0]
            states.append(state)
        return torch.stack(states, 1).unflatten(0, (scenes, count, agents)).transpose(1, 2)


def largest_distance(samples: Tensor, future: Tensor) -> Tensor:
    """d_k, the largest distance of each hypothesis from the truth.

    Args:
        samples: shape (..., samples, steps, 2).
        future: shape (..., steps, 2).

    Returns:
        Shape (..., samples).
    """
    return (samples - future[..., None, :, :]).norm(dim=-1).amax(-1)


def target_distribution(samples: Tensor, future: Tensor, q_scale: float = 1.0) -> Tensor:
    """q = softmax(−d / q_scale) over the samples.

    Args:
        samples: shape (..., samples, steps, 2).
        future: shape (..., steps, 2).
        q_scale: above 0, in the samples' unit.

    Returns:
        Shape (..., samples).

    Raises:
        ValueError: for a q_scale out of range.

    >>> samples = torch.tensor([[[0.0, 0.0]], [[1.0, 0.0]]])
    >>> target_distribution(samples, torch.zeros(1, 2)).round(decimals=2).tolist()
    [0.73..., 0.27...]
    """
    above(0, q_scale=q_scale)
    return (-largest_distance(samples, future) / q_scale).softmax(-1)


def ranking_loss(scores: Tensor, q: Tensor) -> Tensor:
    """Cross entropy of the scores' softmax under q; its gradient is p − q.

    Args:
        scores: shape (..., samples).
        q: likewise.

    Returns:
        Shape (...), nats.
    """
    return -(q * scores.log_softmax(-1)).sum(-1)  # eq. (9.4)


def refinement_loss(refined: Tensor, future: Tensor, q: Tensor | None = None) -> Tensor:
    """Mean distance of the corrected hypotheses.

    Args:
        refined: shape (..., samples, steps, 2).
        future: shape (..., steps, 2).
        q: shape (..., samples), weights; None weights evenly.

    Returns:
        Shape (...).
    """
    apart = (refined - future[..., None, :, :]).norm(dim=-1)
    distance = apart.mean(-1)
    if q is None:
        return distance.mean(-1)  # eq. (9.5)
    return (q * distance).sum(-1)
