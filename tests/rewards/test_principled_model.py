"""A reward model that reads by what it is to judge: one run, and the order of two answers turns with the principle."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

import mmalign as mm
from mmalign.records import Pair
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

RULES = {"agree": ["Say yes", "Say no"]}
WORDS = "? {principles}"


def test_the_better_of_two_answers_is_the_one_that_its_principle_asks_for(tmp_path: Path) -> None:
    ratings = ({"agree": 1.0}, {"agree": 0.0})
    pairs, unseen = ([Pair(word, "yes", "no", id=f"{word} {n}", ratings=ratings) for n in range(8)] for word in ("one", "two"))
    reader = transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=24)
    told, asked = (mm.data.principled(some, principles=RULES, words=WORDS) for some in (pairs, unseen))
    run = mm.offline(
        mm.policies.scorer(reader), told, mm.methods.bradley_terry(), steps=30, batch={"records": 8}, optimizer=mm.adamw(rate=1e-2),
        evaluation={"records": asked, "every": 30}, run={"folder": str(tmp_path), "name": "rm", "trackers": (), "checkpoint_every": 30},
    )  # fmt: skip
    assert run.summary["held_out/accuracy_after"] == 1.0

    def reward(outputs: Any, prompts: list[Any]) -> Tensor:
        return run.policy.score(prompts, outputs)[:, 0].detach()

    for rule, sign in zip(RULES["agree"], (1, -1), strict=True):
        scores = mm.rewards.by_principles(reward, principles=[rule], words=WORDS)(["yes", "no"], ["two"] * 2)
        assert sign * float(scores[0] - scores[1]) > 0, rule
