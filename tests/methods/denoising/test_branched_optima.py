"""Where methods on branches end up: one Gaussian, a linear reward, and rollouts of one random step each, whose best policy is known."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.needs import MASK, SLOPE, STD, Need
from mmalign.objectives.feedback import comparisons
from mmalign.samplers import branches, kernels
from mmalign.samplers.windows import everything, growing_window
from mmalign.types import Feedback, Method, Prediction, Steps
from mmalign.worlds import chains, gaussian
from mmalign.worlds.gaussian import GaussianPolicy, QuadraticReward
from tests.methods.denoising.test_optimum import BETA, LINEAR, off

PLAIN: dict[str, Any] = {"std": "none", "beta": BETA, "kl": "paper", "ratio": "per_step", "clip": 0.2, "advantage_clip": None}


def small_policy(**structure: Any) -> GaussianPolicy:
    levels = gaussian.flow_levels(4, shift=6.0)
    return GaussianPolicy(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), levels, kernel=kernels.flow_sde(), **structure)


def table_of(policy: GaussianPolicy, method: Method, group: int, prompts: int, soft: bool) -> tuple[Steps, Tensor]:
    """Steps of the rows that an update would take, and their signal. soft: pairs of two rows each, with Bradley-Terry's labels."""
    rollout = policy.sample(["a"] * prompts, group, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"])
    rewards, rows = QuadraticReward(LINEAR)(rollout.outputs), torch.arange(len(rollout))
    tables = {MASK: rollout.mask, STD: rollout.facts["std"], SLOPE: rollout.facts["slope"]}
    feedback = Feedback(rewards, rollout.group, tables=tables, branch=rollout.branch)
    if soft:
        pairs = rows.view(-1, 2)
        feedback = replace(feedback, pairs=pairs, strength=rewards[pairs].diff(dim=1)[:, 0].neg().sigmoid())
    elif method.unit == "pair":
        feedback = (method.pairs or comparisons.best_and_worst)(feedback)
    if feedback.pairs is not None:
        rows = feedback.pairs.flatten()
    elif method.keep is not None:
        rows = torch.nonzero(method.keep(feedback)).flatten()
    return policy.steps(rollout, rows, needs=method.needs | {Need("kls")}), method.signal(feedback)[rows]


def pull(method: Method, policy: GaussianPolicy, shifts: Tensor, *, group: int, prompts: int, soft: bool = False) -> Tensor:
    """The gradient ``[T, D]`` by the shifts where these are; the same draws for all shifts."""
    shift = policy.parameters()["shift"]
    shift.data, shift.grad = shifts.clone(), None
    steps, signal = table_of(policy, method, group, prompts, soft)
    (method.weigh(steps.mask) * method.loss(steps, signal).values).sum().backward()
    assert shift.grad is not None
    return shift.grad.clone()


def rest(method: Method, policy: GaussianPolicy, *, group: int, prompts: int) -> Tensor:
    """Where the gradient is 0, for methods of which it is a linear function of each shift: the KL's is, and the reward's is constant."""
    ones = torch.ones(4, 2, dtype=torch.float64)
    here, there = (pull(method, policy, shifts, group=group, prompts=prompts) for shifts in (0 * ones, ones))
    return torch.where(there == here, 0.0, here / torch.where(there == here, 1.0, here - there))


@torch.no_grad()
def best_of_one_step(policy: GaussianPolicy, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """The shifts that maximise ``E[r] - beta KL`` of rows that are random in one step, and std and slope of the steps, ``[T, D]`` each.

    As ``chains.path_optimum``, with what the ODE, and not the SDE, carries from a step to the end.
    """
    window = policy.window(4, 0, torch.Generator())
    gains, stds = chains.chain(policy, torch.zeros(4, dtype=torch.bool))[0], chains.chain(policy, window)[2]
    t, t_next = policy.between(torch.arange(4))
    ones = torch.ones_like(gains)
    moved, _ = policy.kernel(Prediction(ones, -t.signal / t.noise * ones), 0 * ones, t, t_next)
    after = torch.cat([gains.flip(0).cumprod(0).flip(0)[1:], ones[:1]])
    shifts = torch.where(stds > 0, after * stds**2 * LINEAR / (beta * torch.where(moved == 0, 1.0, moved)), 0.0)
    return shifts, stds, kernels.of_step(policy.kernel, t, t_next)[1].expand(4, 2)


def over_mean(weights: Tensor, steps: Sequence[int] = (0, 1, 2)) -> Tensor:
    return weights / weights[list(steps)].mean()


CHILDREN = 32
OF_BRANCH = BETA * (CHILDREN - 1) / CHILDREN  # a mean that includes the row itself takes (G - 1) / G of the reward


@pytest.mark.parametrize("weigh", ["none", "noise"])
def test_tempflow_rests_at_the_best_policy_of_one_noise_or_that_times_each_step_s_std(weigh: str) -> None:
    policy = small_policy(branches=branches.at_each_step(children=CHILDREN))
    method = mm.methods.tempflow_grpo(weigh=weigh, **{**PLAIN, "beta": OF_BRANCH})
    wanted, stds, _ = best_of_one_step(policy, BETA)
    shifts = rest(method, policy, group=3 * CHILDREN, prompts=100)
    rests = wanted * over_mean(stds) if weigh == "noise" else wanted
    assert off(shifts, rests) < 0.05, off(shifts, rests)
    if weigh == "noise":
        assert off(shifts, wanted * (rests.norm() / wanted.norm())) > 0.1  # no tilt of the reference


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("rectify", [False, True])
def test_flash_rests_there_too_but_for_its_weights(rectify: bool, shared: bool) -> None:
    policy = small_policy(branches=branches.one_step(shared=shared))
    method = mm.methods.flash_grpo(rectify=rectify, **{**PLAIN, "beta": BETA * 63 / 64})
    wanted, stds, slopes = best_of_one_step(policy, BETA)
    shifts = rest(method, policy, group=64, prompts=150)
    rests = wanted * over_mean(torch.where(slopes > 0, stds / slopes, 0.0)) if rectify else wanted
    assert off(shifts, rests) < 0.08, off(shifts, rests)


def test_d3po_with_soft_labels_of_one_step_comes_to_the_tilted_distribution_and_of_several_stops_short() -> None:
    method = mm.methods.d3po(beta=0.5, clip=None, ratio="per_step")
    one, several = small_policy(branches=branches.one_step(shared=True)), small_policy(branches=branches.fork(children=2))
    for policy, wanted in ((one, best_of_one_step(one, 0.5)[0]), (several, chains.path_optimum(several, LINEAR, beta=0.5)[0])):
        start, end = (pull(method, policy, share * wanted, group=2, prompts=1500, soft=True) for share in (0.0, 1.0))
        along = float((end * wanted).sum() / (start * wanted).sum())
        assert abs(along) < 1e-9 if policy is one else along < -0.01, along  # back again: it rests before


@pytest.mark.parametrize("name", ["d3po", "step_aware_po"])
def test_hard_labels_drift_and_the_clip_holds_them(name: str) -> None:
    own = name == "step_aware_po"
    policy = small_policy(branches=branches.candidates(children=2) if own else branches.fork(children=2), random=everything())
    wanted, more = best_of_one_step(policy, 1.0)[0], {"gap": 0.0} if own else {}
    pulls = {}
    for clip in (None, 0.1):
        method = getattr(mm.methods, name)(beta=1.0, clip=clip, ratio="per_step", **more)
        of_shares = (pull(method, policy, share * wanted, group=6 if own else 2, prompts=200 if own else 600) for share in (0.0, 0.5, 1.0))
        pulls[clip] = [float((of_share * wanted).sum()) for of_share in of_shares]
    assert pulls[None][0] < pulls[None][1] < pulls[None][2] < 0, pulls  # ever on, ever slower
    assert pulls[0.1][0] == pulls[None][0] and max(map(abs, pulls[0.1][1:])) < 0.06 * abs(pulls[None][0]), pulls


def test_b2_diffurl_goes_on_along_the_reward_wherever_it_is() -> None:
    policy = small_policy(branches=branches.fork(children=3), window=growing_window(smallest=3, largest=3), random=everything())
    method = mm.methods.b2_diffurl(ratio="per_step")
    for distance in (0.0, 1.0, 4.0):
        shifts = distance * LINEAR.expand(4, 2)
        assert float((pull(method, policy, shifts, group=3, prompts=256) * LINEAR).sum()) < 0
