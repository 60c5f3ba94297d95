"""MM-DPO: DPO with a beta for each pair."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import margins
from mmalign.types import Method


def mm_dpo(*, beta: Positive = 0.1, weight: NotNegative = 0.5, k: Positive = 0.5) -> Method:
    """DPO that learns more from pairs that a reward model is sure of.

    With m DPO's margin, ``delta = max(0, reward of the better row - reward of the worse row)``::

        loss = mean over pairs of  -log sigmoid(beta (1 + weight (1 - e^(-k delta))) m)

    Args:
        beta: as in ``dpo``; each pair's is between beta and (1 + weight) beta.
        weight: how much a sure pair adds.
        k: how fast, per unit of reward.

    Paper: MM-RLHF: The Next Step Forward in Multimodal LLM Alignment, arXiv 2502.10391, eq. 5.

    Deviations: the released code does another thing: one beta for a batch, from the policy's own margins of a random 80 % of it, with
    weight 0.1. Rewards are those of the feedback; a pair without them is left out. Soft labels are ours: the turned order has delta 0.
    """
    links.positive(beta=beta, k=k)
    return pairwise(margins.by_reward(scores.ratio(), beta=beta, weight=weight, k=k), kinds=ANY)
