"""What is drawn again, what is withheld, and what is counted of it."""

from __future__ import annotations

import math

import pytest
import torch

import mmalign as mm
from mmalign.types import UserError
from mmalign.worlds.digits.data import PROMPTS


def images(pipe, prompts=PROMPTS[:3]):
    rng = [torch.Generator().manual_seed(row) for row in range(len(prompts))]
    return pipe(list(prompts), generator=rng, output_type="pt", num_inference_steps=2).images


def scoring(*rounds):
    """A reward that says of each call what is written, and keeps what it saw."""
    seen, left = [], list(rounds)

    def reward(outputs, prompts):
        seen.append((outputs, list(prompts)))
        return torch.tensor(left.pop(0))

    return reward, seen


def test_only_what_is_below_is_drawn_again_and_what_stays_below_is_blank(pipe):
    """Row 0 passes at once, row 1 at the third try, row 2 never: its second try, without a score, is not taken for safe."""
    reward, seen = scoring([1.0, 0.0, 0.2], [0.4, math.nan], [0.9, 0.1])
    with mm.guide(pipe, reward, guidance="guarded", least=0.5) as guided:
        out = images(pipe)
    assert [prompts for _, prompts in seen] == [PROMPTS[:3], PROMPTS[1:3], PROMPTS[1:3]]
    assert torch.equal(out[0], seen[0][0][0]) and torch.equal(out[1], seen[2][0][0]) and bool((out[2] == 0).all())
    assert not torch.equal(seen[0][0][1], seen[1][0][0]) and not torch.equal(seen[1][0][0], seen[2][0][0])
    assert guided.trace == [
        {"round": 0, "drawn": 3, "below": 2}, {"round": 1, "drawn": 2, "below": 2}, {"round": 2, "drawn": 2, "below": 1}, {"withheld": 1},
    ]  # fmt: skip
    assert guided.ledger.rewards == 7 and guided.ledger.missing == 1
    torch.testing.assert_close(guided.scores, torch.tensor([1.0, 0.9, 0.2]).double(), atol=1e-6, rtol=0)


def test_the_best_may_be_handed_over(pipe):
    reward, seen = scoring([0.1, 0.3, math.nan], [0.2, 0.1, 0.1])
    with mm.guide(pipe, reward, guidance="guarded", least=0.5, tries=2, otherwise="best") as guided:
        out = images(pipe)
    assert torch.equal(out, torch.stack([seen[1][0][0], seen[0][0][1], seen[1][0][2]])) and guided.trace[-1] == {"withheld": 3}
    with pytest.raises(UserError, match=r"guarded\.tries: got 0"):
        mm.guidance.guarded(least=0.5, tries=0)


def test_answers_behind_a_guardrail_are_counted():
    """Of four prompts one is refused; of the others one passes, one passes at its second try, one never."""
    drawn = []

    def generate(prompts, seeds):
        drawn.append((list(prompts), seeds))
        return [f"{prompt} {seed % 3}" for prompt, seed in zip(prompts, seeds, strict=True)]

    says = {"a 0": 0.9, "b 0": 0.1, "b 1": 0.5, "c 0": math.nan, "c 1": 0.2, "c 2": 0.3}

    def answer(outputs, prompts):
        return torch.tensor([says[text] for text in outputs], dtype=torch.float64)

    def prompt(outputs, prompts):
        assert outputs == [""] * len(prompts)
        return torch.tensor([0.0 if text == "x" else 1.0 for text in prompts])

    found = mm.guidance.guarded_answers(generate, ["a", "x", "b", "c"], answer=answer, prompt=prompt, refusal="no")
    assert found.outputs == ["a 0", "no", "b 1", "no"]
    assert found.counts == {"prompts": 4, "refused": 1, "drawn": 6, "withheld": 1, "missing": 1}
    assert drawn == [(["a", "b", "c"], [0, 6, 9]), (["b", "c"], [7, 10]), (["c"], [11])]
    torch.testing.assert_close(found.scores, torch.tensor([0.9, math.nan, 0.5, 0.3]).double(), equal_nan=True)
