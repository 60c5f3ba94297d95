from __future__ import annotations

import math

import pytest
import torch

from mmalign.objectives.terms import shares
from mmalign.types import Steps, UserError


def steps(**changes):
    mask = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0]], dtype=torch.bool)
    zeros = torch.zeros(2, 4).double()
    facts = {
        "changed": torch.tensor([[1, 1, 0, 1], [0, 1, 1, 1]]).double(),
        "phrase": torch.tensor([[0, 1, 2, 2], [1, 0, 3, 3]]).double(),
        "segment": torch.tensor([[1, 1, 2, 2], [1, 2, 2, 2]]).double(),
    }
    return Steps(**{"log_probs": zeros, "mask": mask, "facts": facts, **changes})


def test_by_hand():
    table = steps()
    assert shares.changed(5.0).of(table).tolist() == [[5.0, 0.0, 1.0, 5.0], [1.0, 5.0, 0.0, 0.0]]
    assert shares.phrases().of(table).tolist() == [[0.0, 0.0, 1.0, 1.0], [1.0, 0.0, 0.0, 0.0]]
    assert shares.segment(2).of(table).tolist() == [[0.0, 0.0, 1.0, 1.0], [0.0, 1.0, 0.0, 0.0]]
    assert shares.discounted(0.5).of(table).tolist() == [[1.0, 0.0, 0.5, 0.25], [1.0, 0.5, 0.0, 0.0]]  # a hole is no step
    assert shares.beyond_shorter(0.25).of(table).tolist() == [[1.0, 0.0, 1.0, 0.25], [1.0, 1.0, 0.0, 0.0]]


def test_token_rewards():
    """log-probabilities of the reference under two prompts; the policy's own do not matter."""
    mask = steps().mask
    good = Steps(torch.full((2, 4), math.nan).double(), mask, refs={"ref": torch.full((2, 4), -1.0).double()})
    bad = Steps(torch.full((2, 4), math.nan).double(), mask, refs={"ref": torch.full((2, 4), -1.0 - math.log(3)).double()})
    rewards = shares.token_rewards(steps(contrasts={"good": good, "bad": bad}))
    assert rewards[mask].tolist() == pytest.approx([0.25] * 5) and not rewards[~mask].any()


def test_mistakes():
    with pytest.raises(UserError, match="takes 'changed'"):
        shares.changed(2.0).of(steps(facts={}))
    with pytest.raises(UserError, match="takes 'good'"):
        shares.token_rewards(steps())
    for wrong, match in ((lambda: shares.changed(-1.0), "0 or more"), (lambda: shares.beyond_shorter(1.5), "0 to 1")):
        with pytest.raises(UserError, match=match):
            wrong()
    with pytest.raises(UserError, match="above 0 to 1"):
        shares.discounted(0.0)
