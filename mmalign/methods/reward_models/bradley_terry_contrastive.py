"""Reward models whose features are kept apart by what two views of an output have in common."""

from __future__ import annotations

import sys

from mmalign.arguments.ranges import Count, NotNegative, Positive
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import contrastive, rated
from mmalign.types import Method


def bradley_terry_contrastive(
    *, prototypes: Count = 8, weight: NotNegative = 0.5, temperature: Positive = 0.1, sharpness: Positive = 20.0, rounds: Count = 3
) -> Method:
    """A score for every output, and beside it a contrastive loss: each of two views of an output says where the other one belongs.

    For policies with the reader ``two_views`` and the head ``prototypes``, whose numbers of a row are the score s and the cosines a, b of
    its views to K prototypes::

        loss = mean over pairs of  p l(s_w - s_l) + (1 - p) l(s_l - s_w) + weight (c_w + c_l) / 2,    l(d) = -log sigmoid(d)
        c = -(1/2) sum_k [q''_k log p'_k + q'_k log p''_k],    p' = softmax(a / temperature),  p'' = softmax(b / temperature)

    q', q'': p' and p'' at ``1 / sharpness``, balanced over all rows of an update so that every prototype is taken about as often, without
    gradient.

    Args:
        prototypes: K, as many as the head has. weight: of the contrastive loss. temperature: of what a view says.
        sharpness: of what the other is to belong to, 1 / SwAV's epsilon. rounds: of balancing.

    Paper: Secrets of RLHF in Large Language Models Part II: Reward Modeling, arXiv 2401.06080, sec. 3 (recalled: SwAV, and SimCSE, on
    features of two draws of dropout, added to the loss of preferences); SwAV, arXiv 2006.09882, eq. 1 to 5 (recalled).

    Deviations: SimCSE's loss, whose negatives are other rows, is not there; features of each row are contrasted, where the paper also
    contrasts the differences of pairs; there is no projection between features and prototypes, and no queue of earlier rows.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_contrastive(prototypes=2, weight=1.0), torch.ones(2, 5).bool()
        >>> views = [[1.5, 0.5, -0.5, 0.5, -0.5], [0.5, -0.5, 0.5, -0.5, 0.5]]  # two rows, each near a prototype of its own in both views
        >>> steps = Steps(torch.tensor(views).double(), mask, kind="score")
        >>> signal = method.signal(Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]])))
        >>> loss = method.loss(steps, method.survey(steps, signal))
        >>> (method.weigh(mask) * loss.values).sum()  # -log sigmoid(1), and next to nothing
        tensor(0.3133, dtype=torch.float64)
    """
    balanced = contrastive.swapped(prototypes=prototypes, weight=weight, temperature=temperature, sharpness=sharpness, rounds=rounds)
    wins = lambda own, other: rated.wins(own[:, :1], other[:, :1])  # noqa: E731
    return pairwise(rated.first_ahead(), balanced, kinds=SCORES, numbers=sys.maxsize, wins=wins)
