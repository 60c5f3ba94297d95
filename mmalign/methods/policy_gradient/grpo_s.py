"""GRPO-S: dynamic reward scaling by hardness."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.objectives import advantages, penalties, ratios, surrogates, weights
from mmalign.objectives.compose import policy_gradient
from mmalign.types import Feedback, Method, UserError


def grpo_s(
    *, hardness: str | None = None, data: float = 1.0, model: float = 1.0, clip: float = 0.2, beta: float = 0.04, kl: str = "k3"
) -> Method:
    """GRPO whose advantages are larger for data that is hard, and for prompts on which the model still tells good from bad.

    ``A_i = (r_i - mean_group) / (std_group + eps)`` as in ``grpo``, h in 0..1 the hardness of a row's data, g the gap between the best and
    the worst reward of its group over the mean gap of the batch::

        A'_i = A_i (1 + data h_i) g_i^model
        loss = mean_i mean_t [ -min(rho_it A'_i, clip(rho_it, 1 - clip, 1 + clip) A'_i) + beta kl_it ]

    Args:
        hardness: which of ``Feedback.parts`` is h (in the paper from a similarity of text embeddings); None: no such factor.
        data: how much harder data counts. model: power of the gap; 0 leaves it out.
        clip, beta, kl: as in ``grpo``.

    Raises UserError where hardness is named and not there, or outside 0..1.

    Paper: Inverse Reinforcement Learning with Dynamic Reward Scaling for LLM Alignment (DR-IRL; its GRPO-S).

    Deviations: the abstract says which two things scale the advantage; how they are combined is this file's choice, and has not been
    checked against the paper. A row of unknown hardness has advantage 0.
    """

    def advantage(feedback: Feedback) -> Tensor:
        found = advantages.normalised(feedback.rewards, feedback.group)
        gap = advantages.gap(feedback.rewards, feedback.group)
        informative = advantages.informative(feedback.rewards, feedback.group)
        mean = gap[informative].mean() if bool(informative.any()) else 1.0
        found = found * torch.where(informative, gap / mean, 1.0) ** model
        if hardness is None:
            return found
        if hardness not in feedback.parts:
            raise UserError(f"hardness: got {hardness!r}, takes one of {', '.join(feedback.parts) or 'no rewards'}")
        known = feedback.parts[hardness].double()
        if bool(((known < 0) | (known > 1)).any()):
            raise UserError(f"Feedback.parts[{hardness!r}]: got values outside 0..1, takes a hardness")
        return torch.where(known.isnan(), 0.0, found * (1 + data * known.nan_to_num(0.0)))

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
