"""Records mixed into an online run: what they add to an update, that a resume goes on in their stream, and what is refused."""

from __future__ import annotations

import json
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.config import check, load
from mmalign.records import Pair, Thumb
from mmalign.types import UserError
from mmalign.worlds.tabular.policy import TabularPolicy, tabular
from tests.helpers import small_run

WALKS = ("east 0,1 east 0,2", "south 1,0", "east 0,1 west 0,0 south 1,0", "north 0,0")
TEXTS = [Thumb("0,0", walk, 1.0, f"text {number}") for number, walk in enumerate(WALKS)]
RATE = 0.3


def online(tmp_path: Path, name: str = "run", **changes: Any) -> Any:
    """A run on the table, one update by plain gradient descent where nothing else is said."""
    given: dict[str, Any] = {
        "policy": tabular(),
        "prompts": ["0,0"],
        "rewards": {"goal": mm.worlds.tabular_return()},
        "method": mm.methods.grpo(beta=0.0),
        "steps": 1,
        "batch": {"prompts": 1, "group": 8},
        "optimizer": mm.sgd(rate=RATE, max_norm=math.inf),
        "evaluation": {"every": 100, "samples": 1},
        "run": {"folder": str(tmp_path), "name": name, "trackers": (), "checkpoint_every": 1},
    }
    return mm.online(**{**given, **changes})


def mix(**changes: Any) -> dict[str, Any]:
    return {"records": TEXTS, "method": mm.methods.sft(), "count": 4, **changes}


def table(run: Any) -> torch.Tensor:
    (parameter,) = run.policy.parameters().values()
    return parameter.detach().clone()


def log(run: Any) -> list[dict[str, Any]]:
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    return [{key: value for key, value in line.items() if key != "seconds"} for line in lines]


def gradient_of_texts() -> torch.Tensor:
    """Of the mean of -log pi over all actions of the texts, walked by hand."""
    policy = tabular()
    logits, world = policy.parameters()["logits"].detach().clone().requires_grad_(), policy.world
    losses = []
    for walk in WALKS:
        place, words = "0,0", walk.split()
        for action, led in zip(words[::2], words[1::2], strict=True):
            losses.append(-logits[world.states.index(place)].log_softmax(0)[world.actions.index(action)])
            place = led
    (gradient,) = torch.autograd.grad(torch.stack(losses).mean(), logits)
    return gradient


def test_an_update_has_both_gradients(tmp_path: Path) -> None:
    plain, added = table(online(tmp_path, "plain")), -RATE * gradient_of_texts()
    for weight in (1.0, 3.0):
        run = online(tmp_path, f"{weight:g}", mix=mix(weight=weight))
        torch.testing.assert_close(table(run) - plain, weight * added, rtol=1e-9, atol=1e-12)
        assert log(run)[1]["mix/loss"] == pytest.approx(math.log(4), abs=1e-12)  # every action is as likely
    assert plain.abs().max() > 1e-3 and added.abs().max() > 1e-3


def test_passes_change_nothing(tmp_path: Path) -> None:
    whole, parts = (online(tmp_path, f"{rows}", mix=mix(), batch={"prompts": 1, "group": 8, "micro_rows": rows}) for rows in (8, 1))
    torch.testing.assert_close(table(whole), table(parts), rtol=1e-12, atol=1e-12)


def test_a_resumed_run_equals_an_uninterrupted_one_to_the_last_bit(tmp_path: Path) -> None:
    pairs = [Pair("0,0", one.output, other.output, 1.0, f"pair {at}") for at, (one, other) in enumerate(pairwise(TEXTS))]
    of_pairs = {"records": pairs, "method": mm.methods.dpo(), "count": 2, "weight": 0.5}
    many: dict[str, Any] = {"mix": of_pairs, "batch": {"prompts": 1, "group": 8, "epochs": 2}, "optimizer": mm.adamw(rate=0.1, ema=0.5)}
    straight = online(tmp_path, "straight", steps=4, **many)
    online(tmp_path, "parts", steps=1, **many)
    resumed = online(tmp_path, "parts", steps=4, resume=True, **many)
    trained, other = ([row for row in log(run) if row["phase"] == "train"] for run in (straight, resumed))
    assert trained == other and torch.equal(table(resumed), table(straight))
    assert len({row["mix/loss"] for row in trained}) == 4
    with pytest.raises(UserError, match=r"^mix\.records: are others than those that this run began with"):
        online(tmp_path, "parts", steps=5, resume=True, **{**many, "mix": {**of_pairs, "records": pairs[::-1]}})


def test_memory_that_ends_in_the_records_is_found_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    held = online(tmp_path, "held", mix=mix(count=8), batch={"prompts": 1, "group": 4, "micro_rows": 4})
    steps = TabularPolicy.steps

    def short(self: TabularPolicy, rollout: Any, rows: Any, *rest: Any, **more: Any) -> Any:
        if torch.is_grad_enabled() and len(rows) > 4:
            raise torch.OutOfMemoryError("no memory for 8 rows")
        return steps(self, rollout, rows, *rest, **more)

    monkeypatch.setattr(TabularPolicy, "steps", short)
    met = online(tmp_path, "met", mix=mix(count=8), batch={"prompts": 1, "group": 4, "micro_rows": 8})
    assert torch.equal(table(met), table(held)) and log(met)[1]["micro_rows"] == 4


def test_records_that_cannot_be_used_are_put_aside(tmp_path: Path) -> None:
    run = online(tmp_path, mix=mix(records=[*TEXTS, Thumb("0,0", "upwards", 1.0, "odd")]), steps=3)
    (line,) = [json.loads(line) for line in (run.path / "broken.jsonl").read_text().splitlines()]
    assert line["id"] == "odd" and run.summary["steps"] == 3


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"policy": small_run.policy(), "prompts": ["a"], "rewards": {"x": small_run.QuadraticReward(small_run.LINEAR)},
          "method": small_run.method(), "mix": mix()}, "mix.records: hold finished outputs, and the policy learns"),
        ({"mix": mix(method=mm.methods.nash_md())}, "mix.method: has behaviors of its own, which belong to a run"),
        ({"mix": mix(records=[text._replace(label=math.nan) for text in TEXTS])}, "mix.records: the first "),
        ({"mix": mix(method=mm.methods.dpo())}, "mix.records: got thumbs, one output each"),
        ({"mix": mix(weight=0.0)}, "online.mix.weight: got 0.0, takes a number above 0"),
        ({"mix": mix(records=[])}, "mix.records: got "),
    ],
)  # fmt: skip
def test_refused(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError) as error:
        online(tmp_path, **changes)
    assert str(error.value).startswith(line) and not list(tmp_path.iterdir())


def test_a_config_is_refused_before_anything_is_built() -> None:
    node = load("tabular/grpo")
    records = {"use": "tabular_pairs", "by": "return", "count": 8}
    assert check({**node, "mix": {"records": records, "method": "sft"}}) == []
    (line,) = check({**node, "mix": {"records": records, "method": "mdpo"}})
    assert line.startswith("mix.method: mdpo needs contrast:ablated; the policy tabular gives")
    (line,) = check({**load("digits/grpo"), "mix": {"records": records, "method": "sft"}})
    assert line.startswith("mix: diffusers learns from steps that it samples itself, and records hold finished outputs")
