"""Sentences with a critic: PPO and its kin, where every step has an advantage of its own."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign import needs
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import live, read
from mmalign.objectives.sentences.compose import Term, policy_gradient
from mmalign.objectives.state import controllers
from mmalign.types import Feedback, Method, Need, Steps, UserError

ADVANTAGE, RETURN, VALUE, SHARE, MACRO = range(5)  # channels of the signal, [B, T] each


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


def value_error(value: Tensor, target: Tensor, old: Tensor, *, clip: float | None) -> Tensor:
    """``1/2 max((V - R)^2, (clip(V, V_old - c, V_old + c) - R)^2)``, elementwise (PPO's code; verl and TRL have it too)."""
    error = (value - target) ** 2
    if clip is not None:
        near = torch.minimum(torch.maximum(value, old - clip), old + clip)
        error = torch.maximum(error, (near - target) ** 2)
    return error / 2


def fitted(critic: Critic, *, pool: Callable[[Tensor, Tensor], Tensor] | None = None) -> Term:
    """The critic's loss, in every live cell of rows that count, by their share. Needs ``terms["value"]``.

    pool: ``(values, macro numbers) -> values``, where a critic judges macro actions; a row has to stay together then.
    """
    if critic.weight < 0 or (critic.clip is not None and critic.clip <= 0):
        raise UserError(f"value, value_clip: got {critic.weight} and {critic.clip}, takes 0 or more, and a number above 0 or None")

    def of(steps: Steps, signal: Tensor) -> Tensor:
        if "value" not in steps.terms:
            raise UserError(f"Steps.terms: got {sorted(steps.terms)}, a critic takes 'value'")
        value = live(steps.terms["value"].to(steps.log_probs), steps.mask)
        value = value if pool is None else pool(value, signal[..., MACRO])
        error = value_error(value, signal[..., RETURN], signal[..., VALUE], clip=critic.clip)
        return critic.weight * signal[..., SHARE] * error

    return Term("value_loss", of, frozenset({needs.VALUE}), "cell" if pool is None else "row")


def spread(bonus: float) -> list[Term]:
    """``- bonus * entropy`` of each step, which keeps a policy from collapsing; nothing where bonus is 0. Needs ``entropy``."""

    def of(steps: Steps, signal: Tensor) -> Tensor:
        if "entropy" not in steps.terms:
            raise UserError(f"Steps.terms: got {sorted(steps.terms)}, an entropy bonus takes 'entropy'")
        return -bonus * live(steps.terms["entropy"].to(steps.log_probs), steps.mask)

    if bonus < 0:
        raise UserError(f"entropy: got {bonus}, takes 0 or more")
    return [Term("entropy_loss", of, frozenset({needs.ENTROPY}))] if bonus else []


def judged(
    feedback: Feedback, rewards: Tensor, critic: Critic, *, share: Tensor | None = None, number: Tensor | None = None, mean: bool = True
) -> Tensor:
    """The signal ``[B, T, 4 or 5]``: advantage, return, value at sampling, what a row counts for; and macro numbers where there are.

    rewards: of single steps ``[B, T]``. share: ``[B]``, what a row counts for (1). number: of macro actions ``[B, T]``, whose rewards
    are added up, whose values are pooled, and whose advantage every step of them gets.
    """
    inside, share = returns.known(feedback), torch.ones_like(feedback.rewards) if share is None else share
    value = live(read(feedback, needs.VALUE).to(rewards), inside)
    estimate = partial(returns.gae, gamma=critic.gamma, lam=critic.lam)
    if number is None:
        advantage = estimate(rewards, value, inside)
    else:
        number = live(number.double(), inside)
        inside = inside & (number != 0)
        first = returns.first(number)
        value = returns.pooled(value, number, mean=mean)
        apart = estimate(live(returns.pooled(rewards, number, mean=False), first), live(value, first), first)
        advantage = returns.pooled(apart, number, mean=False)
    target = advantage + value
    if critic.whiten:
        advantage = returns.whitened(advantage, inside)
    if critic.largest is not None:
        advantage = advantage.clamp(-critic.largest, critic.largest)
    channels = [advantage * share[:, None], target, value, inside * share[:, None]] + ([] if number is None else [number])
    return torch.stack([live(channel.double(), inside) for channel in channels], dim=-1)


def ppo(  # the parts of a sentence
    *,
    rewards: Callable[[Feedback], Tensor],
    critic: Critic,
    clip: float,
    dual: float | None = None,
    entropy: float = 0.0,
    signal: Callable[[Feedback, Tensor], Tensor] | None = None,
    pool: Callable[[Tensor, Tensor], Tensor] | None = None,
    reads: frozenset[Need] = frozenset(),
    state: Any = None,
) -> Method:
    """``values = PPO's clipped surrogate + critic's loss - entropy bonus``, every token the same.

    rewards: Feedback -> rewards of single steps ``[B, T]``; asked once for each rollout, so that it may update ``state``.
    signal: ``(feedback, rewards) -> [B, T, S]``, ``judged`` by default. pool: see ``fitted``. reads: besides the mask and the value.
    """
    made = (lambda feedback, found: judged(feedback, found, critic)) if signal is None else signal
    return policy_gradient(
        advantage=lambda feedback: made(feedback, rewards(feedback)),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip, dual=dual),
        terms=[fitted(critic, pool=pool), *spread(entropy)],
        weigh=weights.token_mean,
        reads=reads | {needs.MASK, needs.VALUE},
        state=state,
    )


def penalised(control: controllers.AdaptiveKL, *, name: str = "ref") -> Callable[[Feedback], Tensor]:
    """``r_t = r at the last step - beta (log pi_old - log ref)``, ``[B, T]``; beta is adapted to the rollout's KL afterwards."""

    def of(feedback: Feedback) -> Tensor:
        inside = returns.known(feedback)
        earned = returns.at_end(feedback.rewards, inside)
        if not control.beta:
            return earned
        paid = returns.kl(feedback, name=name)
        earned = earned - control.beta * paid
        control.update(controllers.rows(paid, inside))
        return earned

    return of


def priced(beta: float, *, name: str = "ref") -> frozenset[Need]:
    """What a KL in the reward reads: nothing where beta is 0."""
    return frozenset({needs.OLD, needs.refs(name)}) if beta else frozenset()
