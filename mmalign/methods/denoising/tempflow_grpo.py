"""TempFlow-GRPO: each denoising step is credited with what came of its own noise, and weighs by how much of it there is."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import MASK
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, comparisons, step_weights
from mmalign.objectives.parts import Reading, read
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, Need, UserError


def tempflow_grpo(  # those of its GRPO, and two of its own
    *,
    among: Literal["branch", "step", "group"] = "branch",
    weigh: Literal["noise", "none"] = "noise",
    clip: Positive = 1e-4,
    beta: NotNegative = 0.0,
    kl: str = "per_scalar",
    ratio: str = "per_scalar",
    std: Literal["group", "batch", "none"] = "group",
    unbiased: bool = False,
    eps: NotNegative = 1e-4,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """GRPO on branches: of rows that differ by the noise of one step, the reward says what that step is worth.

    With ``policy.schedule.branches: {use: at_each_step}`` a row is random in one step t, and s_t is that step's std. ``A_i`` is
    ``(r_i - mean) / (std + eps)`` among the rows it is compared with, limited to ``+-advantage_clip``::

        loss = mean_i mean_t [ -(s_t / mean s) min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta KL(pi_it || ref_it) ]

    Args:
        among: the rows that one is compared with: ``branch``, those that left one trunk at its step (of its group, where the rollout has no
            branches); ``step``, those of its prompt that are random at the same steps, whatever their trunk; ``group``, its prompt's.
        weigh: ``noise``, by a step's std over the mean of those of all trained cells; ``none``, alike.
        clip, ratio: as in ``flow_grpo``.
        beta, kl: weight and kind of a KL to ``ref``, which is not weighed.
        std: whose standard deviation: ``group``, of the rows it is compared with, ``batch``, of all rewards; ``none``.
        unbiased, eps, advantage_clip: as in ``flow_grpo``.

    Paper: TempFlow-GRPO: When Timing Matters for GRPO in Flow Models, arXiv 2508.04324.

    Deviations: its code has a constant, 2.25, for the mean of stds of one schedule; it skips the first two epochs, by which its groups are
    not whole. Where it rests, in closed form (one Gaussian, a linear reward, ``std="none"``): at the best policy of rollouts with one
    random step each, whose shifts are those of ``flow_grpo`` but for what the ODE, and not the SDE, carries from a step to the end; with
    ``weigh="noise"`` each is that times ``s_t / mean s``, since the KL is not weighed.

    Dialects:
    - TempFlow-GRPO: among="step", beta=0.004: its GenEval runs (0.001 for PickScore), in groups of 4 trunks and 6 children.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 2.0, 10.0, 14.0]).double(), torch.zeros(4, dtype=torch.int64),
        ...                     branch=torch.tensor([0, 0, 1, 1]))
        >>> tempflow_grpo(std="none", weigh="none").signal(feedback).tolist()
        [[-1.0], [1.0], [-2.0], [2.0]]
    """
    if among not in ("branch", "step", "group"):
        raise UserError(f"among: got {among!r}, takes 'branch', 'step' or 'group'")
    if weigh not in ("noise", "none"):
        raise UserError(f"weigh: got {weigh!r}, takes 'noise' or 'none'")

    def advantage(feedback: Feedback) -> Tensor:
        rows = comparisons.siblings(feedback) if among == "branch" else feedback.group
        if among == "step":
            cells = torch.cat([feedback.group[:, None], read(feedback, MASK).to(feedback.group)], 1)
            rows = cells.unique(dim=0, return_inverse=True)[1]
        raw = advantages.normalised(feedback.rewards, rows, std=std, unbiased=unbiased, eps=eps)
        return advantages.clip(raw, largest=advantage_clip)

    reads = frozenset({MASK}) if among == "step" else frozenset[Need]()
    return policy_gradient(
        advantage=step_weights.by_noise(advantage) if weigh == "noise" else Reading(advantage, reads),
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
        kinds=frozenset({"transition"}),
    )
