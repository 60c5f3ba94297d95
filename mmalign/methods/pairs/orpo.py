"""Odds Ratio Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import links, scores
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import regularisers
from mmalign.objectives.terms.pairs import compared
from mmalign.types import Method


def orpo(*, beta: Positive = 0.1, average: Literal["sequence", "token", "sum"] = "sequence") -> Method:
    """Supervised training on better rows, and worse rows' odds kept below theirs; no reference, no stage before.

    With a the mean log-probability of a row's tokens and ``odds = e^a / (1 - e^a)``, better row w, worse row r::

        loss = mean over pairs of  -average of log pi_w - beta log sigmoid(log odds_w - log odds_r)

    Args:
        beta: weight of the odds, the paper's lambda.
        average: of the likelihood, as in ``cpo``.

    Paper: ORPO: Monolithic Preference Optimization without Reference Model, arXiv 2403.07691, eq. 6.

    Deviations: above ``e^a = 1 - 2e-9`` the log-odds go on along their tangent, so that certain rows have a finite gradient; TRL's
    ``log1mexp`` has a NaN gradient at a row that is nearly certain, and LLaMA-Factory's is inf. Soft labels are ours.

    Dialects:
    - TRL 1.16: beta=0.1, average="token": ORPOTrainer; its likelihood covers the prompt too unless the labels mask it.
    """
    links.positive(beta=beta)
    odds = links.ahead(lambda gap: beta * links.logistic(gap, beta=1.0))
    return pairwise(
        compared(scores.mapped(scores.policy("per_step"), scores.log_odds), odds),
        regularisers.likelihood(average),
        kinds=frozenset({"token"}),
    )
