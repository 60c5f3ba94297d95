"""Maximum Likelihood Reinforcement Learning."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def maxrl(*, clip: Positive = 0.2, length: Positive | None = None, eps: NotNegative = 1e-6) -> Method:
    """The policy gradient of the log of a prompt's chance of success, in place of the chance: rare successes count more.

    ``A_i = (r_i - mean_group) / (mean_group of |r| + eps)``, and over live steps t of row i, with ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    For rewards of 0 and 1 and groups of G rows, the mean gradient per row is that of the first G - 1 terms of ``log p = - sum_k
    (1 - p)^k / k``, p the chance of success (a test enumerates all groups); a policy gradient's is that of the first alone.

    Args:
        clip: how far a ratio may leave 1, both ways.
        length: what the sum over a row is divided by, in steps; None: the mean over all tokens instead.
        eps: in units of the reward.

    Paper: Maximum Likelihood Reinforcement Learning, arXiv 2602.02710.

    Deviations: the formula is that of summaries and of prime-rl's advantage, not read in the paper. It is for rewards of 0 or more, where
    the mean of |r| is the mean; of others, whose mean may be 0 or change sign, it keeps the advantage's sign and bounds its size by G.
    Clip and mean over tokens are those of GRPO's kin.

    Examples:
        >>> from mmalign.types import Feedback
        >>> feedback = Feedback(torch.tensor([1.0, 0.0, 0.0, 0.0]).double(), group=torch.zeros(4, dtype=torch.int64))
        >>> mm.methods.maxrl(eps=0.0).signal(feedback).flatten().tolist()  # one success of four: (1 - 1/4) / (1/4)
        [3.0, -1.0, -1.0, -1.0]
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.relative(feedback.rewards, feedback.group, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.token_mean if length is None else partial(weights.constant_length, length=length),
    )
