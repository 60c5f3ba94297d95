"""Policy gradients with a critic: PPO and its kin, where every step has an advantage of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Annotated

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, within
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.critics import Critic, Macro, entropy_loss, estimates, value_loss
from mmalign.types import Feedback, Method


def actor_critic(
    *,
    rewards: Reading,
    critic: Critic,
    clip: Positive,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    entropy: NotNegative = 0.0,
    share: Callable[[Feedback], Tensor] | None = None,
    macro: Macro | None = None,
) -> Method:
    """``values = PPO's clipped surrogate + critic's loss - entropy bonus``, every token the same.

    rewards: of single steps ``[B, T]``. share, macro: as in ``critics.estimates``.

    clip: how far a ratio may leave 1, both ways. dual: bound of the loss where the advantage is below 0, or None. entropy: bonus for a nat
    of a step's entropy.
    """
    return policy_gradient(
        advantage=estimates(rewards, critic, share=share, macro=macro),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip, dual=dual),
        critic=value_loss(critic, macro),
        terms=entropy_loss(entropy),
        weigh=weights.token_mean,
    )
