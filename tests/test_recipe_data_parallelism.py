"""Data parallelism's recipe with a module and a data set that are not ours, and the bound."""

import math

import pytest
import torch
from recipe import run
from sklearn.datasets import load_wine
from torch import nn

from companion.papers import data_parallelism as dp


class Strange(nn.Module):
    def __init__(self):
        super().__init__()
        self.first = nn.Linear(13, 24)
        self.second = nn.Linear(24, 3)

    def forward(self, x):
        return self.second(torch.tanh(self.first(x)))


def test_a_strangers_module_and_data_are_searched(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    table, kinds = load_wine(return_X_y=True)
    x = torch.from_numpy((table - table.mean(0)) / table.std(0)).float()
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    given = {
        "images": x[order], "labels": torch.from_numpy(kinds)[order].long(), "model": Strange(),
        "n": 120, "gap": 2.0, "lipschitz": 4.0, "variance": 100.0, "goal": 0.1,
    }  # fmt: skip
    names, printed = run("data_parallelism", **given)
    assert all(k >= 1 for k in names["steps"])
    assert names["steps"][0] >= names["steps"][-1]
    assert names["c1"] > 0
    assert "by the bound: bend at B = 1000" in printed
    assert (tmp_path / "search.json").is_file()
    again, _ = run("data_parallelism", **given)  # from the store
    assert again["steps"] == names["steps"]


def test_the_bounds_constants_are_those_of_the_bound_itself():
    gap, lipschitz, variance, goal, mu, cap = 1.7, 3.0, 40.0, 0.2, 0.8, 0.1
    found = dp.scaling_constants(gap, lipschitz, variance, goal, alignment=mu, lr=cap)

    def steps(lr, batch):  # eta L beta / (mu B) + Delta / (K mu eta) = epsilon, solved for K
        left = goal - lr * lipschitz * variance / (mu * batch)
        return gap / (mu * lr * left) if left > 0 else math.inf

    # c1 and c2: value and slope of K in 1 / B, at B -> infinity
    assert steps(cap, 1e12) == pytest.approx(found.c2, rel=1e-6)
    assert (steps(cap, 1e7) - steps(cap, 1e12)) * 1e7 == pytest.approx(found.c1, rel=1e-3)
    # the critical batch: where the best step size reaches its cap
    rates = torch.linspace(1e-5, cap, 20_001, dtype=torch.float64).tolist()
    best = {
        part: min(rates, key=lambda lr: steps(lr, part * found.critical_batch))
        for part in (0.5, 1.0, 2.0)
    }
    assert best[0.5] == pytest.approx(cap / 2, rel=1e-3)
    assert best[1.0] == pytest.approx(cap, rel=1e-3)
    assert best[2.0] == pytest.approx(cap, rel=1e-3)
    with pytest.raises(ValueError, match="goal = 0: expected a finite number above 0"):
        dp.scaling_constants(1.0, 1.0, 1.0, 0)
