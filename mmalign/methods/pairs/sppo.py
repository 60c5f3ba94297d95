"""Self-Play Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import margins
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def sppo(*, beta: Positive = 1e-3, half: bool = True, target: Literal["pair", "win_rate"] = "pair") -> Method:
    """Each row's log-ratio to the previous policy goes to its own target, which its win probability sets.

    With ``d = log pi - log ref`` of a row, better row w, worse row r, and P the probability that w is the better one::

        loss = mean over pairs of  1/2 (d_w - (P - 1/2) / beta)^2 + 1/2 (d_r - (1/2 - P) / beta)^2 + P (1 - P) / beta^2    (pair)
        loss = mean over pairs of  1/2 (d_w - (P_w - 1/2) / beta)^2 + 1/2 (d_r - (P_r - 1/2) / beta)^2                     (win_rate)

    with ``P_i`` how probably row i is better than another one of its group, on average over those. ``ref`` is the policy of the round
    before; sampling, judging and moving ``ref`` are the recipe's.

    Args:
        beta: 1 / eta of the paper; the target of a sure pair is 1 / (2 beta), 500 nats by default.
        half: the 1/2 before each square.
        target: what sets it: the two rows of the ``pair`` alone; or each row's own ``win_rate``, of an oracle's comparisons, or else of
            ``sigmoid(r_i - r_j)`` (as PairRM's scores are meant), which takes more rows of a prompt than two. Pairs without either are
            left out.

    Paper: Self-Play Preference Optimization for Language Model Alignment, arXiv 2405.00675, eq. 4.7.

    Deviations: for ``pair``, P is the strength of the pair, and the loss is the expected one of a hard label, which has the same
    gradient: the constant is 0 for a sure pair.

    Dialects:
    - SPPO: beta=0.001, target="win_rate": the best and the worst of five answers, each against the other four by PairRM.
    - TRL 1.16: half=False, beta=0.001: ``loss_type="sppo_hard"``; labels are hard, and its default beta is 0.1.
    """
    links.positive(beta=beta)
    scale = 1.0 if half else 2.0
    link = lambda better, worse: scale * links.regressed(better, worse, beta=beta)  # noqa: E731
    if target == "win_rate":
        return pairwise(margins.to_win_rates(scores.ratio(), beta=beta, scale=scale), kinds=ANY)
    return pairwise(compared(scores.ratio(), link), kinds=ANY)
