"""Methods that remember earlier rollouts: B2-DiffuRL's statistics of a prompt, and the part of GARDO's rows that pays a KL."""

from __future__ import annotations

import json
import statistics
from pathlib import Path

import pytest
import torch

import mmalign as mm
from mmalign.objectives.state.controllers import AdaptiveShare
from mmalign.samplers import branches
from mmalign.types import Feedback
from mmalign.worlds import gaussian
from tests.helpers.small_run import online

ROLLOUTS = [  # rewards of two prompts' rows, and whose they are
    ([0.0, 1.0, 5.0, 6.0], "aabb"),
    ([2.0, 4.0, 3.0, 3.0], "aacc"),
    ([7.0, 1.0, 0.0, 2.0], "bbaa"),
]


def feedback(rewards: list[float], prompts: str, **more: torch.Tensor) -> Feedback:
    group = torch.tensor([prompts.index(name) for name in prompts])
    return Feedback(torch.tensor(rewards).double(), group, branch=group, prompts=list(prompts), **more)


@pytest.mark.parametrize("history", [0, 1, 8])
def test_a_prompts_earlier_rewards_count_in_its_mean_and_deviation(history):
    method, seen = mm.methods.b2_diffurl(above=0.0, below=0.0, history=history, advantage_clip=None), dict[str, list[list[float]]]()
    for rewards, prompts in ROLLOUTS:
        told = feedback(rewards, prompts)
        kept = method.keep(told)
        assert torch.equal(kept, method.keep(told))  # a look adds nothing
        signal = method.signal(told).flatten().tolist()
        for row, (reward, name) in enumerate(zip(rewards, prompts, strict=True)):
            own = [value for value, its in zip(rewards, prompts, strict=True) if its == name]
            values = [value for rollout in seen.get(name, [])[-history:] for value in rollout if history] + own
            z = (reward - statistics.mean(values)) / (statistics.stdev(values) + 1e-8) if max(values) > min(values) else 0.0
            best = max(own) > min(own) and ((reward == max(own) and z >= 0) or (reward == min(own) and z < 0))
            assert bool(kept[row]) == best and signal[row] == pytest.approx(z if best else 0.0)
        for name in dict.fromkeys(prompts):
            seen.setdefault(name, []).append([value for value, its in zip(rewards, prompts, strict=True) if its == name])
        method.state.load(json.loads(json.dumps(method.state.dump())))


def test_the_part_that_pays_follows_how_doubtful_rewards_are():
    """The published rule: .1 at first, a tenth more above all of the last 20 means, a tenth less below them all, within .02 and .2."""
    share = AdaptiveShare(start=0.1, low=0.02, high=0.2)
    means = [1.0, 2.0, 1.5, 0.5, 3.0, *(3.0 + n for n in range(1, 9)), *(-1.0 * n for n in range(30)), -20.0, -9.5]
    expected, before = 0.1, list[float]()
    for mean in means:
        if before and mean > max(before[-20:]):
            expected *= 1.1
        elif before and mean < min(before[-20:]):
            expected *= 0.9
        expected = min(max(expected, 0.02), 0.2)
        before.append(mean)
        assert share.update(torch.tensor([mean - 1, mean + 1])) == pytest.approx(expected)
        share.load(json.loads(json.dumps(share.dump())))
    assert expected == pytest.approx(0.022) == share.update(torch.zeros(0))


def test_rewards_that_run_away_from_the_others_raise_the_part_that_pays():
    method = mm.methods.gardo(diversity="far", auxiliary=("honest",), beta=0.1)
    rewards, rows = torch.arange(40.0).double(), 40
    paid = []
    for agrees in (39, 30, 20, 0):  # the honest reward ranks ever fewer rows as the proxy does
        honest = torch.cat([rewards[:agrees], rewards[agrees:].flip(0)])
        parts = {"far": torch.ones(rows).double(), "honest": honest}
        told = Feedback(rewards, torch.zeros(rows, dtype=torch.int64), parts=parts)
        paid.append(int(method.signal(told)[:, 0, -1].sum()))
    assert method.state.share == pytest.approx(0.1 * 1.1**3)
    assert paid == [0, 4, 4, 3]  # of 40, 30, 20 and 20 rows that are not in doubt, those above the quantile, ties left out


def test_a_run_tells_what_its_prompts_are_and_keeps_their_rewards(tmp_path: Path):
    policy = gaussian.GaussianPolicy(
        gaussian.one_gaussian([0.0], [1.0]), gaussian.flow_levels(4), kernel=mm.kernels.flow_sde(), branches=branches.fork(children=2)
    )
    method = mm.methods.b2_diffurl(above=0.0, below=0.0, ratio="per_step")
    reward = gaussian.QuadraticReward(torch.tensor([1.0]).double())
    online(tmp_path, policy=policy, prompts=["a", "b"], rewards={"r": reward}, method=method, steps=3, batch={"prompts": 2, "group": 4})
    kept = method.state.dump()["values"]
    assert len(kept) == 2 and [[len(rollout) for rollout in rollouts] for rollouts in kept.values()] == [[4, 4, 4]] * 2
