"""ArCHer: two critics of turns, which learn from earlier rollouts too, above a policy gradient of words."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import Tensor

from mmalign.arguments.ranges import Count, Natural, NotNegative, Positive, Proportion
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading, Replay, live
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.state.controllers import CriticFirst
from mmalign.objectives.terms.turn_critics import TARGET, both_losses, from_earlier, of_turns
from mmalign.types import Feedback, Method, Move


def archer(
    *, clip: Positive = 0.2, gamma: Proportion = 0.95, tau: Proportion = 0.1, earned: Proportion = 0.0,
    value: NotNegative = 1.0, whiten: bool = False, critic_first: Natural = 0, replay: Natural = 128, capacity: Count = 4096,
) -> Method:  # fmt: skip
    """Two levels in a conversation: critics say what a turn is worth before and after it is said, and its words share the difference.

    A turn u is a run of the policy's steps between two replies of the environment, s what stands before it, s' what stands before the
    next one. Two critics k, Q_k(s, u) and V_k(s), and copies of them, Q'_k and V'_k, that follow slowly. Over turns of this rollout, with
    ``A_u = (1 - earned) min_k Q_k(s, u) + earned G_u - min_k V_k(s)``, G_u what the conversation earned from u on, and over turns of
    earlier ones, D::

        loss = mean_it [ -min(rho_it A_u, clip(rho_it, 1 - clip, 1 + clip) A_u) ]
               + value / 2 sum_u sum_k [ (Q_k(s, u) - r_u - gamma V'_k(s'))^2 + (V_k(s) - Q'_k(s, u))^2 ] / steps
               + value / 2 sum_{u in D} sum_k (Q_k(s, u) - r_u - gamma V'_k(s'))^2 / steps of D

    Args:
        clip: how far a step's ratio may leave 1, for rollouts that are used more than once.
        gamma: discount of a turn. tau: how much of the trained parameters the copies take over before every step (``target``).
        earned: 0 is the paper's: a turn is worth what the critics say. Above it, they need not tell right turns from wrong ones so soon.
        value: weight of the critics' losses. whiten: whether advantages are normalised.
        critic_first: rollouts from which only the critics learn: A is 0 in them.
        replay: rows of earlier rollouts, this one's among them, that each update learns Q from, drawn evenly; 0: none.
        capacity: rows that are kept, the newest ones; they are in the checkpoints.

    Where the policy is trained on turns that it took just now, as here, ``Q'_k(s, u)`` is one sample of what V_k has to expect of it; of
    turns of earlier rollouts it would not be, and so V learns from this one alone, and Q from both.

    Paper: ArCHer: Training Language Model Agents via Hierarchical Multi-Turn RL, arXiv 2402.19446, sec. 3, and its authors' code
    (two critics with a copy that takes over .1 each time, the least of the two in the advantage, plain squared errors).

    Deviations: the critics are heads on the policy's own hidden states (``policy.heads: [q1, q2, v1, v2]``), and the copies are of all
    trained parameters; theirs are a network of their own, which reads a turn as a text by itself. A turn's Q is read before its last step
    (its end, mostly), so that of a turn of one step it knows no word. The policy learns at the states of this rollout, and theirs at
    states of the buffer, for which it says a turn anew; so no turn has to be sampled for V either. With ``clip`` a rollout can be used
    twice. ``earned`` is ours. Their variant with a baseline of words is not here.
    """
    first = CriticFirst(critic_first)
    reading = of_turns(gamma=gamma, earned=earned)

    def estimates(feedback: Feedback) -> Tensor:
        first.update(feedback.rewards)
        numbers = reading.of(feedback)
        inside = returns.known(feedback)
        advantage = returns.whitened(numbers[..., 0], inside) if whiten else numbers[..., 0]
        numbers[..., 0] = 0.0 if first.critic_alone else live(advantage, inside)
        return numbers

    method = policy_gradient(
        advantage=Reading(estimates, reading.reads, reading.width, first),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        critic=both_losses(value),
        weigh=weights.token_mean,
    )
    moves = (Move(TARGET, {"current": 1.0}, decay=lambda step: 1 - tau),)
    again = Replay(from_earlier(gamma=gamma, weight=value), replay, capacity) if replay else None
    return replace(method, moves=moves, replay=again)
