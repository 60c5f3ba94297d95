"""Rows of one pass of the model: half as many from then on, once, where a device has no memory for those that were asked for."""

from __future__ import annotations

import gc
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import Tensor

from mmalign.distributed.team import PeerError, PeerShort
from mmalign.training.updates import method_state
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.recovery import out_of_memory

Result = TypeVar("Result")


@dataclass(frozen=True)
class Tried(Generic[Result]):
    """What came of an act: its result, or why memory ended; error: this process's own, None where it ended in another one."""

    result: Result | None = None
    why: str | None = None
    error: Exception | None = None


class MicroRows:
    """``batch.micro_rows`` of a run, or half of what fitted into a pass where that was too many.

    It has state (``dump``, ``load``): a resumed run goes on with the half, and with the whole where ``batch.micro_rows`` is another one by
    then, which may be halved anew. In several processes all go on with the same number, whichever of them had no memory.
    """

    def __init__(self, given: int, learner: Learner, *, say: Callable[[str], None]):
        self.given, self.now, self.learner, self.say = given, given, learner, say

    @property
    def row(self) -> dict[str, float]:
        """What the log says of a step: nothing, as long as it is what the config says."""
        return {} if self.now == self.given else {"micro_rows": float(self.now)}

    def fit(self, act: Callable[[int], Result], largest: Callable[[int], int]) -> Result:
        """``act(micro_rows)``, and where memory ends in it, all of it once more with half of its largest pass, as if nothing had been.

        largest: micro_rows -> rows of the act's largest pass in this process. Gradients are thrown away, and the states of torch's random
        generators and of the method are put back. Not tried again: what has changed a parameter, what is halved already, a pass that
        cannot be halved (of one row, or of a unit that a method sees whole), and a model in shards, whose passes are of all processes.
        Errors: those of ``act``.
        """
        state, generators = method_state.dump(self.learner.method), _generators()
        updates, counts = self.learner.updates, dict(vars(self.learner.non_finite))
        tried = self._try(act)
        if tried.why is None:
            return tried.result  # type: ignore[return-value]
        half = self._half(tried, largest, whole=self.learner.updates == updates)
        before, self.now = self.now, half
        self.say(f"out of memory ({tried.why}); done again with passes of {half} rows, and so from here on: batch.micro_rows was {before}")
        del tried  # with what its frames hold
        self._restore(state, generators)
        vars(self.learner.non_finite).update(counts)
        return self.fit(act, largest)

    def _try(self, act: Callable[[int], Result]) -> Tried[Result]:
        try:
            result = act(self.now)
            self.learner.team.tell("through")
        except PeerShort as error:
            return Tried(why=str(error))
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error) or self.learner.shards is not None:
                raise
            return Tried(why=" ".join(str(error).split())[:200], error=error)
        return Tried(result)

    def _half(self, tried: Tried[Any], largest: Callable[[int], int], *, whole: bool) -> int:
        """Half of the largest pass of any process. whole: whether no parameter has changed here.

        Errors: where there is none, this process's own, with a note of the reason; PeerError, with the words of the one that has it.
        """
        team = self.learner.team
        why = "" if whole else "in the update of the parameters itself"
        why = why if self.now == self.given else f"again, with batch.micro_rows halved to {self.now}"
        if tried.error is not None and not why:
            team.short()
        if tried.error is None or not why:
            passes = team.tell([largest(self.now), why])
            most = max(rows for rows, _ in passes)
            fewer = max(team.tell(largest(max(1, most // 2))))
            why = next((reason for _, reason in passes if reason), "" if fewer < most else f"in a pass of {most} rows, which has no half")
            if not why:
                return most // 2
        if tried.error is None:
            team.tell("waits")  # for the words of the one that stops
            raise PeerError(f"{tried.why}, {why}")
        tried.error.add_note(why)
        raise tried.error

    def _restore(self, state: Any, generators: list[Tensor]) -> None:
        self.learner.forget_gradients()
        method_state.load(self.learner.method, state)
        torch.set_rng_state(generators[0])
        gc.collect()
        if torch.cuda.is_available():
            torch.cuda.set_rng_state_all(generators[1:])
            torch.cuda.empty_cache()

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"given": self.given, "now": self.now}

    def load(self, state: Mapping[str, Any]) -> None:
        """Goes on with what ``dump`` gave, where the config still says what it said then."""
        if state["given"] == self.given:
            self.now = state["now"]


def _generators() -> list[Tensor]:
    """The states of torch's own generators, the CPU's first."""
    return [torch.get_rng_state(), *(torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [])]
