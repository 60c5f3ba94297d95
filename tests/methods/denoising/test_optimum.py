"""Where methods over denoising steps end up, in a world in which the best policy is known: one Gaussian, a linear reward.

The best of ``E[r] - beta KL`` on the trained steps is ``ref exp(r / beta) / Z``, and ``chains.path_optimum`` has its shifts.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import Need
from mmalign.samplers import kernels
from mmalign.types import Feedback, Method
from mmalign.worlds import chains, gaussian
from mmalign.worlds.gaussian import GaussianPolicy, QuadraticReward
from tests.oracles.denoising import ORACLES
from tests.oracles.tables import table
from tests.test_contract import METHODS

LINEAR, BETA, ROWS = torch.tensor([1.0, -0.5], dtype=torch.float64), 0.5, 512


def small_policy(shift: float = 1.0) -> GaussianPolicy:
    levels = gaussian.flow_levels(4, shift=shift)
    return GaussianPolicy(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), levels, kernel=kernels.flow_sde())


def settled(method: Method, policy: GaussianPolicy, updates: int = 150) -> Tensor:
    """The shifts ``[T, D]`` that a method comes to, averaged over the last third; fresh rows of one group for every update."""
    generator = torch.Generator().manual_seed(3)
    shift = policy.parameters()["shift"]
    optimiser = torch.optim.Adam([shift], lr=0.05)
    tail = torch.zeros_like(shift)
    for update in range(updates):
        rollout = policy.sample(["a"], ROWS, generator)
        policy.remember(rollout, ["ref"], ROWS)
        signal = method.signal(Feedback(QuadraticReward(LINEAR)(rollout.outputs), rollout.group))
        steps = policy.steps(rollout, torch.arange(ROWS), needs=method.needs | {Need("kls")})
        optimiser.zero_grad()
        (method.weigh(steps.mask) * method.loss(steps, signal).values).sum().backward()
        optimiser.step()
        optimiser.param_groups[0]["lr"] = 0.05 * (1 - update / updates)
        tail += shift.detach() * (update >= updates * 2 / 3) / (updates / 3)
    return tail


def off(shifts: Tensor, wanted: Tensor) -> float:
    return float((shifts - wanted).norm() / wanted.norm())


PLAIN: dict[str, Any] = {"std": "none", "beta": BETA, "kl": "paper", "advantage_clip": None}
TILTED: dict[str, Callable[[], Method]] = {  # with one update for a rollout, where ratios are 1, all the others are these
    "dpok": lambda: mm.methods.dpok(alpha=2.0, beta=2 * BETA),
    "flow_dppo": lambda: mm.methods.flow_dppo(ratio="per_step", largest=0.1, **PLAIN),
}


@pytest.mark.parametrize("name", TILTED)
def test_a_kl_in_nats_leads_to_the_tilted_distribution(name: str) -> None:
    wanted, _ = chains.path_optimum(small_policy(), LINEAR, beta=BETA)
    assert off(settled(TILTED[name](), small_policy()), wanted) < 0.05


def test_guard_leads_elsewhere_by_the_std_of_each_step() -> None:
    """Its gradient is the policy gradient times ``std / D``, so that noisy steps move more than the tilted distribution's do."""
    policy = small_policy(shift=6.0)
    wanted, _ = chains.path_optimum(policy, LINEAR, beta=BETA)
    with torch.no_grad():
        stds = chains.chain(policy, policy.window(4, 0, torch.Generator()))[2]
    own = wanted * stds / policy.size
    shifts = settled(mm.methods.grpo_guard(reweigh="none", **PLAIN), policy)
    elsewhere = off(shifts, wanted * (own.norm() / wanted.norm()))
    assert off(shifts, own) < 0.06 and elsewhere > 0.1, (off(shifts, own), elsewhere)


@pytest.mark.parametrize("name", sorted(ORACLES))
def test_the_loss_depends_on_the_reward(name: str) -> None:
    """The same steps with the rewards of each group turned round: another gradient."""
    for kwargs, _ in ORACLES[name]:
        method, gradients = METHODS[name](**kwargs), []
        for sign in (1.0, -1.0):
            at = table("transition")
            feedback = at.feedback()
            signal = method.signal(Feedback(sign * feedback.rewards, feedback.group, parts=feedback.parts, pairs=feedback.pairs))
            (method.weigh(at.mask) * method.loss(at.steps(), signal).values).sum().backward()
            gradients.append(at.leaf.grad)
        assert not torch.allclose(*gradients, rtol=1e-3, atol=1e-9), kwargs
