"""Critics of turns that learn from earlier rollouts."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import MASK, of_set
from mmalign.objectives.parts import DENSITIES, refuse_kind
from mmalign.objectives.terms.turn_critics import TARGET, Q, Turns, V, action_targets, error
from mmalign.objectives.weights import token_mean
from mmalign.types import Feedback, Loss, Method, Steps


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
        errors = torch.stack([error(steps, need, target, ends) for need, target in zip(Q, targets, strict=True)]).sum(0)
        squared = 2 * errors.detach().sum() / ends.sum().clamp(min=1) / len(Q)
        return Loss(weight * errors, {"q_error": squared}, over=ends.sum())

    reads = frozenset({MASK, *(of_set(need, TARGET) for need in V)})
    return Method(signal=signal, loss=loss, weigh=token_mean, needs=frozenset(Q), reads=reads)
