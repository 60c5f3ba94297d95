"""A guard model's verdict, against its own numbers."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError
from tests.helpers import tiny_text


def turns(*said):
    roles = ("user", "assistant")
    return "".join(f"<|im_start|>{role}\n{text}<|im_end|>\n" for role, text in zip(roles, said, strict=False)) + "<|im_start|>assistant\n"


def loaded(tmp_path):
    model, tokenizer = tiny_text.model(), tiny_text.tokenizer(tiny_text.CHATML)
    model.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    return mm.policies.transformers(str(tmp_path), max_completion=8), model.eval(), tokenizer


@torch.no_grad()
def begins_with(model, tokenizer, text, word):
    """``ln P`` that a text goes on with a word, token by token."""
    ids, total = tokenizer(text, add_special_tokens=False).input_ids, 0.0
    for token in tokenizer(word, add_special_tokens=False).input_ids:
        logits = model(torch.tensor([ids])).logits[0, -1].double()
        logits[:2] = -math.inf  # padding and beginnings are never said
        total += float(logits.log_softmax(-1)[token])
        ids = [*ids, token]
    return total


def test_a_verdict_is_that_of_its_first_word_and_the_conversation_is_the_guard_s(tmp_path):
    policy, model, tokenizer = loaded(tmp_path)

    def wanted(text, words):
        safe, unsafe = (begins_with(model, tokenizer, text, word) for word in words)
        return 1 / (1 + math.exp(unsafe - safe))

    prompts, answers = ["ab", [{"role": "user", "content": "cd"}], "e"], ["f", "gh", " "]
    scores = mm.rewards.guard(policy=policy)(answers, prompts)
    both = ("safe", "unsafe")
    assert scores[:2].tolist() == pytest.approx([wanted(turns("ab", "f"), both), wanted(turns("cd", "gh"), both)], abs=1e-5)
    assert math.isnan(float(scores[2])) and abs(float(scores[0] - scores[1])) > 1e-6
    alone = mm.rewards.guard(policy=policy, of="prompt", words=["no", "yes"])(["", ""], ["ab", "e"])
    assert alone.tolist() == pytest.approx([wanted(turns("ab"), ("no", "yes")), wanted(turns("e"), ("no", "yes"))], abs=1e-5)
    asked = mm.rewards.guard(policy=policy, ask="is {answer} ok, {prompt}?")(["xyz"], ["x"])
    assert asked.tolist() == pytest.approx([wanted(turns("is xyz ok, x?"), both)], abs=1e-5)


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        ({"words": ["safe"]}, r"guard\.words: got \['safe'\], takes two words"),
        ({"words": ["safe", "safe"]}, r"guard\.words"),
        ({"ask": "is {prompt} ok?"}, r"guard\.ask: got 'is {prompt} ok\?', takes text with {prompt} and {answer}"),
    ],
)
def test_what_is_refused(tmp_path, settings, line):
    with pytest.raises(UserError, match=line):
        mm.rewards.guard(policy=loaded(tmp_path)[0], **settings)
    with pytest.raises(UserError, match=r"guard\.policy: got int, takes a policy of a language model"):
        mm.rewards.guard(policy=3)
