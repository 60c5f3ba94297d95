"""On-Policy RL with an Optimal baseline."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmalign.arguments.ranges import Positive
from mmalign.needs import MASK
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Reading, read
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def opo(*, clip: Positive | None = None) -> Method:
    """The policy gradient whose baseline has the least variance, if a row's squared score grows as its length.

    ``A_i = r_i - sum_j l_j r_j / sum_j l_j`` over the rows j of i's group, l their live steps, ``rho = pi / pi_old``::

        loss = mean_it [ -rho_it A_i ]

    Args:
        clip: how far the ratio may leave 1, both ways, or None: the paper trains on fresh rows alone, where the ratio is 1.

    Paper: On-Policy RL with Optimal Reward Baseline, arXiv 2505.23585.

    Deviations: a tied group, and a row alone, have advantage 0.

    Dialects:
    - verl 0.7: clip=0.2: the estimator `opo` goes with any policy loss, PPO's by default; a row alone keeps its raw reward.
    """

    def advantage(feedback: Feedback) -> Tensor:
        return advantages.length_weighted(feedback.rewards, feedback.group, read(feedback, MASK).sum(1))

    return policy_gradient(
        advantage=Reading(advantage, frozenset({MASK})),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped if clip is None else partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.token_mean,
    )
