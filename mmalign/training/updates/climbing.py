"""Updates whose gradient is taken elsewhere: something is climbed, and from there the loss is looked at (``objectives.parts.Climb``)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Protocol

import torch

from mmalign.training.updates.experience import Experience
from mmalign.training.updates.micro_batches import MicroBatches
from mmalign.types import Method, Policy


class Climber(Protocol):
    """What splits the rows of an update, and adds up their gradients over all processes (``Learner``)."""

    policy: Policy
    method: Method
    micro_batches: MicroBatches

    def add_gradients(self) -> None: ...
    def forget_gradients(self) -> None: ...


@contextmanager
def climbed(learner: Climber, experiences: Sequence[Experience], micro_rows: int) -> Iterator[None]:
    """While the block lasts, the parameters are ``theta + rate grad sum(weight * climb)``; then ``theta`` again, to the bit.

    The gradient is that of all rows and all processes. Gradients that are left in the block are those of the other place, as the first
    order of the whole derivative has them. Nothing, where the method climbs nothing, or no gradient is wanted.
    """
    climb = learner.method.climb
    if climb is None or not torch.is_grad_enabled():
        yield
        return
    for steps, signal, weight, _ in learner.micro_batches.whole_rows(experiences, micro_rows):
        value = (weight * climb.of(steps, signal)).sum()
        if value.requires_grad:
            value.backward()  # type: ignore[no-untyped-call]
    learner.add_gradients()
    moved = [parameter for parameter in learner.policy.parameters().values() if parameter.grad is not None]
    before = [parameter.detach().clone() for parameter in moved]
    with torch.no_grad():
        for parameter in moved:
            assert parameter.grad is not None
            parameter.add_(parameter.grad, alpha=climb.rate)
    learner.forget_gradients()
    try:
        yield
    finally:
        with torch.no_grad():
            for parameter, value in zip(moved, before, strict=True):
                parameter.copy_(value)
