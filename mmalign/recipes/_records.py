"""Records as rows: the next ones that a policy can use, what they say in the form that a method takes, and their rows encoded."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.distributed import tables as of_all
from mmalign.distributed.team import ALONE, Team
from mmalign.needs import CHANGED
from mmalign.objectives.feedback import comparisons
from mmalign.records import Drawn, Pair, Ranking, Record, RefusedRow, Thumb, Unread, outputs_of, prompts_of
from mmalign.training.journal import hashed
from mmalign.training.records import dimensions, marks
from mmalign.training.records.ahead import read_media, seen_prompts
from mmalign.training.records.own_rows import labelled
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.units import in_units
from mmalign.types import Encoder, Feedback, Method, Rollout, UserError


def next_encoded(  # what a step of records depends on
    policy: Encoder, method: Method, coming: Iterator[Any], count: int, draw: Callable[[], torch.Generator], aside: dict[str, str],
    finish: Callable[[list[Any]], list[Any]], team: Team = ALONE, *, refill: bool = True, known: dict[Unread, Any] | None = None,
) -> tuple[list[Any], Feedback, Rollout]:  # fmt: skip
    """The next ``count`` records of which the policy can use every row, what they say, and this process's rows of them encoded.

    draw: makes the generator of the step, the same for every try. aside: id -> why, of records that the policy refuses; grows, and what is
    in it is not tried again. finish: has the policy draw the rows that records leave to it. refill: whether others take the place of those
    that are refused. known: media that are decoded already, to which those are added that are not. Errors: UserError where a whole round
    of the data holds nothing that the policy can use.
    """
    records, passed, read = list[Any](), Counter[str](), {} if known is None else known
    while True:
        records += take(_unrefused(coming, aside, passed), count - len(records))
        if not team.alone:
            team.agree("records", {called(record): _contents(record) for record in records})
        prompts, outputs, feedback = rows_of(done := finish(records), method)
        feedback = labelled(feedback, records)
        part, refused, rollout = team.share(len(records)), None, None
        inside = torch.nonzero((feedback.group >= part.start) & (feedback.group < part.stop)).flatten()
        own = slice(int(inside[0]), int(inside[-1]) + 1)
        try:
            usable = seen_prompts(prompts, own), read_media(outputs, own, read)
            encoded = policy.encode(*usable, feedback.group, draw(), part=own)
            marks.remark(method, done)
            if CHANGED in method.needs:
                encoded.facts[str(CHANGED)] = marks.changed(done, feedback, encoded, own)
            rollout = encoded
        except RefusedRow as error:
            refused = [error.row, error.why]
        others = [other for other in team.tell(refused) if other is not None]
        if rollout is not None and not others:
            rollout.columns = {} if feedback.annotators is None else {"annotator": list(feedback.annotators[own])}
            return records, feedback, rollout
        row, why = min(others)
        aside[called(records.pop(int(feedback.group[row])))] = why
        count -= not refill
        if not count:
            raise UserError(f"evaluation.records: the policy refuses all {len(aside)}; the last one: {why}")


def learned_from(method: Method, feedback: Feedback, rollout: Rollout, team: Team) -> tuple[Experience, Tensor]:
    """What an update learns of encoded records: rows of which something is known, ``[B]`` bool, with the method's signal of them."""
    signal = method.signal(feedback)
    kept = torch.ones(len(signal), dtype=torch.bool) if method.keep is None else method.keep(feedback)
    return Experience(rollout, signal, in_units(method, feedback, kept), of_all.whole(team, rollout)), kept


def _unrefused(coming: Iterator[Any], aside: Mapping[str, str], passed: Counter[str]) -> Iterator[Any]:
    """Records that are not put aside. passed: how often those that were came by since the last other; at a third time, a round is over."""
    for record in coming:
        name = called(record)
        if name not in aside:
            passed.clear()
            yield record
        elif passed[name] == 2:
            raise UserError(f"records: {len(aside)} are put aside and too few others are left; the last one, {name}: {aside[name]}")
        else:
            passed[name] += 1


def _contents(record: Any) -> str:
    """What records of the same name are told apart by: words and numbers; of images and videos their files' names, or their
    sizes: pixels are dear to decode and to hash."""
    outputs = [_told_apart_by(output) for output in outputs_of(record)]
    numbers = [value for value in record if isinstance(value, float)] + list(record.scores if isinstance(record, (Pair, Ranking)) else ())
    asked = [record.prompt, record.other] if isinstance(record, Pair) and record.other is not None else record.prompt
    said = [record.labels, record.wrong] if isinstance(record, Pair) else [{}, None]
    return hashed([asked, outputs, numbers, *said, list(record.ratings)])


def _told_apart_by(output: Any) -> Any:
    if isinstance(output, Unread):
        return output.name
    return list(output.shape) if isinstance(output, Tensor) else output


def called(record: Any) -> str:
    """How a record is named to people: its own name, or its place."""
    return record.id or f"record at {record.position}"


def take(coming: Iterator[Any], count: int) -> list[Any]:
    """The next ``count`` of them. Errors: UserError where there are fewer."""
    records = list(islice(coming, count))
    if len(records) < count:
        raise UserError(f"records: got {len(records)} and no more, takes at least batch.records ({count})")
    return records


def rows_of(records: Sequence[Record], method: Method) -> tuple[list[Any], Any, Feedback]:
    """Prompts, outputs and feedback of the rows of some records, the rows of one record side by side and in one group."""
    several_of = [outputs_of(record) for record in records]
    outputs: Any = [output for several in several_of for output in several]
    names = [record.id for record, several in zip(records, several_of, strict=True) for _ in several]
    images = [(name, output) for name, output in zip(names, outputs, strict=True) if isinstance(output, Tensor)]
    for name, output in images:
        if output.shape != images[0][1].shape:
            sizes = f"{list(images[0][1].shape)} ({images[0][0]}) and {list(output.shape)} ({name})"
            raise UserError(f"records: got outputs of different sizes, {sizes}; takes one size, which records.size brings images to")
    group = torch.arange(len(records)).repeat_interleave(torch.tensor([len(several) for several in several_of]))
    prompts = [prompt for record in records for prompt in prompts_of(record)]
    feedback = _feedback(records, group, method)
    of_rows = [records[number] for number in group.tolist()]
    who = None if isinstance(records[0], Ranking) else [record.annotator for record in of_rows]  # type: ignore[union-attr]
    feedback = dimensions.labelled(feedback, method, records)
    return prompts, outputs, replace(feedback, ids=[record.id for record in of_rows], annotators=who)


def feedbacks(
    coming: Iterator[Record], method: Method, finish: Callable[[list[Any]], list[Any]], *, count: int
) -> Iterator[Feedback]:  # fmt: skip
    """What batches of records say, one after another; of rows that nobody has drawn yet, what was said of them before."""
    while True:
        records = take(coming, count)
        drawn = any(isinstance(output, Drawn) for record in records for output in outputs_of(record))
        yield rows_of(records if drawn else finish(records), method)[2]


def _feedback(records: Sequence[Record], group: Tensor, method: Method) -> Feedback:
    """What the records say of their rows, in the form that the method takes. Errors: UserError for a kind that it cannot use."""
    kinds = {type(record) for record in records}
    if len(kinds) > 1:
        raise UserError(f"records: got {' and '.join(sorted(kind.__name__ for kind in kinds))} in one stream, takes one kind")
    number, nothing = torch.arange(len(group)), torch.full((len(group),), math.nan, dtype=torch.float64)
    if isinstance(records[0], Thumb):
        if method.unit in ("pair", "group"):
            raise UserError(
                f"records: got thumbs, one output each; this method compares the rows of a {method.unit}, takes pairs or rankings"
            )
        return Feedback(nothing, group, labels=torch.tensor([record.label for record in records], dtype=torch.float64))  # type: ignore[union-attr]
    rewards = torch.tensor([score for record in records for score in record.scores], dtype=torch.float64)  # type: ignore[union-attr]
    if not isinstance(records[0], Pair):
        if method.unit == "group" and (short := next((record for record in records if len(record.outputs) < 2), None)):  # type: ignore[union-attr]
            raise UserError(f"records: {called(short)}: a list of one output; this method compares the rows of a list, takes two or more")
        feedback = Feedback(rewards, group)
        return comparisons.best_and_worst(feedback) if method.unit == "pair" else feedback
    strength = torch.tensor([record.strength for record in records], dtype=torch.float64)  # type: ignore[union-attr]
    if method.unit == "group" and bool(rewards.isnan().any()):
        rewards = torch.stack([strength, 1 - strength], 1).flatten()  # a list of two in their order
    return Feedback(rewards, group, pairs=number.view(-1, 2), strength=strength)
