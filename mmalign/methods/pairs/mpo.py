"""Mixed Preference Optimization: three losses with weights."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links, scores
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import baselines, regularisers
from mmalign.objectives.terms.pairs import compared, times
from mmalign.types import Method


def mpo(
    *,
    preference: NotNegative = 0.8,
    quality: NotNegative = 0.2,
    likelihood: NotNegative = 1.0,
    beta: Positive = 0.1,
    shift: Literal["running", "none"] = "running",
    average: Literal["sequence", "token", "sum"] = "sequence",
) -> Method:
    """Which row is better, whether each is good, and how better rows are written, learnt together.

    With m DPO's margin, ``d = beta (log pi - log ref)`` of a row, better row w, worse row r, delta the mean of d::

        loss = mean over pairs of  -preference log sigmoid(beta m) - quality [log sigmoid(d_w - delta) + log sigmoid(delta - d_r)]
                                   - likelihood * average of log pi_w

    Args:
        preference, quality, likelihood: weights of DPO, of BCO and of the likelihood.
        beta: as in ``dpo``. shift: as in ``bco_pair``. average: as in ``rpo``.

    Paper: Enhancing the Reasoning Ability of Multimodal Large Language Models via Mixed Preference Optimization, arXiv 2411.10442.

    Deviations: soft labels are ours. A staged recipe is called MPO too; this is InternVL's.

    Dialects:
    - TRL 1.16: shift="none", average="token": ``loss_type=["sigmoid", "bco_pair", "sft"]``, ``loss_weights=[0.8, 0.2, 1.0]``.
    """
    return pairwise(
        times(preference, compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta)))),
        times(quality, baselines.classified(beta=beta, shift=shift)),
        times(likelihood, regularisers.likelihood(average)),
        kinds=ANY,
    )
