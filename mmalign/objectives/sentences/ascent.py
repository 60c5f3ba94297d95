"""Ascent along the gradient of a reward, put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import ADJOINT
from mmalign.objectives import penalties, weights
from mmalign.objectives.parts import Part, Reading, held, live, live_mean, refuse_kind
from mmalign.objectives.sentences.layout import side_by_side
from mmalign.types import Feedback, Loss, Method, Need, Steps


def ascent(
    reward_gradient: Any, *, penalty: Part | None = None, needs: frozenset[Need] = frozenset(), companions: tuple[Any, ...] = (),
    left_out: Reading | None = None,
) -> Method:  # fmt: skip
    """``sum over trained steps of -a . outcome + penalty``, the mean over rows; ``a`` the adjoint of a step's outcome.

    Its gradient is that of ``-E[utility(r)]`` as far as the plan carries it, and the penalty's of a whole trajectory. A row without a
    reward learns nothing, and pays the penalty.

    reward_gradient: how it is carried back (``samplers.adjoints.RewardGradient``). penalty: of a step, as ``penalties.named`` gives it.
    needs: besides. companions: as in ``types.Method``. left_out: Feedback -> ``[B, T]``, 1 for cells that do not count, penalty and all;
    None: all count.

    Errors: UserError of the loss for steps that are no transitions.
    """
    kinds = frozenset({"transition"})

    def signal(feedback: Feedback) -> Tensor:
        known = (~feedback.rewards.isnan()).double()[:, None]
        return known if left_out is None else side_by_side([known[..., None], left_out.of(feedback).double()[..., None]])

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        known, out = (signal, 0.0) if left_out is None else signal.unbind(-1)
        values = -live(held(steps, ADJOINT), steps.mask) * known
        metrics = {"kl": live_mean(penalties.exact_kl(steps).detach(), steps.mask)} if "ref" in steps.kls else {}
        return Loss((1 - out) * (values if penalty is None else values + penalty.of(steps)), metrics)

    needs = needs | {ADJOINT} | (penalty.needs if penalty is not None else frozenset())
    weigh = partial(weights.constant_length, length=1)
    reading = Reading(signal) if left_out is None else left_out
    return Method(
        signal=signal, loss=loss, weigh=weigh, needs=needs, kinds=kinds, reward_gradient=reward_gradient, companions=companions,
        reads=reading.reads, state=reading.state,
    )  # fmt: skip


def identity(rewards: Tensor) -> Tensor:
    """The reward itself."""
    return rewards


def times(factor: float) -> Callable[[Tensor], Tensor] | None:
    """So many times the reward; None for 0 of it, whose gradient nobody has to ask for.

    factor: of the reward.
    """
    return (lambda rewards: factor * rewards) if factor else None


def up_to(most: float) -> Callable[[Tensor], Tensor]:
    """``-relu(most - r)``: nothing is gained beyond that.

    most: a reward.
    """
    return lambda rewards: -torch.relu(most - rewards)


def near(target: float) -> Callable[[Tensor], Tensor]:
    """``-|target - r|``.

    target: the reward that is best.
    """
    return lambda rewards: -(target - rewards).abs()
