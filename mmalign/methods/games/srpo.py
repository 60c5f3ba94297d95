"""Self-Improving Robust Preference Optimization."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Positive, Proportion
from mmalign.needs import contrast
from mmalign.objectives import scores
from mmalign.objectives.parts import under
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Method, Steps, UserError


def srpo(*, beta: Positive = 0.1, alpha: Proportion = 0.5, revising: str = "revising", keeping: str = "keeping") -> Method:
    """One model learns to answer and to improve an answer; the best answers are those that leave nothing to improve.

    With ``d(y | z)`` the sum over steps of ``log pi - log ref`` of answer y where the prompt shows answer z to be revised, ``d(y)`` where
    it shows none, and ``t = 1/2`` for y the better and z the worse answer of a pair, ``t = -1/2`` for the other way round::

        loss = mean over pairs, and both ways, of  (1 - alpha) (t - beta [d(y | z) - d(z | z)])^2
                                                 + alpha (t - beta [d(y | z) - d(y | y) + d(y) - d(z)])^2

    The first says how much better than z the improver's y is; the second puts in for ``d(z | z)`` what the best answerer makes of it.

    Args:
        beta: price of a nat of KL to ``ref``, in units of a probability to win.
        alpha: weight of the term that trains the answerer, 0 to 1.
        revising, keeping: names of the contrasts: each row after a prompt that shows the pair's other row, and its own.

    The policy is told what such prompts say: ``contrasts: {revising: "{prompt} Improve on: {other}", keeping: "{prompt} Improve on:
    {own}"}``.

    Paper: Self-Improving Robust Preference Optimization, arXiv 2406.01660.

    Deviations: derived from the paper's min-max objective (maximise P(y > z) - beta KL of the improver, minimise over the answerer with
    + beta KL), whose best improver has ``P(y > z) - 1/2 = beta [d(y | z) - d(z | z)]`` and whose best answerer ``d(z) - d(y) = d(z | z) -
    d(y | y)``. The objective is as the authors repeat it in the report of Command A (arXiv 2504.00698), and reviewers of the paper name
    a convex combination of two losses; which of them alpha weighs, and the values of alpha and beta, could not be checked: no text or
    code of the authors was at hand. A soft label is the expected loss, which differs from regressing on it by a constant.
    """
    if beta <= 0 or not 0 <= alpha <= 1:
        raise UserError(f"beta, alpha: got {beta} and {alpha}, takes a number above 0, and one in 0..1")
    score = scores.ratio()

    def of(steps: Steps, order: Order) -> Tensor:
        better, worse = order.sides(score.of(steps))
        raised, lowered = order.sides(score.of(under(steps, revising)))
        same, low = order.sides(score.of(under(steps, keeping)))
        improver = (0.5 - beta * (raised - low)) ** 2 + (0.5 + beta * (lowered - same)) ** 2
        ahead = better - worse
        answerer = (0.5 - beta * (raised - same + ahead)) ** 2 + (0.5 + beta * (lowered - low - ahead)) ** 2
        return ((1 - alpha) * improver + alpha * answerer) / 2

    return pairwise(Term(of, score.needs | {contrast(revising), contrast(keeping)}, score=score))
