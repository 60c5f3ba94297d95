"""Pairwise Proximal Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from mmalign.arguments.ranges import NotNegative, Proportion, within
from mmalign.objectives.feedback import returns
from mmalign.objectives.sentences import reward_gaps
from mmalign.types import Method, UserError


def p3o(
    *,
    form: Literal["separate", "joint"] = "separate",
    clip: Proportion = 0.2,
    largest: Annotated[float, within(1, below=True)] = 10.0,
    beta: NotNegative = 0.0,
) -> Method:
    """A policy gradient from comparisons: only the difference of two rewards counts, so that a reward's offset by prompt does not.

    With d the first row's reward minus the second's, ``rho = pi / pi_old`` of whole rows, ``u = log rho_1 - log rho_2``, and c a ratio
    without gradient, no farther from 1 than ``largest``::

        loss = mean over pairs of  -1/2 [ c_2 min(rho_1 d, clip(rho_1) d) + c_1 min(-rho_2 d, -clip(rho_2) d) ]     separate (V1)
        loss = mean over pairs of  -1/2 c_12 min(u d, clip(u) d),  c_12 = rho_1 rho_2                              joint (V2)

    Both have the gradient ``rho_1 rho_2 d grad (log pi_1 - log pi_2) / 2`` where nothing is clipped: the pairwise policy gradient (eq. 6)
    with the importance weight of a pair.

    Args:
        form: whether each ratio is clipped by itself, or the two as one.
        clip: how far a ratio (separate) may leave 1, or u (joint, in nats) may leave 0, both ways.
        largest: c stays in ``1 / largest .. largest``.
        beta: price of a nat of KL to ``ref`` in the reward; 0 needs no reference.

    Paper: Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment, arXiv 2310.00212, sec. 4.2.

    Deviations: the clipped forms are read in the first author's code (github.com/thwu1: rlhf_sac has V1, trlx has V2, both in
    ``trlx/models/modeling_p3o.py``), whose c is limited by 10. There the KL is the current policy's, without gradient, and rewards are
    divided by their running deviation; here the KL is the policy's that sampled, as in the paper's algorithm. (P3O also names penalised
    and policy-on policy-off methods.)

    Dialects:
    - thwu1/rlhf_sac: form="separate", beta=0.05: its first form.
    - thwu1/trlx: form="joint", beta=0.05: its later form, with the coefficient of its ``default_p3o_config``.
    """
    if form not in ("separate", "joint") or not 0 <= clip <= 1:
        raise UserError(f"form, clip: got {form!r} and {clip}, takes 'separate' or 'joint', and a number in 0..1")
    if largest < 1:
        raise UserError(f"largest: got {largest}, takes 1 or more")
    form_of = reward_gaps.separate if form == "separate" else reward_gaps.joint
    return reward_gaps.reward_gaps(
        score=reward_gaps.row_ratio(), value=partial(form_of, clip=clip, largest=largest), rewards=returns.shaped(beta)
    )
