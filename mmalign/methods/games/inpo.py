"""Iterative Nash Policy Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import Positive, Proportion
from mmalign.methods.games.mnpo import mnpo
from mmalign.types import Method, UserError


def inpo(*, eta: Positive = 0.005, ratio: Proportion = 1 / 3) -> Method:
    """No-regret self-play: every round takes a mirror-descent step from the policy before, held by the reference.

    With ``h(q) = log q(better row) - log q(worse row)``::

        loss = mean over pairs of  (h(pi) - ratio h(ref) - (1 - ratio) h(previous) - 1 / (2 eta))^2

    Args:
        eta: step size; the margin asked for is ``1 / (2 eta)`` nats, 100 by default.
        ratio: tau / eta, how much the reference holds, 0 to 1.

    It is ``mnpo`` with these two shares.

    ``previous`` is the policy of the round before: ``references: {previous: {every: N}}`` says how many steps a round has.

    Paper: Iterative Nash Policy Optimization: Aligning LLMs with General Preferences via No-Regret Learning, arXiv 2407.00617, algorithm 1
    and eq. 8; eta (searched over 0.1 to 0.002) and tau = eta / 3 from appendix B. A soft label is the mean of eq. 8 over its outcomes.

    Deviations: the paper finds the best and the worst of 8 rows in a knockout of eleven comparisons, and drops a prompt where the best
    then loses to the worst; the online recipe takes them by reward, or by win rate over all pairs.
    """
    if not 0 <= ratio <= 1:
        raise UserError(f"ratio: got {ratio}, takes 0 to 1")
    return mnpo(eta=eta, shares={"ref": ratio, "previous": 1 - ratio})
