"""Supervised fine-tuning under other divergences than the one that ordinary fine-tuning stands for."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal

from mmalign.arguments.ranges import Positive
from mmalign.objectives import divergences, weights
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.rowwise import rowwise
from mmalign.objectives.terms import baselines
from mmalign.types import Method


def sft_f(*, divergence: Literal["total_variation", "chi_square", "hellinger", "kl"] = "chi_square", beta: Positive = 0.1) -> Method:
    """Demonstrations as a reward that is learned with the policy, where the reference still counts: SFT with its KL term kept.

    What matches demonstrations E in an f-divergence, under a penalty of ``beta`` KL to ``ref``, is the policy whose implicit reward
    ``r = beta (log pi - log ref)`` of the whole row is the reward of that problem::

        loss = mean over good rows of  f*(-r) / beta

    With the total variation ``f*(-r) = -r``: the gradient is that of SFT, and the reference drops out of it, which is why SFT alone does
    not know how far it has gone. With the others a row that is far above the reference already is pulled less, and one below it more:
    ``chi_square`` ``r^2 / 4 - r`` (up to r = 2, and back beyond), ``hellinger`` ``-r / (1 + r)``, ``kl`` ``exp(-r) - 1``.

    Args:
        divergence: f. beta: nats of the whole row's ratio count so much, so that 2 / beta nats above the reference are enough for
            ``chi_square``.

    Paper: Implicit Reward as the Bridge: A Unified View of SFT and DPO Connections, arXiv 2507.00018. The formula is derived here, and
    only its abstract was read: ``min_pi max_r -E_E[f*(-r)] - E_pi[r] + beta KL(pi | ref)``, with the optimum of the inner policy put in.

    Deviations: the value of the first state, a constant of the prompt, is 0, so that ``exp(r / beta) ref`` is the policy itself. The loss
    is over beta, whose slope at the reference is SFT's for a whole row. Beyond -1/2 ``hellinger`` goes on along its tangent, and ``kl``
    beyond 20. Rows that are bad say nothing; a soft label p counts p.

    Examples:
        >>> sorted(map(str, mm.methods.sft_f().needs))
        ['refs:ref']
    """
    cost = divergences.conjugate(divergence)
    method = rowwise(
        good=lambda ratio, z: cost(beta * ratio) / beta,
        bad=lambda ratio, z: ratio * 0,
        baseline=baselines.named("zero"),
        weigh=weights.sequence_mean,
    )
    return replace(method, keep=lambda feedback: comparisons.labels(feedback).nan_to_num(0.0) > 0)
