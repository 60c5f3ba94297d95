"""ArCHer: a critic of turns above a policy gradient of words."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.state.controllers import AdaptiveKL
from mmalign.objectives.terms.critics import Critic, of_turns, penalised, value_loss
from mmalign.types import Method


def archer(
    *, clip: Positive = 0.2, gamma: Proportion = 0.95, lam: Proportion = 0.0, value: NotNegative = 1.0, beta: NotNegative = 0.0,
    whiten: bool = True,
) -> Method:  # fmt: skip
    """Two levels in a conversation: a critic says what a turn is worth before it is said, and the words of the turn share what came of it.

    A turn u is a run of the policy's steps between two replies of the environment, s what stands before it, s' what stands before the next
    one. With ``Q(s, u) = r_u + gamma V(s')``, by ``lam`` nearer to what was earned in the end, and ``A_u = Q(s, u) - V(s)``::

        loss = mean_it [ -min(rho_it A_u, clip(rho_it, 1 - clip, 1 + clip) A_u) + value / 2 (V(s) - Q(s, u))^2 at the first step of u ]

    Args:
        clip: how far a step's ratio may leave 1, for rollouts that are used more than once.
        gamma: discount of a turn. lam: 0 is one turn ahead, as the paper's temporal differences; 1 is what the conversation earned.
        value: weight of the critic's loss. beta: price of a nat of KL to ``ref``, as in ``ppo``. whiten: whether advantages are normalised.

    In a rollout of one turn it is ``reinforce`` with a learned baseline of prompts.

    Paper: ArCHer: Training Language Model Agents via Hierarchical Multi-Turn RL, arXiv 2402.19446, sec. 3 (eq. 1 to 4, *recalled*).

    Deviations: the paper's critics learn from a replay buffer, two of them with slowly moving copies, beside the policy; here one head
    (``policy.heads: [value]``) learns from the rollout at hand, whose targets hold still while it is used, and ``lam`` stands for how far
    they look. Its token level has a baseline of its own in a variant; the turn's value is the only one here.
    """
    critic = Critic(gamma, lam, value, None, whiten)
    return policy_gradient(
        advantage=of_turns(penalised(AdaptiveKL(beta=beta, target=None)), critic),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        critic=value_loss(critic),
        weigh=weights.token_mean,
    )
