"""SuperHF: fine-tuning on what ranked best, with a prior."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def superhf(*, best: Count = 1, beta: NotNegative = 0.35, kl: str = "reverse") -> Method:
    """RAFT with a KL to the model it started from: supervised learning on the best of a large batch, without collapse.

    ``A_i = 1`` for the ``best`` rows of i's group by reward, 0 for all others::

        loss = mean_it [ -A_i log pi_it + beta kl_it ]

    Args:
        best: rows of a group that are kept; rows that tie with the last of them are kept too.
        beta, kl: weight and kind of a KL to ``ref``: ``reverse``, ``KL(ref || pi)`` of whole distributions; ``exact``, the other way
            round; or an estimate, of which k1 has no gradient on average.

    Paper: SuperHF: Supervised Iterative Learning from Human Feedback, arXiv 2310.16763.

    Deviations: read in the authors' code (github.com/openfeedback/superhf, ``src/superhf/training.py``), not in the paper: the best of 16,
    the direction of the KL, and its weight in the last of their configs, ``progress-10k.yaml``. A tied group has no best row. The rows
    left out are dropped before the update (``keep``).

    Dialects:
    - the authors' code: beta=0.7: adds up the mean KL of the rows of a micro-batch, two there; the same for rows of one length.
    """

    def advantage(feedback: Feedback) -> Tensor:
        return advantages.best_rows(feedback.rewards, feedback.group, best=best)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
        keep=lambda feedback: advantage(feedback) > 0,
    )
