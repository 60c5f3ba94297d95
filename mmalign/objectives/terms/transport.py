"""Comparisons of sorted scores: optimal transport on a line. Who is compared with whom is found for a whole update."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import Order, Term, ordered, whole
from mmalign.types import Steps


def by_rank(link: links.Compare, *, paired: bool) -> tuple[Term, Callable[[Steps, Tensor], Tensor]]:
    """A term, and the survey that tells each row what it is compared with, in the last channel of the signal.

    paired: the margin of log-probabilities of each pair with the reference's margin of the same rank. Otherwise: the log-ratio of
    each better row with the worse row's of the same rank; a comparison is shared by two pairs, each of which gives the gradient of
    its own row, while the value stands with the better row's.
    """
    score = scores.ratio()
    policy, needs = scores.policy(), score.needs

    def of(steps: Steps, order: Order) -> Tensor:
        other, others = order.sides(order.said[:, -1:])
        if paired:
            better, worse = order.sides(policy.of(steps))
            return link(better - worse, other)
        better, worse = order.sides(score.of(steps))
        mirrored = link(others, worse)
        return link(better, other) + (mirrored - mirrored.detach())

    def survey(steps: Steps, signal: Tensor) -> Tensor:
        order = ordered(steps, signal)
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
        found = torch.stack([torch.where(up, mine, theirs), torch.where(up, theirs, mine)], 1).view(-1, 1, 1)
        return torch.cat([signal[..., :-1], found.to(signal)], -1)

    return Term(of, needs, score), survey


def _matched(values: Tensor, others: Tensor, known: Tensor) -> Tensor:
    """The one of ``others [N, 1]`` whose rank among the known is that of each of ``values [N, 1]``; 0 for the unknown."""
    found = torch.zeros_like(values)
    rank = values[known, 0].argsort(stable=True).argsort(stable=True)
    found[known, 0] = others[known, 0].sort().values[rank]
    return found
