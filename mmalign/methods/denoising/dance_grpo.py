"""DanceGRPO: GRPO on the denoising steps of images and videos, on the best and the worst of each group."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import Natural, NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method, UserError


def dance_grpo(
    *,
    clip: Positive = 1e-4,
    best_of: Natural | None = None,
    beta: NotNegative = 0.0,
    kl: str = "per_scalar",
    ratio: str = "per_scalar",
    std: Literal["group", "batch", "none"] = "group",
    eps: NotNegative = 1e-8,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """GRPO by group, of which the best and the worst rows alone are learned from: what lies between them says least for its price.

    ``A_i = (r_i - mean_group) / (std_group + eps)`` over the whole group, limited to ``+-advantage_clip``, and over trained steps t of the
    rows i that are kept::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta KL(pi_it || ref_it) ]

    Args:
        clip, ratio: as in ``flow_grpo``.
        best_of: rows of each group that are kept, half of them the best and half the worst, an even number; None keeps all. A row that ties
            with another one is kept by its place.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        std, eps: whose standard deviation the advantage is divided by, and what is added to it; of one that divides by n - 1.
        advantage_clip: largest advantage, or None.

    Paper: DanceGRPO: Unleashing GRPO on Visual Generation, arXiv 2505.07818; its sampler is the kernel ``dance_sde``, with
    ``same_noise: true`` in the schedule (one initial noise for a group) and ``windows.random_subset(fraction=0.6)``.

    Deviations: the code draws a row's trained steps for each row by itself; a window here is the same for all rows, so that rows of one
    group differ by what is trained. An ``eps`` of 1e-8 makes rounding errors into advantages; ties are found before that, here.

    Dialects:
    - DanceGRPO: best_of=8: its HunyuanVideo and SkyReels runs, in groups of 24.
    """
    if best_of is not None and (best_of < 2 or best_of % 2):
        raise UserError(f"best_of: got {best_of}, takes an even number of 2 or more, or None")

    return policy_gradient(
        advantage=partial(advantages.limited, std=std, eps=eps, largest=advantage_clip),
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
        keep=None if best_of is None else lambda feedback: advantages.extremes(feedback.rewards, feedback.group, each=best_of // 2),
    )
