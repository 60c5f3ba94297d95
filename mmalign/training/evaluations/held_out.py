"""Records that nothing is trained on, and what a method says of them: the numbers of its update, without an update."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.conversations import told_apart_by
from mmalign.distributed import tables as of_all
from mmalign.records import Digested, Pair, Record, Records, Undecoded, Unread, once, outputs_of
from mmalign.training.evaluations.reliability import reliability
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.units import in_units
from mmalign.types import Feedback, Rollout, UserError
from mmalign.types import contents as asked

NAME = "held_out"


@dataclass(frozen=True)
class HeldOut:
    """``held_out/accuracy``, ``held_out/margin``, ... as a method measures them, and ``held_out/loss``.

    learner: of the run, in whose parameters as they are in place it is measured. encoded: the records' rows, and what they say. micro_rows:
    rows in one pass. contents: of the records, whatever they are called.
    """

    learner: Learner
    encoded: Callable[[], tuple[Feedback, Rollout]]
    micro_rows: int
    contents: frozenset[str]

    def __call__(self) -> dict[str, float]:
        """The numbers, the same in all processes. ``accuracy_se``: standard error of an accuracy of so many pairs.
        Where two rows are compared, also how far probabilities may be believed (``reliability``).

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
        measured, compared = learner.measure(
            Experience(rollout, method.signal(feedback), rows, of_all.whole(learner.team, rollout)), self.micro_rows
        )
        if "accuracy" in measured:
            share, count = measured["accuracy"], len(rows) / (2 if method.unit == "pair" else 1)
            measured["accuracy_se"] = math.sqrt(share * (1 - share) / count)
        if len(compared):
            measured |= reliability(compared, known=method.wins is not None)
        return {f"{NAME}/{name}": value for name, value in measured.items()}


def distinct(records: Records, most: int, *, seed: int, trained: Records) -> list[Any]:
    """Up to ``most`` records, none of them twice. Errors: UserError for none, and for those that are trained on."""
    if isinstance(records, Digested) and isinstance(trained, Digested) and records.digest() and records.digest() == trained.digest():
        raise UserError("evaluation.records: are those that are trained on; takes others, which only evaluate")
    taken = list(once(islice(records.stream(seed=seed), most)))
    if not taken:
        raise UserError("evaluation.records: got none that can be read, takes one or more")
    return taken


def contents(records: Records, taken: Iterable[Record], *, seed: int) -> frozenset[str]:
    """By what the records that were taken from ``records`` are recognised elsewhere, whatever they are called and say."""
    if not isinstance(records, Undecoded):
        return frozenset(map(content, taken))
    left, known = {record.id for record in taken}, set[str]()
    for record in records.undecoded(seed=seed):
        if record.id in left:
            known.add(content(record))
            left.remove(record.id)
        if not left:
            break
    return frozenset(known)


def content(record: Record) -> str:
    """Of a prompt and its outputs: words as they are, files of media by their place, media in a file by their bytes."""
    outputs = sorted(told_apart_by(output) if _is_words(output) else _digest(output) for output in outputs_of(record))
    prompts = [record.prompt, record.other] if isinstance(record, Pair) and record.other is not None else [record.prompt]
    return hashlib.sha256(json.dumps([asked(prompts), outputs], default=_digest, sort_keys=True).encode()).hexdigest()


def _is_words(output: Any) -> bool:
    """Whether it is a text, or turns."""
    return isinstance(output, str) or (isinstance(output, (list, tuple)) and all(isinstance(turn, Mapping) for turn in output))


def _digest(value: Any) -> str:
    source = value.source if isinstance(value, Unread) else value
    if isinstance(source, dict):
        source = source.get("bytes") or source.get("path")
    if isinstance(source, (list, tuple)):
        return " ".join(map(_digest, source))
    if isinstance(source, (bytes, Tensor)):
        data = source if isinstance(source, bytes) else source.detach().cpu().contiguous().numpy().tobytes()
        return hashlib.sha256(data).hexdigest()
    return str(source) if isinstance(source, (str, Path)) else hashlib.sha256(source.tobytes()).hexdigest()  # a picture of PIL's


def put_aside(
    coming: Iterator[Record], held: HeldOut | None, aside: dict[str, str], *, called: Callable[[Record], str]
) -> Iterator[Record]:
    """Records as they come; of those that are held out it is written into ``aside`` (name -> why) before."""
    for record in coming:
        if held is not None and content(record) in held.contents:
            aside[called(record)] = "it is among evaluation.records"
        yield record
