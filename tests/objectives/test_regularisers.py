from __future__ import annotations

import pytest
import torch

from mmalign.methods import rpo
from mmalign.needs import MASK
from mmalign.objectives.terms import regularisers
from mmalign.types import Feedback, Steps, UserError

NAN = float("nan")


def feedback_of(strength, lengths, pairs=((0, 1), (2, 3))):
    rows = len(lengths)
    mask = torch.arange(max(lengths))[None, :] < torch.tensor(lengths)[:, None]
    nothing = torch.full((rows,), NAN, dtype=torch.float64)
    strength = torch.tensor(strength, dtype=torch.float64)
    return Feedback(nothing, torch.arange(rows) // 2, pairs=torch.tensor(pairs), strength=strength, tables={MASK: mask})


def test_a_token_average_is_over_the_steps_of_all_better_rows():
    assert regularisers.token_average(feedback_of([1.0, 1.0], [3, 9, 1, 9]))[[0, 2], 0].tolist() == [2 * 3 / 4, 2 * 1 / 4]
    assert regularisers.token_average(feedback_of([1.0, NAN], [3, 9, 1, 9]))[0, 0] == 1.0  # a pair that says nothing is not counted
    assert regularisers.token_average(feedback_of([1.0, 1.0], [3, 9, 1, 0]))[0, 0] == 1.0  # nor one with an empty row
    assert regularisers.token_average(feedback_of([0.5, 1.0], [3, 9, 4, 9]))[2, 0] == pytest.approx(2 * 4 / (0.5 * 12 + 4))
    with pytest.raises(UserError, match="reads mask"):
        regularisers.token_average(Feedback(torch.zeros(2).double(), torch.zeros(2, dtype=torch.int64), pairs=torch.tensor([[0, 1]])))


@pytest.mark.parametrize("average, wanted", [("sequence", (1.0 + 2.0) / 2), ("token", (3 * 1.0 + 1 * 2.0) / 4), ("sum", (3.0 + 2.0) / 2)])
def test_the_likelihood_of_better_rows(average, wanted):
    feedback = feedback_of([1.0, 1.0], [3, 2, 1, 2])
    mask = feedback.tables[MASK]
    log_probs = torch.tensor([[-1.0], [-50.0], [-2.0], [-50.0]], dtype=torch.float64).expand(4, 3) * mask
    steps = Steps(log_probs, mask, refs={"ref": log_probs})
    losses = []
    for weight in (0.0, 1.0):
        method = rpo(likelihood=weight, average=average)
        losses.append((method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum())
    assert (losses[1] - losses[0]).item() == pytest.approx(wanted)


def test_mistakes():
    with pytest.raises(UserError, match="'mean', takes one of sequence, token, sum"):
        regularisers.likelihood("mean")
    with pytest.raises(UserError, match=r"likelihood: got -1\.0, takes 0 or more"):
        rpo(likelihood=-1.0)
