"""Terms that a pair's loss has besides its comparison: likelihoods, anchors and divergences, ``[N, 1]``, or ``[N, T]`` for a bound."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor

from mmalign.needs import MASK, reverse_kls
from mmalign.objectives import scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import DENSITIES, Part, Reading, held, live, read
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Feedback, Need, Steps, UserError

Average = Literal["sequence", "token", "sum"]


def likelihood(average: Average = "sequence", *, share: Part | None = None) -> Term:
    """``-log pi`` of the better row, nats: per step of its row (``sequence``) or summed (``sum``); for a bound, of each draw.

    ``token``: the sum of all better rows over the number of all their steps, in the whole update, so that long rows count more; not
    for bounds. share: what each step counts for.

    average: ``sequence``, ``token`` or ``sum``.

    Errors: UserError for another average.
    """
    if average not in get_args(Average):
        raise UserError(f"average: got {average!r}, takes one of {', '.join(get_args(Average))}")
    score = scores.policy("total" if average == "sum" else "per_step", share=share)
    if average == "token":
        weighted = lambda steps, order: order.sides(-score.of(steps) * order.extras)[0]  # noqa: E731
        return Term(weighted, score.needs, kinds=DENSITIES, extras=Reading(token_average, frozenset({MASK})))
    return Term(lambda steps, order: order.sides(-score.of(steps))[0], score.needs)


def error_of_given(*, error: str, half: bool) -> Term:
    """The denoising error of the rows of a pair that are labelled good, whichever of them is the better one; for bounds.

    error, half: as in ``scores.errors``.
    """
    scale = 1.0 if half else 2.0
    score = scores.policy("per_scalar" if error == "mean" else "total")

    def of(steps: Steps, order: Order) -> Tensor:
        given = -scale * score.of(steps) * order.extras
        return given[0::2] + given[1::2]

    return Term(of, score.needs, kinds=frozenset({"bound"}), extras=Reading(labelled_good))


def labelled_good(feedback: Feedback) -> Tensor:
    """``[B, 1]``: 1 for rows whose label is above one half, else 0."""
    return (comparisons.labels(feedback) > 0.5).double()[:, None]


def token_average(feedback: Feedback) -> Tensor:
    """``[B, 1]``: what turns a mean over pairs of means over steps into a mean over the steps of all better rows: ``N |y| / steps``.

    N and steps are those of the pairs that are known and have steps in both rows; a soft label counts both rows by its strength.
    Reads ``mask``.
    """
    length = read(feedback, MASK).sum(1).double()
    known = comparisons.strengths(feedback)
    share = torch.where(known > 0, known, torch.where(known < 0, 1 + known, 0.0))
    pairs = feedback.pairs if feedback.pairs is not None else torch.zeros(0, 2, dtype=torch.int64)
    full = torch.zeros_like(known, dtype=torch.bool)
    full[pairs.flatten()] = ((length[pairs] > 0).all(1, keepdim=True) & (known[pairs] != 0)).expand(-1, 2).flatten()
    steps = (share * length * full).sum().clamp(min=1)
    return (full.sum() / 2 * length / steps)[:, None]


def anchored(*, beta: float, at_least: float = 0.0) -> Term:
    """``-log sigmoid(beta (log-ratio of the better row - at_least))``: it shall not fall below the reference (mDPO's anchor).

    at_least: nats.
    """
    score = scores.ratio("total")
    softplus = torch.nn.functional.softplus

    def of(steps: Steps, order: Order) -> Tensor:
        return softplus(-beta * (order.sides(score.of(steps))[0] - at_least))

    return Term(of, score.needs)


def reverse_kl(side: Literal["better", "worse"], *, name: str = "ref") -> Term:
    """``sum_t KL(ref || pi)`` over the steps of the better or the worse row, nats. Needs ``reverse_kls``.

    side: which row's. name: of the reference.
    """

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(live(held(steps, reverse_kls(name)), steps.mask).sum(1, keepdim=True))
        return better if side == "better" else worse

    return Term(of, frozenset({reverse_kls(name)}))


def of_both(need: Need) -> Term:
    """Minus the mean over the two rows of the sum of one of their steps' tables."""

    def of(steps: Steps, order: Order) -> Tensor:
        rows = live(held(steps, need), steps.mask).sum(1, keepdim=True)
        return -(rows[0::2] + rows[1::2]) / 2

    return Term(of, frozenset({need}))
