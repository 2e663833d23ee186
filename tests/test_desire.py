"""DESIRE: pooling, the latent code, ranks, what a forecast may know, the junction, real scenes."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pytest
import sympy as sp
import torch
from torch import nn

from companion.data import trajectories
from companion.data.crowds import Repulsion
from companion.data.root import IncompleteDataError, MissingDataError
from companion.data.trajectories import FOLDER, Tracks, TrajectoryWindows
from companion.forecasting import constant_velocity
from companion.papers import desire as de
from companion.training import DivergenceError

NOBODY = Repulsion(strength=0.0, reach_m=0.5, decay_m=0.35)


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def normal(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=generator(seed), dtype=dtype)


@pytest.fixture(scope="module")
def junction():
    return de.simulate_tjunction(24, seed=3)


def small_model(*, channels=1, social=False, pred_len=12, seed=0):
    torch.manual_seed(seed)
    sampler = de.SampleGenerator(pred_len, hidden=12, latent=8)
    return de.Desire(sampler, de.RankRefine(pred_len, channels=channels, social=social, hidden=12))


# ---------------------------------------------------------------- log-polar pooling


def one_hot_pool(position, state, rings=6, wedges=6, r_min=0.5, r_max=4.0):
    """Twin: a loop over pairs, written from the formula."""
    scenes, agents, width = state.shape
    pooled = torch.zeros(scenes, agents, rings * wedges, width, dtype=state.dtype)
    for s in range(scenes):
        for i in range(agents):
            found = {}
            for j in range(agents):
                dx, dy = (position[s, j] - position[s, i]).tolist()
                d = math.hypot(dx, dy)
                if j == i or d >= r_max:
                    continue
                ring = math.floor(rings * math.log(d / r_min) / math.log(r_max / r_min))
                wedge = math.floor(wedges * (math.atan2(dy, dx) + math.pi) / (2 * math.pi))
                cell = max(ring, 0) * wedges + min(wedge, wedges - 1)
                found.setdefault(cell, []).append(state[s, j])
            for cell, states in found.items():
                pooled[s, i, cell] = torch.stack(states).mean(0)
    return pooled


def test_pooling_is_the_mean_state_a_cell():
    position, state = 2.5 * normal(5, 7, 2), normal(5, 7, 3, seed=1)
    torch.testing.assert_close(de.log_polar_pool(position, state), one_hot_pool(position, state))


@pytest.mark.parametrize(
    ("distance", "degrees", "ring", "wedge"),
    [
        (0.6, -170, 0, 0),
        (0.8, -100, 1, 1),
        (1.1, -30, 2, 2),
        (1.6, 10, 3, 3),
        (2.3, 100, 4, 4),
        (3.9, 170, 5, 5),
        (0.1, 170, 0, 5),  # nearer than r_min counts in ring 0
        (1.6, 180, 3, 5),  # the edge of the last wedge
    ],
)
def test_hand_placed_neighbours_hit_their_cells(distance, degrees, ring, wedge):
    angle = math.radians(degrees)
    at = torch.tensor([[0.0, 0.0], [distance * math.cos(angle), distance * math.sin(angle)]])
    assert de.ranking.log_polar_bins(at.double())[0, 1] == ring * 6 + wedge


def test_pooling_does_not_care_for_the_order_of_agents():
    position, state = 2 * normal(3, 6, 2), normal(3, 6, 4, seed=1)
    pooled = de.log_polar_pool(position, state)
    order = torch.tensor([3, 0, 5, 1, 4, 2])
    moved = de.log_polar_pool(position[:, order], state[:, order])
    torch.testing.assert_close(moved, pooled[:, order])
    keep_first = torch.tensor([0, 4, 2, 5, 3, 1])
    torch.testing.assert_close(
        de.log_polar_pool(position[:, keep_first], state[:, keep_first])[:, 0], pooled[:, 0]
    )


def test_nobody_at_r_max_or_beyond_counts_and_nobody_counts_himself():
    at = torch.tensor([[[0.0, 0.0], [4.0, 0.0], [0.0, 9.0]]], dtype=torch.float64)
    assert not de.log_polar_pool(at, torch.ones(1, 3, 2, dtype=torch.float64)).any()
    at[0, 1, 0] = 3.999
    assert de.log_polar_pool(at, torch.ones(1, 3, 2, dtype=torch.float64)).sum() == 4


def test_absent_agents_are_not_pooled():
    position, state = normal(2, 5, 2), normal(2, 5, 3, seed=1)
    mask = torch.ones(2, 5, dtype=torch.bool)
    mask[:, 4] = False
    pooled = de.log_polar_pool(position, state, mask)
    torch.testing.assert_close(pooled[:, :4], de.log_polar_pool(position[:, :4], state[:, :4]))
    assert not pooled[:, 4].any()


def test_projecting_cell_by_cell_is_the_layer_on_the_pooled_table():
    position, state = 2 * normal(5, 7, 2), normal(5, 7, 3, seed=1).requires_grad_()
    mask = normal(5, 7, seed=2) < 0.8
    layer = nn.Linear(36 * 3, 4, bias=False).double()
    pooled = layer(de.log_polar_pool(position, state, mask).flatten(2))
    near = de.ranking.Neighbours.find(de.ranking.log_polar_bins(position, mask), 36)
    ours = near.projected_mean(state.flatten(0, 1), layer.weight).view(5, 7, 4)
    torch.testing.assert_close(ours, pooled)
    weigh = normal(5, 7, 4, seed=3)
    for wanted in (state, layer.weight):
        slopes = [
            torch.autograd.grad((x * weigh).sum(), wanted, retain_graph=True)
            for x in (ours, pooled)
        ]
        torch.testing.assert_close(*slopes)
    alone = de.ranking.Neighbours.find(de.ranking.log_polar_bins(100 * position), 36)
    assert not alone.projected_mean(state.flatten(0, 1), layer.weight).any()


# ---------------------------------------------------------------- the latent code


def test_kl_is_the_closed_form_and_what_monte_carlo_finds():
    mean, log_sigma = 0.7 * normal(3, 6), 0.4 * normal(3, 6, seed=1)
    kl = de.kl_divergence(mean, log_sigma)
    ours = torch.distributions.Normal(mean, log_sigma.exp())
    unit = torch.distributions.Normal(torch.zeros_like(mean), torch.ones_like(mean))
    exact = torch.distributions.kl_divergence(ours, unit).sum(-1)
    torch.testing.assert_close(kl, exact, rtol=1e-6, atol=1e-6)
    z = mean + log_sigma.exp() * normal(200_000, 3, 6, seed=2)
    drawn = (ours.log_prob(z) - unit.log_prob(z)).sum(-1)
    error = drawn.std(0) / math.sqrt(len(drawn))
    assert ((drawn.mean(0) - kl).abs() < 4 * error).all()


def test_kl_follows_from_the_integral():
    x, m = sp.symbols("x m", real=True)
    s = sp.symbols("s", positive=True)
    density = sp.exp(-((x - m) ** 2) / (2 * s**2)) / (s * sp.sqrt(2 * sp.pi))
    log_ratio = -sp.log(s) - (x - m) ** 2 / (2 * s**2) + x**2 / 2
    kl = sp.simplify(sp.integrate(sp.expand(density * log_ratio), (x, -sp.oo, sp.oo)))
    assert sp.simplify(kl - (m**2 + s**2 - sp.log(s**2) - 1) / 2) == 0
    mean, log_sigma = normal(7).requires_grad_(), normal(7, seed=1).requires_grad_()
    for_mean, for_sigma = torch.autograd.grad(de.kl_divergence(mean, log_sigma), (mean, log_sigma))
    torch.testing.assert_close(for_mean, mean)
    torch.testing.assert_close(for_sigma, (2 * log_sigma).exp() - 1)


def test_the_mask_sums_to_one_or_to_the_width():
    z = normal(5, 9, 8, dtype=torch.float32)
    for scaled, total in ((False, 1.0), (True, 48.0)):
        sampler = de.SampleGenerator(4, latent=8, mask_scale=scaled)
        torch.testing.assert_close(sampler.beta(z).sum(-1), torch.full((5, 9), total))


def test_one_mode_needs_no_code():
    # everybody goes straight on: z has nothing to say
    past = torch.zeros(256, 1, 8, 2)
    start, speed = normal(256, 1, 1, dtype=torch.float32), 0.5
    steps = torch.arange(-7, 13) * speed
    past = torch.stack([start + steps, 0 * start + 0 * steps], -1)
    windows = TrajectoryWindows(
        past=past[..., :8, :],
        future=past[..., 8:, :],
        mask=torch.ones(256, 1, dtype=torch.bool),
        frame_dt_s=0.4,
        origin_m=torch.zeros(256, 2),
    )
    torch.manual_seed(0)
    sampler = de.SampleGenerator(12)
    trace = de.train_generator(sampler, windows, epochs=15, generator=generator(), batch=32)
    assert trace.last("kl") < 0.1
    assert trace.last("rec") < 0.3


def test_where_the_drive_enters_matters_to_the_decoder_alone():
    past = normal(3, 8, 2, dtype=torch.float32)
    for every_step in (True, False):
        torch.manual_seed(0)
        sampler = de.SampleGenerator(5, every_step=every_step)
        paths = sampler.sample(past, 4, generator=generator())
        assert paths.shape == (3, 4, 5, 2)
        drive = sampler.encode(past)[:, None] * sampler.beta(
            torch.randn((3, 4, 48), generator=generator())
        )
        inputs = torch.zeros(12, 5, 48)
        inputs[:, : 5 if every_step else 1] = drive.flatten(0, 1)[:, None]
        steps = sampler.decoder.head(sampler.decoder.gru(inputs)[0]).cumsum(1)
        torch.testing.assert_close(
            paths.flatten(0, 1), past[:, -1].repeat_interleave(4, 0)[:, None] + steps
        )


def test_a_centred_generator_does_not_know_where_it_is():
    past, shift = normal(3, 8, 2, dtype=torch.float32), torch.tensor([40.0, -7.0])
    torch.manual_seed(0)
    for model in (de.SampleGenerator(5, centred=True), de.SampleGenerator(5)):
        here = model.sample(past, 2, generator=generator())
        there = model.sample(past + shift, 2, generator=generator()) - shift
        assert torch.allclose(here, there, atol=1e-4) is model.past_encoder.centred


def test_a_unit_rescales_everything():
    past = normal(3, 8, 2, dtype=torch.float32)
    paths = []
    for unit in (1.0, 7.0):
        torch.manual_seed(0)
        sampler = de.SampleGenerator(5, unit=unit)
        paths.append(sampler.sample(unit * past, 2, generator=generator()) / unit)
    torch.testing.assert_close(*paths)


# ---------------------------------------------------------------- ranks and corrections


def test_the_target_is_a_softmax_of_the_largest_distance():
    future = torch.zeros(1, 3, 2)
    samples = torch.zeros(1, 2, 3, 2)
    samples[0, 0, 1] = torch.tensor([3.0, 4.0])
    samples[0, 1, 2, 0] = 2.0
    assert de.ranking.largest_distance(samples, future).tolist() == [[5.0, 2.0]]
    q = de.target_distribution(samples, future, q_scale=1.5)
    torch.testing.assert_close(q[0, 0], torch.tensor(1 / (1 + math.exp(3 / 1.5))))


def test_the_gradient_of_the_cross_entropy_is_p_minus_q():
    scores = normal(4, 9).requires_grad_()
    q = normal(4, 9, seed=1).softmax(-1)
    (slope,) = torch.autograd.grad(de.ranking_loss(scores, q).sum(), scores)
    torch.testing.assert_close(slope, scores.detach().softmax(-1) - q)


def test_refinement_loss_weighs_evenly_or_by_q():
    future, refined = torch.zeros(1, 2, 2), torch.zeros(1, 2, 2, 2)
    refined[0, 1, :, 0] = torch.tensor([2.0, 4.0])
    assert de.ranking.refinement_loss(refined, future).item() == 1.5
    q = torch.tensor([[0.9, 0.1]])
    assert de.ranking.refinement_loss(refined, future, q).item() == pytest.approx(0.3)


def test_no_correction_makes_every_iteration_the_same(junction):
    model = small_model()
    for part in (model.ranker.correction.weight, model.ranker.correction.bias):
        nn.init.zeros_(part)
    forecast = model.predict(junction.windows, 5, 3, generator=generator())
    for iteration in range(1, 4):
        assert torch.equal(forecast.samples[iteration], forecast.samples[0])
        assert torch.equal(forecast.scores[iteration], forecast.scores[0])
    nn.init.constant_(model.ranker.correction.bias, 0.5)
    forecast = model.predict(junction.windows, 5, 3, generator=generator())
    torch.testing.assert_close(forecast.samples[2], forecast.samples[0] + 1.0)


def test_the_step_by_step_ranker_is_the_fused_one_where_neighbours_say_nothing(junction):
    fused, stepwise = small_model().ranker, small_model(social=True).ranker
    for part in (stepwise.fusion.social.weight, stepwise.fusion.social.bias):
        nn.init.zeros_(part)
    state = fused.state_dict()
    width = state["gru.weight_ih_l0"].shape[1]
    own = stepwise.state_dict()
    for name, value in state.items():
        if name == "gru.weight_ih_l0":
            own[name][:, :width] = value
        else:
            own[name] = value
    stepwise.load_state_dict(own)
    windows = junction.windows
    h_x, samples = (
        normal(24, 4, 12, dtype=torch.float32),
        windows.future[:, :, None] + normal(24, 4, 3, 12, 2, seed=1, dtype=torch.float32),
    )
    results = [
        ranker(samples, windows.past[:, :, -1], h_x, ranker.fusion.encode(windows))
        for ranker in (fused, stepwise)
    ]
    torch.testing.assert_close(results[0][0], results[1][0], rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=1e-4, atol=1e-4)


def test_a_sample_of_one_agent_meets_the_same_sample_of_the_others(junction):
    ranker = small_model(social=True).ranker
    windows = junction.windows[:6]
    samples = windows.future[:, :, None].repeat(1, 1, 3, 1, 1)
    h_x = normal(6, 4, 12, dtype=torch.float32)

    def scores(paths):
        return ranker(paths, windows.past[:, :, -1], h_x, ranker.fusion.encode(windows))[0]

    moved = samples.clone()
    moved[:, 1, 2] = samples[:, 0, 2] + 0.7  # agent 1 walks beside agent 0, in sample 2 only
    before, after = scores(samples), scores(moved)
    changed = (before - after).abs()
    assert (changed[:, 0, 2] > 1e-4).all()
    assert changed[:, 0, :2].max() < 1e-5


def test_scores_are_sums_over_the_steps(junction):
    ranker = small_model(channels=0).ranker
    windows = junction.windows[:3]
    samples, h_x = windows.future[:, :, None], normal(3, 4, 12, dtype=torch.float32)
    last = windows.past[:, :, -1]
    whole = ranker(samples, last, h_x)[0]
    nn.init.constant_(ranker.reward.bias, ranker.reward.bias.item() + 1.0)
    torch.testing.assert_close(ranker(samples, last, h_x)[0], whole + 12.0)


# ---------------------------------------------------------------- what a forecast may know


@pytest.mark.parametrize("social", [False, True])
def test_a_forecast_does_not_know_the_future(junction, social):
    model = small_model(social=social)
    windows = junction.windows
    blind = dataclasses.replace(windows, future=torch.full_like(windows.future, torch.nan))
    seen = model.predict(windows, 4, 2, generator=generator())
    unseen = model.predict(blind, 4, 2, generator=generator())
    assert torch.equal(seen.samples, unseen.samples)
    assert torch.equal(seen.scores, unseen.scores)
    # the same check notices a generator that draws from the posterior
    _, leaked = de.model.draw_futures(
        model.generator, windows, 4, generator=generator(), future=windows.future
    )
    other = windows.future.flip(0)
    _, again = de.model.draw_futures(
        model.generator, windows, 4, generator=generator(), future=other
    )
    assert not torch.equal(leaked, again)


@pytest.mark.parametrize("social", [False, True])
def test_an_absent_agent_changes_nothing(junction, social):
    model = small_model(social=social)
    windows = junction.windows
    junk = 0.3 * normal(24, 1, 20, 2, dtype=torch.float32)
    padded = dataclasses.replace(
        windows,
        past=torch.cat([windows.past, junk[:, :, :8]], 1),
        future=torch.cat([windows.future, junk[:, :, 8:]], 1),
        mask=torch.cat([windows.mask, torch.zeros(24, 1, dtype=torch.bool)], 1),
    )
    plain = model.predict(windows, 4, 2, generator=generator())
    more = model.predict(padded, 4, 2, generator=generator())
    torch.testing.assert_close(more.samples[:, :, :4], plain.samples, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(more.scores[:, :, :4], plain.scores, rtol=1e-4, atol=1e-4)
    assert not more.scores[:, :, 4].any()
    torch.testing.assert_close(
        more.jointly_best()[:, :4], plain.jointly_best(), rtol=1e-4, atol=1e-4
    )
    # and present, the junk would be noticed
    there = dataclasses.replace(padded, mask=torch.ones_like(padded.mask))
    noticed = model.predict(there, 4, 2, generator=generator())
    assert noticed.scores[:, :, 4].any()


def test_a_forecast_does_not_depend_on_the_batch(junction):
    model = small_model()
    whole = model.predict(junction.windows, 4, 1, generator=generator(), batch=24)
    parts = model.predict(junction.windows, 4, 1, generator=generator(), batch=7)
    torch.testing.assert_close(whole.samples, parts.samples, rtol=1e-4, atol=1e-4)


def test_best_paths_are_the_best_scored():
    samples = torch.arange(2 * 3 * 2, dtype=torch.float32).view(1, 1, 2, 3, 1, 2)
    scores = torch.tensor([[[[0.0, 2.0, 1.0], [5.0, 0.0, 4.5]]]])
    forecast = de.Forecast(samples, scores, torch.ones(1, 2, dtype=torch.bool))
    assert forecast.best().flatten().tolist() == [2.0, 3.0, 6.0, 7.0]
    # summed over both agents 5, 2 and 5.5; of the first alone 0, 2 and 1
    assert forecast.jointly_best().flatten().tolist() == [4.0, 5.0, 10.0, 11.0]
    second = dataclasses.replace(forecast, mask=torch.tensor([[True, False]]))
    assert second.jointly_best().flatten().tolist() == [2.0, 3.0, 8.0, 9.0]


# ---------------------------------------------------------------- training


def test_training_lowers_the_losses_and_repeats_itself(junction):
    traces = []
    for _ in range(2):
        model = small_model()
        first = de.train_generator(
            model.generator, junction.windows, epochs=3, generator=generator()
        )
        before = [p.clone() for p in model.generator.parameters()]
        second = de.train_ranker(
            model, junction.windows, epochs=3, generator=generator(1), batch=8
        )
        assert all(
            torch.equal(a, b) for a, b in zip(before, model.generator.parameters(), strict=True)
        )
        assert first.epochs["loss"][-1] < first.epochs["loss"][0]
        assert second.epochs["loss"][-1] < second.epochs["loss"][0]
        traces.append((first.epochs, second.epochs))
    assert traces[0] == traces[1]


@pytest.mark.parametrize("rank_samples", ["posterior", "prior"])
def test_rankers_that_share_their_samples_are_those_trained_alone(junction, rank_samples):
    def models():
        sampler = small_model().generator  # seeds what follows, too
        rankers = [de.RankRefine(12, hidden=12, social=social) for social in (False, True)]
        return [de.Desire(sampler, ranker) for ranker in rankers]

    words = ["uniform", "q"]
    options = {"epochs": 2, "batch": 8, "rank_samples": rank_samples, "augment": True}
    together, alone = models(), models()
    traces = de.model.train_rankers(
        together, junction.windows, generator=generator(1), reg_weighting=words, **options
    )
    for word, one, other, trace in zip(words, alone, together, traces, strict=True):
        own = de.train_ranker(
            one, junction.windows, generator=generator(1), reg_weighting=word, **options
        )
        assert own.epochs == trace.epochs
        pairs = zip(one.parameters(), other.parameters(), strict=True)
        assert all(torch.equal(a, b) for a, b in pairs)
    with pytest.raises(ValueError, match="same generator"):
        de.model.train_rankers(
            [*alone[:1], *together[:1]], junction.windows, generator=generator(),
            reg_weighting=words, **options,
        )  # fmt: skip


def test_a_loss_that_is_not_finite_ends_the_run(junction):
    windows = dataclasses.replace(junction.windows, future=junction.windows.future * math.inf)
    with pytest.raises(DivergenceError, match="lower lr"):
        de.train_regressor(de.Regressor(12, hidden=4), windows, epochs=1, generator=generator())


def test_a_squared_loss_finds_the_mean_of_two_modes():
    past = torch.zeros(64, 1, 8, 2)
    future = torch.zeros(64, 1, 4, 2)
    future[:48, 0, :, 0], future[48:, 0, :, 0] = 1.0, -1.0
    windows = TrajectoryWindows(
        past, future, torch.ones(64, 1, dtype=torch.bool), 0.4, torch.zeros(64, 2)
    )
    torch.manual_seed(0)
    model = de.Regressor(4, hidden=8)
    de.train_regressor(model, windows, epochs=150, generator=generator(), lr=1e-2, batch=64)
    assert model(past[:1])[0, 0, -1, 0].item() == pytest.approx(0.5, abs=0.05)


# ---------------------------------------------------------------- measures


def test_the_readings_of_ten_percent():
    truth = torch.zeros(2, 2)
    samples = torch.zeros(20, 2, 2)
    samples[:, :, 0] = torch.arange(20.0)[:, None]
    scores = torch.zeros(20)
    scores[[7, 4]] = 1.0

    def found(mode):
        return de.oracle_error(samples, truth, mode=mode, scores=scores).tolist()

    assert found("min_ranked") == [4.0, 4.0]
    assert found("mean_closest") == [0.5, 0.5]
    assert found("last_closest") == [1.0, 1.0]
    with pytest.raises(ValueError, match="mode = 'mean'"):
        found("mean")
    with pytest.raises(ValueError, match="needs the scores"):
        de.oracle_error(samples, truth, mode="min_ranked")
    with pytest.raises(ValueError, match=r"scores \(\d+,\): expected one a sample, \(\d+,\)"):
        de.oracle_error(samples, truth, mode="min_ranked", scores=scores[:-1])


def test_calibrated_scores_lie_on_the_diagonal():
    scores = normal(4000, 10)
    q = scores.softmax(-1)
    # whoever is nearest is drawn from q
    nearest = torch.multinomial(q, 1, generator=generator(1))
    distance = torch.ones_like(q).scatter(-1, nearest, 0.0)
    table = de.model.calibration(scores, q, distance)
    torch.testing.assert_close(table.predicted, table.target)
    error = (table.predicted * (1 - table.predicted) / table.count).sqrt()
    assert ((table.predicted - table.nearest).abs() < 4 * error).all()
    over = de.model.calibration(3 * scores, q, distance)
    assert over.predicted[-1] > over.nearest[-1] + 0.1


# ---------------------------------------------------------------- the junction


def test_the_past_goes_straight_whatever_the_exit():
    found = de.simulate_tjunction(200, noise_m=0.0, repulsion=NOBODY, seed=1).windows.past
    assert found.diff(dim=2).diff(dim=2).abs().max() < 1e-4


def test_exits_are_even_and_never_the_entry_or_the_missing_arm():
    found = de.simulate_tjunction(3000, seed=2)
    assert not (found.exit == found.entry).any()
    assert not (found.exit == found.missing[:, None]).any()
    assert not (found.entry == found.missing[:, None]).any()
    for arms in (found.entry, found.exit, found.missing):
        share = torch.bincount(arms.flatten(), minlength=4) / arms.numel()
        assert ((share - 0.25).abs() < 0.035).all()
    straight = ((found.exit - found.entry) % 4 == 2).double().mean()
    assert straight.item() == pytest.approx(1 / 3, abs=0.03)


def test_walkers_start_where_they_should_and_leave_where_they_meant_to(junction):
    windows = junction.windows
    assert (de.junction.arm_of(windows.past[:, :, 0]) == junction.entry).all()
    assert (de.junction.arm_of(windows.future[:, :, -1]) == junction.exit).double().mean() > 0.9
    assert junction.valid(windows.future).double().mean() > 0.95
    assert de.junction.off_walkway_rate(windows.future, windows) < 0.01


def test_the_picture_shows_three_arms():
    picture = de.junction.walkway()[:, 0]
    for missing in range(4):
        x, y = (8 * de.junction.arm_directions()).T
        column, row = (x / 0.5 + 32).long(), (y / 0.5 + 32).long()
        assert picture[missing, row, column].bool().logical_not().nonzero().item() == missing
        assert picture[missing, 32, 32] == 1
    assert picture[0, 32, 64 - 1] == 0
    assert picture[2, 32, 64 - 1] == 1


def test_paths_off_the_picture_are_off_the_walkway(junction):
    windows = junction.windows
    assert de.junction.off_walkway_rate(windows.future + 100.0, windows) == 1
    bare = dataclasses.replace(windows, raster=None)
    with pytest.raises(ValueError, match=r"windows.raster = None"):
        de.junction.off_walkway_rate(windows.future, bare)


def test_a_picture_without_a_scale_is_refused(junction):
    bare = dataclasses.replace(junction.windows, meters_per_cell=None)
    with pytest.raises(ValueError, match=r"windows.meters_per_cell = None"):
        de.junction.off_walkway_rate(bare.future, bare)
    with pytest.raises(ValueError, match=r"windows.meters_per_cell = None"):
        small_model().predict(bare, 2, 0, generator=generator())


@pytest.mark.parametrize("which", range(8))
def test_symmetries_move_picture_and_paths_together(junction, which):
    windows = junction.windows
    shifted = dataclasses.replace(
        windows, origin_m=torch.tensor([3.0, 1.0]).expand(24, 2), future=windows.future * 1.3
    )
    before = de.junction.off_walkway_rate(shifted.future, shifted)
    moved = de.model.symmetric(shifted, which)
    assert 0.05 < before < 0.95
    assert de.junction.off_walkway_rate(moved.future, moved).item() == pytest.approx(
        before.item(), abs=2e-3
    )
    if which:
        assert de.junction.off_walkway_rate(shifted.future, moved) != before


# ---------------------------------------------------------------- the scene


def test_features_are_read_where_a_path_is():
    # a feature that says where its cell lies is read back exactly by bilinear reading
    rows, columns, cell = 10, 14, 0.5
    x = (2 * torch.arange(columns) + 0.5 - columns) * cell
    y = (2 * torch.arange(rows) + 0.5 - rows) * cell
    features = torch.stack([x.expand(rows, columns), y[:, None].expand(rows, columns)])
    both = torch.stack([features, 10 * features])
    index, origin = torch.tensor([1, 0, 1]), torch.tensor([[0.5, 1.0], [0.0, 0.0], [-1.0, 0.2]])
    found = de.ranking.FeatureMap(both, index, origin, cell, (2 * rows, 2 * columns))
    points = 2 * torch.rand((3, 2, 4, 5, 2), generator=generator()) - 1
    world = points + origin[:, None, None, None]
    scale = torch.tensor([10.0, 1.0, 10.0])[:, None, None, None, None]
    torch.testing.assert_close(found.at(points), scale * world, rtol=1e-4, atol=1e-4)
    assert not found.at(points + 50.0).any()


def test_every_raster_is_encoded_once_and_only_if_used(junction):
    model = small_model()
    seen = []
    model.ranker.fusion.scene.register_forward_hook(lambda _, args, __: seen.append(len(args[0])))
    part = junction.windows[junction.missing != 2]
    features = model.ranker.fusion.encode(part)
    assert seen == [3]
    assert features.features.shape == (3, 32, 32, 32)
    back = torch.tensor([0, 1, 3])[features.index]
    assert torch.equal(back, part.raster_index)


def test_a_ranker_with_scene_needs_a_picture(junction):
    bare = dataclasses.replace(junction.windows, raster=None, raster_index=None)
    with pytest.raises(ValueError, match="channels = 0"):
        small_model().predict(bare, 2, 0, generator=generator())
    small_model(channels=0).predict(bare, 2, 0, generator=generator())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda j: de.simulate_tjunction(0), "n_scenes = 0"),
        (lambda j: de.simulate_tjunction(1, obs_len=1), "obs_len = 1"),
        (lambda j: small_model().predict(j.windows, 0, 1, generator=generator()), "at least 1"),
        (
            lambda j: de.train_ranker(
                small_model(), j.windows, epochs=1, generator=generator(), rank_samples="both"
            ),
            "rank_samples = 'both'",
        ),
        (
            lambda j: de.train_ranker(
                small_model(), j.windows, epochs=1, generator=generator(), reg_weighting="p"
            ),
            "reg_weighting = 'p'",
        ),
        (lambda j: de.load_sdd([]), "videos = "),
        (lambda j: de.load_trajnet([]), "names = "),
        (lambda j: de.load_eth_ucy(["zara9"]), "scene = 'zara9'"),
        (lambda j: de.load_eth_ucy([]), "scenes = "),
        (lambda j: de.load_sdd(["gates/8"], start_every_s=0), "start_every_s = 0"),
        (
            lambda j: de.scenes.ground_picture(tracks(Path("x.png"), torch.eye(3)), 0.0, 4),
            "extent",
        ),
        (lambda j: de.scenes.ground_picture(tracks(Path("x.png"), torch.eye(3)), 1.0, 0), "cells"),
        (lambda j: de.simulate_tjunction(1, dt_s=1e9), "dt_s = 1000000000.0"),
    ],
)
def test_bad_values_are_named_with_what_is_allowed(junction, call, message):
    with pytest.raises(ValueError, match=message):
        call(junction)


# ---------------------------------------------------------------- real scenes


def tracks(picture=None, to_pixels=None):
    position = torch.tensor([[10.0, 20.0], [30.0, 60.0]], dtype=torch.float64)
    return Tracks(
        "here", torch.tensor([0, 1]), torch.tensor([1, 1]), position, 0.4,
        picture=picture, to_pixels=to_pixels,
    )  # fmt: skip


def test_the_ground_is_cut_from_the_picture_where_the_tracks_are(tmp_path):
    from PIL import Image

    image = np.zeros((100, 80, 3), dtype=np.uint8)
    image[60:64, 28:32, 0] = 255  # a red spot at column 28 to 32, row 60 to 64
    Image.fromarray(image).save(tmp_path / "ground.png")
    # pixels are twice the unit along x and once along y: the spot is at x 14 to 16, y 60 to 64
    homography = torch.diag(torch.tensor([2.0, 1.0, 1.0], dtype=torch.float64))
    ground, middle = de.scenes.ground_picture(
        tracks(tmp_path / "ground.png", homography), 80.0, 40
    )
    assert middle.tolist() == [20.0, 40.0]
    assert ground.shape == (4, 40, 40)
    row, column = divmod(ground[1].argmax().item(), 40)
    world = (torch.tensor([column, row]) + 0.5) * 2 - 40 + middle
    assert 13 < world[0] < 17
    assert 59 < world[1] < 65
    # the picture covers x 0 to 40 and y 0 to 100 of the square from -20 and 0 on
    assert ground[0].mean().item() == pytest.approx(0.5, abs=0.03)


def test_tracks_without_a_picture_are_refused():
    with pytest.raises(ValueError, match="use_scene false"):
        de.scenes.ground_picture(tracks(), 10.0, 8)


def test_folds_of_the_junction_differ_and_repeat():
    options = {"obs_len": 6, "pred_len": 5, "n_scenes": 8, "seed": 1}
    folds = list(de.scenes.load_folds("tjunction", **options))
    again = next(de.scenes.load_folds("tjunction", **options))
    assert len(folds) == 5
    assert [len(folds[0].train), len(folds[0].test)] == [8, 2]
    assert folds[0].test.future.shape == (2, 4, 5, 2)
    assert folds[0].truth.windows is folds[0].test
    assert torch.equal(folds[0].train.past, again.train.past)
    firsts = [part.past[0, 0, 0, 0].item() for fold in folds for part in (fold.train, fold.test)]
    assert len(set(firsts)) == 10


@pytest.mark.parametrize(
    ("dataset", "options", "message"),
    [
        ("kitti", {}, "dataset = 'kitti'"),
        ("ethucy", {"pictures": True}, "use_scene = True"),
        ("trajnet", {"pictures": False, "dt_s": 0.2}, "dt_s = 0.2"),
        ("tjunction", {"n_scenes": 0}, "n_scenes = 0"),
        ("sdd", {}, "'sdd' is not in"),
        ("trajnet", {"pictures": False}, "'trajnet' is not in"),
        ("ethucy", {"pictures": False}, "'eth' is not in"),
    ],
)
def test_folds_are_refused_before_anything_is_loaded(dataset, options, message, tmp_path):
    with pytest.raises((ValueError, MissingDataError), match=message):
        de.scenes.load_folds(dataset, tmp_path, obs_len=8, pred_len=12, **options)


def test_drone_videos_that_are_missing_are_named_before_anything_is_loaded(tmp_path):
    base = tmp_path / FOLDER / "SDD"
    for video in ("gates/8", "nexus/4", "hyang/12", "quad/1", "little/0"):
        folder = base / video.replace("/", "/video")
        folder.mkdir(parents=True)
        (folder / "annotations.txt").touch()
    with pytest.raises(IncompleteDataError, match=r"it lacks deathCircle/2\."):
        de.scenes.load_folds("sdd", tmp_path, obs_len=8, pred_len=12)


def test_the_left_out_university_square_is_the_benchmarks(real_data):
    root = real_data("trajectories")
    windows = de.load_eth_ucy(["univ"], root)
    assert (len(windows), int(windows.mask.sum())) == (947, 24_334)
    assert windows.mask.sum(1).min() >= 2
    path = constant_velocity(windows.past, 12)
    assert de.ade(path, windows.future)[windows.mask].mean().item() == pytest.approx(
        0.524, abs=5e-4
    )
    assert de.fde(path, windows.future)[windows.mask].mean().item() == pytest.approx(
        1.165, abs=5e-4
    )
    alone = de.load_eth_ucy(["hotel"], root, min_agents=1)
    assert len(alone) > len(de.load_eth_ucy(["hotel"], root)) == 301


def test_pedestrians_of_a_scene_are_never_in_both_parts(real_data):
    root = real_data("trajectories")
    videos = de.scenes.sdd_videos(root)
    assert set(de.scenes.SDD_TEST) <= set(videos)
    windows = de.load_sdd(["quad/2", "quad/3"], root, cells=16)
    assert windows.raster.shape == (2, 4, 16, 16)
    assert windows.raster_index.unique().tolist() == [0, 1]
    assert windows.left_out["partial"] > 0  # those who come late or leave early are counted
    # places lie on the picture: its first channel is 1 where there is one
    here = windows.past[:, :, -1] + windows.origin_m[:, None].float()
    cell = (here / windows.meters_per_cell + 8).long().clamp(0, 15)
    covered = windows.raster[windows.raster_index[:, None], 0, cell[..., 1], cell[..., 0]]
    assert covered[windows.mask].min() > 0  # a cell at the edge is covered in part
    fold = next(de.scenes.load_folds("ethucy", root, obs_len=8, pred_len=12, pictures=False))
    alone = de.load_eth_ucy(["eth"], root)
    torch.testing.assert_close(fold.test.past, alone.past)
    assert len(fold.train) == sum(
        len(de.load_eth_ucy([name], root)) for name in ("hotel", "univ", "zara01", "zara02")
    )


def test_what_cannot_be_trained_or_drawn_is_named_at_once():
    windows, g = de.simulate_tjunction(2).windows, torch.Generator()
    sampler = de.SampleGenerator(12)
    model = de.Desire(sampler, de.RankRefine(12))
    paths, truth = torch.rand(4, 5, 3, 2), torch.rand(4, 3, 2)
    score = torch.rand(3, 4)
    train = lambda **k: de.train_generator(sampler, windows, **{"epochs": 1, "generator": g} | k)  # noqa: E731
    for call, message in {
        lambda: de.simulate_tjunction(2, dt_s=1e9): "dt_s = 1000000000.0",
        lambda: de.simulate_tjunction(2, noise_m=-1.0): "noise_m = -1.0",
        lambda: next(
            de.scenes.load_folds("tjunction", obs_len=8, pred_len=12, dt_s=1e9)
        ): "dt_s = ",
        lambda: de.scenes.load_folds(
            "tjunction", obs_len=8, pred_len=12, n_scenes=0
        ): "n_scenes = 0",
        lambda: de.scenes.load_folds("tjunction", obs_len=8, pred_len=12, seed=-1): "seed = -1",
        lambda: de.load_eth_ucy([]): "scenes = ",
        lambda: de.SampleGenerator(0): "pred_len = 0",
        lambda: de.SampleGenerator(12, latent=0): "latent = 0",
        lambda: de.Regressor(12, hidden=0): "hidden = 0",
        lambda: de.Regressor(12, unit=0.0): "unit = 0.0",
        lambda: de.Desire(sampler, de.RankRefine(12, hidden=16)): "hidden = 16",
        lambda: de.Desire(sampler, de.RankRefine(5)): "pred_len = 5",
        lambda: de.train_regressor(
            de.Regressor(5), windows, epochs=1, generator=g
        ): "pred_len = 5",
        lambda: train(epochs=-1): "epochs = -1",
        lambda: train(batch=0): "batch = 0",
        lambda: train(n_samples=0): "n_samples = 0",
        lambda: train(lr=math.nan): "lr = nan",
        lambda: model.predict(windows, generator=g, batch=0): "batch = 0",
        lambda: model.predict(windows[torch.zeros(2).bool()], generator=g): "windows",
        lambda: de.train_ranker(
            model, windows, epochs=1, generator=g, q_scale=0.0
        ): "q_scale = 0.0",
        lambda: de.RankRefine(12, channels=3).fusion.encode(windows): "channels = 3: .* have 1",
        lambda: de.oracle_error(paths, truth, mode="mean_closest", share=2.0): "share = 2.0",
        lambda: de.model.calibration(score, score, score, bins=50): "bins = 50: expected 1 to 12",
        lambda: de.ranking.log_polar_bins(torch.rand(3, 2), r_min=5.0): "r_min, r_max = 5.0, 4.0",
        lambda: de.ranking.log_polar_bins(torch.rand(3, 2), rings=0): "rings = 0",
        lambda: de.model.symmetric(windows, 8): "which = 8",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_scenes_go_where_there_is_no_double_precision(monkeypatch):
    windows = de.simulate_tjunction(2).windows
    assert windows.to("cpu").origin_m.dtype == torch.float64
    monkeypatch.setattr(trajectories.windows, "has_float64", lambda device: False)
    assert windows.to("cpu").origin_m.dtype == torch.float32


def test_the_best_path_is_the_one_of_its_own_refinement():
    samples = torch.randn(3, 2, 4, 5, 6, 2, generator=torch.Generator().manual_seed(0))
    scores = torch.randn(3, 2, 4, 5, generator=torch.Generator().manual_seed(1))
    mask = torch.tensor([[True, True, False, True], [True, False, False, False]])
    forecast = de.Forecast(samples, scores, mask)
    for iteration in (0, 1, -1):
        alone, joint = forecast.best(iteration), forecast.jointly_best(iteration)
        for scene in range(2):
            together = int(scores[iteration, scene, mask[scene]].sum(0).argmax())
            for agent in range(4):
                top = int(scores[iteration, scene, agent].argmax())
                paths = samples[iteration, scene, agent]
                assert torch.equal(alone[scene, agent], paths[top])
                assert torch.equal(joint[scene, agent], paths[together])


# ---------------------------------------------------------------- what strangers hand over


def test_what_does_not_fit_is_named_and_never_taken(junction):
    windows, model = junction.windows[:2], small_model()
    sampler, past = model.generator, junction.windows.past[0]
    forecast = model.predict(windows, 3, 1, generator=generator())
    drawn = forecast.samples[0]
    for call, message in {
        lambda: model.predict(windows, generator=0): r"generator = 0: expected a torch.Generator",
        lambda: sampler.sample(past, 3, generator=7): r"generator = 7: expected a torch.Generator",
        lambda: sampler.sample(past[0], 3, generator=generator()): r"past \(8, 2\): expected",
        lambda: sampler.sample(past.double(), 3, generator=generator()): (
            "past, weights = torch.float64, torch.float32: expected one floating dtype"
        ),
        lambda: sampler.sample(past, 0, generator=generator()): "n_samples = 0",
        lambda: de.Regressor(12)(past[0]): r"past \(8, 2\)",
        lambda: model.ranker(drawn[0], past, past): r"samples \(4, 3, 12, 2\): expected",
        lambda: model.ranker(drawn, windows.past[:, :, -1], drawn[..., 0, 0]): r"h_x \(2, 4, 3\)",
        lambda: de.log_polar_pool(past[:, 0], past[:, 0]): "expected .scenes, agents, 2",
        lambda: de.log_polar_pool(
            windows.past[:, :, 0], windows.past[:, :, 0], windows.mask.long()
        ): "mask: torch.int64, expected a boolean mask",
        lambda: dataclasses.replace(windows, mask=windows.mask.float()): "mask: torch.float32",
        lambda: dataclasses.replace(windows, mask=windows.mask[:, :2]): r"mask \(2, 2\): expected",
        lambda: forecast.best(2): "iteration = 2: expected -2 to 1",
        lambda: forecast.jointly_best(-3): "iteration = -3: expected -2 to 1",
    }.items():
        with pytest.raises(ValueError, match=message):
            call()


def test_counts_may_be_numpys(junction):
    three = np.int64(3)
    windows = de.simulate_tjunction(three, n_agents=three, seed=int(three)).windows
    assert windows.mask.shape == (3, 3)
    turned = de.model.symmetric(windows, np.int64(5))
    assert torch.equal(turned.past, de.model.symmetric(windows, 5).past)
    forecast = small_model().predict(windows, three, np.int64(1), generator=generator())
    assert forecast.samples.shape[3] == 3


def test_training_shows_a_bar_only_when_asked(junction, capsys):
    for progress in (False, True):
        model = de.SampleGenerator(12, hidden=4, latent=2)
        windows = junction.windows[:4]
        options = {"epochs": 1, "generator": generator(), "progress": progress}
        de.train_generator(model, windows, **options)
        shown = capsys.readouterr()
        assert bool(shown.out + shown.err) == progress


def test_drone_windows_say_their_unit_and_can_begin_at_another_phase(tmp_path):
    folder = tmp_path / FOLDER / "SDD" / "gates" / "video8"
    folder.mkdir(parents=True)
    rows = [
        f'{a} {5 * f} {a} {5 * f + 10} {a + 10} {f} 0 0 0 "Biker"'
        for a in range(1 + 1)
        for f in range(240 if a else 400)
    ]
    (folder / "annotations.txt").write_text("\n".join(rows))
    load = {"obs_len": 5, "pred_len": 10, "pictures": False}
    windows = de.load_sdd(["gates/8"], tmp_path, **load)
    assert windows.unit == "px/5"
    assert (windows.past[0, 0, 1] - windows.past[0, 0, 0]).tolist() == pytest.approx([12, 0])
    later = de.load_sdd(["gates/8"], tmp_path, phase=6, **load)
    shift = (later.to_world(later.past) - windows.to_world(windows.past))[0, 0, 0]
    assert shift.tolist() == pytest.approx([6, 0], abs=1e-4)
    both = de.load_sdd(["gates/8"], tmp_path, min_agents=2, **load)
    assert 0 < len(both) < len(windows)
    assert both.mask.all()


# ---------------------------------------------------------------- what a model was trained on


def trained(windows):
    model = small_model()
    de.train_generator(model.generator, windows, epochs=1, generator=generator())
    de.train_ranker(model, windows, epochs=1, generator=generator(), n_samples=2)
    return model


@pytest.mark.parametrize(
    ("change", "got"),
    [({"frame_dt_s": 0.8}, "steps of 0.8 s in m"), ({"unit": "px"}, "steps of 0.4 s in px")],
)
def test_windows_of_another_step_or_unit_are_not_forecast(junction, change, got):
    windows = junction.windows[:4]
    other = dataclasses.replace(windows, **change)
    model = trained(windows)
    for name in ("generator", "ranker"):
        assert getattr(model, name).trained_on == (0.4, "m")
        alone = small_model()  # one trained module is enough
        getattr(alone, name).trained_on = (0.4, "m")
        with pytest.raises(ValueError, match=f"^windows: {got}, expected steps of 0.4 s in m"):
            alone.predict(other, 2, 1, generator=generator())
    with pytest.raises(ValueError, match="on which the SampleGenerator was trained"):
        de.train_ranker(model, other, epochs=1, generator=generator())
    ntsc = dataclasses.replace(windows, frame_dt_s=12 / 29.97)
    assert model.predict(ntsc, 2, 1, generator=generator()).samples.isfinite().all()
    small_model().predict(other, 2, 1, generator=generator())  # untrained: nothing to go by


def test_a_saved_model_knows_what_it_was_trained_on_and_earlier_ones_load(junction, tmp_path):
    model = trained(junction.windows[:4])
    torch.save(model.state_dict(), tmp_path / "model.pt")
    state = torch.load(tmp_path / "model.pt", weights_only=True)
    assert all(isinstance(value, torch.Tensor) for value in state.values())
    again = small_model(seed=1)
    again.load_state_dict(state)
    assert again.generator.trained_on == again.ranker.trained_on == (0.4, "m")
    ranker = {k: v.half() for k, v in again.state_dict().items() if k.startswith("ranker.")}
    again.load_state_dict(ranker, strict=False)  # a part, and cast
    assert again.generator.trained_on == again.ranker.trained_on == (0.4, "m")
    again.generator.trained_on = np.float64(0.4), "m"
    again.load_state_dict(again.state_dict())
    assert again.generator.trained_on == (0.4, "m")
    again.load_state_dict(state)
    assert again.generator.trained_on == (0.4, "m")
    earlier = {name: value for name, value in state.items() if "extra" not in name}
    older = small_model(seed=1)
    older.load_state_dict(earlier)
    assert older.generator.trained_on is None
    first, second = (
        m.predict(junction.windows, 2, 1, generator=generator()).samples for m in (again, older)
    )
    assert torch.equal(first, second)
    de.train_generator(older.generator, junction.windows, epochs=0, generator=generator())
    assert older.generator.trained_on is None


def test_a_ranker_in_pixels_sees_the_neighbours_that_one_in_metres_sees():
    samples, last, h_x = normal(2, 3, 4, 5, 2), normal(2, 3, 2, seed=1), normal(2, 3, 12, seed=2)
    found = []
    for unit in (1.0, 7.0):
        torch.manual_seed(0)
        ranker = de.RankRefine(5, social=True, hidden=12, unit=unit).double()
        scores, delta = ranker(unit * samples, unit * last, h_x)
        found.append((scores, delta / unit))
    torch.testing.assert_close(*found)


def test_a_batch_larger_than_the_set_is_the_set(monkeypatch, junction):
    sizes = []
    drawn = de.model.shuffled_batches

    def seen(n, batch, *more):
        sizes.append((n, batch))
        return drawn(n, batch, *more)

    monkeypatch.setattr(de.model, "shuffled_batches", seen)
    sampler = de.SampleGenerator(12, hidden=12, latent=8)
    de.train_generator(sampler, junction.windows[:1], epochs=1, generator=generator())
    assert sizes == [(4, 4)]


def test_features_know_how_many_cells_their_raster_has(junction):
    windows = dataclasses.replace(junction.windows, raster=torch.rand(1, 2, 65, 64))
    fusion = de.ranking.SceneContextFusion(2, social=False)
    index = torch.zeros_like(windows.raster_index)
    assert fusion.encode(dataclasses.replace(windows, raster_index=index)).cells == (65, 64)


@pytest.mark.parametrize("cells", [64, 65])
def test_features_lie_where_their_cells_are_whether_even_or_odd(cells):
    along = torch.arange(cells) + 0.5 - cells / 2
    middle = torch.nn.Conv2d(1, 1, 5, stride=2, padding=2, bias=False)
    with torch.no_grad():
        middle.weight.zero_()
        middle.weight[0, 0, 2, 2] = 1
        features = middle(along.expand(1, 1, cells, cells).clone())
    where, centre = torch.zeros(1, dtype=torch.long), torch.zeros(1, 2)
    at = torch.tensor([[[-20.0, 0.0], [0.0, 3.0], [18.0, 2.0]]])
    found = de.ranking.FeatureMap(features, where, centre, 1.0, (cells, cells)).at(at)[..., 0]
    torch.testing.assert_close(found.detach(), at[..., 0], rtol=0, atol=1e-4)
