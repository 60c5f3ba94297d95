"""Reward models that criticise an answer, or look into it with tools, before they score it."""

from __future__ import annotations

import sys

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives.parts import SCORES
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import rated, worded
from mmalign.types import Method


def bradley_terry_thinking(*, said: NotNegative = 1.0, told: NotNegative = 0.0) -> Method:
    """A score for every output that stands behind words about it, and these words are learned with it.

    For policies with the reader ``thinking`` and the head ``thought``, whose numbers of a row are the score s, the mean cost a of a token
    that the model said of the output (a critique, calls of tools), and that of a token that it was told (what tools observed), in nats::

        loss = mean over pairs of  -log sigmoid(s_w - s_l) + said (a_w + a_l) / 2 + told (o_w + o_l) / 2

    Args:
        said: of the model's own words: MM-RLHF's cross-entropy of critiques, Themis' alpha.
        told: of what it observed: Themis' beta.

    Paper: MM-RLHF, arXiv 2502.10391 (critique, then score); Tool-Augmented Reward Modeling (Themis), arXiv 2310.01045, eq. 4 (both as
    recalled).

    Deviations: costs are means over the tokens of a row, so that a long critique counts as a short one; a label's strength is
    Bradley-Terry's alone, and the words of both rows are learned.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method, mask = mm.methods.bradley_terry_thinking(said=0.5), torch.ones(2, 3).bool()
        >>> steps = Steps(torch.tensor([[1.5, 0.2, 9.0], [0.5, 0.4, 9.0]]).double(), mask, kind="score")
        >>> feedback = Feedback(torch.zeros(2).double(), torch.tensor([0, 0]), pairs=torch.tensor([[0, 1]]))
        >>> (method.weigh(mask) * method.loss(steps, method.signal(feedback)).values).sum()  # -log sigmoid(1) + 0.5 * 0.3
        tensor(0.4633, dtype=torch.float64)
    """
    term = worded.ahead_after_words(said=said, told=told)
    return pairwise(term, kinds=SCORES, numbers=sys.maxsize, wins=lambda own, other: rated.wins(own[:, :1], other[:, :1]))
