"""DPO on reward-augmented pairs."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import conditioned
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def reward_augmented_dpo(*, beta: Positive = 0.1) -> Method:
    """Every scored pair twice: asked for the better row's score, that row wins; asked for the worse row's score, the other one does.

    With ``d^g`` a row's log-ratio when the prompt asks for an answer of score g, better row w, worse row r::

        loss = mean over pairs of  -log sigmoid(beta (d^{g_w}_w - d^{g_w}_r)) - log sigmoid(beta (d^{g_r}_r - d^{g_r}_w))

    Args:
        beta: as in ``dpo``.

    Paper: Reward-Augmented Data Enhances Direct Preference Alignment of LLMs, arXiv 2410.08067.

    Deviations: the paper doubles the data set; here a pair's own prompt asks for the better row's score, and the policy's contrast ``bad``
    for the worse row's, so that the sum is twice the mean over the doubled data. At inference the prompt asks for a high score. Soft
    labels are ours.
    """
    link = links.ahead(links.named("logistic", beta=beta))
    return pairwise(compared(scores.ratio(), link), conditioned.reversed_under("bad", link), kinds=ANY)
