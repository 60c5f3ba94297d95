"""Reinforced Token Optimization."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import OLD, refs
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading, live, read
from mmalign.objectives.sentences.actor_critic import actor_critic
from mmalign.objectives.terms.critics import Critic
from mmalign.types import Feedback, Method, UserError


def rto(  # the paper's own numbers
    *,
    judge: str = "dpo",
    dense: NotNegative = 0.05,
    dense_clip: Positive | None = None,
    terminal: NotNegative = 1.0,
    beta: NotNegative = 0.05,
    clip: Positive = 0.2,
    gamma: Proportion = 1.0,
    lam: Proportion = 0.95,
    value: NotNegative = 1.0,
) -> Method:
    """PPO with a reward for every token: what a model that was trained by DPO likes about it.

    ``r_t = dense (log judge - log ref)_t - beta (log pi_old - log ref)_t + terminal r at the last step``, advantages by the critic as in
    ``ppo``::

        loss = mean_it [ -min(rho A, clip(rho, 1 - clip, 1 + clip) A) + value / 2 (V - R)^2 ]

    Args:
        judge: name of the reference that was trained by DPO from ``ref``: the recipe's ``references`` say where it is kept.
        dense: weight of its log-ratio. dense_clip: bound of a token's log-ratio, nats, or None.
        terminal: weight of the row's own reward. beta: price of a nat of KL to ``ref``.
        clip, gamma, lam, value: as in ``ppo``.

    Paper: DPO Meets PPO: Reinforced Token Optimization for RLHF, arXiv 2404.18922.

    Deviations: where the paper has beta_1, beta_2 and beta_3, these are dense, beta and terminal. dense is what the authors' code
    recommends to begin with; it bounds what tokens earn, too, and whether before or after the scale was not checked.

    Dialects:
    - RTO: dense=0.05, beta=0.01, terminal=1.0: its script for Llama-3 8B, with the bound 0.05.
    """
    if dense_clip is not None and dense_clip <= 0:
        raise UserError(f"dense_clip: got {dense_clip}, takes a number of nats above 0 or None")

    def rewards(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        liked = live(read(feedback, refs(judge)) - read(feedback, refs("ref")), inside)
        liked = liked if dense_clip is None else liked.clamp(-dense_clip, dense_clip)
        return dense * liked - beta * returns.kl(feedback) + terminal * returns.at_end(feedback.rewards, inside)

    reads = frozenset({OLD, refs("ref"), refs(judge)})
    return actor_critic(rewards=Reading(rewards, reads), critic=Critic(gamma, lam, value), clip=clip)
