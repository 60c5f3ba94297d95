"""Ascent along the gradient of a reward, put together into a ``types.Method``."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.needs import ADJOINT
from mmalign.objectives import penalties, weights
from mmalign.objectives.parts import Part, Reading, held, live, live_mean, refuse_kind
from mmalign.objectives.sentences.layout import side_by_side
from mmalign.types import Feedback, Loss, Method, Need, Steps


class Reinforced(NamedTuple):
    """A policy gradient beside the ascent, ``share times -A log pi`` of each trained step that has noise.

    advantage: Feedback -> ``[B]``. share: of it; its log-probabilities are means over the latent's numbers.
    """

    advantage: Callable[[Feedback], Tensor]
    share: float


def ascent(
    reward_gradient: Any, *, penalty: Part | None = None, needs: frozenset[Need] = frozenset(), companions: tuple[Any, ...] = (),
    left_out: Reading | None = None, reinforced: Reinforced | None = None,
) -> Method:  # fmt: skip
    """``sum over trained steps of -a . outcome + penalty``, the mean over rows; ``a`` the adjoint of a step's outcome.

    Its gradient is that of ``-E[utility(r)]`` as far as the plan carries it, and the penalty's of a whole trajectory. A row without a
    reward learns nothing, and pays the penalty.

    reward_gradient: how it is carried back (``samplers.adjoints.RewardGradient``). penalty: of a step, as ``penalties.named`` gives it.
    needs: besides. companions: as in ``types.Method``. left_out: Feedback -> ``[B, T]``, 1 for cells that do not count, penalty and all;
    None: all count. reinforced: what rewards say without their gradient; None: nothing.

    Errors: UserError of the loss for steps that are no transitions.
    """
    kinds = frozenset({"transition"})

    def signal(feedback: Feedback) -> Tensor:
        numbers = [(~feedback.rewards.isnan()).double()[:, None]]
        numbers += [] if left_out is None else [left_out.of(feedback).double()]
        numbers += [] if reinforced is None else [reinforced.advantage(feedback).double()[:, None]]
        return numbers[0] if len(numbers) == 1 else side_by_side([number[..., None] for number in numbers])

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, kinds)
        known, *others = [signal] if signal.ndim == 2 else signal.unbind(-1)
        out = 0.0 if left_out is None else others.pop(0)
        values = -live(held(steps, ADJOINT), steps.mask) * known
        if reinforced is not None:
            values = values - reinforced.share * others.pop(0) * live(steps.log_probs, steps.mask) / steps.event_size
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
