from __future__ import annotations

import pytest
import torch

from mmalign.methods import triple_po
from mmalign.needs import MASK
from mmalign.objectives.sentences import triples
from mmalign.types import Feedback, UserError

NAN = float("nan")


def feedback_of(rewards, group=None, empty=()):
    rows = len(rewards)
    mask = torch.ones(rows, 2, dtype=torch.bool)
    mask[list(empty)] = False
    group = torch.zeros(rows, dtype=torch.int64) if group is None else torch.tensor(group)
    return Feedback(torch.tensor(rewards, dtype=torch.float64), group, tables={MASK: mask})


@pytest.mark.parametrize(
    "rewards, wanted",
    [
        ([1.0, 3.0, 2.0], [-1.0, 2.0, 1.0]),
        ([1.0, 5.0, 2.0, 4.0], [-1.0, 2.0, 0.0, 1.0]),
        ([1.0, 3.0], [0.0, 0.0]),  # no triple
        ([1.0, NAN, 3.0], [0.0, 0.0, 0.0]),
        ([3.0, 3.0, 1.0], [0.0, 0.0, 0.0]),  # two are best
        ([5.0, 3.0, 3.0], [0.0, 0.0, 0.0]),
        ([5.0, 3.0, 3.0, 1.0], [0.0, 0.0, 0.0, 0.0]),  # two are second
        ([5.0, 4.0, 1.0, 1.0], [0.0, 0.0, 0.0, 0.0]),  # two are last
    ],
)
def test_roles(rewards, wanted):
    assert triples.roles(feedback_of(rewards)).tolist() == wanted


def test_groups_are_apart_and_rows_without_steps_have_no_role():
    feedback = feedback_of([1.0, 9.0, 3.0, 2.0, 8.0, 7.0, 6.0], group=[4, 5, 4, 4, 5, 5, 4], empty=[6])
    assert triples.roles(feedback).tolist() == [-1.0, 2.0, 2.0, 1.0, 1.0, -1.0, 0.0]
    assert triple_po().keep(feedback).tolist() == [True] * 6 + [False]


def test_mistakes():
    with pytest.raises(UserError, match="reads mask"):
        triples.roles(Feedback(torch.zeros(2).double(), torch.zeros(2, dtype=torch.int64)))
    with pytest.raises(UserError, match="likelihood: got -1"):
        triple_po(likelihood=-1.0)
