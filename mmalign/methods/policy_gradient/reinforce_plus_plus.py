"""REINFORCE++, with and without a group baseline."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion, within
from mmalign.needs import MASK
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.critics import priced
from mmalign.types import Feedback, Method

__all__ = ["reinforce_plus_plus", "reinforce_plus_plus_baseline"]


def reinforce_plus_plus(
    *,
    clip: Positive = 0.2,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    beta: NotNegative = 0.01,
    gamma: Proportion = 1.0,
    eps: NotNegative = 1e-8,
) -> Method:
    """REINFORCE with PPO's clip, a KL price on every token, and advantages normalised over the whole batch: no critic, no groups.

    ``r_it = r_i at the last step - beta (log pi_old - log ref)_it``, ``G_it = sum_{s >= t} gamma^(s - t) r_is``, ``A = (G - mean) / std``
    over all live steps of the rollout, and with ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho_it A_it, clip(rho_it, 1 - clip, 1 + clip) A_it) ]

    Args:
        clip: how far a ratio may leave 1, both ways. dual: above 1, bounds the loss where ``A < 0`` at ``-dual A``; None is off.
        beta: price of a nat of KL to ``ref``, in units of the reward; 0 needs no reference.
        gamma: discount of a step. eps: added to the variance.

    Paper: REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization, arXiv 2501.03262.

    Deviations: the paper's beta and clip vary by experiment; .01 and .2 are OpenRLHF's. A row without a reward counts in no
    statistic.

    Dialects:
    - verl 0.7: beta=0.0, dual=3.0: no KL in the reward unless it is asked for, and a dual clip.
    """

    def advantage(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        earned = returns.at_end(feedback.rewards, inside)
        if beta:
            earned = earned - beta * returns.kl(feedback)
        return returns.whitened(returns.to_go(earned, inside, gamma=gamma), inside, eps=eps)

    return policy_gradient(
        advantage=Reading(advantage, priced(beta)),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip, dual=dual),
        weigh=weights.token_mean,
    )


def reinforce_plus_plus_baseline(
    *,
    clip: Positive = 0.2,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    beta: NotNegative = 0.01,
    kl: str = "k2",
    eps: NotNegative = 1e-8,
) -> Method:
    """REINFORCE++ with the group's mean as baseline: for rewards that differ more between prompts than within.

    ``A_i = (r_i - mean_group)``, normalised over all live steps of the rollout, and::

        loss = mean_it [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta kl_it ]

    Args:
        clip, dual, eps: as in ``reinforce_plus_plus``.
        beta, kl: weight and kind of a KL to ``ref`` in the loss; k2's gradient is, on fresh samples, the KL's.

    Paper: REINFORCE++: Stabilizing Critic-Free Policy Optimization with Global Advantage Normalization, arXiv 2501.03262.

    Deviations: a tied group, and a row alone, have advantage 0 before the normalisation, and the batch's shift after it; verl takes
    the raw reward of a row alone. beta is OpenRLHF's.

    Dialects:
    - verl 0.7: beta=0.0, dual=3.0: no KL unless it is asked for, and a dual clip.
    """

    def advantage(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        centred = advantages.centred(feedback.rewards, feedback.group)
        return returns.whitened(centred[:, None].expand(inside.shape), inside, eps=eps)

    return policy_gradient(
        advantage=Reading(advantage, frozenset({MASK})),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip, dual=dual),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
    )
