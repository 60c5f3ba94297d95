"""Comparisons of sorted scores: optimal transport on a line. Who is compared with whom is found for a whole update."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import DENSITIES, Survey
from mmalign.objectives.terms.pairs import Order, Term, whole
from mmalign.types import Steps


def by_rank(link: links.Compare, *, paired: bool) -> Term:
    """A comparison with what a survey finds for each row; a label counts by which row is the better one, and a tie says nothing.

    paired: the margin of log-probabilities of each pair with the reference's margin of the same rank. Otherwise: the log-ratio of
    each better row with the worse row's of the same rank; a comparison is shared by two pairs, each of which gives the gradient of
    its own row, while the value stands with the better row's.
    """
    score = scores.ratio()
    policy = scores.policy()

    def of(steps: Steps, order: Order) -> Tensor:
        other, others = order.sides(order.surveyed)
        if paired:
            better, worse = order.sides(policy.of(steps))
            return link(better - worse, other)
        better, worse = order.sides(score.of(steps))
        mirrored = link(others, worse)
        return link(better, other) + (mirrored - mirrored.detach())

    def matched(steps: Steps, order: Order) -> Tensor:
        known = (whole(steps) & (order.sign != 0))[:, 0]
        ratio = score.of(steps).detach()
        if paired:
            better, worse = order.sides(policy.of(steps).detach())
            margin = better - worse
            ahead, target = order.sides(ratio)
            mine = theirs = _matched(margin, margin - (ahead - target), known)
        else:
            better, worse = order.sides(ratio)
            mine, theirs = _matched(better, worse, known), _matched(worse, better, known)
        up = order.sign >= 0
        return torch.stack([torch.where(up, mine, theirs), torch.where(up, theirs, mine)], 1).view(-1, 1)

    return Term(of, score.needs, kinds=DENSITIES, survey=Survey(matched), score=score, labels=comparisons.hard)


def _matched(values: Tensor, others: Tensor, known: Tensor) -> Tensor:
    """The one of ``others [N, 1]`` whose rank among the known is that of each of ``values [N, 1]``; 0 for the unknown."""
    matches = torch.zeros_like(values)
    rank = values[known, 0].argsort(stable=True).argsort(stable=True)
    matches[known, 0] = others[known, 0].sort().values[rank]
    return matches
