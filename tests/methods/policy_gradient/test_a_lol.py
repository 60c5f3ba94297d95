"""The baselines of a_lol: what a value learns of one answer to each prompt, what it does not look at, and rows drawn by priority."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.methods.policy_gradient.a_lol import a_lol
from mmalign.needs import VALUE
from mmalign.records import Ranking
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers
from tests.oracles.tables import GROUP, table


def test_one_answer_to_a_prompt_teaches_with_a_value_and_not_with_a_group() -> None:
    at = table("token")
    alone = next(row for row in range(len(GROUP)) if GROUP.count(GROUP[row]) == 1)
    feedback = at.feedback()
    feedback.tables[VALUE][alone] = float(feedback.rewards[alone]) - 0.5
    assert not a_lol().keep(feedback)[alone] and a_lol(baseline="value").keep is None
    ahead = a_lol(baseline="value").signal(feedback)[alone, :, 0]
    assert torch.allclose(ahead[at.mask[alone]], torch.full_like(ahead[at.mask[alone]], 0.5))


def test_a_value_of_later_steps_has_read_the_answer_and_is_no_baseline() -> None:
    at, method = table("token"), a_lol(baseline="value")
    before = method.signal(at.feedback())
    feedback = at.feedback()
    for row, live in enumerate(at.mask.tolist()):
        feedback.tables[VALUE][row, [step for step, inside in enumerate(live) if inside][1:]] += 7.0
    torch.testing.assert_close(method.signal(feedback), before, rtol=0, atol=0)


def test_other_words() -> None:
    with pytest.raises(UserError, match="baseline: got 'mean', takes 'group', 'value' or 'none'"):
        a_lol(baseline="mean")


def test_a_run_on_rows_drawn_by_priority_goes_on_where_it_stopped(tmp_path: Path) -> None:
    records = [Ranking(word, ("yes", "no no", "yes no"), (float(len(word)), 0.0, 0.5), id=word) for word in ("a", "bcd", "ef ef")]

    def trained(steps: int, name: str, **more: Any) -> dict[str, torch.Tensor]:
        policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=9)
        settings = {"name": name, "checkpoint_every": 2, "folder": str(tmp_path), "trackers": ()}
        arguments: dict[str, Any] = {"batch": {"records": 3}, "optimizer": mm.adamw(rate=1e-2), "run": settings}
        mm.offline(policy, mm.data.prioritised(records, look=1), a_lol(baseline="none"), steps=steps, **arguments, **more)
        return {name: p.detach().clone() for name, p in policy.parameters().items()}

    once = trained(4, "once")
    half = trained(2, "twice")
    again = trained(4, "twice", resume=True)
    assert all(torch.equal(once[name], again[name]) for name in once)
    assert any(not torch.equal(once[name], half[name]) for name in once)
