"""The closed-form world seen through denoising errors, against what a hand computes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import NOISE, kls, refs
from mmalign.samplers import kernels
from mmalign.types import Move
from mmalign.worlds import gaussian, gaussian_forward
from mmalign.worlds.gaussian_forward import GaussianForward

WORLD = gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5])


def policy(draws: int = 3, steps: int = 5) -> GaussianForward:
    return GaussianForward(gaussian.GaussianPolicy(WORLD, gaussian.flow_levels(steps), kernel=kernels.ode()), draws=draws)


def test_bounds_and_distances_are_those_of_the_velocities():
    trained = policy()
    rollout = trained.sample(["a", "b"], 2, torch.Generator().manual_seed(0))
    trained.remember(rollout, ["ref"])
    with torch.no_grad():
        trained.parameters()["shift"].fill_(0.25)
    steps = trained.steps(rollout, torch.arange(4), needs=frozenset({NOISE, kls("ref"), refs("ref")}))
    drawn = rollout.held
    for row in range(4):
        for draw in range(3):
            s = trained.of.levels.noise[drawn.places[row, draw]]
            x = (1 - s) * drawn.clean[row] + s * drawn.noise[row, draw]
            exact = WORLD.means[0] + (1 - s) * WORLD.variances[0] * (x - (1 - s) * WORLD.means[0]) / (
                (1 - s) ** 2 * WORLD.variances[0] + s**2
            )
            target = drawn.noise[row, draw] - drawn.clean[row]
            before, after = (x - exact) / s, (x - exact - 0.25) / s  # v = (x - clean) / s
            torch.testing.assert_close(steps.log_probs[row, draw], -((after - target) ** 2).sum() / 2)
            torch.testing.assert_close(steps.refs["ref"][row, draw], -((before - target) ** 2).sum() / 2)
            torch.testing.assert_close(steps.kls["ref"][row, draw], ((after - before) ** 2).sum() / 2)
            assert steps.facts["noise"][row, draw] == s
    steps.kls["ref"].sum().backward()
    assert bool((trained.parameters()["shift"].grad != 0).any())


def test_the_parameters_of_another_gaussian_denoise_as_it_does():
    trained, other = policy().of, gaussian.one_gaussian([1.2, 0.1], [0.3, 2.0])
    gaussian_forward.set_to(trained, other)
    for at in range(1, 5):
        back = gaussian_forward.implied(trained, at)
        torch.testing.assert_close(back.means, other.means)
        torch.testing.assert_close(back.variances, other.variances)


def test_a_part_of_the_prompts_has_the_rows_that_all_have():
    trained = policy()
    whole, half = (trained.sample(["a", "b"], 2, torch.Generator().manual_seed(3), part=part) for part in (slice(None), slice(1, 2)))
    assert torch.equal(whole.outputs[2:], half.outputs) and half.prompts == ["b", "b"]
    assert torch.equal(trained.steps(whole.take(torch.tensor([2, 3])), torch.arange(2)).log_probs,
                       trained.steps(half, torch.arange(2)).log_probs)  # fmt: skip


def test_rows_may_be_of_a_set_that_follows_at_a_pace_of_its_own(tmp_path):
    """``Method.sampled_by`` and ``Move.decay``: the set that samples is an average whose pace changes from step to step, here by hand."""
    trained, sampled, seen = policy(), [], []

    def watched(act, into):
        def acted(*args, **kwargs):
            into.append(float(trained.parameters()["shift"].detach().sum()))
            return act(*args, **kwargs)

        return acted

    trained.sample = watched(trained.sample, sampled)
    method = mm.methods.reward_weighted_regression()
    decay = [0.0, 0.5, 0.25]
    method = replace(method, sampled_by="slow", moves=(Move("slow", {"slow": 1.0, "current": 1.0}, decay=decay.__getitem__),))
    method = replace(method, signal=watched(method.signal, seen))
    mm.online(
        trained, ["a", "b"], {"sum": gaussian.QuadraticReward(torch.ones(2).double())}, method, steps=3,
        batch=mm.Batch(prompts=2, group=4), optimizer=mm.adamw(rate=0.1), run=mm.RunSettings(name="run", folder=str(tmp_path), trackers=()),
    )  # fmt: skip
    current, slow, wanted = seen[-3:], 0.0, []
    for step in range(3):
        slow = decay[step] * slow + (1 - decay[step]) * current[step]
        wanted.append(slow)
    assert current[1] != 0 and sampled == pytest.approx(wanted)
