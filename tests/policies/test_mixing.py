"""Rows of a group that somebody else draws, with a pipeline: each step's mean and noise against what the parameter sets say of it."""

from __future__ import annotations

import pytest
import torch

from mmalign.needs import OLD
from mmalign.policies.pipelines.rollouts.replay import transition
from mmalign.samplers import kernels
from mmalign.types import Behavior
from tests.policies.test_diffusers import make, shaken

BEHAVIORS = (
    Behavior("mixture", {"current": 0.7, "ref": 0.3}, part=0.25),
    Behavior("ref", {"ref": 1.0}, part=0.25),
    Behavior("greedy", {"current": 1.0}, part=0, greedy=True),
)


def drawn_by(policy, rollout, row, column, shares):
    """Mean and std of a recorded step under a mixture of sets."""
    mean = torch.zeros(())
    for name, share in shares.items():
        with policy.using(name), torch.no_grad():
            own_mean, std, *_ = transition(policy, rollout, torch.tensor([row]), column)
            mean = mean + share * own_mean[0]
    return mean, std


@pytest.mark.parametrize(("name", "more"), [("digits", {}), ("sd3", {"lora": {"rank": 2}}), ("stable_diffusion", {"rows_at_once": 3})])
def test_every_step_is_drawn_by_the_one_whose_seat_it_is(name, more):
    policy = make(name, **more)
    if more.get("lora"):
        with torch.no_grad():
            for number, p in enumerate(policy.parameters().values()):
                p += 0.05 * torch.randn(p.shape, generator=torch.Generator().manual_seed(number))
    else:
        shaken(policy.pipe)
    rollout = policy.sample(["a 1", "a 2"], 4, torch.Generator().manual_seed(0), behaviors=BEHAVIORS)
    seeds = torch.randint(2**62, (10,), generator=torch.Generator().manual_seed(0)).tolist()
    shares = [{"current": 1.0}, {"current": 1.0}, BEHAVIORS[0].shares, BEHAVIORS[1].shares]
    assert rollout.group.tolist() == [0] * 5 + [1] * 5
    assert {name: rows.nonzero().flatten().tolist() for name, rows in rollout.drawn.items()} == {
        "mixture": [2, 7],
        "ref": [3, 8],
        "greedy": [4, 9],
    }
    for row in (0, 2, 3, 7, 8):
        noise = torch.Generator().manual_seed(seeds[row] ^ 0x5DEECE66D)
        for column in range(3):
            mean, std = drawn_by(policy, rollout, row, column, shares[row % 5])
            wanted = kernels.sample(mean, std.reshape(-1)[0], torch.randn(mean.shape, generator=noise))
            torch.testing.assert_close(rollout.held.x_next[column][row], wanted, rtol=1e-4, atol=1e-4)
    others, _ = drawn_by(policy, rollout, 2, 0, BEHAVIORS[1].shares)
    mixed, _ = drawn_by(policy, rollout, 2, 0, BEHAVIORS[0].shares)
    assert float((others - mixed).abs().max()) > 1e-3  # the sets are not the same


def test_what_the_current_policy_says_is_recorded_of_every_row_and_greedy_ones_have_no_step():
    policy = make("digits")
    shaken(policy.pipe)
    rollout = policy.sample(["a 1", "a 2"], 4, torch.Generator().manual_seed(0), behaviors=BEHAVIORS)
    steps = policy.steps(rollout, torch.arange(10), needs=frozenset({OLD}))
    assert float((steps.log_probs - steps.old)[steps.mask].abs().max()) < 1e-6 * steps.event_size
    assert rollout.mask.any(1).tolist() == [True, True, True, True, False] * 2
    ode = policy.sample(["a 1"], 1, torch.Generator().manual_seed(0), behaviors=(BEHAVIORS[2],)).outputs[1]
    again = policy.sample(["a 1"], 1, torch.Generator().manual_seed(0), behaviors=(BEHAVIORS[2],)).outputs[1]
    assert torch.equal(ode, again)
    for column in range(4):
        x, x_next = (getattr(rollout.held, key)[column][4] for key in ("x", "x_next"))
        with torch.no_grad():
            mean = transition(policy, rollout, torch.tensor([4]), column).mean
        assert not torch.equal(x, x_next) and (column == 3 or not torch.allclose(mean[0], x_next))


def test_the_hooks_are_gone_afterwards():
    policy = make("digits")
    shaken(policy.pipe)
    before = policy.sample(["a 1"], 2, torch.Generator().manual_seed(1)).outputs
    policy.sample(["a 1"], 4, torch.Generator().manual_seed(0), behaviors=BEHAVIORS[:2])
    assert torch.equal(policy.sample(["a 1"], 2, torch.Generator().manual_seed(1)).outputs, before)
    assert not any(module._forward_hooks for module in policy.denoisers.values())
