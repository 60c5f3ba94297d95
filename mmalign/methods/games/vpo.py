"""Value-Incentivized Preference Optimization."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.methods.pairs.dpo import dpo
from mmalign.objectives import scores
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.explored import explored
from mmalign.types import Behavior, Feedback, Method, UserError


def vpo(*, beta: Positive = 0.1, alpha: NotNegative = 0.01, value: Literal["optimism", "pessimism"] = "optimism") -> Method:
    """DPO whose implicit reward is asked for a high value where data can still be had, and for a low one where it cannot.

    A reward with mean 0 under a calibration policy has the value ``-beta E_cal[log pi - log ref]``. With ``d = log pi - log ref`` of a
    row, m DPO's margin, and y' the calibration rows::

        loss = mean over pairs of  -log sigmoid(beta m)  +  s alpha beta mean over y' of  d(y')

    with s = 1 for optimism (online) and s = -1 for pessimism (offline).

    Args:
        beta: how much a nat counts.
        alpha: weight of the value.
        value: ``optimism``: y' are rows that ``ref`` drew, a quarter of each group. ``pessimism``: the pairs' better rows, which is a
            supervised term.

    Paper: Value-Incentivized Preference Optimization: A Unified Approach to Online and Offline RLHF, arXiv 2405.19320.

    Deviations: a value added to the likelihood of the labels with a sign, for online data one way and for offline data the other, is the
    abstract's; the sign follows from the value above. That the paper calibrates by ``ref`` online, where the term is ``-KL(ref || pi)``,
    and by better rows offline, agrees with its reviewers (DPO with a KL term; close to DPOP) and with SELM's authors, but no text or code
    of its own was at hand, nor the values of alpha and beta. Ties calibrate nothing. The pair is the group's best and worst row, whoever
    drew them.
    """
    if alpha < 0 or value not in ("optimism", "pessimism"):
        raise UserError(f"alpha, value: got {alpha} and {value!r}, takes 0 or more, and 'optimism' or 'pessimism'")
    if value == "pessimism":
        return explored(dpo(beta=beta), score=scores.ratio("total"), weight=-alpha * beta, rows=_better)
    method = explored(dpo(beta=beta), score=scores.ratio("total"), weight=alpha * beta, rows=partial(comparisons.drawn, name="ref"))
    return replace(
        method,
        behaviors=(Behavior("ref", {"ref": 1.0}, part=0.25),),
        pairs=partial(comparisons.with_rest, by="ref"),
    )


def _better(feedback: Feedback) -> Tensor:
    return comparisons.strengths(feedback) > 0.5
