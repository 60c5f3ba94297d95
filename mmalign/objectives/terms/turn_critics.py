"""Two critics of turns with slowly moving copies: what they are fitted to, in the rollout at hand and in earlier ones, and advantages.

A turn u is a run of a row's live steps between two replies of an environment. ``v1``, ``v2`` are read at its first step, before a word of
it is said; ``q1``, ``q2`` at its last, where all of it is known but that step.
"""

from __future__ import annotations

from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.needs import MASK, Q1, Q2, V1, V2, of_set
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import DENSITIES, Reading, Term, held, live, read, refuse_kind
from mmalign.objectives.terms.critics import value_error
from mmalign.objectives.terms.gates import Signal
from mmalign.objectives.weights import token_mean
from mmalign.types import Feedback, Loss, Method, Need, Steps

TARGET = "target"
"""The set of parameters that follows the trained ones slowly."""
Q, V = (Q1, Q2), (V1, V2)


class Turns(NamedTuple):
    """The turns of a rollout's rows, ``[B, T]`` each: their numbers, 0 in dead cells and in rows whose reward is missing, and which
    cells begin and end them."""

    number: Tensor
    begins: Tensor
    ends: Tensor

    @staticmethod
    def of(feedback: Feedback) -> Turns:
        """Those of the rows whose reward is known."""
        number = live(returns.turn(read(feedback, MASK)), returns.known(feedback))
        return Turns(number, returns.first(number), returns.last(number))


def action_targets(feedback: Feedback, turns: Turns, *, gamma: float) -> list[Tensor]:
    """``r_u + gamma V'_k(s')`` at the last step of each turn, ``[B, T]`` for each critic k; s' is what stands before the row's next turn,
    and V' (``v1:target``) is 0 where there is none. A row's reward is that of its last turn.

    gamma: discount of a turn.
    """
    earned = returns.at_end(feedback.rewards, turns.number != 0)
    ahead = [returns.after(live(read(feedback, of_set(v, TARGET)).to(earned), turns.begins), turns.number) for v in V]
    return [live(earned + gamma * value, turns.ends) for value in ahead]


def of_turns(*, gamma: float, earned: float = 0.0) -> Reading:
    """``[B, T, 7]``: the advantage ``(1 - earned) min_k Q_k(s, u) + earned G_u - min_k V_k(s)`` in every step of a turn; what the two Q are
    fitted to at its last step (``action_targets``), and the two V at its first, ``Q'_k(s, u)`` of the turn that the policy took; and 1 at
    last and first steps.

    gamma: discount of a turn. earned: share of what the conversation earned from there on, ``G_u = r_u + gamma G_u'``, in place of Q.
    """

    def of(feedback: Feedback) -> Tensor:
        turns = Turns.of(feedback)
        over = partial(returns.pooled, number=turns.number, mean=False)
        q, v = (torch.stack([read(feedback, need).double() for need in two]).amin(0) for two in (Q, V))
        each = live(over(returns.at_end(feedback.rewards, turns.number != 0)), turns.begins)
        to_go = over(returns.to_go(each, turns.begins, gamma=gamma))
        advantage = (1 - earned) * over(live(q, turns.ends)) + earned * to_go - over(live(v, turns.begins))
        said = [live(over(live(read(feedback, of_set(need, TARGET)).double(), turns.ends)), turns.begins) for need in Q]
        where = turns.ends.double(), turns.begins.double()
        return torch.stack([advantage, *action_targets(feedback, turns, gamma=gamma), *said, *where], dim=-1)

    return Reading(of, frozenset({MASK, *Q, *V, *(of_set(need, TARGET) for need in (*Q, *V))}), 7)


def both_losses(weight: float) -> Term[Signal]:
    """``weight / 2 sum_k (Q_k - target)^2`` at the last steps of turns, and the same of V at their first. It is told what ``of_turns``
    gives behind the advantage.

    weight: of the critics' loss.
    """

    def of(steps: Steps, signal: Signal) -> Tensor:
        *targets, ends, begins = signal.extras.unbind(-1)
        where = (ends, ends, begins, begins)
        parts = zip((*Q, *V), targets, where, strict=True)
        return weight * torch.stack([_error(steps, need, target, inside) for need, target, inside in parts]).sum(0)

    return Term(of, frozenset({*Q, *V}))


def from_earlier(*, gamma: float, weight: float) -> Method:
    """How the two Q learn from turns of earlier rollouts, whoever took them: ``weight / 2 sum_k (Q_k - target_k)^2`` at their last steps,
    the mean over steps (``action_targets``).

    gamma: discount of a turn. weight: of the loss.
    """

    def signal(feedback: Feedback) -> Tensor:
        turns = Turns.of(feedback)
        return torch.stack([*action_targets(feedback, turns, gamma=gamma), turns.ends.double()], dim=-1)

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, DENSITIES)
        *targets, ends = signal.unbind(-1)
        error = torch.stack([_error(steps, need, target, ends) for need, target in zip(Q, targets, strict=True)]).sum(0)
        squared = 2 * error.detach().sum() / ends.sum().clamp(min=1) / len(Q)
        return Loss(weight * error, {"q_error": squared}, over=ends.sum())

    reads = frozenset({MASK, *(of_set(need, TARGET) for need in V)})
    return Method(signal=signal, loss=loss, weigh=token_mean, needs=frozenset(Q), reads=reads)


def _error(steps: Steps, need: Need, target: Tensor, inside: Tensor) -> Tensor:
    """``1/2 (value - target)^2`` where ``inside`` is 1."""
    where = inside.bool() & steps.mask
    value = live(held(steps, need).to(steps.log_probs), where)
    return live(value_error(value, target, value, clip=None), where)
