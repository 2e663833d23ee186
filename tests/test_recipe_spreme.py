"""The recipe of SpReME on a plate that was made here."""

import recipe
import torch


def test_the_recipe_finds_the_logistic_law_of_a_plate_of_ones_own(tmp_path, monkeypatch):
    hours = torch.linspace(0, 12, 49).double()
    rate = torch.linspace(0.5, 1.1, 5).double()[:, None]
    capacity, start, blank = 0.8, 0.1, 0.05
    odds = (capacity / start - 1) * torch.exp(-rate * hours)
    density = capacity / (1 + odds) + blank
    wells = ["A1", "A2", "B1", "B2", "C1", "H12"]
    lines = [",".join(["hours", *wells])]
    for hour, readings in zip(hours.tolist(), density.T.tolist(), strict=True):
        lines.append(",".join(map(str, [hour, *readings, blank])))
    (tmp_path / "plate.csv").write_text("\n".join(lines) + "\n")
    monkeypatch.chdir(tmp_path)
    names, printed = recipe.run("spreme")
    model = names["model"]
    assert printed.count("x' = ") == 5
    assert printed.startswith("A1 x' = 0.")
    # x' = r x - r / K x^2 in every well, and nothing else
    assert [model.feature_names_[i] for i in model.support_[0].nonzero()] == ["x", "x^2"]
    assert torch.allclose(
        model.coef_[:, 0, 1:3], torch.cat([rate, -rate / capacity], 1), rtol=0.02
    )
    later = torch.linspace(0, 24, 97).double()
    true = capacity / (1 + (capacity / start - 1) * torch.exp(-rate[0] * later))
    assert torch.allclose(names["path"][:, 0], true, atol=0.01)
