"""Clipped Importance Sampling weight Policy Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.types import Method


def cispo(
    *,
    smallest: NotNegative = 0.0,
    largest: Positive = 5.0,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """REINFORCE with a limited importance weight: no token ever loses its gradient, as tokens do that PPO clips.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, ``rho = pi / pi_old``, sg: without gradient::

        loss = mean_it [ -sg(clip(rho_it, smallest, largest)) A_i log pi_it ]

    Args:
        smallest, largest: bounds of the weight itself, not of its distance to 1.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: MiniMax-M1: Scaling Test-Time Compute Efficiently with Lightning Attention, arXiv 2506.13585, eq. 4 and 5.

    Deviations: the paper sets no lower bound and does not say its upper one; 5 is what TRL's documentation recommends. The paper has no
    eps.

    Dialects:
    - TRL 1.16: largest=0.2, kl="k3_weighted": `epsilon_high` is the bound itself, and inherits 0.2 from PPO's clip, so that every
      on-policy gradient is multiplied by 0.2 unless it is set.
    - verl 0.7: smallest=0.8, largest=1.2, eps=1e-6: bounds are distances to 1, on both sides.
    - open-instruct: largest=1.2: an upper bound alone, as a distance to 1.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        gate=gates.within(smallest, largest),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
    )
