"""Length-Unbiased Sequence Policy Optimization."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def luspo(
    *,
    low: NotNegative = 2e-3,
    high: NotNegative = 2.5e-3,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GSPO with every row's loss multiplied by its length, so that a step of a long row counts what one of a short row does.

    ``s_i = exp(mean_t (log pi - log pi_old)_it)``, ``A_i = (r_i - mean_group) / (std_group + eps)``, and::

        loss = mean_i [ -length_i min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i) ]

    Args:
        low, high: how far s may go below and above 1.
        beta, kl: weight and kind of a KL to ``ref``, summed over steps; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: Length-Unbiased Sequence Policy Optimization, arXiv 2602.05261.

    Deviations: the clips are those of its section 5.1 as TRL's documentation gives them, five to seven times GSPO's. The loss grows
    with the length: the learning rate of ``gspo`` does not carry over.

    Dialects:
    - TRL 1.16: low=0.2, high=0.2: `loss_type="luspo"` inherits PPO's clip.
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_sequence"),
        surrogate=partial(surrogates.clipped, low=low, high=high),
        penalty=penalties.named(kl, beta=beta),
        weigh=partial(weights.constant_length, length=1),
    )
