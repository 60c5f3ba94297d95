"""KL-Cov: steps that would make the entropy fall fastest pay for leaving the old policy."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Fraction, NotNegative
from mmalign.needs import OLD
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Term
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.objectives.terms.gates import Signal
from mmalign.types import Method, Steps, UserError

MOVED = 1e-4
"""Nats from which on a policy has moved for certain."""


def kl_cov(*, share: Fraction = 2e-4, price: NotNegative = 1.0, unbiased: bool = True, eps: NotNegative = 1e-4) -> Method:
    """The unclipped policy gradient, and a price on the steps whose covariance of advantage and log-probability is highest.

    ``c_it = (A_i - mean A)(log pi_it - mean log pi)`` over the live steps of an update, K the ``share`` of them (at least one) with the
    largest c, ``rho = pi / pi_old``::

        loss = mean_it [ -rho_it A_i + price |log rho_it| 1[it in K] ]

    Args:
        share: fraction of live steps that pay. price: per nat, in units of the advantage.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: The Entropy Mechanism of Reinforcement Learning for Reasoning Language Models, arXiv 2505.22617, sec. 4; its numbers are the
    defaults, as verl has them.

    Deviations: means and ``share`` are of the whole update; verl's are of a micro-batch, so that its choice depends on the split. The
    gradient of the price is 0 where the policy has not moved, and rises to its size over the first 1e-4 nats: what rounding makes of a
    policy that has not moved, which batches of other sizes do otherwise, would pay in full.

    Dialects:
    - verl 0.7: eps=1e-6: `kl_cov`.
    """
    if not 0 < share <= 1 or price < 0:
        raise UserError(f"share, price: got {share} and {price}, takes a number in 0..1, and 0 or more")

    def chosen(steps: Steps, advantage: Tensor) -> Tensor:
        count = max(int(share * int(steps.mask.sum())), 1)
        return gates.largest(gates.covariance(steps, advantage), steps.mask, count).double()

    def paid(steps: Steps, signal: Signal) -> Tensor:
        moved = ratios.per_step(steps)
        return price * signal.surveyed[..., 0] * moved * (moved / MOVED).clamp(-1, 1).detach()

    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped,
        terms={"price": Term(paid, frozenset({OLD}), survey=gates.surveyed(chosen))},
        weigh=weights.token_mean,
    )
