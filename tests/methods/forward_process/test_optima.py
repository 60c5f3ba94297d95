"""Where methods on the forward process come to rest, in the world whose optimum is known: gradients of one large group, and of none.

A policy that is the exact denoiser of some Gaussian gets samples of that Gaussian; at a fixed point the expected gradient is 0, and what is
left of it is compared with the gradient at the base, of the same rewards.
"""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

import mmalign as mm
from mmalign.needs import kls, refs
from mmalign.samplers import kernels
from mmalign.types import Feedback, Steps
from mmalign.worlds import gaussian, gaussian_forward
from mmalign.worlds.gaussian import QuadraticReward
from tests.oracles import forward_process
from tests.oracles.tables import table

WORLD = gaussian.one_gaussian([0.7], [0.8])
LINEAR, QUADRATIC = QuadraticReward(torch.tensor([1.0]).double()), QuadraticReward(torch.tensor([0.5]).double(), 1.5)
LEVELS = gaussian.flow_levels(5)
ROWS = 12_288


def policy(at, samples):
    """A policy that denoises as ``at`` does, and draws rows of ``samples``."""
    inside = gaussian.GaussianPolicy(WORLD, LEVELS, kernel=kernels.ode())
    gaussian_forward.set_to(inside, at)
    return gaussian_forward.GaussianForward(inside, sampler=gaussian_forward.tilted_sampler(samples))


def gradient(method, trained, reward, size=ROWS):
    """Of ``shift`` and ``log_scale``, ``[2, T]``. size: rows of a group."""
    rollout = trained.sample(["a"] * (ROWS // size), size, torch.Generator().manual_seed(0))
    names = sorted({need.name for need in method.needs if need.kind in ("refs", "kls")})
    for name in names:
        if name != "ref" and name not in trained.sets.tables():
            trained.sets.keep(name)
    trained.remember(rollout, names)
    signal, weight = method.signal(Feedback(reward(rollout.outputs), rollout.group)), method.weigh(rollout.mask)
    for rows in torch.arange(ROWS).split(512 if method.unit == "group" else ROWS):
        steps = trained.steps(rollout, rows, needs=method.needs)
        (weight[rows] * method.loss(steps, signal[rows]).values).sum().backward()
    slopes = torch.stack([trained.parameters()[name].grad[:, 0].clone() for name in ("shift", "log_scale")])
    for parameter in trained.parameters().values():
        parameter.grad = None
    return slopes


def test_ram_rests_at_the_tilted_distribution_of_a_linear_reward():
    tilted = gaussian.tilt(WORLD, LINEAR, beta=2.0)
    method = mm.methods.ram(scale=0.5)
    start, rest = gradient(method, policy(WORLD, WORLD), LINEAR), gradient(method, policy(tilted, tilted), LINEAR)
    assert rest.norm() < 0.08 * start.norm()
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
    assert gradient(method, trained, LINEAR).norm() < 0.1 * start.norm()
    gaussian_forward.set_to(trained.of, gaussian.tilt(WORLD, LINEAR, beta=0.5 * 3.0))
    assert gradient(method, trained, LINEAR).norm() > 0.5 * start.norm()


def test_awm_rests_where_ram_does():
    """At the tilt by advantages over ``kl``: reward - mean over ``largest``, here 4 and not reached."""
    method = mm.methods.awm(std="none", largest=4.0, kl=0.5)
    tilted = gaussian.tilt(WORLD, LINEAR, beta=0.5 * 4.0)
    trained = policy(tilted, tilted)
    start, rest = gradient(method, policy(WORLD, WORLD), LINEAR), gradient(method, trained, LINEAR)
    assert rest.norm() < 0.1 * start.norm()
    other = gradient(mm.methods.awm(std="none", largest=4.0, kl=0.5, weight="noise"), policy(tilted, tilted), LINEAR)
    assert other.norm() > 0.2 * start.norm()


def test_dgpo_has_no_place_to_rest_without_its_pull_and_a_group_s_own_constant_moves_nothing():
    method = mm.methods.dgpo(kl=0.0, clip=None, beta=2.0)
    start = gradient(method, policy(WORLD, WORLD), LINEAR, 16)
    onward = []
    for beta in (2.0, 1.0, 0.5):
        tilted = gaussian.tilt(WORLD, LINEAR, beta=beta)
        onward.append(float((gradient(method, policy(tilted, tilted), LINEAR, 16) * start).sum() / start.norm() ** 2))
    assert 0.6 > onward[0] > onward[1] > onward[2] > 0.01  # ever slower
    rewards, group = torch.tensor([0.0, 1.0, 3.0]).double(), torch.zeros(3, dtype=torch.int64)
    bounds = torch.tensor([[-1.0], [-2.0], [-0.5]]).double().requires_grad_()
    signal = method.signal(Feedback(rewards, group))
    gradients = []
    for constant in (0.0, 5.0):
        bases = {"ref": torch.tensor([[-1.5], [-1.0], [-0.25]]).double() + constant}
        steps = Steps(bounds, torch.ones(3, 1, dtype=torch.bool), refs=bases, kind="bound")
        gradients.append(torch.autograd.grad(method.loss(steps, signal).values.sum(), bounds)[0])
    torch.testing.assert_close(*gradients, rtol=1e-12, atol=0)


def test_crd_s_minimum_for_small_rewards():
    """``shift = c s^2 / (2 beta)`` at noise level s, c the reward's slope in R: not the tilt's, which is the posterior variance times c."""
    method = mm.methods.crd(weight="none", kl=0.0, std="none", beta=0.5, largest=50.0)
    trained = policy(WORLD, WORLD)
    start = gradient(method, trained, LINEAR, 16)
    with torch.no_grad():
        trained.parameters()["shift"][:, 0] = (1 / (2 * 50.0)) * LEVELS.noise[:-1] ** 2 / (2 * 0.5)
    assert gradient(method, trained, LINEAR, 16).norm() < 0.2 * start.norm()
    gaussian_forward.set_to(trained.of, gaussian.tilt(WORLD, LINEAR, beta=2 * 50.0))
    assert gradient(method, trained, LINEAR, 16).norm() > 0.3 * start.norm()


def test_distillation_s_exact_form_goes_to_the_teacher_and_its_policy_gradient_form_nowhere():
    """On random denoising steps: the gradient of the exact KL, and E[KL grad log pi] with the KL of the same step, detached."""
    chain = gaussian.GaussianPolicy(WORLD, LEVELS, kernel=kernels.flow_sde())
    gaussian_forward.set_to(chain, gaussian.tilt(WORLD, LINEAR, beta=1.0))
    chain.sets.keep("teacher")
    gaussian_forward.set_to(chain, WORLD)
    rollout = chain.sample(["a"], ROWS, torch.Generator().manual_seed(0))
    chain.remember(rollout, ["teacher"])
    method = mm.methods.diffusion_opd(per_scalar=False)
    steps = chain.steps(rollout, torch.arange(ROWS), torch.arange(4), needs=frozenset({kls("teacher"), refs("teacher")}))
    signal = method.signal(Feedback(torch.zeros(ROWS).double(), rollout.group))
    exact = (method.weigh(steps.mask) * method.loss(steps, signal).values).sum()
    shift = chain.parameters()["shift"]
    detached = (method.weigh(steps.mask) * steps.kls["teacher"].detach() * steps.log_probs).sum()
    sampled = (method.weigh(steps.mask) * (steps.log_probs - steps.refs["teacher"]).detach() * steps.log_probs).sum()
    truth, nothing, score = (torch.autograd.grad(loss, shift, retain_graph=True)[0][:4] for loss in (exact, detached, sampled))
    assert truth.norm() > 0.05 and nothing.norm() < 0.05 * truth.norm()
    assert (score - truth).norm() < 0.2 * truth.norm()
    gaussian_forward.set_to(chain, gaussian.tilt(WORLD, LINEAR, beta=1.0))
    there = method.loss(chain.steps(rollout, torch.arange(9), torch.arange(4), needs=frozenset({kls("teacher")})), signal[:9]).values
    assert float(there.detach().abs().max()) < 1e-20


ONLINE = [name for name in forward_process.ORACLES if name != "diffusion_opd"]


@pytest.mark.parametrize("name", [*ONLINE, "raft", "reward_weighted_regression"])
def test_the_gradient_depends_on_the_rewards(name):
    """Also where the current policy is the one that sampled, and the loss itself does not."""
    method, at = getattr(mm.methods, name)(), table("bound")
    steps = at.steps(method.needs)
    gradients = []
    for rewards in (at.rewards, -at.rewards):
        bounds = at.log_probs.detach().requires_grad_()
        references, distances = dict.fromkeys(steps.refs, bounds.detach()), dict.fromkeys(steps.kls, 0 * bounds)
        same = replace(steps, log_probs=bounds, refs=references, kls=distances)
        signal = method.signal(replace(at.feedback(), rewards=rewards))
        (slopes,) = torch.autograd.grad((method.weigh(steps.mask) * method.loss(same, signal).values).sum(), bounds)
        gradients.append(slopes)
    assert (gradients[0] - gradients[1]).norm() > 0.1 * gradients[0].norm() > 0
