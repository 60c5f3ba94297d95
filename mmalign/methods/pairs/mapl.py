"""Multi-level aware preference learning, within pairs and between them."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import conditioned
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def mapl(*, beta: Positive = 0.1, weight: NotNegative = 1.0, between: NotNegative = 0.0, changed: str = "ablated") -> Method:
    """DPO, and the same question asked of prompts: an answer belongs to its own instructions rather than to changed ones.

    With ``d = log pi - log ref`` of a row, ``d'`` the same under instructions that were changed, better row w, worse row r::

        prompts(y) = -log sigmoid(beta (d_y - d'_y))
        pairs = -log sigmoid(beta [(d_w - d_r) - (d'_w - d'_r)])
        loss = mean over pairs of  -log sigmoid(beta (d_w - d_r)) + weight (prompts(w) + prompts(r)) / 2 + between pairs

    Args:
        beta: as in ``dpo``.
        weight: of the comparison of prompts; from 2 on it can hold a worse answer up against the comparison of answers.
        between: of the comparison of pairs: the two answers differ by more where the instructions are those that they were judged under.
        changed: the policy's contrast that has the changed instructions: ``ablated`` (pictures are taken away), ``mismatched`` (another
            row's prompt), or one in ``policy.contrasts``: ``"{prompt} In one word."``.

    Paper: Multi-Level Aware Preference Learning: Enhancing RLHF for Complex Multi-Instruction Tasks, arXiv 2505.12845.

    Deviations: the abstract and a review of the paper were at hand, not its equations. They agree that prompts are compared for either
    answer of a pair, by ``p(x_w > x_l | y)`` of a response-conditioned Bradley-Terry model (L_intra), which is ``prompts`` with DPO's
    reward; that the two answers count alike, and the weight, are ours. It has a term between samples too (L_inter), for a pair and the
    pairs made of it by further instructions, whose equation is not known to us: that it compares margins is the abstract's, that it is
    ``pairs``, and off by default, is ours. In ``pairs`` the two prompts' partition functions cancel, in ``prompts`` they do not.
    There x_w and x_l are made by adding instructions that the answer follows, or does not; here x_w is the row's own prompt and x_l the
    contrast ``changed``. What the two prompts' partition functions add to the rewards is left out, as in ``mdpo``. Soft labels are ours.
    """
    return pairwise(
        compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        times(weight, conditioned.informed(changed, beta=beta, rows="both")),
        *([times(between, conditioned.wider(changed, beta=beta))] if between else []),
        kinds=ANY,
    )
