"""GARDO: what is good and unlike the rest of its group counts more, and only doubtful rewards pay a KL."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.state.controllers import AdaptiveShare
from mmalign.objectives.terms import gates
from mmalign.types import Feedback, Method, UserError


def gardo(
    *,
    diversity: str = "diversity",
    auxiliary: Sequence[str] = (),
    gated: Proportion | Literal["adapted"] = "adapted",
    clip: Positive = 1e-5,
    beta: NotNegative = 0.0,
    kl: str = "flow_grpo",
    ratio: str = "per_scalar",
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """Flow-GRPO against reward hacking: diverse good rows weigh more, and the KL holds those rows alone whose reward others doubt.

    d_i is how far row i is from its nearest neighbour in its group. ``A_i = (r_i - mean_group) d_i / mean_group(d)`` where that is above 0,
    ``r_i - mean_group`` elsewhere; ``u_i`` is the rank of r_i among all rows less the mean of its ranks by the auxiliary rewards;
    ``gate_i`` = 1 for the ``gated`` part of the rows with ``u_i >= 0`` whose u is highest, and over trained steps t of row i::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + gate_i beta KL(pi_it || ref_it) ]

    Args:
        diversity: the reward that says d (``nearest_distance``), by its name in ``rewards``; a weight of 0 keeps it out of r.
        auxiliary: names of rewards that r is compared with; none: every row pays the KL.
        gated: part of the doubtful rows that pay it. ``adapted``: .1 at first, a tenth more where their mean u is above that of each of the
            last 20 rollouts, a tenth less where it is below them all, from .02 to .2; in checkpoints.
        clip, ratio: as in ``flow_grpo``.
        beta, kl: weight and kind of the KL.
        advantage_clip: largest advantage, or None.

    Errors: UserError where a reward that is named is not there.

    Paper: GARDO: Reinforcing Diffusion Models without Reward Hacking, arXiv 2512.24138.

    Deviations: its moving reference is ``references: {ref: {every: N}}``; the code's moves where the KL is high, too. Its code counts
    ranks from the best, so that there those rows pay whose reward is lower than the others say; and it weighs steps by their std. Rows of
    unknown diversity count 1; ties share a rank.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 2.0]).double(), group=torch.tensor([0, 0, 0]),
        ...                     parts={"diversity": torch.tensor([0.1, 0.2, 0.6]).double()})
        >>> [round(number, 6) for number in gardo().signal(feedback).flatten(1)[:, 0].tolist()]  # above the mean times 0.6 / 0.3
        [-1.0, 0.0, 2.0]
    """

    def advantage(feedback: Feedback) -> Tensor:
        plain = advantages.centred(feedback.rewards, feedback.group)
        far = _part(feedback, "diversity", diversity)
        mean = advantages.group_mean(far, feedback.group)
        scale = torch.where(mean > 0, far / torch.where(mean > 0, mean, 1.0), 1.0).nan_to_num(1.0)
        return advantages.clip(torch.where(plain > 0, plain * scale, plain), largest=advantage_clip)

    def gate(feedback: Feedback) -> Tensor:
        known = ~feedback.rewards.isnan()
        if not auxiliary:
            return known.double()[:, None, None]
        others = torch.stack([advantages.ranks(_part(feedback, "auxiliary", name)) for name in auxiliary])
        doubt = advantages.ranks(feedback.rewards) - others.mean(0)
        candidates = doubt[known & (doubt >= 0)]  # NaN is not
        if not len(candidates):
            return torch.zeros(len(known), 1, 1, dtype=torch.float64)
        part = adapted.update(candidates) if isinstance(gated, str) else gated
        return (known & (doubt >= 0) & (doubt > candidates.quantile(1 - part))).double()[:, None, None]

    adapted = AdaptiveShare(start=0.1, low=0.02, high=0.2)
    doubtful = Reading(gate, state=adapted if isinstance(gated, str) else None)
    penalty = penalties.named(kl, beta=beta)
    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        terms=None if penalty is None else {"gated_kl": gates.paid(penalty, doubtful)},
        weigh=weights.sequence_mean,
        kinds=frozenset({"transition"}),
    )


def _part(feedback: Feedback, keyword: str, name: str) -> Tensor:
    if name not in feedback.parts:
        raise UserError(f"gardo.{keyword}: got {name!r}, takes one of {', '.join(feedback.parts) or 'no rewards'}")
    return feedback.parts[name].detach().double()
