"""Terms that a pair's loss has besides the comparison: ``pairwise.Term``, ``[N, 1]``, or ``[N, T]`` for a bound."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmalign.needs import MASK, reverse_kls
from mmalign.objectives import scores
from mmalign.objectives.parts import Part, live, read
from mmalign.objectives.sentences.pairwise import Order, Term, strengths
from mmalign.types import Feedback, Need, Steps, UserError

Average = Literal["sequence", "token", "sum"]


def likelihood(average: Average = "sequence", *, share: Part | None = None) -> Term:
    """``-log pi`` of the better row, nats: per step of its row (``sequence``) or summed (``sum``); for a bound, of each draw.

    ``token``: the sum of all better rows over the number of all their steps, in the whole update, so that long rows count more; the
    first channel of the signal has to be ``token_average``. share: what each step counts for.
    """
    if average not in get_args(Average):
        raise UserError(f"average: got {average!r}, takes one of {', '.join(get_args(Average))}")
    score = scores.policy("total" if average == "sum" else "per_step", share=share)

    def of(steps: Steps, order: Order) -> Tensor:
        values = -score.of(steps)
        return order.sides(values * order.said[:, :1] if average == "token" else values)[0]

    return Term(of, score.needs)


def token_average(feedback: Feedback) -> Tensor:
    """``[B, 1]``: what turns a mean over pairs of means over steps into a mean over the steps of all better rows: ``N |y| / steps``.

    N and steps are those of the pairs that are known and have steps in both rows; a soft label counts both rows by its strength.
    Reads ``mask``.
    """
    length = read(feedback, MASK).sum(1).double()
    known = strengths(feedback)
    share = torch.where(known > 0, known, torch.where(known < 0, 1 + known, 0.0))
    pairs = feedback.pairs if feedback.pairs is not None else torch.zeros(0, 2, dtype=torch.int64)
    full = torch.zeros_like(known, dtype=torch.bool)
    full[pairs.flatten()] = ((length[pairs] > 0).all(1, keepdim=True) & (known[pairs] != 0)).expand(-1, 2).flatten()
    steps = (share * length * full).sum().clamp(min=1)
    return (full.sum() / 2 * length / steps)[:, None]


def kept(*, beta: float, at_least: float = 0.0) -> Term:
    """``-log sigmoid(beta (log-ratio of the better row - at_least))``: it shall not fall below the reference (mDPO's anchor)."""
    score = scores.ratio("total")
    softplus = torch.nn.functional.softplus

    def of(steps: Steps, order: Order) -> Tensor:
        return softplus(-beta * (order.sides(score.of(steps))[0] - at_least))

    return Term(of, score.needs)


def reverse_kl(side: Literal["better", "worse"], *, name: str = "ref") -> Term:
    """``sum_t KL(ref || pi)`` over the steps of the better or the worse row, nats. Needs ``reverse_kls``."""

    def of(steps: Steps, order: Order) -> Tensor:
        if name not in steps.reverse_kls:
            raise UserError(f"Steps.reverse_kls: got {sorted(steps.reverse_kls)}, this term takes {name!r}")
        better, worse = order.sides(live(steps.reverse_kls[name], steps.mask).sum(1, keepdim=True))
        return better if side == "better" else worse

    return Term(of, frozenset({reverse_kls(name)}))


def of_both(name: str) -> Term:
    """Minus the mean over the two rows of the sum of a term of their steps."""

    def of(steps: Steps, order: Order) -> Tensor:
        if name not in steps.terms:
            raise UserError(f"Steps.terms: got {sorted(steps.terms)}, this method takes {name}")
        rows = live(steps.terms[name], steps.mask).sum(1, keepdim=True)
        return -(rows[0::2] + rows[1::2]) / 2

    return Term(of, frozenset({Need(name)}))
