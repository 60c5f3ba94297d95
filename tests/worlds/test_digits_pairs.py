from __future__ import annotations

import pytest
import torch

from mmalign.types import UserError
from mmalign.worlds.digits.base import untrained
from mmalign.worlds.digits.pairs import digits_pairs


def brightness(outputs, prompts, **_):
    return outputs.flatten(1).mean(1)


def test_the_best_and_the_worst_of_each_group():
    settings = {"call": {"num_inference_steps": 2}, "groups": 3, "best_of": 4}
    pairs = digits_pairs(untrained(), reward=brightness, **settings)
    assert len(pairs) == 30 and {pair.prompt for pair in pairs[:10]} == {pair.prompt for pair in pairs}  # prompts take turns
    assert all(pair.first.shape == (1, 8, 8) and pair.first.mean() > pair.second.mean() and pair.strength == 1.0 for pair in pairs)
    again = digits_pairs(untrained(), reward=brightness, **settings)
    assert all(torch.equal(a.first, b.first) for a, b in zip(pairs, again, strict=True))
    other = digits_pairs(untrained(), reward=brightness, seed=1, **settings)
    assert not torch.equal(pairs[0].first, other[0].first)


def test_groups_without_a_difference_are_ties():
    pairs = digits_pairs(
        untrained(), reward=lambda outputs, prompts: torch.ones(len(prompts)), groups=1, best_of=2, call={"num_inference_steps": 1}
    )
    assert {pair.strength for pair in pairs} == {0.5}


def test_mistakes():
    with pytest.raises(UserError, match="groups=0"):
        digits_pairs(untrained(), groups=0)
    with pytest.raises(UserError, match="best_of=1"):
        digits_pairs(untrained(), best_of=1)
