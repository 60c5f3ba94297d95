"""Records that nothing is trained on, and what a method says of them: the numbers of its update, without an update."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

import torch

from mmalign.distributed import tables as of_all
from mmalign.records import Digested, Records
from mmalign.training.experience import Experience
from mmalign.training.learner import Learner
from mmalign.training.units import in_units
from mmalign.types import Feedback, Rollout, UserError

NAME = "held_out"


@dataclass(frozen=True)
class HeldOut:
    """``held_out/accuracy``, ``held_out/margin``, ... as a method measures them, and ``held_out/loss``.

    learner: of the run, in whose parameters as they are in place it is measured. encoded: the records' rows, and what they say. micro_rows:
    rows in one pass.
    """

    learner: Learner
    encoded: Callable[[], tuple[Feedback, Rollout]]
    micro_rows: int

    def __call__(self) -> dict[str, float]:
        """The numbers, the same in all processes. ``accuracy_se``: standard error of an accuracy of so many pairs.

        Rows that say nothing are left out, and all numbers are NaN where all do. What is drawn for a row is the same each time.
        """
        learner, method = self.learner, self.learner.method
        feedback, rollout = self.encoded()
        learner.policy.remember(rollout, learner.references, self.micro_rows)
        feedback = replace(feedback, tables=learner.tables(rollout, micro_rows=self.micro_rows))
        kept = torch.ones(len(feedback.rewards), dtype=torch.bool) if method.keep is None else method.keep(feedback)
        rows = in_units(method, feedback, kept)
        if not len(rows):
            return {f"{NAME}/loss": math.nan}
        measured = learner.measure(Experience(rollout, method.signal(feedback), rows, of_all.whole(learner.team, rollout)), self.micro_rows)
        if "accuracy" in measured:
            share, count = measured["accuracy"], len(rows) / (2 if method.unit == "pair" else 1)
            measured["accuracy_se"] = math.sqrt(share * (1 - share) / count)
        return {f"{NAME}/{name}": value for name, value in measured.items()}


def distinct(records: Records, most: int, *, seed: int, trained: Records) -> list[Any]:
    """Up to ``most`` records, none of them twice. Errors: UserError for none, and for those that are trained on."""
    if isinstance(records, Digested) and isinstance(trained, Digested) and records.digest() and records.digest() == trained.digest():
        raise UserError("evaluation.records: are those that are trained on; takes others, which only evaluate")
    taken = list(_once(islice(records.stream(seed=seed), most)))
    if not taken:
        raise UserError("evaluation.records: got none that can be read, takes one or more")
    return taken


def _once(records: Iterable[Any]) -> Iterable[Any]:
    """Records until one comes again, as a stream that is over begins anew; those without a name cannot be told apart."""
    names = set[str]()
    for record in records:
        if record.id and record.id in names:
            return
        names.add(record.id)
        yield record
