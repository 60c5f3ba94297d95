"""Nash-MD: self-play against a mixture with the reference."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.objectives import comparisons, ratios, returns, surrogates, weights
from mmalign.objectives.compose import policy_gradient
from mmalign.types import Feedback, Method, UserError


def nash_md(*, mixture: float = 0.5, tau: float = 0.1, kl: Literal["sequence", "token"] = "sequence", scale: float = 1.0) -> Method:
    """REINFORCE on the probability to win against the geometric mixture of policy and reference, which leads to a Nash equilibrium.

    The opponents of row i are the other rows j of its group, each with weight ``w_j ~ (ref / pi_old)(row j)^mixture``: samples of the
    policy, read as ones of ``pi_old^(1 - mixture) ref^mixture``. ``A_i = sum_j w_j P(i beats j) / sum_j w_j - 1/2 - tau (log pi_old -
    log ref)(row i)``, and::

        loss = mean_i [ -sum_t A_i log pi_it ]

    Args:
        mixture: part of the reference in the opponent; 0 is self-play.
        tau: price of a nat of KL to ``ref``, in units of a probability to win.
        kl: ``sequence``, the whole row's log-ratio, whose gradient is the KL's; ``token``, each token pays its own.
        scale: reward units of a logit, where nobody compared rows and Bradley-Terry does.

    Paper: Nash Learning from Human Feedback, arXiv 2312.00886, sec. 7.

    Deviations: the paper samples its opponents word by word from the normalised mixture; here the group's own rows are weighted, so
    that nothing else is sampled (weights get uneven when the policy is far from ``ref``). mixture and tau are TRL's.

    Dialects:
    - TRL 1.9: kl="token", mixture=0.5: each token's score is multiplied by its own log-ratio alone, which is not the KL's gradient.
    """
    if not 0 <= mixture <= 1 or tau < 0 or kl not in ("sequence", "token"):
        raise UserError(f"mixture, tau, kl: got {mixture}, {tau} and {kl!r}, takes 0..1, 0 or more, and 'sequence' or 'token'")

    def advantage(feedback: Feedback) -> Tensor:
        inside, price = returns.known(feedback), returns.kl(feedback)
        wins = comparisons.wins(feedback, scale=scale)
        compared = ~wins.isnan() & inside.any(1)[:, None] & inside.any(1)[None, :]
        logits = torch.where(compared, -mixture * price.sum(1)[None, :], -torch.inf)
        met = compared.any(1, keepdim=True)
        weight = torch.where(met, logits, 0.0).softmax(1)
        ahead = torch.where(met[:, 0], (weight * wins.nan_to_num(0.0)).sum(1) - 0.5, 0.0)
        paid = price.sum(1, keepdim=True) if kl == "sequence" else price
        return torch.where(inside, ahead[:, None] - tau * paid, 0.0)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=partial(weights.constant_length, length=1),
        reads=frozenset({"mask", "old", "refs:ref"}),
    )
