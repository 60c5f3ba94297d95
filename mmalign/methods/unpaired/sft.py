"""Supervised fine-tuning."""

from __future__ import annotations

from torch import Tensor

from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.parts import ANY
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def sft() -> Method:
    """The likelihood of what is good: thumbs that are up, and the better rows of pairs.

    With p how likely a row is to be good (0 where nobody knows)::

        loss = mean_it [ -p_i log pi_it ]

    Paper: Training language models to follow instructions with human feedback, arXiv 2203.02155, sec. 3.5 (step 1 of its method).

    Deviations: every step of the update weighs the same, as in TRL's SFTTrainer. Rows with p = 0 are dropped before the update (``keep``),
    so that the mean is over examples. On a bound (denoising errors) log pi is the bound: the example's usual denoising loss, halved.

    Examples:
        >>> from mmalign.types import Feedback
        >>> labels = torch.tensor([1.0, 0.0, torch.nan]).double()  # up, down, nobody knows
        >>> feedback = Feedback(torch.zeros(3).double(), torch.tensor([0, 1, 2]), labels=labels)
        >>> mm.methods.sft().keep(feedback).tolist()
        [True, False, False]
    """

    def good(feedback: Feedback) -> Tensor:
        return comparisons.labels(feedback).nan_to_num(0.0)

    return policy_gradient(
        advantage=good,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=weights.token_mean,
        keep=lambda feedback: good(feedback) > 0,
        kinds=ANY,
    )
