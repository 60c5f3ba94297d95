"""Rows drawn by somebody else in the online recipe: who is trained, what is logged, that it resumes to the bit, what is refused."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.needs import OLD
from mmalign.samplers import kernels
from mmalign.types import Behavior, Rollout, UserError
from mmalign.worlds import gaussian
from tests.helpers.small_run import LINEAR, online, policy, rows, trained
from tests.recipes.test_online import equal, kept

GAMES: dict[str, dict[str, Any]] = {
    "xpo": {"beta": 0.5, "alpha": 0.01},
    "selm": {"beta": 0.5, "alpha": 0.01},
    "vpo": {"beta": 0.5},
    "nash_md": {"tau": 0.02},
    "egpo": {"beta": 0.3},
    "accelerated_po": {"beta": 0.5, "every": 2},
    "remax": {},
}


@pytest.mark.parametrize("name", GAMES)
def test_it_learns_and_resumes_to_the_last_bit(name: str, tmp_path: Path) -> None:
    given = {"batch": {"group": 8, "prompts": 3}, "optimizer": {"rate": 0.03}, "steps": 20, "evaluation": {"every": 20, "samples": 64}}
    made = lambda: getattr(mm.methods, name)(**GAMES[name])  # noqa: E731
    straight = online(tmp_path / "straight", method=made(), **given)
    online(tmp_path / "parts", method=made(), **{**given, "steps": 7})
    parts = online(tmp_path / "parts", method=made(), **given, resume=True)
    assert trained(parts.path) == trained(straight.path)
    assert equal(kept(parts.path, 20)[0], kept(straight.path, 20)[0])
    evaluations = [row["linear"] for row in rows(straight.path) if "linear" in row]
    assert evaluations[-1] > evaluations[0] + 0.2


class Watched(gaussian.GaussianPolicy):
    """Keeps its rollouts, and the rows of them that are scored with a gradient."""

    def sample(self, *given: Any, **more: Any) -> Rollout:
        self.rollout, self.trained = super().sample(*given, **more), set[int]()
        return self.rollout

    def steps(self, rollout: Any, which: torch.Tensor, *given: Any, **more: Any) -> Any:
        if torch.is_grad_enabled():
            self.trained |= set(which.tolist())
        return super().steps(rollout, which, *given, **more)


@pytest.mark.parametrize(("name", "own", "others"), [("nash_md", 4, 0), ("egpo", 4, 0), ("remax", 8, 0), ("xpo", 4, 4)])
def test_opponents_and_baselines_are_not_trained(name: str, own: int, others: int, tmp_path: Path) -> None:
    watched = Watched(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())
    online(tmp_path, policy=watched, method=getattr(mm.methods, name)(), steps=1, batch={"group": 8, "prompts": 1})
    drawn = torch.stack(list(watched.rollout.drawn.values())).any(0)
    trained = torch.tensor(sorted(watched.trained))
    assert int((~drawn[trained]).sum()) == own and int(drawn[trained].sum()) == others


def test_a_mixture_of_gaussian_steps_lies_between_the_two() -> None:
    given = policy()
    with torch.no_grad():
        given.parameters()["shift"].fill_(2.0)
    behaviors = tuple(Behavior(f"{share}", {"current": share, "ref": 1 - share}, part=0.25) for share in (0.0, 0.5, 1.0))
    rollout = given.sample(["a"], 4000, torch.Generator().manual_seed(0), behaviors=behaviors)
    none, half, whole = (rollout.outputs[rollout.drawn[behavior.name]].mean(0) for behavior in behaviors)
    own = rollout.outputs[~torch.stack(list(rollout.drawn.values())).any(0)].mean(0)
    torch.testing.assert_close(half, (none + whole) / 2, atol=0.12, rtol=0)
    torch.testing.assert_close(own, whole, atol=0.15, rtol=0)
    assert bool((whole - none > 1).all())
    steps = given.steps(rollout, torch.arange(4000), needs=frozenset({OLD}))
    torch.testing.assert_close(steps.log_probs.detach(), rollout.log_probs)


def test_a_greedy_row_has_no_noise() -> None:
    given = policy()
    greedy = Behavior("greedy", {"current": 1.0}, part=0, greedy=True)
    rollout = given.sample(["a"], 2, torch.Generator().manual_seed(0), behaviors=(greedy,))
    states = rollout.held.states[2]
    for column in range(given.num_steps):
        with torch.no_grad():
            mean, _ = given.transition(states[None, column : column + 1], torch.tensor([column]), torch.zeros(3, dtype=torch.bool))
        torch.testing.assert_close(states[column + 1], mean[0, 0])
    assert rollout.mask.any(1).tolist() == [True, True, False]


def test_the_log_says_how_good_each_sampler_s_rows_are(tmp_path: Path) -> None:
    watched = Watched(gaussian.one_gaussian([0.7, -0.3], [0.5, 1.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())
    run = online(tmp_path, policy=watched, method=mm.methods.xpo(), steps=1, batch={"group": 4})
    row = next(row for row in rows(run.path) if row["phase"] == "train")
    rewards, theirs = watched.rollout.outputs @ LINEAR, watched.rollout.drawn["ref"]
    assert row["reward"] == pytest.approx(float(rewards[~theirs].mean()))
    assert row["reward_ref"] == pytest.approx(float(rewards[theirs].mean())) and row["rows"] == 8


def test_what_is_refused_before_anything_is_sampled(tmp_path: Path) -> None:
    for changes, line in (
        ({"batch": {"group": 1}}, "batch.group: got 1, takes more: the policy and ref all draw rows of each group"),
        ({"method": replace(mm.methods.xpo(), behaviors=(Behavior("rival", {"rival": 1.0}),))}, "parameter set: got 'rival'"),
    ):
        with pytest.raises(UserError, match=line):
            online(tmp_path, **{"method": mm.methods.xpo(), **changes})
    silent = policy()
    silent.gives = silent.gives - {"behaviors"}  # type: ignore[misc]
    with pytest.raises(UserError, match="method: takes rows drawn by ref too; this policy draws by itself alone"):
        online(tmp_path, policy=silent, method=mm.methods.xpo())
    assert not list(tmp_path.iterdir())
