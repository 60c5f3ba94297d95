"""Self-Exploring Language Models."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.objectives import scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.explored import explored
from mmalign.types import Behavior, Method, UserError


def selm(*, beta: Positive = 0.01, alpha: NotNegative = 1e-3) -> Method:
    """DPO with optimism: of the policies that fit the labels, the one whose implicit reward is high where the reference does not go.

    Some rows of a group are drawn by ``ref``; the group's best and worst row, whoever drew them, are the pair. With ``d = log pi - log
    ref`` of a row, m DPO's margin, and y' the rows that ``ref`` drew::

        loss = mean over pairs of  -log sigmoid(beta m)  +  alpha beta mean over y' of  d(y')

    Args:
        beta: how much a nat counts.
        alpha: weight of the optimism.

    ``ref`` is the policy of the round before: ``references: {ref: {every: N}}`` says how many steps a round has.

    Paper: Self-Exploring Language Models: Active Preference Elicitation for Online Alignment, arXiv 2405.19332, eq. 4.2
    and algorithm 1.

    Deviations: eq. 4.2 has log pi for d, whose gradient is the same, and algorithm 1 writes its alpha beta as alpha. alpha is appendix D's
    for Zephyr; it has 1e-4 for Llama 3, and recommends 0.005 or 0.001 elsewhere. beta is that of the authors' recipes
    (github.com/shenao-zhang/SELM). They take one such row for each prompt, the likeliest by token (temperature 0), and rank it with a
    given pair; here all rows are sampled. Soft labels are ours.
    """
    if alpha < 0:
        raise UserError(f"alpha: got {alpha}, takes 0 or more")
    method = explored(dpo(beta=beta), score=scores.ratio("total"), weight=alpha * beta, rows=partial(comparisons.drawn, name="ref"))
    return replace(
        method,
        behaviors=(Behavior("ref", {"ref": 1.0}, part=0.25),),
        pairs=partial(comparisons.with_rest, by="ref"),
    )
