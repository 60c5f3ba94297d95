"""The value baseline of a_lol: what it learns of one answer to each prompt, and what it does not look at."""

from __future__ import annotations

import pytest
import torch

from mmalign.methods.policy_gradient.a_lol import a_lol
from mmalign.needs import VALUE
from mmalign.types import UserError
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
    with pytest.raises(UserError, match="baseline: got 'mean', takes 'group' or 'value'"):
        a_lol(baseline="mean")
