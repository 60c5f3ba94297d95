"""Implicit Reward Pairwise Difference based Empirical Preference Optimization."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from mmalign.arguments.ranges import Positive, within
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import ANY, Reading
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Feedback, Method, Steps, UserError


def irepo(*, beta: Positive = 0.1, eps: Annotated[float, within(0, 0.5, above=True, below=True)] = 0.01) -> Method:
    """The margin of implicit rewards is regressed to the log-odds of the preference, as annotators' votes give them.

    With m DPO's margin to ``ref`` and p the probability that the pair's first row is the better one, kept inside eps..1 - eps::

        loss = mean over pairs of  (beta m - log(p / (1 - p)))^2

    Args:
        beta: reward of a nat.
        eps: how sure a preference can be, above 0 and below 0.5: sure ones would ask for an infinite margin.

    Paper: iREPO: implicit Reward Pairwise Difference based Empirical Preference Optimization, arXiv 2405.15230.

    Deviations: that the implicit rewards' difference is regressed to the logit of what annotators prefer is the abstract's and its
    reviewers' account; the paper's text was not at hand, and beta could not be checked. Its p comes of Zermelo's (Bradley-Terry's)
    strengths, fitted to the votes of several annotators on all pairs of a prompt's answers, and its pair is the strongest answer and the
    weakest; here p is what the record says of its own pair. eps is ours, and a pair with a hard label has the margin ``log((1 - eps) /
    eps)``. ``ref`` is the policy of the round before, where a recipe has rounds.
    """
    links.positive(beta=beta)
    if not 0 < eps < 0.5:
        raise UserError(f"eps: got {eps}, takes a number above 0 and below 0.5")
    score = scores.ratio()

    def odds(feedback: Feedback) -> Tensor:
        sure = comparisons.strengths(feedback)
        p = torch.where(sure > 0, sure, 1 + sure).clamp(eps, 1 - eps)
        return torch.where(sure != 0, (p / (1 - p)).log(), torch.nan)[:, None]

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        wanted, _ = order.sides(order.extras)
        return (beta * (better - worse) - wanted) ** 2

    return pairwise(Term(of, score.needs, score=score, extras=Reading(odds)), kinds=ANY)
