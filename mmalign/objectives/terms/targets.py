"""DPO seen as margin ranking: the policy's own margin ``g`` has to exceed a target, which for DPO is the reference's margin."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import Order, Term
from mmalign.types import Steps


def raised(reference: Tensor, *, gamma: float, tau: float, alpha: float) -> Tensor:
    """``g_ref + softplus(tau (gamma - g_ref)) / (alpha tau)``: far below gamma the target is gamma (at alpha 1), far above it g_ref."""
    return reference + functional.softplus(tau * (gamma - reference)) / (alpha * tau)


def clipped(reference: Tensor) -> Tensor:
    """``max(0, g_ref)``: never a target that prefers the worse row."""
    return reference.clamp(min=0)


def above(target: links.Link, *, beta: float) -> Term:
    """``-log sigmoid(beta (g - target(g_ref)))``, g the difference of log-probabilities of the two rows, g_ref the reference's."""
    score, policy = scores.ratio(), scores.policy()

    def of(steps: Steps, order: Order) -> Tensor:
        own, ratio = policy.of(steps), score.of(steps)
        better, worse = order.sides(own)
        reference = torch.sub(*order.sides((own - ratio).detach()))
        return links.logistic(better - worse - target(reference), beta=beta)

    return Term(of, score.needs, score)
