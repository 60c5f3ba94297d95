"""SALT where its unlikelihood has no weight: it is SFT."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.types import Feedback, Method, Steps

CHANGED = torch.tensor([[0, 1, 0, 0], [0, 1, 1, 0], [1, 0, 0, 1], [0, 0, 1, 0]]).double()


def gradient(method: Method, feedback: Feedback, rows: list[int], mask: Tensor) -> Tensor:
    """Of two pairs, better rows first; rows: those that the method is shown, as after its ``keep``."""
    leaf = torch.linspace(-3.0, -0.1, 16, dtype=torch.float64).view(4, 4).requires_grad_()
    steps = Steps(leaf.masked_fill(~mask, 0.0), mask, facts={"changed": CHANGED})[rows]
    signal = method.signal(feedback)[rows]
    (method.weigh(mask[rows]) * method.loss(steps, signal).values).sum().backward()
    assert leaf.grad is not None
    return leaf.grad


@pytest.mark.parametrize("added", [1.0, 0.0])
def test_without_unlikelihood_it_is_sft_on_the_edited_text_or_on_its_kept_words(added: float) -> None:
    group, rewards = torch.tensor([0, 0, 1, 1]), torch.zeros(4).double()
    pairs = Feedback(rewards, group, pairs=torch.tensor([[0, 1], [2, 3]]))
    thumbs = Feedback(rewards, group, labels=torch.tensor([1.0, 0.0, 1.0, 0.0]).double())
    whole = torch.ones(4, 4, dtype=torch.bool)
    mine = gradient(mm.methods.salt(added=added, removed=0.0), pairs, [0, 1, 2, 3], whole)
    theirs = gradient(mm.methods.sft(), thumbs, [0, 2], whole)
    kept = torch.ones(4, 4).double() if added else 1 - CHANGED
    assert torch.allclose(mine, theirs * kept, atol=1e-15) and bool(mine[0].any())
    unlikely = gradient(mm.methods.salt(added=added), pairs, [0, 1, 2, 3], whole)
    assert torch.equal(unlikely[[0, 2]], mine[[0, 2]])
    assert bool(((unlikely > 0) == (CHANGED > 0))[[1, 3]].all())  # descent takes exactly the removed words down
