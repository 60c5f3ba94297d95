"""What adds the gradient of other rows to every update of an online run: records that are mixed in, rows of earlier rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from mmalign.training.updates import method_state
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.types import Method


class Beside:
    """An experience with a method of its own. prefix: how the names of numbers begin that the log has of it.

    learner: of the run, whose optimiser moves the parameters: another one around the same policy makes the gradients. weight: of the loss.
    """

    def __init__(self, learner: Learner, method: Method, prefix: str, *, weight: float = 1.0):
        self.learner, self.prefix, self.weight = learner, prefix, weight
        weighed = replace(method, weigh=lambda mask: weight * method.weigh(mask))
        self.own = Learner(learner.policy, weighed, replace(learner.settings, ema=None), steps=learner.steps, team=learner.team)
        self.experience: Experience | None = None
        self.before: Any = None
        learner.beside.append(self._add)

    def begin(self) -> None:
        """Before the signal of the next update's experience is made: nothing is added so far, and its method's state is as it is now."""
        self.experience, self.before = None, self.dump()

    def largest(self, micro_rows: int) -> int:
        """Rows of the largest pass that it makes."""
        return 0 if self.experience is None else self.own.micro_batches.largest([self.experience], micro_rows)

    def _add(self, micro_rows: int) -> dict[str, float]:
        """Adds their gradient to those of the update; again, where memory ended in it the first time."""
        if self.experience is None or not len(self.experience.rows):
            return {}
        self.load(self.before)
        self.own.profile = self.learner.profile
        measured = self.own.add(self.experience, micro_rows)
        measured["loss"] /= self.weight
        return {f"{self.prefix}{name}": value for name, value in measured.items()}

    def dump(self) -> Any:
        """The state of its method as JSON; None without any."""
        return method_state.dump(self.own.method)

    def load(self, kept: Mapping[str, Any] | None) -> None:
        """Puts back what ``dump`` gave."""
        method_state.load(self.own.method, kept)
