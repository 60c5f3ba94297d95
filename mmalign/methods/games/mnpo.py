"""Multiplayer Nash Preference Optimization."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.objectives import links, pairwise, scores
from mmalign.objectives.parts import Part
from mmalign.types import Method, Steps, UserError


def mnpo(*, eta: float = 0.0075, shares: dict[str, float] | None = None) -> Method:
    """Each round moves from a mixture of the reference and earlier policies, by a fixed margin for what is preferred.

    With ``h(q) = log q(better row) - log q(worse row)``, and shares c_j of the named policies q_j that add up to 1::

        loss = mean over pairs of  (h(pi) - sum_j c_j h(q_j) - 1 / (2 eta))^2

    Args:
        eta: step size; a sure pair is asked to be ``1 / (2 eta)`` nats ahead, 67 by default.
        shares: name of a parameter set -> its share; a third ``ref`` and two thirds ``previous`` by default.

    ``previous`` is the policy of the round before: the recipe's ``refresh`` says how many steps a round has.

    Paper: Multiplayer Nash Preference Optimization, arXiv 2509.23102.

    Deviations: eta, the shares and at most two earlier policies are those of the authors' scripts; the equation was checked against
    their code as described, not against the paper's text. Soft labels are the expected loss of a hard one.
    """
    links.positive(eta=eta)
    shares = {"ref": 1 / 3, "previous": 2 / 3} if shares is None else dict(shares)
    if not shares or abs(sum(shares.values()) - 1) > 1e-6 or min(shares.values()) < 0:
        raise UserError(f"shares: got {shares}, takes names of parameter sets with shares of 0 or more that add up to 1")
    score = Part(lambda steps: _ahead_of(steps, shares), frozenset(f"refs:{name}" for name in shares), "pair")
    link = links.ahead(lambda margin: links.squared(margin, beta=eta))
    return pairwise.pairwise(pairwise.compared(score, link), kinds=pairwise.ANY)


def _ahead_of(steps: Steps, shares: dict[str, float]) -> Tensor:
    """``log pi - sum_j c_j log q_j`` of rows: the shares add up to 1, so it is a mean of log-ratios."""
    return torch.stack([share * scores.ratio("total", ref=name).of(steps) for name, share in shares.items()]).sum(0)
