"""PPO-max: PPO with everything that kept it stable."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from mmalign.arguments.ranges import Natural, NotNegative, Positive, Proportion
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.state.controllers import CriticFirst
from mmalign.objectives.terms.critics import Critic, priced
from mmalign.types import Feedback, Method, UserError


def ppo_max(  # the paper's own numbers
    *,
    clip: Positive = 0.2,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
    value_clip: Positive | None = 0.2,
    entropy: NotNegative = 0.0,
    beta: NotNegative = 0.02,
    centre: bool = False,
    reward_clip: Positive = 10.0,
    advantage_clip: Positive | None = 0.5,
    critic_first: Natural = 0,
) -> Method:
    """PPO whose rewards are scaled by their running spread and limited, and whose advantages and values are limited too.

    ``r'_i = clip(r_i / std_run, -reward_clip, reward_clip)``, ``r_t = r' at the last step - beta (log pi_old - log ref)_t``, advantages by
    the critic as in ``ppo``, normalised over all live steps and limited to ``+-advantage_clip``, and ``rho = pi / pi_old``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 max((V - R)^2, (V_clipped - R)^2) - entropy H ]

    Args:
        clip, gamma, lam, value, value_clip, entropy, beta: as in ``ppo``.
        centre: whether the running mean is subtracted before the division.
        reward_clip: bound of the scaled reward. advantage_clip: bound of the normalised advantage, or None.
        critic_first: rollouts from which only the critic learns: A is 0 in them. The paper fits the critic before it trains the policy.

    Paper: Secrets of RLHF in Large Language Models Part I: PPO, arXiv 2307.04964; numbers are those of MOSS-RLHF's code.

    Deviations: mean and spread are of all rewards so far, this rollout's included, and are checkpointed. With
    ``critic_first`` the entropy's bonus acts from the start. The pre-training loss that the paper mixes in is a recipe's business; its
    bound on the entropy's term (35) is not here.

    Dialects:
    - MOSS-RLHF: beta=0.02, centre=True: the mean is an option there too.
    """
    if reward_clip <= 0:
        raise UserError(f"reward_clip: got {reward_clip}, takes a number above 0")
    state = CriticFirst(critic_first)
    spread = state.spread

    def rewards(feedback: Feedback) -> Tensor:
        state.update(feedback.rewards)
        scaled = (feedback.rewards.double() - (spread.mean if centre else 0.0)) / spread.std
        inside = returns.known(feedback)
        earned = returns.at_end(scaled.clamp(-reward_clip, reward_clip), inside)
        return earned - beta * returns.kl(feedback) if beta else earned

    method = actor_critic(
        rewards=Reading(rewards, priced(beta), state=state),
        critic=Critic(gamma, lam, value, value_clip, True, advantage_clip),
        clip=clip,
        entropy=entropy,
    )

    def signal(feedback: Feedback) -> Tensor:
        numbers = method.signal(feedback)
        if state.critic_alone:
            numbers[..., 0] = 0.0
        return numbers

    return replace(method, signal=signal)
