"""Comparisons whose margin, weight or sign differs from pair to pair: by the reference's margin, by rewards, by how on-policy it is."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.needs import COLLISION
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import Part, Reading, bounded_exp, held, live
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps, UserError


def raised(reference: Tensor, *, gamma: float, tau: float, alpha: float) -> Tensor:
    """``g_ref + softplus(tau (gamma - g_ref)) / (alpha tau)``: far below gamma the target is gamma (at alpha 1), far above it g_ref.

    reference: g_ref, nats. gamma: the least target, nats. tau: how sharp the bend is. alpha: slope of it, 1 for a target that ends at
    gamma.
    """
    return reference + functional.softplus(tau * (gamma - reference)) / (alpha * tau)


def clipped(reference: Tensor) -> Tensor:
    """``max(0, g_ref)``: never a target that prefers the worse row.

    reference: g_ref, nats.
    """
    return reference.clamp(min=0)


def above_reference(target: links.Link, *, beta: float) -> Term:
    """``-log sigmoid(beta (g - target(g_ref)))``, g the difference of log-probabilities of the two rows, g_ref the reference's.

    target: of g_ref, nats.
    """
    score, policy = scores.ratio(), scores.policy()

    def of(steps: Steps, order: Order) -> Tensor:
        own = policy.of(steps)
        gap, reference = torch.sub(*order.sides(own)), torch.sub(*order.sides((own - score.of(steps)).detach()))
        return links.logistic(gap - target(reference), beta=beta)

    return Term(of, score.needs, score=score)


def on_policy(*, cap: bool) -> Term:
    """``exp(a_w + a_r)``, at most 1 with ``cap``; a: mean over steps of the log-probability less that of a like draw (``collision``).

    cap: whether 1 is the most.
    """

    def of(steps: Steps, order: Order) -> Tensor:
        cells = live((steps.log_probs - held(steps, COLLISION)).detach(), steps.mask)
        mean = cells.sum(1, keepdim=True) / steps.mask.sum(1, keepdim=True).clamp(min=1)
        both = torch.stack(order.sides(mean)).sum(0)
        return bounded_exp(both.clamp(max=0) if cap else both)

    return Term(of, frozenset({COLLISION}))


def by_anchor(score: Part, *, beta: float) -> Term:
    """``-log sigmoid(beta (w - S l))``, S = -1 where the better row's score is below 0, and else +1 (SePPO's anchor), per draw of a bound.

    score: of a row, against whoever drew the worse one. beta: what it counts.
    """

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        side = torch.where(better.detach() < 0, -1.0, 1.0)
        return links.logistic(better - side * worse, beta=beta)

    links.positive(beta=beta)
    return Term(of, score.needs, score=score)


REWARDS_OF_ROWS = Reading(lambda feedback: feedback.rewards.detach()[:, None])


def by_reward(score: Part, *, beta: float, weight: float, k: float) -> Term:
    """``-log sigmoid(b m)``, ``b = beta (1 + weight (1 - e^(-k delta)))``, delta how much more reward the better row has, at least 0.

    weight: how much larger b may grow, as a share of beta. k: how fast, per unit of reward.
    """
    links.not_negative(weight=weight)

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        more, less = order.sides(order.extras)
        sure = -torch.expm1(-k * (more - less).clamp(min=0))
        return links.logistic((1 + weight * sure) * (better - worse), beta=beta)

    return Term(of, score.needs, score=score, extras=REWARDS_OF_ROWS)


def less_rewards(score: Part, *, beta: float, share: float) -> Term:
    """``-log sigmoid((beta m - (1 - w) delta) / w)``, w the ``share`` of this objective, delta what others say for the better row.

    share: above 0, to 1.
    """
    if not 0 < share <= 1:
        raise UserError(f"weight: got {share}, takes above 0 to 1")

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        more, less = order.sides(order.extras)
        return links.logistic((beta * (better - worse) - (1 - share) * (more - less)) / share, beta=1.0)

    return Term(of, score.needs, score=score, extras=REWARDS_OF_ROWS)


WIN_RATES = Reading(lambda feedback: comparisons.win_rate(feedback)[:, None])


def to_win_rates(score: Part, *, beta: float, scale: float) -> Term:
    """``scale [1/2 (w - (P_w - 1/2) / beta)^2 + 1/2 (l - (P_l - 1/2) / beta)^2]``, P how often a row beats another one of its group.

    beta: nats of a target are this one's inverse. scale: of the loss.
    """

    def of(steps: Steps, order: Order) -> Tensor:
        rows = zip(order.sides(score.of(steps)), order.sides(order.extras), strict=True)
        return scale * torch.stack([(own - (rate - 0.5) / beta) ** 2 / 2 for own, rate in rows]).sum(0)

    return Term(of, score.needs, score=score, extras=WIN_RATES)
