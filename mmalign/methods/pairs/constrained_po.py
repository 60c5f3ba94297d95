"""Constrained preference optimization."""

from __future__ import annotations

from mmalign.objectives import links, pairwise, scores
from mmalign.types import Method


def constrained_po(*, beta: float = 0.1, weight: float = 0.1, at_least: float = 0.0) -> Method:
    """DPO that also asks the better row to be the likelier one, however the reference saw them.

    With m DPO's margin, ``g = log pi(better row) - log pi(worse row)``::

        loss = mean over pairs of  -log sigmoid(beta m) + weight max(0, at_least - g)

    Where the reference prefers the worse row by more than DPO's margin, DPO is content with a policy that does so too.

    Args:
        beta: as in ``dpo``.
        weight: of the constraint's violation, a penalty for each nat.
        at_least: the margin of log-probabilities that is asked for, nats.

    Paper: Conditional Equivalence of DPO and RLHF: Implicit Assumption, Failure Modes, and Provable Alignment, arXiv
    2605.20834.

    Deviations: only the abstract was at hand; the constraint is there, its penalty is our choice of form. Soft labels are ours.
    """
    constraint = links.ahead(lambda gap: (at_least - gap).relu())
    return pairwise.pairwise(
        pairwise.compared(scores.ratio(), links.ahead(links.named("logistic", beta=beta))),
        pairwise.times(weight, pairwise.compared(scores.policy(), constraint)),
    )
