"""Critics: what they are fitted to, the advantages that they give, and rewards of single steps."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.needs import ENTROPY, MASK, OLD, VALUE, refs
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading, Term, held, live, read
from mmalign.objectives.state import controllers
from mmalign.objectives.terms.gates import Signal
from mmalign.types import Feedback, Need, Steps, UserError


class Critic(NamedTuple):
    """How a critic is used and fitted.

    gamma, lam: of generalised advantage estimation. weight: of its loss. clip: how far a value may move from the one at sampling
    before its loss stops falling, in units of the reward, or None. whiten: bring advantages to mean 0 and variance 1 over all live
    cells of the rollout. largest: bound of the advantage, or None.
    """

    gamma: float
    lam: float
    weight: float
    clip: float | None = None
    whiten: bool = True
    largest: float | None = None


class Macro(NamedTuple):
    """Runs of steps that a critic judges as one: macro actions.

    number: Feedback -> ``[B, T]``, of each step's macro action, from 1; 0 is outside. mean: a macro action's value is the mean of its
    steps' values, or their sum; their rewards are added up.
    """

    number: Reading
    mean: bool = True


def value_error(value: Tensor, target: Tensor, old: Tensor, *, clip: float | None) -> Tensor:
    """``1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)``, elementwise (PPO's code; verl and TRL have it too).

    value: what the critic says now. target: what it is fitted to. old: what it said at sampling. clip: how far a value may move from that,
    or None.
    """
    error = (value - target) ** 2
    if clip is not None:
        near = torch.minimum(torch.maximum(value, old - clip), old + clip)
        error = torch.maximum(error, (near - target) ** 2)
    return error / 2


def value_loss(critic: Critic, macro: Macro | None = None) -> Term[Signal]:
    """The critic's loss, in every live cell of rows that count, by their share. It is told what ``estimates`` gives.

    macro: a row has to stay together then.

    Errors: UserError for numbers out of range.
    """
    if critic.weight < 0 or (critic.clip is not None and critic.clip <= 0):
        raise UserError(f"value, value_clip: got {critic.weight} and {critic.clip}, takes 0 or more, and a number above 0 or None")

    def of(steps: Steps, signal: Signal) -> Tensor:
        target, old, share, *number = signal.extras.unbind(-1)
        value = live(held(steps, VALUE).to(steps.log_probs), steps.mask)
        value = value if macro is None else returns.pooled(value, *number, mean=macro.mean)
        return critic.weight * share * value_error(value, target, old, clip=critic.clip)

    return Term(of, frozenset({VALUE}), "cell" if macro is None else "row")


def ahead_of_prompt() -> Reading:
    """``[B, T, 3]``: ``r - V``, the reward, and 1 in the first live cell; V is the value of a row there, where only its prompt was read.

    0 in rows whose reward is missing.
    """

    def of(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        first = returns.first(inside.double())
        reward = feedback.rewards.double()[:, None]
        ahead = reward - live(read(feedback, VALUE).double(), first).sum(1, keepdim=True)
        return torch.stack([live(column.expand(inside.shape), inside) for column in (ahead, reward, first.double())], dim=-1)

    return Reading(of, frozenset({MASK, VALUE}), 3)


def prompt_value_loss(weight: float) -> Term[Signal]:
    """``weight / 2 (V - r)^2`` in the first live cell of rows whose reward is known. It is told what ``ahead_of_prompt`` gives.

    weight: of the term. Errors: UserError for a weight below 0.
    """
    if weight < 0:
        raise UserError(f"value: got {weight}, takes 0 or more")

    def of(steps: Steps, signal: Signal) -> Tensor:
        reward, first = signal.extras.unbind(-1)
        value = live(held(steps, VALUE).to(steps.log_probs), steps.mask)
        return weight * first * value_error(value, reward, value, clip=None)

    return Term(of, frozenset({VALUE}))


def entropy_loss(bonus: float) -> dict[str, Term[Signal]]:
    """``- bonus * entropy`` of each step, which keeps a policy from collapsing; nothing where bonus is 0.

    bonus: for a nat, in units of the advantage.
    """
    if bonus < 0:
        raise UserError(f"entropy: got {bonus}, takes 0 or more")
    of = lambda steps, signal: -bonus * live(held(steps, ENTROPY).to(steps.log_probs), steps.mask)  # noqa: E731
    return {"entropy_loss": Term(of, frozenset({ENTROPY}))} if bonus else {}


def estimates(
    rewards: Reading, critic: Critic, *, share: Callable[[Feedback], Tensor] | None = None, macro: Macro | None = None
) -> Reading:
    """``[B, T, 4 or 5]``: advantage, return, value at sampling, what a row counts for; and numbers of macro actions where there are.

    rewards: of single steps ``[B, T]``; asked once for each rollout, so that it may move its state on. share: Feedback -> ``[B]``, what a
    row counts for (1). macro: an advantage of a macro action, which every step of it gets.
    """

    def of(feedback: Feedback) -> Tensor:
        inside, earned = returns.known(feedback), rewards.of(feedback)
        counts = torch.ones_like(feedback.rewards) if share is None else share(feedback)
        value = live(read(feedback, VALUE).to(earned), inside)
        estimate = partial(returns.gae, gamma=critic.gamma, lam=critic.lam)
        numbers: list[Tensor] = []
        if macro is None:
            advantage = estimate(earned, value, inside)
        else:
            number = live(macro.number.of(feedback).double(), inside)
            inside, numbers = inside & (number != 0), [number]
            first = returns.first(number)
            value = returns.pooled(value, number, mean=macro.mean)
            apart = estimate(live(returns.pooled(earned, number, mean=False), first), live(value, first), first)
            advantage = returns.pooled(apart, number, mean=False)
        target = advantage + value
        if critic.whiten:
            advantage = returns.whitened(advantage, inside)
        if critic.largest is not None:
            advantage = advantage.clamp(-critic.largest, critic.largest)
        columns = [advantage * counts[:, None], target, value, inside * counts[:, None], *numbers]
        return torch.stack([live(column.double(), inside) for column in columns], dim=-1)

    reads = rewards.reads | {MASK, VALUE} | (frozenset() if macro is None else macro.number.reads)
    return Reading(of, reads, 4 if macro is None else 5, rewards.state)


def penalised(control: controllers.AdaptiveKL, *, name: str = "ref") -> Reading:
    """``r_t = r at the last step - beta (log pi_old - log ref)``, ``[B, T]``; beta is adapted to the rollout's KL afterwards.

    control: holds beta, and moves it. name: of the reference.
    """

    def of(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        earned = returns.at_end(feedback.rewards, inside)
        if not control.beta:
            return earned
        paid = returns.kl(feedback, name=name)
        earned = earned - control.beta * paid
        control.update(controllers.rows(paid, inside))
        return earned

    return Reading(of, priced(control.beta, name=name), state=None if control.target is None else control)


def priced(beta: float, *, name: str = "ref") -> frozenset[Need]:
    """What a KL in the reward reads: nothing but the mask where beta is 0."""
    return frozenset({MASK, OLD, refs(name)}) if beta else frozenset({MASK})
