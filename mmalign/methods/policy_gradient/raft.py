"""RAFT: fine-tuning on what ranked best."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, returns
from mmalign.objectives.parts import ANY, Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def raft(*, best: Count = 1, beta: NotNegative = 0.0) -> Method:
    """The best of several answers to each prompt becomes an example to learn from.

    ``A_i = 1`` for the ``best`` rows of i's group by ``r_i - beta (log pi_old - log ref)(row i)``, 0 for all others::

        loss = mean_it [ -A_i log pi_it ]

    Args:
        best: rows of a group that are kept; rows that tie with the last of them are kept too.
        beta: price of a nat of KL to ``ref`` in the ranking; 0 needs no reference.

    Paper: RAFT: Reward rAnked FineTuning for Generative Foundation Model Alignment, arXiv 2304.06767, algorithm 1.

    Deviations: a tied group has no best row. The rows left out are dropped before the update (``keep``), so that the mean is over
    examples. On a bound (denoising errors) log pi is the bound: the example's usual denoising loss, halved.
    """

    rewards = returns.shaped(beta)

    def advantage(feedback: Feedback) -> Tensor:
        return advantages.best_rows(rewards.of(feedback), feedback.group, best=best)

    return policy_gradient(
        advantage=Reading(advantage, rewards.reads),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=weights.token_mean,
        keep=lambda feedback: advantage(feedback) > 0,
        kinds=ANY,
    )
