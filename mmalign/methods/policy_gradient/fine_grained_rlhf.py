"""Fine-grained RLHF: rewards of segments."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import REWARDS
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading, live, read
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.terms.critics import Critic, priced
from mmalign.types import Feedback, Method


def fine_grained_rlhf(
    *,
    terminal: NotNegative = 0.0,
    beta: NotNegative = 0.3,
    clip: Positive = 0.2,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
) -> Method:
    """PPO with rewards where they are earned: at the last token of each sentence, or phrase, that a reward model judged.

    ``r_t = sum_k w_k R_k(segment that ends at t) - beta (log pi_old - log ref)_t + terminal r at the last step``, the sum standing in
    ``Feedback.tables[REWARDS]``, and advantages by the critic as in ``ppo``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 (V - R)^2 ]

    Args:
        terminal: weight of the row's own reward, for what is judged as a whole: all of it that its steps have not earned already.
        beta: price of a nat of KL to ``ref``.
        clip, gamma, lam, value: as in ``ppo``.

    Paper: Fine-Grained Human Feedback Gives Better Rewards for Language Model Training, arXiv 2306.01693, sec. 2.

    Deviations: rewards that score parts of a text fill the table, each with parts of its own (``rewards.by_segment`` makes one of any
    reward on texts); their weights are ``reward_weights``, and are in the table already. A step without a reward is 0 there, not NaN. A
    row that a reward could not judge is left out. Numbers are those of the authors' configuration of QA-Feedback, which has one reward
    model for each kind of error and none for the whole (terminal 0); it also clips the value's move (0.2), and whitens rewards where
    advantages are whitened here.
    """

    def rewards(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        parts = live(read(feedback, REWARDS).double(), inside)
        earned = parts + terminal * returns.at_end(feedback.rewards - parts.sum(1), inside)
        return earned - beta * returns.kl(feedback) if beta else earned

    return actor_critic(rewards=Reading(rewards, priced(beta) | {REWARDS}), critic=Critic(gamma, lam, value), clip=clip)
