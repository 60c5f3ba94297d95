from __future__ import annotations

import torch

from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import transport
from mmalign.types import Feedback, Steps

GAP = links.ahead(lambda margin: -margin)  # the cost is minus the margin: each comparison can be read off


def table(better, worse, ref=None):
    """Rows of one step; the first of each pair is the better one."""
    rows = torch.tensor([value for pair in zip(better, worse, strict=True) for value in pair], dtype=torch.float64)[:, None]
    zeros = torch.zeros_like(rows)
    return Steps(rows.requires_grad_(), torch.ones_like(rows, dtype=torch.bool), refs={"ref": zeros if ref is None else ref})


def loss(steps, paired):
    method = pairwise(transport.by_rank(GAP, paired=paired))
    count = len(steps)
    rewards = torch.full((count,), torch.nan, dtype=torch.float64)
    signal = method.signal(Feedback(rewards, torch.arange(count) // 2, pairs=torch.arange(count).view(-1, 2)))
    return method, method.survey(steps.each(torch.Tensor.detach), signal)


def test_each_rank_meets_its_own():
    steps = table([1.0, 5.0, 3.0], [10.0, 20.0, 0.0])
    _, signal = loss(steps, paired=False)
    assert signal[0::2, 0, 1].tolist() == [0.0, 20.0, 10.0]  # the smallest better row meets the smallest worse row
    assert signal[1::2, 0, 1].tolist() == [3.0, 5.0, 1.0]
    steps = table([1.0, 5.0, 3.0], [0.0, 0.0, 0.0], ref=torch.tensor([[7.0], [0.0], [8.0], [0.0], [9.0], [0.0]]).double())
    _, signal = loss(steps, paired=True)
    assert signal[0::2, 0, 1].tolist() == [7.0, 9.0, 8.0]


def test_value_and_gradient_are_those_of_sorted_scores():
    better, worse = [1.0, 5.0, 3.0], [10.0, 20.0, 0.0]
    steps = table(better, worse)
    method, signal = loss(steps, paired=False)
    values = method.loss(steps, signal).values
    assert values[0::2, 0].sum().item() == -(sum(better) - sum(worse))  # a value once, with the better row's pair
    (values.sum() / 2).backward()
    assert steps.log_probs.grad[:, 0].tolist() == [-1.0, 1.0] * 3
