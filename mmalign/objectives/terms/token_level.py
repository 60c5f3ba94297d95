"""Terms of a pair that look into its steps: divergences of whole distributions, rewards of single tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import ACTIVATION, CHANGED, KL_MASK, REWARD_MASK, contrast, refs, reverse_kls
from mmalign.objectives import links, scores
from mmalign.objectives.parts import held, live
from mmalign.objectives.terms import regularisers, shares
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps

TOKENS = frozenset({"token"})


def tdpo(*, beta: float, alpha: float, both: bool) -> Term:
    """``-log sigmoid(beta [m - alpha (K_worse - K_better)])``, K the row's ``KL(ref || pi)``; K_better without gradient unless ``both``.

    alpha: weight of the divergences. both: whether K_better has a gradient.
    """
    score = scores.ratio()
    better_kl, worse_kl = regularisers.reverse_kl("better"), regularisers.reverse_kl("worse")

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        anchor = better_kl.of(steps, order)
        further = worse_kl.of(steps, order) - (anchor if both else anchor.detach())
        return links.logistic(better - worse - alpha * further, beta=beta)

    return Term(of, score.needs | better_kl.needs, kinds=TOKENS, score=score)


def rewarded(*, beta: float) -> Term:
    """``sg(sigmoid(beta (d_r - d_w))) sum over both rows of -beta r_t log pi_t``, r the token rewards of ``shares.token_rewards``."""
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps).detach())
        cells = -beta * shares.token_rewards(steps) * live(steps.log_probs, steps.mask)
        rows = torch.stack(order.sides(cells.sum(1, keepdim=True))).sum(0)
        return torch.sigmoid(beta * (worse - better)) * rows

    return Term(of, score.needs | {contrast("good"), contrast("bad")}, kinds=TOKENS)


def critical(*, beta: float, both: bool, models: tuple[str, str] | None = None) -> Term:
    """DPO whose worse rows' steps count by ``1 - s`` and, with ``both``, better rows' by s: ``sigmoid(log ref(good) - log ref(bad))``.

    both: whether better rows' steps are weighed too. models: the references of right and of wrong answers, in place of two prompts.
    """
    score = scores.ratio()

    def liked(steps: Steps) -> Tensor:
        if models is None:
            return shares.token_rewards(steps) + 0.5
        right, wrong = (held(steps, refs(name)) for name in models)
        return live(torch.sigmoid(live(right - wrong, steps.mask)), steps.mask)

    def of(steps: Steps, order: Order) -> Tensor:
        cells, likely = scores.log_ratio(steps), liked(steps)
        better = order.sides((cells * likely if both else cells).sum(1, keepdim=True))[0]
        return links.logistic(better - order.sides((cells * (1 - likely)).sum(1, keepdim=True))[1], beta=beta)

    judged = {contrast("good"), contrast("bad")} if models is None else {refs(name) for name in models}
    return Term(of, score.needs | judged, kinds=TOKENS, score=score)


def edited(*, added: float, removed: float) -> Term:
    """``1 / |w| (-sum_w (1, added where changed) log pi - removed sum_{l, changed} log(1 - pi))``, w the better row and l the worse one.

    added, removed: weights, 0 or more. What is marked as wrong in w (``changed`` is -1) has weight 0.
    """
    score = scores.policy("per_step")

    def of(steps: Steps, order: Order) -> Tensor:
        log_probs, changed = live(steps.log_probs, steps.mask), live(held(steps, CHANGED), steps.mask)
        weight = torch.where(changed > 0, added, (changed == 0).double())
        unlikely = live(log_probs - scores.log_odds(log_probs), steps.mask & (changed > 0))
        likely = order.sides((weight * log_probs).sum(1, keepdim=True))[0]
        length = order.sides(steps.mask.sum(1, keepdim=True))[0].clamp(min=1)
        return -(likely + removed * order.sides(unlikely.sum(1, keepdim=True))[1]) / length

    return Term(of, score.needs | {CHANGED}, kinds=TOKENS, score=score)


def active(steps: Steps) -> Tensor:
    """``relu((a_t - mean a) / std a)`` over a row's live steps, ``[B, T]``: a the activation; 1 in a row whose steps are all alike.

    The spread is that of the row itself, ``std^2 = mean (a - mean a)^2``, so that of two steps one counts, by 1.
    Where all are alike, one of one step too, none is told apart from the others, and all count.
    """
    a, count = live(held(steps, ACTIVATION), steps.mask), steps.mask.sum(1, keepdim=True).clamp(min=1)
    away = live(a - a.sum(1, keepdim=True) / count, steps.mask)
    spread = ((away**2).sum(1, keepdim=True) / count).sqrt()
    alike = spread <= 1e-9 * a.abs().amax(1, keepdim=True)
    return live(torch.where(alike, 1.0, (away / torch.where(alike, 1.0, spread)).relu()), steps.mask)


def masked(*, beta: float, reward_sparsity: float, kl_sparsity: float, learned: bool = True) -> Term:
    """TDPO's first form with a mask on rewards and one on divergences (terms ``reward_mask``, ``kl_mask``), and their L1 norms.

    reward_sparsity, kl_sparsity: weights of the two norms. learned: or both masks are that of ``active``, which nothing trains.
    """
    needs = frozenset({refs("ref"), reverse_kls("ref"), *((REWARD_MASK, KL_MASK) if learned else (ACTIVATION,))})

    def of(steps: Steps, order: Order) -> Tensor:
        masks = [live(held(steps, need), steps.mask) for need in (REWARD_MASK, KL_MASK)] if learned else [active(steps)] * 2
        of_rewards, of_kls = masks
        cells = of_rewards * scores.log_ratio(steps) + of_kls * live(held(steps, reverse_kls("ref")), steps.mask)
        better, worse = order.sides(cells.sum(1, keepdim=True))
        norms = (reward_sparsity * of_rewards.abs() + kl_sparsity * of_kls.abs()).sum(1, keepdim=True)
        return links.logistic(better - worse, beta=beta) + norms[0::2] + norms[1::2]

    return Term(of, needs, kinds=TOKENS)
