"""Reward models of groups of people who want different things."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Count, NotNegative, Share
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated, several
from mmalign.types import Method


def bradley_terry_mixture(
    *, groups: Count = 2, memory: Share = 0.9, assignment: Literal["hard", "soft"] = "hard", centre: NotNegative = 0.0
) -> Method:
    """A score for each group of annotators, and who is of which group found out by what they say: MaxMin-RLHF's first half.

    With l_k the loss of ``bradley_terry`` in score k, and h the annotator of a pair i::

        q_k = one-hot argmax_k (hard) or softmax_k (soft) of  -sum_j memory^(age of j) l_k(j)    over h's other pairs j
        loss = mean over pairs of  sum_k q_k l_k(i) / groups  + centre (s_w + s_l)^2

    Args:
        groups: how many scores there are: as many names in ``policy.scores``.
        memory: what counts of an annotator's earlier pairs, for each update since in which he said something: scores have moved on.
        assignment: whether an annotator is of one group alone, as in the paper, or of several by likelihood.
        centre: as of ``bradley_terry``.

    The log has ``sure``, the mean of the largest q. Its other half is ``combine: {use: fairest}`` of these scores, or ``worst``.

    Paper: MaxMin-RLHF: Alignment with Diverse Human Preferences, arXiv 2402.08925, algorithm 2.

    Deviations: the paper's E and M steps take all data in turns; here both are of the update at hand, an annotator's likelihoods are kept
    from update to update, and a pair does not tell of its own group, so that held-out pairs measure what they should. Scores that are alike
    are parted by a number in 0..1 drawn for each annotator and score.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_mixture(assignment="soft"), torch.ones(8, 2).bool()
        >>> scores = torch.tensor([[9.0, -9.0], [0.0, 0.0]]).double().repeat(4, 1)  # the first score likes the first row of a pair
        >>> steps, group = Steps(scores, mask, kind="score"), torch.tensor([0, 0, 1, 1, 2, 2, 3, 3])
        >>> pairs, who = torch.tensor([[0, 1], [2, 3], [5, 4], [7, 6]]), ["Ada"] * 4 + ["Bob"] * 4
        >>> feedback = Feedback(torch.zeros(8).double(), group, pairs=pairs, annotators=who)
        >>> loss = method.loss(steps, method.survey(steps, method.signal(feedback)))
        >>> (method.weigh(mask) * loss.values).sum() < 1e-3  # both are right, each of their own group
        tensor(True)
    """
    term = several.mixture(rated.ahead_by(0.0), groups=groups, memory=memory, assignment=assignment)
    return pairwise(term, *([rated.centred(centre)] if centre else []), kinds=SCORES, wins=rated.wins)
