"""Nash-MD: self-play against a mixture with the reference."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import MASK, OLD, refs
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import comparisons, returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Behavior, Feedback, Method, UserError


def nash_md(
    *,
    mixture: Proportion = 0.5,
    tau: NotNegative = 0.1,
    kl: Literal["sequence", "token"] = "sequence",
    scale: Positive = 1.0,
    opponents: Literal["drawn", "weighted"] = "drawn",
) -> Method:
    """REINFORCE on the probability to win against the geometric mixture of policy and reference, which leads to a Nash equilibrium.

    Half of a group's rows are drawn, step by step, from ``pi_old^(1 - mixture) ref^mixture``, normalised: the opponents j of the policy's
    own rows i. ``A_i = mean_j P(i beats j) - 1/2 - tau (log pi_old - log ref)(row i)``, and::

        loss = mean_i [ -sum_t A_i log pi_it ]

    Args:
        mixture: part of the reference in the opponent; 0 is self-play.
        tau: price of a nat of KL to ``ref``, in units of a probability to win.
        kl: ``sequence``, the whole row's log-ratio, whose gradient is the KL's; ``token``, each token pays its own.
        scale: reward units of a logit, where nobody compared rows and Bradley-Terry does.
        opponents: ``weighted``: nobody else draws; the opponents are the group's other rows, each with weight ``w_j ~ (ref /
            pi_old)(row j)^mixture``, samples of the policy read as ones of a mixture of whole rows. Uneven far from ``ref``.

    Paper: Nash Learning from Human Feedback, arXiv 2312.00886, sec. 7.

    Deviations: several opponents for each row, where the paper has one. mixture and tau are TRL's.

    Dialects:
    - TRL 1.9: kl="token", mixture=0.5: each token's score is multiplied by its own log-ratio alone, which is not the KL's gradient.
    """
    if not 0 <= mixture <= 1 or tau < 0 or kl not in ("sequence", "token") or opponents not in ("drawn", "weighted"):
        raise UserError(
            f"mixture, tau, kl, opponents: got {mixture}, {tau}, {kl!r} and {opponents!r}, takes 0..1, 0 or more, 'sequence' or 'token', "
            "and 'drawn' or 'weighted'"
        )
    drawn = opponents == "drawn"

    def advantage(feedback: Feedback) -> Tensor:
        inside, price = returns.known(feedback), returns.kl(feedback)
        theirs = comparisons.drawn(feedback, "mixture") if drawn else inside.any(1)
        own = ~feedback.drawn["mixture"] if drawn else inside.any(1)
        wins = comparisons.wins(feedback, scale=scale)
        compared = ~wins.isnan() & (own & inside.any(1))[:, None] & theirs[None, :]
        weight = torch.zeros_like(wins) if drawn else -mixture * price.sum(1)[None, :].expand_as(wins)
        met = compared.any(1, keepdim=True)
        weight = torch.where(met, torch.where(compared, weight, -torch.inf), 0.0).softmax(1)
        ahead = torch.where(met[:, 0], (weight * wins.nan_to_num(0.0)).sum(1) - 0.5, 0.0)
        paid = price.sum(1, keepdim=True) if kl == "sequence" else price
        return torch.where(inside & own[:, None], ahead[:, None] - tau * paid, 0.0)

    method = policy_gradient(
        advantage=Reading(advantage, frozenset({MASK, OLD, refs("ref")})),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=partial(weights.constant_length, length=1),
    )
    if not drawn:
        return method
    shares = {"current": 1.0 - mixture, "ref": mixture} if mixture else {"current": 1.0}
    return replace(method, behaviors=(Behavior("mixture", shares),), keep=lambda feedback: ~feedback.drawn["mixture"])
