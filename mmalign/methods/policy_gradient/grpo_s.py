"""GRPO-S: dynamic reward scaling by hardness."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def grpo_s(
    *,
    difference: str | None = None,
    gap: str | None = None,
    outlier: NotNegative | None = None,
    clip: Positive = 0.2,
    beta: NotNegative = 0.04,
    kl: str = "k3",
) -> Method:
    """GRPO whose advantages are larger where an answer is far from its demonstration, and where the reward tells the two well apart.

    ``A_i = (r_i - mean_group) / (std_group + eps)`` as in ``grpo``; delta how far a row is from a demonstration of what it should have
    been, R by how much the demonstration's reward is above the row's, means over the batch, ``mean'`` over its rows with
    ``(R - mean R)^2 <= outlier``::

        A'_i = A_i sigmoid(delta_i) / sigmoid(mean delta) * sigmoid(mean' R) / sigmoid(mean R)
        loss = mean_i mean_t [ -min(rho_it A'_i, clip(rho_it, 1 - clip, 1 + clip) A'_i) + beta kl_it ]

    Args:
        difference: which of ``Feedback.parts`` is delta, one minus a cosine similarity; None: without its factor. (A reward of weight 0
            in ``reward_weights`` is a part, and no more.)
        gap, outlier: which is R, and from which square on a row's R is an outlier, in units of it; None: without their factor.
        clip, beta, kl: as in ``grpo``.

    Errors: UserError where a part is named and not there, a difference outside 0..2, or one of gap and outlier without the other.

    Paper: Inverse Reinforcement Learning with Dynamic Reward Scaling for LLM Alignment (DR-IRL; its GRPO-S), arXiv 2503.18991.

    Without a difference and a gap, as by default, it is the same run as ``grpo``.

    Deviations: the formula is that of two published summaries of the paper that agree, not read in the paper itself. There delta is one
    minus the mean, over the answer's clauses, of the largest similarity to a clause of the demonstration; the demonstrations and rewards
    are of one category of harm at a time, and so has a batch to be, whose means these are. It says no outlier. A row of unknown
    difference has advantage 0; an unknown R is in no mean.
    """
    if (gap is None) != (outlier is None) or (outlier is not None and outlier < 0):
        raise UserError(f"gap, outlier: got {gap!r} and {outlier}, takes both or neither, and a number of 0 or more")

    def advantage(feedback: Feedback) -> Tensor:
        better = advantages.normalised(feedback.rewards, feedback.group)
        if difference is not None:
            delta = _part(feedback, "difference", difference)
            if bool(((delta < 0) | (delta > 2)).any()):
                raise UserError(f"Feedback.parts[{difference!r}]: got values outside 0..2, takes one minus a cosine similarity")
            scale = delta.sigmoid() / delta.nanmean().sigmoid()
            better = torch.where(delta.isnan(), 0.0, better * scale.nan_to_num(0.0))
        if gap is not None and outlier is not None:
            better = better * _responsiveness(_part(feedback, "gap", gap), outlier)
        return better

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )


def _part(feedback: Feedback, keyword: str, name: str) -> Tensor:
    if name not in feedback.parts:
        raise UserError(f"{keyword}: got {name!r}, takes one of {', '.join(feedback.parts) or 'no rewards'}")
    return feedback.parts[name].detach().double()


def _responsiveness(gaps: Tensor, outlier: float) -> Tensor:
    """``sigmoid(mean' R) / sigmoid(mean R)`` as a 0-d tensor; 1 where no R is left."""
    mean = gaps.nanmean()
    kept = gaps[(gaps - mean) ** 2 <= outlier]
    return kept.mean().sigmoid() / mean.sigmoid() if len(kept) else torch.ones((), dtype=torch.float64)
