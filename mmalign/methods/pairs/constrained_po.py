"""Constrained Preference Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import links
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms import margins
from mmalign.types import Method


def constrained_po(
    *, beta: Positive = 0.1, gamma: NotNegative = 0.5, tau: Positive = 2.0, alpha: Positive = 1.0, target: Literal["soft", "clip"] = "soft"
) -> Method:
    """DPO that asks the better row to be the likelier one, however the reference saw them.

    With ``g = log pi(better row) - log pi(worse row)`` and ``g_ref`` the reference's::

        loss = mean over pairs of  -log sigmoid(beta [g - g_ref - softplus(tau (gamma - g_ref)) / (alpha tau)])   (soft)
        loss = mean over pairs of  -log sigmoid(beta [g - max(0, g_ref)])                                         (clip)

    DPO asks for ``g > g_ref``: where the reference prefers the worse row, it is content with a policy that does so too. The log has how
    often and how far that is so, here and of every method for pairs with a reference: ``violation``, the part of the pairs with ``g < 0``,
    ``violation_nats``, by how much, and ``reference_violation``, ``reference_violation_nats`` of ``g_ref``.

    Args:
        beta: how much a nat counts.
        gamma: the margin that is asked for where the reference has less, nats.
        tau: sharpness of the step between the two, per nat.
        alpha: the addition counts by 1 / alpha.
        target: which of the two; gamma, tau and alpha are of ``soft``.

    Paper: Conditional Equivalence of DPO and RLHF, arXiv 2605.20834.

    Deviations: formulas and defaults, but for beta, are those of the authors' code, which is called CPO there; ``cpo`` is another paper's.
    Soft labels are ours.
    """
    links.positive(beta=beta, tau=tau, alpha=alpha)
    soft = lambda reference: margins.raised(reference, gamma=gamma, tau=tau, alpha=alpha)  # noqa: E731
    return pairwise(margins.above_reference(margins.clipped if target == "clip" else soft, beta=beta))
