"""Geometric-Mean Policy Optimization."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def gmpo(
    *,
    low: NotNegative = 0.4,
    high: NotNegative = 0.4,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO with the geometric mean of a row's ratios in place of the arithmetic one: outliers count by their logarithm.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, ``x = log pi - log pi_old``, clipped on the side where PPO clips::

        loss = mean_i [ -A_i exp(mean_t x'_it) ]        x' = min(x, high) where A_i > 0, max(x, -low) where A_i < 0

    Args:
        low, high: how far a step's log-ratio may go below and above 0 before its gradient stops, nats.
        beta, kl: weight and kind of a KL to ``ref``, as a mean over steps; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: Geometric-Mean Policy Optimization, arXiv 2507.20673; the clip range is (e^-0.4, e^0.4).

    Deviations: the paper has no eps. Beyond 20 nats of the mean the ratio goes on along its tangent; verl has no bound there.

    Dialects:
    - TRL 1.16: eps=1e-4: `experimental.gmpo`, the same.
    - verl 0.7: low=0.2, high=0.2, eps=1e-6: `geo_mean` inherits PPO's clip, as nats.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step")._replace(unit="row"),
        limit=partial(ratios.geometric, low=low, high=high),
        surrogate=surrogates.unclipped,
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
