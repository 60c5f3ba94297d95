"""Where a step fails: what is whole of the run by then, and what the user may change."""

from __future__ import annotations

import copy
import errno
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch

from mmalign.training import references
from mmalign.training.updates import method_state
from mmalign.training.updates.learner import Learner


@dataclass
class Snapshot:
    """All of a run's state that is no tensor, as it was after a step; begun: the next step has begun, and may have moved references."""

    step: int
    state: dict[str, Any]
    states: dict[str, Any]
    method: Any
    changes: int
    begun: bool = False

    def whole(self, learner: Learner) -> bool:
        """Whether the tensors of ``learner`` are still those that belong to it."""
        moved = self.begun and not references.repeatable(learner.moves, self.step)
        return learner.changes == self.changes and not moved

    def checkpoint(self, learner: Learner) -> dict[str, Any]:
        """What a checkpoint keeps beside the tensors."""
        record = {**self.state, "learner": {**learner.state(), "method": self.method}}
        return {**record, "states": self.states} if self.states else record


def snapshot(learner: Learner, state: Mapping[str, Any], states: Mapping[str, Any]) -> Snapshot:
    """Of a run as it is now. state: JSON. states: name -> what has a state of its own (``dump``)."""
    dumps = {name: copy.deepcopy(owner.dump()) for name, owner in states.items()}
    method = method_state.dump(learner.method)
    rows = {**state, "evaluations": list(state["evaluations"]), "facts": dict(state["facts"])}  # rows are only ever added
    return Snapshot(state["step"], rows, dumps, method, learner.changes)


def out_of_room(error: BaseException) -> bool:
    """Whether a file could not be written for want of room, or of the right to more."""
    return isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EROFS)


def out_of_memory(error: BaseException) -> bool:
    """Whether a device or the machine had no memory left."""
    if isinstance(error, (MemoryError, torch.OutOfMemoryError)):
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))
