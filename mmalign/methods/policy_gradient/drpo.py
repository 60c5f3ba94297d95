"""A policy gradient held by a quadratic of the move of each token's probability."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import OLD
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Term, bounded_expm1, live
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.gates import Signal
from mmalign.types import Method, Steps


def drpo(
    *, delta: Positive = 0.2, length: Positive | None = None, std: Literal["none", "group", "batch"] = "group", eps: NotNegative = 1e-4
) -> Method:
    """No clip: each token pays for how far its probability moved, so much that it is best off ``delta`` away, where the gradient ends.

    With ``rho = pi / pi_old`` of a step and ``A_i = (r_i - mean_group) / (std_group + eps)``::

        loss = mean_it [ -rho_it A_i + |A_i| pi_old_it (rho_it - 1)^2 / (2 delta) ]

    The square's share is ``(pi - pi_old)^2 / pi_old``, and the sum is least where ``pi - pi_old`` is delta in A's direction: what ``dppo``
    cuts at, smoothly. A rare token may multiply, a sure one not.

    Args:
        delta: the move of a token's probability that is asked for at most.
        length: what the sum over a row is divided by, in steps; None: the mean over all tokens instead.
        std, eps: ``group``, ``batch`` or ``none``; eps in units of the reward.

    Paper: arXiv 2606.09821.

    Deviations: the objective was at hand as others' code states it, ``rho A - |A| mu (rho - 1)^2 / (2 delta)``, and not the paper; that mu
    is the probability of the sampling policy is read from where that puts the optimum. delta is ``dppo``'s bound, and the advantage
    GRPO's. Tokens only: a density is no probability.
    """

    def paid(steps: Steps, signal: Signal) -> Tensor:
        log_ratio, now = ratios.per_step(steps), live(steps.log_probs, steps.mask)
        before = (now - log_ratio).detach()
        moved = now.clamp(max=0).exp() - before.clamp(max=0).exp()
        return signal.advantage.abs() * moved * bounded_expm1(log_ratio) / (2 * delta)

    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, std=std, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped,
        terms={"moved": Term(paid, frozenset({OLD}))},
        weigh=weights.token_mean if length is None else partial(weights.constant_length, length=length),
        kinds=frozenset({"token"}),
    )
