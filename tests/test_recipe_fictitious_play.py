"""The recipe of fictitious play on tracks that were made here."""

import json
import math

import recipe
import torch


def write_crossings(path, scenes=8, steps=19):
    """Two people a scene, one to the east and one to the north, a dense file at 25 frames/s.

    Windows of 4 + 8 steps begin every 8 steps: a scene of 12 + 7 holds one whole window,
    wherever the count of 8 stands when it begins; in a shorter one that is luck.
    """
    lines = ["id;frame;x;y"]
    for scene in range(scenes):
        for person in range(2):
            for frame in range(10 * steps):
                far = -3 + 1.2 * frame / 25
                x, y = (far, 0.3) if person == 0 else (0.2, far)
                lines.append(f"{2 * scene + person};{10 * steps * scene + frame};{x:.3f};{y:.3f}")
    path.write_text("\n".join(lines) + "\n")


def test_the_recipe_forecasts_tracks_of_ones_own(tmp_path, monkeypatch):
    write_crossings(tmp_path / "tracks.csv")
    monkeypatch.chdir(tmp_path)
    names, _ = recipe.run("fictitious_play")
    assert names["tracks"].left_out == {"between_steps": 16 * 19 * 9}
    assert names["weights"].goal > 0
    rows = [json.loads(line) for line in (tmp_path / "forecast.ndjson").read_text().splitlines()]
    tracks = [row["track"] for row in rows if "track" in row]
    people = len(names["test"].crowd)
    assert people == 4 * 2  # of the second half of the scenes
    assert len(tracks) == people * 20 * 8
    truth = {
        (10 * int(s), int(a)): p.tolist()
        for s, a, p in zip(
            names["tracks"].step, names["tracks"].agent, names["tracks"].position, strict=True
        )
    }
    # every row is at a frame of that person, and its mean path follows the one that was walked
    apart = {}
    for row in tracks:
        at = apart.setdefault((row["scene_id"], row["p"], row["f"]), [])
        at.append((row["x"], row["y"]))
    errors = []
    for (_, person, frame), places in apart.items():
        assert len(places) == 20
        mean = torch.tensor(places).mean(0)
        errors.append(math.dist(mean.tolist(), truth[frame, person]))
    assert sum(errors) / len(errors) < 0.6


def test_paths_come_back_in_the_order_of_their_windows(tmp_path, monkeypatch):
    write_crossings(tmp_path / "tracks.csv")
    monkeypatch.chdir(tmp_path)
    names, _ = recipe.run("fictitious_play")
    test = names["test"]
    back = test.by_window(test.cells[None])[:, :, 0]
    mask = test.windows.mask
    assert (back - test.windows.future)[mask].abs().max() < 0.26  # half a cell
