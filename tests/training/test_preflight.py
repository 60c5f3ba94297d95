"""The preflight passes what is sound and names what is not."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from mmalign.methods import flow_grpo
from mmalign.policies.settings import Schedule
from mmalign.samplers import kernels
from mmalign.samplers.windows import random_window
from mmalign.training.evaluations.preflight import preflight
from mmalign.training.updates.experience import Experience
from mmalign.types import Feedback, Loss, Rollout, Steps, UserError
from mmalign.worlds import gaussian
from mmalign.worlds.digits.base import untrained
from mmalign.worlds.gaussian import GaussianPolicy
from tests.helpers.flat import diffusers

METHOD = flow_grpo(ratio="per_step", clip=0.2, beta=0.1, std="none")


def small(**more: Any) -> GaussianPolicy:
    return GaussianPolicy(gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(4), kernel=kernels.flow_sde(), **more)


def flown(policy: Any, *, rewards: torch.Tensor | None = None, prompts: int = 2) -> tuple[Rollout, torch.Tensor]:
    """A rollout with its references remembered, and the signal of rewards 0, 1, 2, ... of its rows."""
    rollout = policy.sample(["a 1", "a 2", "a 3"][:prompts], 4, torch.Generator().manual_seed(0))
    policy.remember(rollout, ["ref"], 8)
    rewards = torch.arange(float(4 * prompts), dtype=torch.float64) if rewards is None else rewards
    return rollout, METHOD.signal(Feedback(rewards, rollout.group))


def whole(rollout: Rollout, signal: torch.Tensor) -> Experience:
    return Experience(rollout, signal, torch.arange(len(rollout)))


def test_a_sound_policy_passes_and_nothing_is_written() -> None:
    policy = small()
    before = {name: parameter.clone() for name, parameter in policy.parameters().items()}
    rollout, signal = flown(policy)
    checked = preflight(policy, METHOD, whole(rollout, signal), micro_rows=3)
    assert checked.difference == 0.0 and checked.kl == 0.0 and checked.gradient > 0
    assert all(torch.equal(parameter, before[name]) and parameter.grad is None for name, parameter in policy.parameters().items())


def test_a_policy_that_has_left_its_reference_passes() -> None:
    policy = small()
    with torch.no_grad():
        policy.parameters()["shift"] += 0.5
    assert preflight(policy, METHOD, whole(*flown(policy)), micro_rows=8).kl == 0.0


def test_rows_with_a_signal_are_the_ones_looked_at() -> None:
    policy = small()
    rewards = torch.tensor([1.0] * 8 + [0.0, 0.0, 0.0, 1.0], dtype=torch.float64)
    rollout, signal = flown(policy, rewards=rewards, prompts=3)
    assert preflight(policy, METHOD, whole(rollout, signal), micro_rows=4).gradient > 0
    rollout.log_probs[9] += 1.0
    with pytest.raises(UserError, match="scores 1 nats differently"):
        preflight(policy, METHOD, whole(rollout, signal), micro_rows=4)


def test_a_signal_for_each_step_and_a_window() -> None:
    policy = small(window=random_window(size=2, within=(0.0, 1.0)))
    rollout, signal = flown(policy)
    assert preflight(policy, METHOD, whole(rollout, signal.expand(-1, 4)), micro_rows=8).difference == 0.0


def other_kernel(policy: GaussianPolicy, rollout: Rollout) -> None:
    policy.kernel = kernels.flow_sde(noise_level=0.71)


def stale_old(policy: GaussianPolicy, rollout: Rollout) -> None:
    with torch.no_grad():
        policy.parameters()["shift"] += 1e-3


def not_a_number(policy: GaussianPolicy, rollout: Rollout) -> None:
    rollout.log_probs[0, 0] = torch.nan


def other_reference(policy: GaussianPolicy, rollout: Rollout) -> None:
    policy.sets.sets["ref"]["shift"] = policy.sets.sets["ref"]["shift"] + 0.1


def detached(policy: GaussianPolicy, rollout: Rollout) -> None:
    inner = policy.steps

    def steps(*args: Any, **kwargs: Any) -> Steps:
        table = inner(*args, **kwargs)
        return replace(table, log_probs=table.log_probs.detach(), kls={name: kl.detach() for name, kl in table.kls.items()})

    policy.steps = steps  # type: ignore[method-assign]


def elsewhere(policy: GaussianPolicy, rollout: Rollout) -> None:
    stranger = {"stranger": torch.nn.Parameter(torch.ones(1))}
    policy.parameters = lambda: stranger  # type: ignore[method-assign]


FAULTS: list[tuple[Callable[[GaussianPolicy, Rollout], None], str]] = [
    (other_kernel, "a recorded step scores .* nats differently at replay"),
    (stale_old, "a recorded step scores .* nats differently at replay"),
    (not_a_number, "a recorded step scores nan nats differently"),
    (other_reference, "the reference has a KL of .* nats to itself"),
    (detached, "the policy gradient is 0 although rewards differ"),
    (elsewhere, "the policy gradient is 0 although rewards differ"),
]


@pytest.mark.parametrize(("fault", "line"), FAULTS, ids=[fault.__name__ for fault, _ in FAULTS])
def test_faults_are_named(fault: Callable[[GaussianPolicy, Rollout], None], line: str) -> None:
    policy = small()
    rollout, signal = flown(policy)
    fault(policy, rollout)
    with pytest.raises(UserError, match=f"preflight: {line}") as caught:
        preflight(policy, METHOD, whole(rollout, signal), micro_rows=8)
    assert "\n" not in str(caught.value)


def test_trained_tensors_that_nothing_reaches_are_counted(recwarn: pytest.WarningsRecorder) -> None:
    policy = small()
    rollout, signal = flown(policy)
    preflight(policy, METHOD, whole(rollout, signal), micro_rows=8)
    assert not [str(warning.message) for warning in recwarn if "no gradient" in str(warning.message)]
    trained = {**policy.parameters(), "stranger": torch.nn.Parameter(torch.ones(1))}
    policy.parameters = lambda: trained  # type: ignore[method-assign]
    with pytest.warns(UserWarning, match="^policy: 1 of 3 trained tensors have no gradient on these rows, such as stranger$"):
        preflight(policy, METHOD, whole(rollout, signal), micro_rows=8)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_a_gradient_that_is_not_finite_is_named(bad: float) -> None:
    policy = small()
    rollout, signal = flown(policy)

    def loss(steps: Steps, signal: torch.Tensor) -> Loss:
        return Loss(steps.log_probs * bad, {})

    with pytest.raises(UserError, match=r"preflight: the policy gradient is (nan|inf)"):
        preflight(policy, replace(METHOD, loss=loss), whole(rollout, signal), micro_rows=8)


def test_dropout_is_caught_on_a_real_pipeline() -> None:
    pipe = untrained("dit")
    policy = diffusers(pipe, schedule=Schedule(steps=3, kernel=kernels.flow_sde()))
    rollout, signal = flown(policy)
    assert preflight(policy, METHOD, whole(rollout, signal), micro_rows=8).difference == 0.0
    pipe.transformer.patch_in.register_forward_hook(lambda layer, given, out: torch.dropout(out, 0.1, layer.training))
    assert preflight(policy, METHOD, whole(rollout, signal), micro_rows=8).difference == 0.0
    pipe.transformer.train()
    torch.nn.init.normal_(pipe.transformer.patch_out.weight, std=0.1)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        rollout, signal = flown(policy)
        with pytest.raises(UserError, match="the usual causes: dropout or another module in training mode"):
            preflight(policy, METHOD, whole(rollout, signal), micro_rows=8)


def test_a_look_leaves_what_a_method_has_learnt_as_it_was() -> None:
    from mmalign.methods import lcpo

    policy, method = small(), lcpo(beta=1.0, reliability=0.8)
    rollout, _ = flown(policy)
    pairs = torch.arange(8).view(-1, 2)
    signal = method.signal(Feedback(torch.zeros(8, dtype=torch.float64), rollout.group, pairs=pairs))
    with torch.no_grad():
        policy.parameters()["shift"] += 0.5  # the policy has an opinion, which would move the reliability
    rollout.log_probs = policy.steps(rollout, torch.arange(8)).log_probs.detach()
    before = method.state.dump()
    preflight(policy, method, whole(rollout, signal), micro_rows=8)
    assert method.state.dump() == before and before["values"] == [0.8]
