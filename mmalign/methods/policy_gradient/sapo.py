"""Soft Adaptive Policy Optimization."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def sapo(
    *,
    positive: Positive = 1.0,
    negative: Positive = 1.05,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO with a soft gate in place of the clip: a step far from the old policy counts less, but its row is not cut off.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, tau = positive where ``A_i > 0`` and negative elsewhere::

        loss = mean_i mean_t [ -4 / tau sigmoid(tau (rho_it - 1)) A_i ]

    Args:
        positive, negative: how fast the gate closes; the higher one for rows worse than their group, whose gradients spread over the
            whole vocabulary.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: Soft Adaptive Policy Optimization, arXiv 2511.20347.

    Deviations: the paper has no eps. By design a row that ran far away has no gradient, also where it should be pulled back.

    Dialects:
    - TRL 1.16: kl="k3_weighted": `loss_type="sapo"`: a KL, if any, is weighted by the ratio.
    - verl 0.7: eps=1e-6: the temperatures are its configuration's.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.sigmoid, positive=positive, negative=negative),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
