"""Rewards that are computed while the next part of a rollout, or of an evaluation, is sampled: the same numbers, and what goes wrong."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.policies.settings import Schedule
from mmalign.training.rollouts.background import Background
from mmalign.types import Prompt, UserError
from mmalign.worlds.digits.base import untrained
from tests.distributed.test_every_method import differences, log, of_words, varied
from tests.helpers.processes import together
from tests.helpers.small_run import LINEAR, online, policy

LONG = 60.0
"""Seconds that a test waits for what comes at once, or never."""


@pytest.fixture(autouse=True)
def no_page(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mmalign.recipes._run.build", lambda path: path)


def columned(outputs: Any, prompts: list[str], wanted: list[float]) -> torch.Tensor:
    """A reward that reads a column, and has no score for some rows."""
    scores = outputs[:, 0] * torch.tensor(wanted, dtype=torch.float64)
    return scores.masked_fill(scores > 1.5, torch.nan)


def better(outputs: Any, prompts: list[str], group: torch.Tensor) -> torch.Tensor:
    return torch.sigmoid(outputs[:, None, 1] - outputs[None, :, 1])


def of_paths(folder: Path, overlap: int, **more: Any) -> None:
    combine = mm.combinations.weighted_sum(weights={"x": 1.0, "y": 0.5}, transforms={"x": mm.combinations.z_score(over="running")})
    online(
        folder,
        prompts=[Prompt(name, {"wanted": float(number)}) for number, name in enumerate("abcde")],
        rewards={"x": lambda outputs, prompts: outputs @ LINEAR, "y": columned},
        combine=combine,
        oracle=better,
        steps=3,
        batch={"prompts": 4, "group": 4, "overlap": overlap, "missing": "drop"},
        evaluation={"overlap": overlap, "every": 3, "judges": {"z": lambda outputs, prompts: outputs[:, 0]}},
        **more,
    )


def of_answers(folder: Path, overlap: int) -> None:
    given: dict[str, Any] = {
        "batch": {"prompts": 3, "group": 4, "updates": 2, "micro_rows": 4, "overlap": overlap},
        "evaluation": {"every": 9, "samples": 2, "prompts": ["abc", "why"], "overlap": min(overlap, 2)},
        "run": {"folder": str(folder), "name": "run", "trackers": ()},
    }
    method = mm.methods.grpo(beta=0.1)
    mm.online(of_words(method), ["abc", "why", "one two"], {"own": varied}, method, steps=2, **given)


def of_pictures(folder: Path, overlap: int) -> None:
    kind = mm.policies.diffusers(untrained(), device="cpu", schedule=Schedule(steps=3))
    given: dict[str, Any] = {
        "batch": {"prompts": 4, "group": 2, "overlap": overlap},
        "evaluation": {"every": 9, "samples": 1, "overlap": overlap},
        "run": {"folder": str(folder), "name": "run", "trackers": ()},
    }
    bright = lambda outputs, prompts: outputs.flatten(1).mean(1)  # noqa: E731
    mm.online(kind, [f"a {number}" for number in range(5)], {"bright": bright}, mm.methods.flow_grpo(), steps=2, **given)


@pytest.mark.parametrize(("train", "parts"), [(of_paths, 4), (of_paths, 3), (of_answers, 3)])
def test_the_numbers_are_those_of_a_run_without(train: Callable[[Path, int], None], parts: int, tmp_path: Path) -> None:
    train(tmp_path / "one", 1)
    train(tmp_path / "parts", parts)
    odd = differences(tmp_path / "one", tmp_path / "parts")
    assert [line for line in odd if "engine_difference" not in line] == []  # of rounding alone, and a mean over parts
    assert len(log(tmp_path / "one")) >= 2


def test_of_pictures_too_but_for_the_rounding_of_smaller_batches(tmp_path: Path) -> None:
    of_pictures(tmp_path / "one", 1)
    of_pictures(tmp_path / "parts", 2)
    # float32: a ratio magnifies an error of 1e-7 in each of the numbers of a latent
    for one, parts in zip(log(tmp_path / "one"), log(tmp_path / "parts"), strict=True):
        numbers = [{key: value for key, value in row.items() if isinstance(value, float)} for row in (one, parts)]
        assert numbers[0] == pytest.approx(numbers[1], rel=1e-3, abs=1e-5)


def test_two_processes_of_two_parts_take_the_steps_of_one(tmp_path: Path) -> None:
    of_paths(tmp_path / "one", 1)
    ended = together(2, lambda rank: of_paths(tmp_path / "many", 2), tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], ended
    assert differences(tmp_path / "one", tmp_path / "many") == []


def test_a_part_is_sampled_while_the_one_before_is_scored(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    given, sampled, seen = policy(), [threading.Event() for _ in range(3)], list[bool]()
    sample = given.sample

    def watched(*args: Any, part: slice, **more: Any) -> Any:
        sampled[part.start].set()
        return sample(*args, part=part, **more)

    def patient(outputs: Any, prompts: list[str]) -> torch.Tensor:
        if threading.current_thread() is not threading.main_thread():  # an evaluation asks here
            seen.append(sampled[min("abc".index(prompts[0]) + 1, 2)].wait(LONG))
        return outputs @ LINEAR

    monkeypatch.setattr(given, "sample", watched)
    monkeypatch.setattr("torch.randperm", lambda count, generator: torch.arange(count))  # prompts in their order
    more: dict[str, Any] = {"policy": given, "rewards": {"patient": patient}, "steps": 1, "evaluation": {"samples": 1}}
    online(tmp_path, **more, batch={"prompts": 3, "overlap": 3})
    assert seen == [True] * 3


def test_a_reward_that_fails_in_its_thread_is_named_and_nothing_goes_on_behind_the_run(tmp_path: Path) -> None:
    calls = list[int]()

    def gone(outputs: Any, prompts: list[str]) -> torch.Tensor:
        calls.append(len(prompts))
        if len(calls) == 6:  # an evaluation, two steps of two parts, and of the third the first
            raise ConnectionError("the server is gone")
        return outputs @ LINEAR

    more: dict[str, Any] = {"batch": {"overlap": 2}, "evaluation": {"every": 99}, "run": {"checkpoint_every": 99}}
    with pytest.raises(UserError, match="reward gone: raised ConnectionError: the server is gone"):
        online(tmp_path, rewards={"gone": gone}, **more)
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("mmalign-rewards")]
    calls.extend([0] * 99)
    resumed = online(tmp_path, rewards={"gone": gone}, **more, resume=True)
    straight = online(tmp_path / "straight", rewards={"gone": lambda outputs, prompts: outputs @ LINEAR}, **more)
    assert log(tmp_path) == log(tmp_path / "straight") and resumed.summary["steps"] == 6
    assert resumed.summary["gone_after"] == straight.summary["gone_after"]


def test_more_parts_than_prompts_are_refused() -> None:
    with pytest.raises(UserError, match="overlap: got 5 parts of 4 prompts, takes at most one for each"):
        mm.Batch(prompts=4, overlap=5)


def test_calls_in_the_background_keep_their_order_and_what_is_not_begun_is_left_out() -> None:
    heard, begun, go = list[int](), threading.Event(), threading.Event()

    def first() -> int:
        begun.set()
        go.wait(LONG)
        heard.append(1)
        return 1

    with Background() as background:
        waits = [background(first), background(lambda: heard.append(2))]
        assert begun.wait(LONG)
        go.set()
        assert waits[0]() == 1 and waits[1]() is None and heard == [1, 2]
        begun.clear()
        go.clear()
        background(first)
        background(lambda: heard.append(3))
        assert begun.wait(LONG)
        threading.Timer(0.05, go.set).start()
    assert heard == [1, 2, 1]
    with torch.no_grad(), Background() as background:
        assert background(torch.is_grad_enabled)() is False
    with Background(threaded=False) as background:
        assert background(threading.current_thread)() is threading.main_thread()
