"""Online DPO: Direct Alignment from Online AI Feedback."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.types import Method


def online_dpo(*, beta: Positive = 0.1, link: Literal["logistic", "hinge", "squared"] = "logistic") -> Method:
    """DPO, IPO or SLiC on pairs that the policy has just sampled and a judge has just compared.

    With m DPO's margin to ``ref``::

        loss = mean over pairs of  link(beta m)

    The recipe ``online`` makes the pairs: the best and the worst row of each prompt's group, by reward or by an oracle's win rate; there
    it is the same run as ``dpo``.

    Args:
        beta, link: as in ``dpo``.

    Paper: Direct Language Model Alignment from Online AI Feedback, arXiv 2402.04792.

    Deviations: groups may be larger than the paper's two; a judge's probability counts as a soft label.

    Dialects:
    - TRL 1.16: link="logistic": completions without an end of text get a penalty in their reward, which is a reward here.
    """
    return dpo(beta=beta, link=link)
