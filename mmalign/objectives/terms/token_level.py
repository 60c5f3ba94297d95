"""Terms of a pair that look into its steps: divergences of whole distributions, rewards of single tokens."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import KL_MASK, REWARD_MASK, contrast, refs, reverse_kls
from mmalign.objectives import links, scores
from mmalign.objectives.parts import live
from mmalign.objectives.sentences.pairwise import Order, Term
from mmalign.objectives.terms import extras, shares
from mmalign.types import Steps, UserError


def tdpo(*, beta: float, alpha: float, both: bool) -> Term:
    """``-log sigmoid(beta [m - alpha (K_worse - K_better)])``, K the row's ``KL(ref || pi)``; K_better without gradient unless ``both``."""
    score = scores.ratio()
    better_kl, worse_kl = extras.reverse_kl("better"), extras.reverse_kl("worse")

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        anchor = better_kl.of(steps, order)
        held = worse_kl.of(steps, order) - (anchor if both else anchor.detach())
        return links.logistic(better - worse - alpha * held, beta=beta)

    return Term(of, score.needs | better_kl.needs, score)


def rewarded(*, beta: float) -> Term:
    """``sg(sigmoid(beta (d_r - d_w))) sum over both rows of -beta r_t log pi_t``, r the token rewards of ``shares.token_rewards``."""
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps).detach())
        cells = -beta * shares.token_rewards(steps) * live(steps.log_probs, steps.mask)
        rows = torch.stack(order.sides(cells.sum(1, keepdim=True))).sum(0)
        return torch.sigmoid(beta * (worse - better)) * rows

    return Term(of, score.needs | {contrast("good"), contrast("bad")})


def critical(*, beta: float, both: bool) -> Term:
    """DPO whose worse rows' steps count by ``1 - s`` and, with ``both``, better rows' by s: ``sigmoid(log ref(good) - log ref(bad))``."""
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        cells, likely = scores.log_ratio(steps), shares.token_rewards(steps) + 0.5
        better = order.sides((cells * likely if both else cells).sum(1, keepdim=True))[0]
        return links.logistic(better - order.sides((cells * (1 - likely)).sum(1, keepdim=True))[1], beta=beta)

    return Term(of, score.needs | {contrast("good"), contrast("bad")}, score)


def masked(*, beta: float, reward_sparsity: float, kl_sparsity: float) -> Term:
    """TDPO's first form with a mask on rewards and one on divergences (terms ``reward_mask``, ``kl_mask``), and their L1 norms."""
    needs = frozenset({refs("ref"), reverse_kls("ref"), REWARD_MASK, KL_MASK})

    def mask(steps: Steps, name: str) -> Tensor:
        if name not in steps.terms:
            raise UserError(f"Steps.terms: got {sorted(steps.terms)}, this method takes {name}")
        return live(steps.terms[name], steps.mask)

    def of(steps: Steps, order: Order) -> Tensor:
        if "ref" not in steps.reverse_kls:
            raise UserError(f"Steps.reverse_kls: got {sorted(steps.reverse_kls)}, this method takes 'ref'")
        rewards, held = mask(steps, "reward_mask"), mask(steps, "kl_mask")
        cells = rewards * scores.log_ratio(steps) + held * live(steps.reverse_kls["ref"], steps.mask)
        better, worse = order.sides(cells.sum(1, keepdim=True))
        norms = (reward_sparsity * rewards.abs() + kl_sparsity * held.abs()).sum(1, keepdim=True)
        return links.logistic(better - worse, beta=beta) + norms[0::2] + norms[1::2]

    return Term(of, needs)
