"""What batching buys in DESIRE: futures, neighbours, steps and pictures, each beside a loop."""

import pytest
import torch
from torch.nn.functional import one_hot

from companion.papers import desire as de

SCENES, SAMPLES, STEPS = 32, 20, 12


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.fixture(scope="module")
def windows():
    return de.simulate_tjunction(SCENES, seed=0).windows


@pytest.mark.parametrize(("scenes", "rounds"), [(1, 50), (SCENES, 20)])
def test_futures_at_once(windows, scenes, rounds, compare):
    torch.manual_seed(0)
    sampler = de.SampleGenerator(STEPS)
    past = windows.past[:scenes].flatten(0, 1)
    z = torch.randn((len(past), SAMPLES, 48), generator=generator())

    @torch.no_grad()
    def together():
        return sampler.decode(sampler.encode(past), z, past[:, -1])

    @torch.no_grad()
    def one_by_one():
        h_x = sampler.encode(past)
        return torch.cat(
            [sampler.decode(h_x, z[:, k : k + 1], past[:, -1]) for k in range(SAMPLES)], 1
        )

    torch.testing.assert_close(together(), one_by_one(), rtol=1e-4, atol=1e-4)
    note = f"4 agents a scene, {SAMPLES} samples, {STEPS} steps"
    compare(
        f"futures of {scenes} scene(s) in one call",
        together,
        "a loop over samples",
        one_by_one,
        rounds=rounds,
        aim=1.0,
        agreement="equal to rounding",
        note=note,
    )


def test_futures_against_a_loop_over_agents(windows, compare):
    torch.manual_seed(0)
    sampler = de.SampleGenerator(STEPS)
    past = windows.past.flatten(0, 1)

    @torch.no_grad()
    def together():
        return sampler.sample(past, SAMPLES, generator=generator())

    @torch.no_grad()
    def agent_by_agent():
        draws = generator()
        return torch.cat([sampler.sample(x[None], SAMPLES, generator=draws) for x in past])

    torch.testing.assert_close(together(), agent_by_agent(), rtol=1e-4, atol=1e-4)
    compare(
        f"futures of {SCENES} scenes in one call", together, "a loop over agents", agent_by_agent, rounds=10, aim=1.0, agreement="equal to rounding",
        note=f"{len(past)} agents, {SAMPLES} samples",
    )  # fmt: skip


def one_hot_layer(position, state, layer):
    """Pooling by a dense product with one-hot cells, as it is often written."""
    bins = de.ranking.log_polar_bins(position)
    hot = one_hot(bins.clamp_min(0), 36).to(state) * (bins >= 0)[..., None]
    total = torch.einsum("bijc,bjd->bicd", hot, state)
    return layer((total / hot.sum(2).clamp_min(1)[..., None]).flatten(2))


@pytest.mark.parametrize(("agents", "rounds"), [(4, 20), (8, 10), (16, 6), (32, 4)])
def test_pooling_by_agents(agents, rounds, compare):
    scenes = 1024 // agents  # as many agents in all
    position = 0.9 * agents**0.5 * torch.randn((scenes, agents, 2), generator=generator())
    state = torch.randn((scenes, agents, 48), generator=generator(1)).requires_grad_()
    layer = torch.nn.Linear(36 * 48, 48, bias=False)

    def ours():
        near = de.ranking.Neighbours.find(de.ranking.log_polar_bins(position), 36)
        return near.projected_mean(state.flatten(0, 1), layer.weight).view(scenes, agents, 48)

    def pooled():
        return layer(de.log_polar_pool(position, state).flatten(2))

    def dense():
        return one_hot_layer(position, state, layer)

    torch.testing.assert_close(ours(), pooled(), rtol=1e-3, atol=1e-4)
    torch.testing.assert_close(ours(), dense(), rtol=1e-3, atol=1e-4)
    compare(
        f"social pooling and its layer, cell by cell, {agents} agents a scene",
        lambda: torch.autograd.grad(ours().sum(), (state, layer.weight)),
        "a one-hot einsum",
        lambda: torch.autograd.grad(dense().sum(), (state, layer.weight)),
        rounds=rounds, aim=1.0, agreement="equal to rounding",
        note=f"forward and backward, {scenes * agents} agents in all",
    )  # fmt: skip


@pytest.mark.parametrize("agents", [4, 16])
def test_index_add_by_agents(agents, compare):
    scenes = 1024 // agents
    position = 0.9 * agents**0.5 * torch.randn((scenes, agents, 2), generator=generator())
    state = torch.randn((scenes, agents, 48), generator=generator(1)).requires_grad_()

    def dense():
        bins = de.ranking.log_polar_bins(position)
        hot = one_hot(bins.clamp_min(0), 36).to(state) * (bins >= 0)[..., None]
        total = torch.einsum("bijc,bjd->bicd", hot, state)
        return total / hot.sum(2).clamp_min(1)[..., None]

    torch.testing.assert_close(de.log_polar_pool(position, state), dense(), rtol=1e-4, atol=1e-4)
    compare(
        f"log-polar pooling by index_add, {agents} agents a scene",
        lambda: torch.autograd.grad(de.log_polar_pool(position, state).sum(), state),
        "a one-hot einsum",
        lambda: torch.autograd.grad(dense().sum(), state),
        rounds=10, aim=1.0, note="without the layer, forward and backward",
    )  # fmt: skip


def ranking(windows, *, social):
    torch.manual_seed(0)
    ranker = de.RankRefine(STEPS, channels=1, social=social)
    samples = windows.future[:, :, None] + torch.randn(
        (SCENES, 4, 8, STEPS, 2), generator=generator()
    )
    h_x = torch.randn((SCENES, 4, 48), generator=generator(1))

    def step(features=None):
        features = ranker.fusion.encode(windows) if features is None else features
        scores, delta = ranker(samples, windows.past[:, :, -1], h_x, features)
        parameters = list(ranker.parameters())
        return torch.autograd.grad(scores.sum() + delta.sum(), parameters)

    return ranker, step


def test_what_interaction_costs(windows, compare):
    _, alone = ranking(windows, social=False)
    _, social = ranking(windows, social=True)
    compare(
        "a training step of the ranker with neighbours", social, "without (one fused GRU)", alone, rounds=6, aim=1.3,
        reason="states enter the next step, so that its GRU cannot be one fused call",
        note="4 agents, 8 samples; step by step, where the other is one fused GRU",
    )  # fmt: skip


def test_pictures_once_a_batch(windows, compare):
    ranker, step = ranking(windows, social=False)

    def each_scene():
        features = ranker.fusion.scene(windows.raster[windows.raster_index])
        index = torch.arange(SCENES)
        return step(
            de.ranking.FeatureMap(
                features,
                index,
                windows.origin_m,
                windows.meters_per_cell,
                windows.raster.shape[-2:],
            )
        )

    for ours, theirs in zip(step(), each_scene(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-2, atol=1e-1)
    compare(
        "a training step, each raster encoded once", step, "a raster for every scene", each_scene, rounds=6,
        aim=1.0, agreement="equal to rounding", note="4 rasters, 32 scenes",
    )  # fmt: skip


def test_growth_with_the_agents(grow):
    torch.manual_seed(0)
    ranker = de.RankRefine(STEPS, social=True)
    weights = list(ranker.parameters())

    def make(agents):
        g = generator()
        paths = 2 * torch.randn((agents // 4, 4, 8, STEPS, 2), generator=g)
        last, h_x = (torch.randn((agents // 4, 4, size), generator=g) for size in (2, 48))

        def work():
            scores, delta = ranker(paths, last, h_x)
            return torch.autograd.grad(scores.sum() + delta.sum(), weights)

        return work

    grow(
        "gradient of the ranker with neighbours, 8 samples", "agents", [16, 32, 64, 128, 256], make
    )
