"""General Preference Optimization."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import ANY, Reading
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Feedback, Method, Steps


def gpo(*, beta: Positive = 1e-3) -> Method:
    """Each row's log-ratio to the previous policy goes to its preference score over beta: SPPO without squeezing it into a probability.

    With ``d = log pi - log ref`` of a row, and s its score, the mean log-odds of winning against another row of its prompt::

        loss = mean over pairs of  1/2 (d_1 - s_1 / beta)^2 + 1/2 (d_2 - s_2 / beta)^2

    Args:
        beta: score of a nat.

    ``ref`` is the policy of the round before; sampling, judging and moving ``ref`` are the recipe's.

    Paper: Beyond Bradley-Terry Models: A General Preference Model for Language Model Alignment, arXiv 2410.02197.

    Deviations: scores come from ``Feedback.wins``, as log-odds kept inside .001..999, or from rewards, as Bradley-Terry's log-odds,
    which are differences of rewards; the authors have a preference model of their own give them.
    """
    links.positive(beta=beta)
    score = scores.ratio()

    def log_odds(feedback: Feedback) -> Tensor:
        wins = comparisons.wins(feedback).clamp(1e-3, 1 - 1e-3)
        return (wins / (1 - wins)).log().nanmean(1, keepdim=True)

    def of(steps: Steps, order: Order) -> Tensor:
        (better, worse), (first, second) = order.sides(score.of(steps)), order.sides(order.extras)
        return ((better - first / beta) ** 2 + (worse - second / beta) ** 2) / 2

    return pairwise(Term(of, score.needs, score=score, extras=Reading(log_odds)), kinds=ANY)
