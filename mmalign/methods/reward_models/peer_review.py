"""Reward models that look at each other's labels."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, Fraction, NotNegative, Share
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated, several
from mmalign.types import Method


def peer_review(
    *, members: Count = 2, dropped: Share = 0.25, warmup: Count = 50, bagging: Fraction = 1.0, centre: NotNegative = 0.0
) -> Method:
    """Two scores, each of which learns from the pairs that the other finds least surprising: flipped labels surprise both.

    With l_k the loss of ``bradley_terry`` in score k, of n pairs of update t = 0, 1, ...::

        rho = dropped min(1, t / warmup)
        K_k = the ceil((1 - rho) n) pairs of the smallest l_{k+1}         k + 1: the next score, and the first of the last
        loss = sum over k of  mean over K_k of l_k  / members  + centre (s_w + s_l)^2

    Args:
        members: how many scores there are: as many names in ``policy.scores``. 1 is a score that looks at itself.
        dropped: part of the pairs that is left out in the end; about as many as are flipped.
        warmup: updates until then; before it is sure of anything, a model learns from all.
        bagging: part of the records that are a score's, another one each, without which scores of one backbone see alike. They count
            ``1 / bagging``.
        centre: as of ``bradley_terry``.

    Use all scores as one by ``combine: {use: weighted_sum}``, or ``lower_bound``.

    Paper: Two Minds Better Than One: Collaborative Reward Modeling for LLM Alignment (CRM), arXiv 2505.10597, known here from summaries;
    the schedule and the exchange of small-loss samples are Co-teaching's, arXiv 1804.06872, algorithm 1.

    Deviations: the scores are heads of one backbone, where the paper trains two models; its curriculum over the data, easy pairs first, is
    the warm-up alone.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.peer_review(dropped=0.5, warmup=1), torch.ones(4, 2).bool()
        >>> scores = torch.tensor([[2.0, 0.0], [0.0, 0.0], [0.0, 1.0], [0.0, 0.0]]).double()  # the first score is sure of the first pair
        >>> steps = Steps(scores, mask, kind="score")
        >>> feedback = Feedback(torch.zeros(4).double(), torch.tensor([0, 0, 1, 1]), pairs=torch.tensor([[0, 1], [2, 3]]))
        >>> all_of_them = method.survey(steps, method.signal(feedback))
        >>> half = method.survey(steps, method.signal(feedback))  # the second update
        >>> method.loss(steps, half).values[0::2] > 0  # the first score learns the second pair, and the other way round
        tensor([[False,  True],
                [ True, False]])
    """
    term = several.peers(rated.ahead_by(0.0), members=members, dropped=dropped, warmup=warmup, bagging=bagging)
    return pairwise(term, *([rated.centred(centre)] if centre else []), kinds=SCORES, wins=rated.wins)
