"""What a model thinks before it answers: read by it, and learned from by nobody."""

from __future__ import annotations

import pytest
import torch

import mmalign as mm
from mmalign.policies.language.prompts import reading
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

MARKS = ["q:", ":q"]


def letters(text: str) -> tuple[torch.Tensor, torch.Tensor]:
    return torch.tensor([[ord(letter) for letter in text]]), torch.tensor([len(text)])


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        ("<t>why</t>so.", "so."), ("a<t>b</t>c<t>d</t>e.", "ace."), ("no thought.", "no thought."), ("a<t>never ends", "as"),
        ("</t>a<t>b</t>.", "</t>a."),
    ],
)  # fmt: skip
def test_what_stands_between_the_marks_is_outside_of_the_mask(text: str, kept: str) -> None:
    tokens, lengths = letters(text)
    mask = reading.said(torch.ones_like(tokens).bool(), tokens, lengths, ("<t>", "</t>"), lambda ids: "".join(map(chr, ids)))
    assert "".join(letter for letter, counts in zip(text, mask[0].tolist(), strict=True) if counts) == kept
    assert torch.equal(reading.said(mask, tokens, lengths, None, str), mask)


def test_no_gradient_comes_from_a_thought_of_a_given_or_a_drawn_row() -> None:
    policy = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=24, device="cpu", thoughts=MARKS)
    plain = transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=24, device="cpu")
    answers = ["q:one:qtwo", "three"]
    rollout, whole = (one.encode(["a ", "b "], answers, torch.arange(2), torch.Generator()) for one in (policy, plain))
    ids = rollout.held.tokens[0, : rollout.held.lengths[0]].tolist()
    assert policy.chat.text([token for token, counts in zip(ids, rollout.mask[0].tolist(), strict=False) if counts]) == "two"
    assert torch.equal(rollout.mask[1], whole.mask[1]) and torch.equal(rollout.held.tokens, whole.held.tokens)
    steps, all_steps = (one.steps(rows, torch.arange(2)) for one, rows in ((policy, rollout), (plain, whole)))
    kept = rollout.mask
    torch.testing.assert_close(steps.log_probs[kept], all_steps.log_probs[kept])  # behind the thought, which is read
    assert bool((steps.log_probs[~kept] == 0).all())
    drawn = policy.sample(["a "], 64, torch.Generator().manual_seed(0))
    same = plain.sample(["a "], 64, torch.Generator().manual_seed(0))
    assert torch.equal(drawn.held.tokens, same.held.tokens)
    wanted = reading.said(same.mask, same.held.tokens, same.held.lengths, ("q:", ":q"), policy.chat.words)
    assert torch.equal(drawn.mask, wanted)
    assert torch.equal(policy.traced(["a "], [0]).mask, plain.traced(["a "], [0]).mask)  # an evaluation's KL is that of whole samples


def test_marks_that_are_none_are_said() -> None:
    for marks in (["<t>"], ["", "x"], ["<t>", "<t>"]):
        with pytest.raises(UserError, match=r"policy\.thoughts: got .*, takes two texts, \[<think>, </think>\]"):
            mm.policies.transformers(tiny_text.model(), tiny_text.tokenizer(), max_completion=8, thoughts=marks)
