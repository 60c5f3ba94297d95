"""Self-Play Preference Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def sppo(*, beta: Positive = 1e-3, half: bool = True) -> Method:
    """Each row's log-ratio to the previous policy goes to its own target, which its win probability sets.

    With ``d = log pi - log ref`` of a row, better row w, worse row r, and P the probability that w is the better one::

        loss = mean over pairs of  1/2 (d_w - (P - 1/2) / beta)^2 + 1/2 (d_r - (1/2 - P) / beta)^2 + constant

    ``ref`` is the policy of the round before; sampling, judging and moving ``ref`` are the recipe's.

    Args:
        beta: 1 / eta of the paper; the target of a sure pair is 1 / (2 beta), 500 nats by default.
        half: the 1/2 before each square.

    Paper: Self-Play Preference Optimization for Language Model Alignment, arXiv 2405.00675, eq. 4.7.

    Deviations: P is the strength of the pair, and the loss is the expected one of a hard label, which has the same gradient; the
    constant ``2 P (1 - P) / (4 beta^2)`` is 0 for a sure pair. The paper estimates P from all rows of a prompt with PairRM.

    Dialects:
    - TRL 1.16: half=False, beta=0.001: ``loss_type="sppo_hard"``; labels are hard, and its default beta is 0.1.
    """
    links.positive(beta=beta)
    scale = 1.0 if half else 2.0
    link = lambda better, worse: scale * links.regressed(better, worse, beta=beta)  # noqa: E731
    return pairwise(compared(scores.ratio(), link), kinds=ANY)
