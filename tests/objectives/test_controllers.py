from __future__ import annotations

import json

import pytest
import torch

from mmalign.methods.policy_gradient.ppo import ppo
from mmalign.methods.policy_gradient.ppo_max import ppo_max
from mmalign.objectives.state.controllers import AdaptiveKL, RunningSpread, Together
from tests.oracles.tables import table


def test_running_spread_is_that_of_everything_at_once() -> None:
    values, running = torch.randn(20, generator=torch.Generator().manual_seed(0), dtype=torch.float64) + 1000, RunningSpread()
    for part in values.split([1, 7, 12]):
        running.update(torch.cat([part, torch.tensor([float("nan")])]))
    assert running.mean == pytest.approx(float(values.mean())) and running.std == pytest.approx(float(values.std()))


@pytest.mark.parametrize("seen", [[], [3.0], [0.1] * 8, [float("nan")]])
def test_nothing_is_divided_by_a_spread_that_is_rounding(seen: list[float]) -> None:
    running = RunningSpread()
    running.update(torch.tensor(seen, dtype=torch.float32))
    assert running.std == 1.0


def test_beta_follows_the_kl_by_steps_that_are_limited() -> None:
    control = AdaptiveKL(beta=0.1, target=2.0, rate=0.1)
    control.update(torch.tensor([2.1, 2.1]))
    assert control.beta == pytest.approx(0.1 * (1 + 0.1 * 0.05))
    control.update(torch.tensor([50.0]))
    assert control.beta == pytest.approx(0.1 * 1.005 * 1.02)
    still = AdaptiveKL(beta=0.1, target=None)
    still.update(torch.tensor([50.0]))
    assert still.beta == 0.1


@pytest.mark.parametrize("make", [lambda: ppo(target_kl=0.01, beta=0.5), ppo_max])
def test_a_run_that_was_stopped_goes_on_as_if_it_had_not_been(make) -> None:
    """The signals of three rollouts, with the state dumped as JSON and loaded into a new method after the first."""
    through, stopped = make(), make()
    rollouts = [table("token", seed).feedback() for seed in range(3)]
    wanted = [through.signal(feedback) for feedback in rollouts]
    assert not torch.equal(wanted[1], make().signal(rollouts[1])), "the state does something"
    assert torch.equal(stopped.signal(rollouts[0]), wanted[0])
    resumed = make()
    resumed.state.load(json.loads(json.dumps(stopped.state.dump())))
    assert all(torch.equal(resumed.signal(feedback), signal) for feedback, signal in zip(rollouts[1:], wanted[1:], strict=True))


def test_states_together() -> None:
    both, again = (Together(spread=RunningSpread(), kl=AdaptiveKL(beta=0.1, target=1.0)) for _ in range(2))
    both.states["spread"].update(torch.tensor([1.0, 5.0]))
    again.load(both.dump())
    assert again.dump() == both.dump() != Together(spread=RunningSpread(), kl=AdaptiveKL(beta=0.1, target=1.0)).dump()
