"""Where methods on the forward process come to rest, in the world whose optimum is known: gradients of one large group, and of none.

A policy that is the exact denoiser of some Gaussian gets samples of that Gaussian; at a fixed point the expected gradient is 0, and what is
left of it is compared with the gradient at the base, of the same rewards.
"""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.samplers import kernels
from mmalign.types import Feedback
from mmalign.worlds import gaussian, gaussian_forward
from mmalign.worlds.gaussian import QuadraticReward

WORLD = gaussian.one_gaussian([0.7], [0.8])
LINEAR, QUADRATIC = QuadraticReward(torch.tensor([1.0]).double()), QuadraticReward(torch.tensor([0.5]).double(), 1.5)
LEVELS = gaussian.flow_levels(5)
ROWS = 40_000


def policy(at, samples):
    """A policy that denoises as ``at`` does, and draws rows of ``samples``."""
    inside = gaussian.GaussianPolicy(WORLD, LEVELS, kernel=kernels.ode())
    gaussian_forward.set_to(inside, at)
    return gaussian_forward.GaussianForward(inside, sampler=gaussian_forward.tilted_sampler(samples))


def gradient(method, trained, reward, seed=0):
    """Of ``shift`` and ``log_scale``, ``[2, T]``."""
    rollout = trained.sample(["a"], ROWS, torch.Generator().manual_seed(seed))
    names = sorted({need.name for need in method.needs if need.kind in ("refs", "kls")})
    for name in names:
        if name != "ref" and name not in trained.sets.tables():
            trained.sets.keep(name)
    trained.remember(rollout, names)
    feedback = Feedback(reward(rollout.outputs), rollout.group)
    steps = trained.steps(rollout, torch.arange(ROWS), needs=method.needs)
    loss = (method.weigh(steps.mask) * method.loss(steps, method.signal(feedback)).values).sum()
    loss.backward()
    found = torch.stack([trained.parameters()[name].grad[:, 0].clone() for name in ("shift", "log_scale")])
    for parameter in trained.parameters().values():
        parameter.grad = None
    return found


def test_ram_rests_at_the_tilted_distribution_of_a_linear_reward():
    tilted = gaussian.tilt(WORLD, LINEAR, beta=2.0)
    method = mm.methods.ram(scale=0.5)
    start, rest = gradient(method, policy(WORLD, WORLD), LINEAR), gradient(method, policy(tilted, tilted), LINEAR)
    assert rest.norm() < 0.03 * start.norm()
    further = gaussian.tilt(WORLD, LINEAR, beta=1.0)
    assert gradient(method, policy(further, further), LINEAR).norm() > 0.5 * start.norm()  # as far on the other side


def test_ram_stops_short_of_the_tilted_distribution_of_a_quadratic_reward():
    tilted = gaussian.tilt(WORLD, QUADRATIC, beta=1.0)
    method, there = mm.methods.ram(scale=1.0), policy(tilted, tilted)
    rest, start = gradient(method, there, QUADRATIC), gradient(method, policy(WORLD, WORLD), QUADRATIC)
    assert rest.norm() > 0.1 * start.norm()
    narrowed = there.parameters()["log_scale"].detach()[1:, 0]
    assert bool((narrowed < 0).all()) and bool((rest[1, 1:] < 0).all())  # a step against it widens again


@pytest.mark.parametrize("weight", ["none", "absolute"])
def test_nft_says_nothing_at_one_half_and_before_it_has_moved(weight):
    method = mm.methods.diffusion_nft(weight=weight, kl=0.0, beta=0.4)
    tied = lambda outputs: torch.zeros(len(outputs), dtype=torch.float64)  # noqa: E731
    assert gradient(method, policy(WORLD, WORLD), tied).norm() < 1e-12
    assert gradient(method, policy(WORLD, WORLD), LINEAR).norm() > 0.1


def test_nft_s_minimum_is_a_tilt_by_the_reward_over_beta_and_the_largest_advantage():
    """One round: rows of the base, ``previous`` at the base, the current policy at the tilt that the page derives."""
    method = mm.methods.diffusion_nft(weight="none", kl=0.0, std="none", beta=0.5, largest=6.0)
    tilted = gaussian.tilt(WORLD, LINEAR, beta=0.5 * 6.0)
    trained = policy(WORLD, WORLD)
    start = gradient(method, trained, LINEAR)
    gaussian_forward.set_to(trained.of, tilted)  # ``previous`` was kept at the base
    assert gradient(method, trained, LINEAR).norm() < 0.05 * start.norm()
    gaussian_forward.set_to(trained.of, gaussian.tilt(WORLD, LINEAR, beta=0.5 * 3.0))
    assert gradient(method, trained, LINEAR).norm() > 0.5 * start.norm()
