"""What a module was trained on: the seconds to a step and the unit of the positions."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor, nn

from companion.data.trajectories import TrajectoryWindows

SAME_STEP = 0.01  # 12 frames at 29.97 frames a second pass for 0.4 s


class OnWindows(nn.Module):
    """A module that remembers the seconds to a step and the unit of what it was trained on.

    Both are a part of its `state_dict`; one that was saved without them leaves them open.

    Attributes:
        trained_on: (seconds to a step, unit); None before training.
    """

    trained_on: tuple[float, str] | None = None

    def check(self, windows: TrajectoryWindows) -> None:
        """Raise ValueError for windows of another time step (by over 1 %) or another unit."""
        if self.trained_on is None:
            return
        dt_s, unit = self.trained_on
        same = math.isclose(windows.frame_dt_s, dt_s, rel_tol=SAME_STEP)
        if not same or windows.unit != unit:
            raise ValueError(
                f"windows: steps of {windows.frame_dt_s:g} s in {windows.unit}, expected steps of "
                f"{dt_s:g} s in {unit}, on which the {type(self).__name__} was trained"
            )

    def get_extra_state(self) -> Tensor:
        """Bytes of "0.4 m", none before training: a tensor, as all of a `state_dict`."""
        dt_s, unit = self.trained_on or (0.0, "")
        text = f"{float(dt_s)!r} {unit}" if unit else ""
        return torch.tensor(list(text.encode()), dtype=torch.uint8)

    def set_extra_state(self, state: Tensor) -> None:
        """Take what `get_extra_state` gave."""
        dt_s, _, unit = bytes(state.to(torch.uint8).tolist()).decode().partition(" ")
        self.trained_on = (float(dt_s), unit) if dt_s else None

    def _load_from_state_dict(
        self, state_dict: dict[str, Any], prefix: str, *others: Any, **more: Any
    ) -> None:
        # a strict load must not miss what earlier versions did not save
        if any(name.startswith(prefix) for name in state_dict):
            state_dict.setdefault(f"{prefix}_extra_state", torch.empty(0, dtype=torch.uint8))
        super()._load_from_state_dict(state_dict, prefix, *others, **more)
