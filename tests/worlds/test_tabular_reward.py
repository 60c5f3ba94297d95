"""Reward models with a likelihood of regrets: their value function against dynamic programming, and what they learn of beginnings."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import mmalign as mm
from mmalign.records import RefusedRow
from mmalign.types import UserError
from mmalign.worlds.tabular import mdp
from mmalign.worlds.tabular.pairs import utilities
from mmalign.worlds.tabular.walks import read

WORLD = mdp.grid(starts="S.t")
TRUE = WORLD.reward({"goal": 1.0})


def random_reward(policy: Any, seed: int = 0) -> None:
    with torch.no_grad():
        policy.head.reward.normal_(generator=torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("by", ["return", "regret"])
def test_a_score_is_what_the_world_says_of_an_episode_under_the_learned_reward(by: Any) -> None:
    policy: Any = mm.worlds.tabular_reward(world=WORLD, by=by)
    random_reward(policy)
    paid = policy.head.reward.detach()[..., None].expand_as(WORLD.transitions)
    for pair in mm.worlds.tabular_pairs(world=WORLD, count=4, length=3):
        assert len(pair.first.split()) <= 6
        states, actions = read(WORLD, pair.prompt, pair.first)
        rows, done, live = torch.zeros(1, 17).long(), torch.zeros(1, 16).long(), torch.arange(16)[None] < len(actions)
        rows[0, : len(states)], done[0, : len(actions)] = torch.tensor(states), torch.tensor(actions)
        wanted = utilities(WORLD, paid, rows, done, live, by)
        torch.testing.assert_close(policy.score([pair.prompt], [pair.first])[:, 0], wanted, rtol=0, atol=1e-12)


def test_the_gradient_goes_through_the_value_function() -> None:
    policy: Any = mm.worlds.tabular_reward(world=WORLD)
    random_reward(policy)
    (pair,) = mm.worlds.tabular_pairs(world=WORLD, count=1, length=3)
    rollout = policy.encode([pair.prompt], [pair.first], torch.tensor([0]), None)

    def score() -> Tensor:
        return policy.of_rows(rollout, torch.tensor([0]))[0, 0]  # type: ignore[no-any-return]

    (slope,) = torch.autograd.grad(score(), policy.head.reward)
    for place in ((0, 0), (0, 3), (5, 2), (9, 1)):
        ends = []
        for step in (1e-6, -1e-6):
            with torch.no_grad():
                policy.head.reward[place] += step
                ends.append(float(score()))
                policy.head.reward[place] -= step
        assert float(slope[place]) == pytest.approx((ends[0] - ends[1]) / 2e-6, abs=1e-6)
    assert int((slope != 0).sum()) > 3  # more than what was done: what could have been


def fitted(policy: Any, pairs: Any) -> None:
    """Bradley and Terry's likelihood of all pairs at once, by 150 steps of Adam."""
    prompts, outputs = [pair.prompt for pair in pairs for _ in range(2)], [one for pair in pairs for one in pair[1:3]]
    rollout = policy.encode(prompts, outputs, torch.arange(len(pairs)).repeat_interleave(2), None)
    ascent = torch.optim.Adam(policy.parameters().values(), lr=0.1)
    for _ in range(150):
        scores = policy.of_rows(rollout, torch.arange(len(prompts)))[:, 0]
        ascent.zero_grad()
        functional.softplus(scores[1::2] - scores[0::2]).mean().backward()
        ascent.step()


def test_the_best_policy_of_what_beginnings_say_is_the_best_there_is() -> None:
    """No beginning of three actions is paid from where they begin, or nearly none; by regrets the reward is learned all the same."""
    pairs = mm.worlds.tabular_pairs(world=WORLD, by="regret", count=512, length=3, temperature=0.05)
    policy: Any = mm.worlds.tabular_reward(world=WORLD)
    fitted(policy, pairs)
    _, q = policy.head.values()
    greedy = functional.one_hot(q[0].detach().argmax(-1), 4).double()
    best, _ = mdp.optimum(WORLD, TRUE)
    assert float(mdp.values(WORLD, greedy, TRUE)[0][0, WORLD.states.index("0,0")]) == pytest.approx(float(best[0, 0]), abs=1e-12)
    start: Any = mm.worlds.tabular_reward(world=WORLD)
    first = functional.one_hot(start.head.values()[1][0].argmax(-1), 4).double()
    assert float(mdp.values(WORLD, first, TRUE)[0][0, 0]) == 0.0


def test_a_run_of_it_is_a_reward(tmp_path: Path) -> None:
    policy: Any = mm.worlds.tabular_reward(world=WORLD)
    pairs = mm.worlds.tabular_pairs(world=WORLD, by="regret", count=8, length=3)
    mm.offline(
        policy, pairs[:6], mm.methods.bradley_terry(), steps=2, batch={"records": 4}, optimizer=mm.adamw(rate=0.1),
        evaluation={"records": pairs[6:]}, run={"folder": str(tmp_path), "name": "run", "trackers": ()},
    )  # fmt: skip
    assert policy.head.reward.abs().max() > 0.05
    with pytest.raises(RefusedRow, match="from 0,0, which cannot be"):
        policy.score(["0,0"], ["east 2,2"])
    with pytest.raises(UserError, match=r"tabular_reward\.by: got 'gain', takes 'return' or 'regret'"):
        mm.worlds.tabular_reward(by="gain")  # type: ignore[arg-type]
