from __future__ import annotations

import torch

from mmalign.methods.denoising.grpo_guard import grpo_guard
from mmalign.needs import DRIFT, OLD, STD
from mmalign.objectives import ratios
from mmalign.samplers import kernels
from mmalign.worlds import gaussian
from mmalign.worlds.gaussian import GaussianPolicy


def test_its_log_ratio_is_the_noise_times_the_move_of_the_mean_and_0_on_average() -> None:
    """On a policy that has moved: ``mean z (m - m_old)``, where the plain log-ratio is below 0 by its KL at every step."""
    world, levels = gaussian.one_gaussian([0.7, -0.3, 0.1], [0.5, 1.5, 1.0]), gaussian.flow_levels(6)
    policy = GaussianPolicy(world, levels, kernel=kernels.flow_sde())
    rollout = policy.sample(["a"], 4000, torch.Generator().manual_seed(0))
    assert not policy.steps(rollout, torch.arange(9), needs=frozenset({DRIFT})).terms["drift"].any()
    with torch.no_grad():
        policy.parameters()["shift"] += 0.3 * torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    needs = frozenset({OLD, STD, DRIFT})
    steps = policy.steps(rollout, torch.arange(4000), needs=needs).each(torch.Tensor.detach)
    paths = rollout.held
    mean, std = policy.transition(paths.states[:, :-1], torch.arange(6), paths.stochastic)
    noise = torch.where(std > 0, (paths.states[:, 1:] - paths.means) / std.clamp(min=1e-9), 0.0)
    ratio = ratios.standardised(steps)
    torch.testing.assert_close(ratio, ((noise * (mean - paths.means)).mean(-1) * steps.mask).detach(), rtol=1e-9, atol=1e-12)

    live = steps.mask[0]
    standard_error = ratio.std(0) / 4000**0.5
    assert (ratio.mean(0).abs() < 4 * standard_error)[live].all()
    plain = ratios.per_step(steps)
    biased = plain + steps.terms["drift"]
    assert (biased.mean(0).abs() < 4 * biased.std(0) / 4000**0.5)[live].all()
    assert (plain.mean(0) < -8 * plain.std(0) / 4000**0.5)[live].any()


def test_the_weight_of_a_step_is_the_inverse_of_its_length() -> None:
    world, levels = gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(4, shift=3.0)
    policy = GaussianPolicy(world, levels, kernel=kernels.flow_sde())
    rollout = policy.sample(["a"], 4, torch.Generator().manual_seed(0))
    weighed, plain = grpo_guard(), grpo_guard(reweigh="none")
    steps, signal = policy.steps(rollout, torch.arange(4), needs=weighed.needs), torch.ones(4, 1, dtype=torch.float64)
    length = (kernels.flow_time(levels)[:-1] - kernels.flow_time(levels)[1:]).expand(4, -1)
    here, there = weighed.loss(steps, signal).values, plain.loss(steps, signal).values
    torch.testing.assert_close(torch.where(steps.mask, here * length, 0.0), there)
