"""Particles against a closed-form mixture, and the ways in which weights go wrong elsewhere."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.guidance import _smc
from mmalign.guidance.particles import LOG_POTENTIALS, Particles, Rule, _current
from mmalign.guidance.particles import _tempering as tempering
from mmalign.samplers import kernels
from mmalign.types import Level
from mmalign.worlds import gaussian

MIXTURE = gaussian.Mixture(
    torch.tensor([0.7, 0.3], dtype=torch.float64), torch.tensor([[-1.0], [1.5]]).double(), torch.full((2, 1), 0.3).double()
)
REWARD = gaussian.QuadraticReward(torch.tensor([1.0], dtype=torch.float64))
KERNEL = kernels.ddim(eta=1.0)
LEVELS = gaussian.flow_levels(20)
RNG = 7


class Bare:
    """As much of a run as particles ask for between their steps."""

    seed = RNG
    trace: list = []  # noqa: RUF012


def rule(**changes):
    settings = {"scale": 1.0, "log_potential": LOG_POTENTIALS["difference"], "every": 1, "start": 0.0, "stop": 1.0, "ess": 0.5}
    return Rule(**{**settings, "select": "draw", **changes})


def filtered(rule, groups, count, *, shift=0.0, moved=0.0, seed=0):
    """Final states ``[groups, K]``, their log-weights and the estimates of ln Z, of particles on the mixture.

    moved: how far proposals go past the model's own mean, in units of the step's std.
    """
    particles = Particles(Bare(), range(groups * count), count, rule)
    rng = torch.Generator().manual_seed(seed)
    x = torch.randn((groups * count, 1), generator=rng, dtype=torch.float64)
    for i in range(20):
        t, t_next = (Level(LEVELS.signal[j], LEVELS.noise[j]) for j in (i, i + 1))
        prediction = gaussian.predict(MIXTURE, x, t)
        parents = particles.weighed((REWARD(prediction.clean) + shift).view(groups, count), rule.temper(i, 20))
        if parents is not None:
            x, prediction = x[parents], type(prediction)(*(value[parents] for value in prediction))
        mean, std = KERNEL(prediction, x, t, t_next)
        x = kernels.sample(mean + moved * std, std, torch.randn(x.shape, generator=rng, dtype=torch.float64))
        if moved:
            particles.proposed(kernels.log_prob(x, mean, std) - kernels.log_prob(x, mean + moved * std, std))
    weights = particles.finish((REWARD(x) + shift).view(groups, count))
    return x.view(groups, count), weights, particles.log_normaliser


@pytest.fixture(scope="module")
def truth():
    """``E exp(r)`` and ``E[x exp(r)] / Z`` of the sampler's own discrete chain, by plain samples without any filter."""
    x, _, _ = filtered(rule(scale=0.0, ess=0.0), 100_000, 1)
    weight = REWARD(x[:, 0, None]).exp()
    return float(weight.mean()), float((weight * x[:, 0]).mean() / weight.mean())


def test_the_chain_is_close_to_the_mixture(truth):
    assert math.log(truth[0]) == pytest.approx(float(gaussian.log_normaliser(MIXTURE, REWARD, beta=1.0)), abs=0.15)


@pytest.mark.parametrize("potential", [*LOG_POTENTIALS, "tempered", "moved"])
def test_the_normaliser_is_unbiased_and_weights_stand_for_the_tilted_distribution(truth, potential):
    changes = {"temper": tempering(0.0), "log_potential": _current, "telescopes": True} if potential == "tempered" else {}
    if potential in LOG_POTENTIALS:
        scale = {"sum": 0.02, "max": 0.1, "mean": 0.1}.get(potential, 1.0)  # they tilt by the whole path, and the last weight undoes it
        changes = {"log_potential": lambda path: scale * LOG_POTENTIALS[potential](path)} if scale != 1 else {}
    x, weights, log_z = filtered(rule(**changes), 6_000, 8, moved=0.2 if potential == "moved" else 0.0)
    estimates = log_z.exp()
    error = float(estimates.std() / len(estimates) ** 0.5)
    assert float(estimates.mean()) == pytest.approx(truth[0], abs=4 * error + 0.01 * truth[0])
    assert error < 0.03 * truth[0]
    mean = (log_z.exp()[:, None] * _smc.shares(weights) * x).sum() / log_z.exp().sum()
    assert float(mean) == pytest.approx(truth[1], abs=0.05)


@pytest.mark.parametrize("potential", LOG_POTENTIALS)
def test_a_constant_that_is_added_to_the_reward_changes_nothing(potential):
    plain = filtered(rule(log_potential=LOG_POTENTIALS[potential]), 50, 4)
    for shift in (21.0, -1000.0):
        shifted = filtered(rule(log_potential=LOG_POTENTIALS[potential]), 50, 4, shift=shift)
        assert torch.allclose(shifted[0], plain[0])
        assert torch.allclose(shifted[2] - shift, plain[2], atol=1e-6)


@pytest.mark.parametrize("height", [0.0, 21.0, 1000.0, -1000.0])
def test_weights_do_not_saturate(height):
    rewards = torch.tensor([[0.0, 0.1, 0.2, 0.3]], dtype=torch.float64) + height
    shares = _smc.shares(10 * rewards)
    assert shares[0].tolist() == pytest.approx(torch.softmax(torch.tensor([0.0, 1.0, 2.0, 3.0]), 0).tolist(), abs=1e-6)
    assert bool((_smc.effective_size(10 * rewards) < 2.5).all())
    picks = [int(_smc.one_of_each(10 * rewards, torch.Generator().manual_seed(seed))) for seed in range(300)]
    assert picks.count(3) / 300 == pytest.approx(float(shares[0, 3]), abs=0.08)


def test_systematic_resampling_gives_each_its_floor_or_ceiling_and_is_unbiased():
    weights = torch.tensor([[0.5, 0.3, 0.15, 0.05]], dtype=torch.float64).log() + 500.0
    rng, total = torch.Generator().manual_seed(0), torch.zeros(4)
    for _ in range(2000):
        children = torch.bincount(_smc.systematic(weights, rng)[0], minlength=4)
        assert bool((children - 4 * torch.tensor([0.5, 0.3, 0.15, 0.05])).abs().max() < 1)
        total += children
    assert (total / 2000).tolist() == pytest.approx([2.0, 1.2, 0.6, 0.2], abs=0.05)


def test_groups_do_not_mix_and_one_without_need_is_left_alone():
    particles = Particles(Bare(), range(8), 4, rule(ess=0.5))
    scores = torch.tensor([[0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 30.0]], dtype=torch.float64)
    assert particles.weighed(scores).tolist() == [0, 1, 2, 3, 7, 7, 7, 7]
    assert particles.log_weights[1].tolist() == [0.0] * 4


def test_weights_between_resamplings_are_kept():
    """Particles that are not resampled keep their weight: two small increments resample like one of their sum."""
    particles = Particles(Bare(), range(4), 4, rule(ess=0.3, log_potential=_current))
    small = torch.tensor([[0.0, 0.0, 0.0, 1.5]], dtype=torch.float64)
    assert particles.weighed(small) is None
    assert particles.log_weights.tolist() == small.tolist()
    assert particles.weighed(3 * small) is not None


def test_missing_scores_stand_at_the_mean_of_their_group():
    scores = torch.tensor([[1.0, float("nan"), 3.0], [float("nan")] * 3], dtype=torch.float64)
    assert _smc.imputed(scores).tolist() == [[1.0, 2.0, 3.0], [0.0, 0.0, 0.0]]
    assert _smc.best(scores).tolist() == [2, 0]
    assert _smc.best(torch.tensor([[float("nan"), -5.0]])).tolist() == [1]


def test_svdd_takes_the_best_and_das_weighs_its_moves(pipe):
    def brightness(outputs, prompts):
        return outputs.flatten(1).mean(1)

    with mm.guide(pipe, brightness, guidance="svdd", particles=3) as guided:
        pipe("a handwritten two", generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt")
    assert [tuple(event["scores"].shape) for event in guided.trace] == [(1, 3)] * 3
    images = []
    for height in (0.0, 1000.0):  # a reward's height is nothing to particles
        high = lambda outputs, prompts, height=height: brightness(outputs, prompts).double() + height  # noqa: E731
        with mm.guide(pipe, high, guidance="fk", particles=4, scale=50.0, start=0.0):
            made = pipe("a handwritten two", generator=torch.Generator().manual_seed(0), num_inference_steps=4, output_type="pt")
        images.append(made.images)
    assert torch.allclose(*images)
