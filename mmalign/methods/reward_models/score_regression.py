"""Reward models of ratings."""

from __future__ import annotations

from typing import Literal

from torch import Tensor
from torch.nn import functional

from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.rated import rated
from mmalign.types import Feedback, Method


def score_regression(*, target: Literal["rating", "label"] = "rating") -> Method:
    """A score for every output that is what people rated it, or the logit of how probably they call it good.

    With s the score of a row, in each dimension that is scored::

        loss = mean over rows of  (s - rating)^2,  or  -p log sigmoid(s) - (1 - p) log sigmoid(-s)

    Records that are rated in each dimension by itself train each by its own ratings; where nobody rated one, it costs nothing.

    target: ``rating``, the records' own scores; ``label``, thumbs, with p how probably a row is good (of pairs the better row is good).

    Paper: HelpSteer2, arXiv 2406.08673, sec. 3 (regression on attributes); of labels, Training Verifiers to Solve Math Word Problems,
    arXiv 2110.14168, sec. 4 (a verifier).

    Deviations: a verifier scores every token of an answer; here it is the output as a whole. A dimension counts as often as it is rated.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.score_regression(), torch.tensor([[True], [True]])
        >>> steps = Steps(torch.tensor([[3.0], [9.0]]).double(), mask, kind="score")
        >>> feedback = Feedback(torch.tensor([5.0, torch.nan]).double(), torch.tensor([0, 1]))
        >>> method.loss(steps, method.signal(feedback)).values[:, 0].tolist()  # nobody rated the second
        [4.0, 0.0]
    """
    if target == "label":
        return rated(target=lambda feedback: comparisons.labels(feedback)[:, None], cost=_cross_entropy)
    return rated(target=_ratings, cost=lambda score, rating: (score - rating) ** 2)


def _ratings(feedback: Feedback) -> Tensor:
    return feedback.rewards.detach()[:, None] if feedback.ratings is None else feedback.ratings.detach().double()


def _cross_entropy(score: Tensor, p: Tensor) -> Tensor:
    return p * functional.softplus(-score) + (1 - p) * functional.softplus(score)
