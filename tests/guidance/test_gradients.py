"""Gradients against a world in closed form: a Gaussian whose tilt by a linear reward is a Gaussian again."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

import mmalign as mm
from mmalign.guidance.gradients import tfg
from mmalign.guidance.ledger import Ledger
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.samplers import kernels
from mmalign.types import Level
from mmalign.worlds import gaussian

BASE = gaussian.one_gaussian([0.5, -0.5], [1.0, 1.0])
REWARD = gaussian.QuadraticReward(torch.tensor([0.7, -0.3], dtype=torch.float64))


class World:
    """As much of a run as gradients ask for, where latents are their own outputs."""

    def __init__(self, total):
        self.pipe = SimpleNamespace(scheduler=SimpleNamespace(schedule=range(total)))
        self.ledger, self.rewards, self.weights = Ledger(), {"linear": REWARD}, {}

    def decode(self, latents, rows):
        return latents

    def score(self, outputs, rows, **columns):
        return REWARD(outputs)

    def score_latents(self, latents, rows):
        return REWARD(latents)


def sampled(guidance, steps=100, count=4000):
    levels, world = gaussian.flow_levels(steps), World(steps)
    x = torch.randn((count, 2), generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    for i in range(steps):
        t, t_next = (Level(levels.signal[j], levels.noise[j]) for j in (i, i + 1))
        x = x.detach().requires_grad_()
        moment = Moment(i, steps - i, t, t_next, x, gaussian.predict(BASE, x, t))
        prediction = guidance.change(world, moment, range(count))
        x = kernels.ode()(prediction, x, t, t_next)[0].detach()
    return x, world


@pytest.mark.parametrize("settings", [{"mu": 0.0}, {"rho": 0.0}, {"rho": 0.5, "mu": 0.5}, {"rho": 0.0, "mu": 0.5, "steps": 2}])
def test_a_linear_reward_moves_a_gaussian_of_unit_variance_as_its_tilt_does(settings):
    """rho and mu are of one unit: scale, which is 1 / beta. The step of pure noise is left out, which costs a little."""
    wanted = gaussian.tilt(BASE, REWARD, beta=1 / 1.5)
    x, world = sampled(tfg(scale=1.5, limit=None, **settings))
    assert x.mean(0).tolist() == pytest.approx(wanted.means[0].tolist(), abs=0.08)
    assert x.var(0).tolist() == pytest.approx([1.0, 1.0], abs=0.08)
    assert (world.ledger.gradients > 0) == (settings.get("rho", 1.0) > 0)


def test_an_average_over_noise_is_the_same_for_a_linear_reward():
    plain, _ = sampled(tfg(scale=1.0, mu=0.0, limit=None), steps=30, count=200)
    noisy, _ = sampled(tfg(scale=1.0, mu=0.0, samples=3, sigma=0.5, limit=None), steps=30, count=200)
    assert torch.allclose(plain, noisy, atol=1e-6)


def test_the_limit_holds_and_the_interval_too():
    x, _ = sampled(tfg(scale=1e6, mu=0.0, limit=0.01), steps=20, count=50)
    plain, _ = sampled(tfg(scale=0.0), steps=20, count=50)
    assert 0 < float((x - plain).abs().max()) < 0.02 * 20
    none, world = sampled(tfg(scale=1.0, start=1.0, stop=1.0), steps=20, count=50)
    assert torch.equal(none, plain) and world.ledger.gradients == 0


def test_rows_without_a_finite_gradient_go_on_without_it():
    class Broken(World):
        def score_latents(self, latents, rows):
            return REWARD(latents) + torch.where(torch.arange(len(latents)) == 0, float("nan"), 0.0)

    t, t_next = Level(torch.tensor(0.4), torch.tensor(0.6)), Level(torch.tensor(0.6), torch.tensor(0.4))
    x = torch.randn((3, 2), dtype=torch.float64, requires_grad=True)
    world = Broken(5)
    moment = Moment(2, 3, t, t_next, x, gaussian.predict(BASE, x, t))
    prediction = tfg(scale=1.0, mu=0.0).change(world, moment, range(3))
    moved = (prediction.clean - moment.prediction.clean).abs().sum(1)
    assert float(moved[0].detach()) == 0 and bool((moved[1:] > 0).all()) and world.ledger.failed == 1


def test_nrg_reads_noisy_latents_with_their_level_and_decodes_nothing(pipe):
    seen = []

    def reward(latents, prompts, level):
        seen.append(float(level.noise))
        return latents.flatten(1).sum(1)

    call = {"generator": torch.Generator().manual_seed(0), "num_inference_steps": 4, "output_type": "pt"}
    plain = pipe("a handwritten six", **call).images
    call["generator"] = torch.Generator().manual_seed(0)
    with mm.guide(pipe, reward, guidance="nrg", scale=0.3) as guided:
        images = pipe("a handwritten six", **call).images
    assert seen == pytest.approx([0.667, 0.334, 0.001], abs=1e-3) and float(images.mean()) > float(plain.mean())
    assert guided.ledger.decodes == 1 and guided.ledger.gradients == 0 and guided.ledger.reward_gradients == 3
