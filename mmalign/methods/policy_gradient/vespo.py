"""Variational Sequence-Level Soft Policy Optimization."""

from __future__ import annotations

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.types import Method


def vespo(
    *,
    k_positive: Positive = 2.0,
    scale_positive: Positive = 3.0,
    k_negative: Positive = 3.0,
    scale_negative: Positive = 2.0,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """REINFORCE with a soft weight of the whole row's importance ratio: it fades smoothly on both sides, where others clip.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, ``w_i = pi(row i) / pi_old(row i)``, ``phi(w) = e^s w^k e^(-s w)``::

        loss = mean_it [ -sg(phi(w_i)) A_i log pi_it ]

    Args:
        k_positive, scale_positive: k and s where ``A_i >= 0``; the weight is largest at ``w = k / s``.
        k_negative, scale_negative: k and s where ``A_i < 0``.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: VESPO: Variational Sequence-Level Soft Policy Optimization, arXiv 2602.10693; defaults are TRL's.

    Deviations: w is bounded by e^20 above and not below (TRL bounds every token's log-ratio at 20, and w at 1e-8). By design a row
    that ran far away has no gradient.

    Dialects:
    - TRL 1.16: kl="k3_weighted": `loss_type="vespo"`: a KL, if any, is weighted by the ratio.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        gate=gates.gamma(k=(k_positive, k_negative), scale=(scale_positive, scale_negative)),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
    )
