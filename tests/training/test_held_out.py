"""Records that are held out: a run is not trained on them, and follows its numbers in the direction in which they are better."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.records import Pair, Thumb, Unread
from mmalign.training.evaluations.held_out import content
from mmalign.training.evaluations.summary import best_of
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

WORDS = ["no", "yes it is", "or not", "the answer", "one two one two"]
PAIRS = [Pair(p, a, b, float(len(a) < len(b)), id=f"{p} {a} {b}") for p in ("abc", "why") for a in WORDS for b in WORDS if a < b]


def scorer() -> Any:
    return mm.policies.scorer(transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=24))


def settings(folder: Path, name: str = "run") -> dict[str, Any]:
    run = {"folder": str(folder), "name": name, "trackers": ()}
    return {"steps": 6, "optimizer": mm.adamw(rate=3e-3), "batch": {"records": 10, "micro_rows": 20}, "run": run}


def test_the_least_loss_is_the_best_and_the_highest_accuracy() -> None:
    rows = [{"held_out/loss": 0.7, "held_out/accuracy": 0.5}, {"held_out/loss": 0.4, "held_out/accuracy": 0.8}, {"held_out/loss": 0.9}]
    merits = {name: [mm.Stop(f"held_out/{name}").merit(row) for row in rows] for name in ("loss", "accuracy")}
    assert [best_of(scores) for scores in merits.values()] == [1, 1] and math.isnan(merits["accuracy"][2])
    assert mm.Stop("loss").merit({"loss": 3.0}) == 3.0  # a judge of the user's, whatever it is called
    with pytest.raises(UserError, match=r"^judge: got 'held_out/worse', takes of held-out records held_out/accuracy, .*, held_out/loss"):
        mm.Stop("held_out/worse")


def test_a_run_that_follows_its_loss_keeps_the_least(tmp_path: Path) -> None:
    """Held-out records of the opposite verdicts, whose loss soon grows with every step."""
    against = [pair._replace(prompt=f"{pair.prompt} now", first=pair.second, second=pair.first) for pair in PAIRS[1::2]]
    given = settings(tmp_path) | {"evaluation": {"records": against, "every": 1, "stop": {"judge": "held_out/loss", "patience": 2}}}
    run = mm.offline(scorer(), PAIRS[::2], mm.methods.bradley_terry(), **given)
    summary = run.summary
    assert (
        summary["status"] == "stopped early"
        and summary["best_step"] < 2
        and summary["held_out/loss_after"] <= summary["held_out/loss_before"]
    )


def test_what_is_held_out_is_not_trained_on(tmp_path: Path) -> None:
    """In another file, with another name, in another order and with another verdict."""
    held = [pair._replace(first=pair.second, second=pair.first, strength=1.0, id=f"other {number}") for number, pair in enumerate(PAIRS)]
    given = settings(tmp_path) | {"steps": 2, "batch": {"records": 2}}
    given["evaluation"] = {"records": held[2:], "every": 4}
    mm.offline(scorer(), PAIRS, mm.methods.bradley_terry(), **given)
    lines = [json.loads(line) for line in (tmp_path / "run" / "broken.jsonl").read_text().splitlines()]
    assert len(lines) == len(PAIRS) - 2 and {line["why"] for line in lines} == {"it is among evaluation.records"}
    given["evaluation"] = {"records": held, "every": 4}
    with pytest.raises(UserError, match=r"are put aside and too few others are left; .*: it is among evaluation\.records"):
        mm.offline(scorer(), PAIRS, mm.methods.bradley_terry(), **given | {"run": {**given["run"], "name": "again"}})


def test_pictures_are_recognised_by_where_they_are_or_what_they_are(tmp_path: Path) -> None:
    one, other = torch.rand(3, 4, 4), torch.rand(3, 4, 4)
    assert content(Pair("a fox", one, other)) == content(Pair("a fox", other.clone(), one, strength=0.0, id="x"))
    assert content(Pair("a fox", one, other)) != content(Pair("a fox", one, one)) != content(Pair("a dog", one, one))
    stored = [Unread(source, "1.png", str) for source in (tmp_path / "a" / "1.png", tmp_path / "b" / "1.png", b"png", {"bytes": b"png"})]
    marks = [content(Thumb("a fox", output, 1.0)) for output in stored]
    assert marks[0] != marks[1] and marks[2] == marks[3] != marks[0]
