"""RLHF with macro actions."""

from __future__ import annotations

from functools import partial
from typing import Literal

from torch import Tensor

from mmalign.needs import SEGMENT
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import read
from mmalign.objectives.sentences import actor_critic
from mmalign.objectives.state import controllers
from mmalign.types import Feedback, Method, UserError


def ma_rlhf(
    *,
    macro: Literal["ngram", "segment"] = "ngram",
    length: int = 5,
    pool: Literal["mean", "sum"] = "mean",
    clip: float = 0.2,
    gamma: float = 1.0,
    lam: float = 0.95,
    value: float = 1.0,
    beta: float = 0.02,
) -> Method:
    """PPO whose decisions are runs of several tokens: rewards have fewer steps to travel back.

    A macro action m is a run of tokens; its reward is the sum of ``r_t = r at the last step - beta (log pi_old - log ref)_t`` over them,
    its value V the mean, or the sum, of theirs; advantages and returns go over macro actions as in ``ppo``, and every token has those of
    its macro action::

        loss = mean_it [ -min(rho_it A_m, clip(rho_it, 1 - clip, 1 + clip) A_m) + value / 2 (V_m - R_m)^2 ]

    Args:
        macro: ``ngram``, ``length`` tokens each; ``segment``, the policy's own numbers (sentences, phrases, turns).
        length: of an n-gram, in live steps; 1 is ``ppo``.
        pool: how a macro action's value comes from its tokens'.
        clip, gamma, lam, value, beta: as in ``ppo``; gamma and lam by macro action.

    Paper: MA-RLHF: Reinforcement Learning from Human Feedback with Macro Actions, arXiv 2410.02743.

    Deviations: ratios are by token. A discount inside a macro action is left out. Runs by perplexity, or of random lengths, are segments
    that somebody else has to number. Steps in no segment (number 0) are outside: they have no advantage.

    Dialects:
    - MA-RLHF: length=5, pool="mean": its code; lengths of 1, 2, 3, 5 or 10 drawn at random are segments.
    """
    if macro not in ("ngram", "segment") or pool not in ("mean", "sum"):
        raise UserError(f"macro, pool: got {macro!r} and {pool!r}, takes 'ngram' or 'segment', and 'mean' or 'sum'")
    critic, mean = actor_critic.Critic(gamma, lam, value), pool == "mean"
    control = controllers.AdaptiveKL(beta=beta, target=None)

    def signal(feedback: Feedback, earned: Tensor) -> Tensor:
        number = returns.macro(returns.known(feedback), length=length) if macro == "ngram" else read(feedback, SEGMENT)
        return actor_critic.judged(feedback, earned, critic, number=number, mean=mean)

    return actor_critic.ppo(
        rewards=actor_critic.penalised(control),
        critic=critic,
        clip=clip,
        signal=signal,
        pool=partial(returns.pooled, mean=mean),
        reads=actor_critic.priced(beta) | (frozenset({SEGMENT}) if macro == "segment" else frozenset()),
    )
