"""Pairwise Proximal Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.objectives import gaps, ratios
from mmalign.types import Method, UserError


def p3o(*, form: Literal["separate", "joint"] = "separate", clip: float = 0.2, beta: float = 0.0) -> Method:
    """A policy gradient from comparisons: only the difference of two rewards counts, so that a reward's offset by prompt does not.

    With d the first row's reward minus the second's, ``rho = pi / pi_old`` of whole rows, ``u = rho_1 / rho_2`` towards the better row::

        loss = mean over pairs of  -1/2 [ min(rho_1 d, clip(rho_1) d) + min(-rho_2 d, -clip(rho_2) d) ]     separate
        loss = mean over pairs of  -1/2 min(u |d|, clip(u) |d|)                                             joint

    Args:
        form: whether each ratio is clipped by itself, or their quotient.
        clip: how far a ratio may leave 1, both ways.
        beta: price of a nat of KL to ``ref`` in the reward; 0 needs no reference.

    Paper: Pairwise Proximal Policy Optimization: Harnessing Relative Feedback for LLM Alignment, arXiv 2310.00212.

    Deviations: both forms are recalled from the paper's idea and have its gradient, ``d grad (log pi_1 - log pi_2) / 2``, where
    ``pi = pi_old``; away from there they have not been checked against it. (P3O also names penalised and policy-on policy-off methods.)
    """
    if form not in ("separate", "joint") or not 0 <= clip <= 1:
        raise UserError(f"form, clip: got {form!r} and {clip}, takes 'separate' or 'joint', and a number in 0..1")
    return gaps.of_pairs(
        score=gaps.total(ratios.per_step, frozenset({"old"})),
        value=partial(gaps.apart if form == "separate" else gaps.together, clip=clip),
        reads=frozenset({"mask", "old", "refs:ref"} if beta else set()),
        beta=beta,
    )
