"""Offline alignment: given records (pairs, thumbs, rankings), encoded, compared; the same for every policy that encodes.

What differs from the papers, and from well-known code:

1. A step is one update on ``batch.records`` records. Micro-batches only split its sum: rows of a record that a method compares
   stay together, and weights are those of the whole step.
2. Noise and noise levels are drawn once for each record and step, and its rows, the policy and the reference see the same.
3. Records of which nothing is known (a missing label) are left out of the update and of its mean; ties are pulled to margin 0.
   Of a ranking, a method for pairs gets the best and the worst; of a pair, a method for thumbs gets a good row and a bad one.
4. Records that cannot be read, or of which the policy cannot use a row, are named in ``broken.jsonl`` and counted, and the next ones take
   their place.
5. Evaluation samples as a user would: the pipeline's own sampler, fixed seeds, the EMA of the weights where there is one.
6. All randomness of a step comes from generators seeded by (seed, step), and a checkpoint holds the place in the data, so that a
   resumed run equals an uninterrupted one.
7. Nothing is trained before the first step, scored again, has margins of 0 to its reference, and a gradient that arrives.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Steps
from mmalign.distributed import tables as of_all
from mmalign.distributed.team import ALONE, Team, team_for
from mmalign.needs import as_bound
from mmalign.objectives.feedback import comparisons
from mmalign.recipes._foreseen import of_records as FORESEEN  # noqa: F401 (config asks for it)
from mmalign.recipes._foreseen import refuse_records, streamed
from mmalign.recipes._run import Run, concluded
from mmalign.records import Drawn, Pair, Ranking, Record, Records, RefusedRow, Thumb, Undecoded, Unfinished, Unread, outputs_of, suited
from mmalign.training import dimensions
from mmalign.training import references as stored
from mmalign.training.ahead import Ahead, read_media, seen_prompts
from mmalign.training.background import Background
from mmalign.training.dead_steps import refuse_unknown
from mmalign.training.entanglement import Entanglement
from mmalign.training.evaluation import compared_with, evaluation_plan
from mmalign.training.experience import Experience
from mmalign.training.held_out import NAME, HeldOut, contents, distinct, put_aside
from mmalign.training.journal import Journal, hashed
from mmalign.training.latents import refuse_without_latents
from mmalign.training.learner import Learner
from mmalign.training.micro_rows import MicroRows
from mmalign.training.optimizers import Optimizer, adamw
from mmalign.training.own_rows import OwnRows, drawing, finished, labelled
from mmalign.training.preflight import Preflight, preflight
from mmalign.training.prompts import refuse_unusable
from mmalign.training.same_records import SameRecords
from mmalign.training.seeds import stream
from mmalign.training.settings import Devices, Evaluation, RecordBatch, Reference, RunSettings, at_least
from mmalign.training.units import in_units, refuse_mismatch, whole_units
from mmalign.types import Encoder, Feedback, Method, Rollout, UserError

Rewards = Mapping[str, Callable[..., Any]]


def offline(  # one argument for each thing that a run is made of
    policy: Encoder,
    records: Records | Sequence[Record],
    method: Method,
    *,
    rewards: Rewards | None = None,
    steps: Steps = 1000,
    batch: RecordBatch = RecordBatch(),  # noqa: B008 (records are frozen)
    optimizer: Optimizer = adamw(rate=1e-5),  # noqa: B008
    references: dict[str, Reference] | None = None,
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    devices: Devices = Devices(),  # noqa: B008
    run: RunSettings = RunSettings(name="offline"),  # noqa: B008
    resume: bool = False,
) -> Run:
    """Aligns a policy with preference data by an offline method; returns the finished run.

    Args:
        policy: what is trained (`mmalign list policies`); of a diffusers pipeline, ``forward`` around it.
        records: preference data, from ``mm.data`` (files, folders, the hub), a world, or a list of ``records.Pair``, ``Thumb`` or
            ``Ranking``, of one kind.
        method: what is optimised (`mmalign list methods`).
        rewards: what the pairs were ranked by, where that is a function; like judges, it only evaluates here.
        steps: updates.
        batch: records of each update, and rows in one backward pass.
        optimizer: by name, with its schedule and moving average (`mmalign list optimizers`).
        references: name -> where a set of parameters comes from, and how it moves, as in ``online``: ``{ref: {every: 512}}`` is TR-DPO's
            hard update (arXiv 2404.09656), ``{ref: {shares: {ref: 0.4, current: 0.6}}}`` its soft one. ``{ref: {policy: {use:
            transformers, model: FOLDER}}}`` is another model.
        evaluation: what is asked every so often, by whom it is judged, and when to stop; its prompts are by default those of the first
            step's records, at most 16.
        devices: where the model is, in a run of several processes.
        run: what the run is called, where it is kept, and its seed.
        resume: continue the run from its newest checkpoint; all else has to be as it was, but ``steps`` may be more (which,
            where the rate falls over them, changes those that follow: ``optimizer.decay``).

    In the log, ``margin``, ``accuracy``, ``better`` and ``worse`` are the method's; ``known`` is the part of the rows that say
    something, ``broken`` the records that could not be read so far, ``recalled`` the part of the rows of which it was known what the
    references say (``batch.reference_memory``). ``kl`` is that of evaluations to what the policy was
    (``ref``), in nats of a whole sample, over its own samples there (`training.own_samples`): those of records are not its own. Of text and
    of images as tokens, whether the method has a reference or not; a bound has no KL, and none is reported.

    Errors: UserError before anything is trained: what the method needs and the policy cannot give, data without a record, or of
    the wrong kind for the method, outputs of different sizes, an existing run. Ctrl-C finishes the step, saves, and says how to resume.
    """
    _refuse_of_steps(policy, method)
    at_least(1, steps=steps)
    _refuse_of_scores(policy, evaluation, references or {})
    source, coming_from = streamed(records, seed=run.seed)
    first = refuse_records(policy, coming_from, method, count=batch.records)
    method = dimensions.named(policy, method, coming_from(), count=batch.records)
    team = team_for(batch.records, "batch.records", together=devices.together)
    author = OwnRows(policy, method, seed=run.seed, rows_at_once=batch.micro_rows)
    finish = partial(finished, source, author=author, team=team)
    refuse_unknown(method, _feedbacks(coming_from(), method, finish, count=batch.records))
    refuse_unusable(policy, evaluation.prompts)
    if evaluation.prompts is None:  # then it asks what the first step asks, and only what the policy can use
        first = _encoded(policy, method, coming_from(), batch.records, lambda: stream(run.seed, 0, "encode"), {}, finish, team)[0]
    examples = _distinct([record.prompt for record in first])
    whence: dict[str, Any] = {"runs": run.folder, "drawing": drawing(source), "measured": evaluation.references}
    stored.load(policy, references or {}, method=method, examples=examples, **whence)
    learner = Learner(policy, method, optimizer, steps=steps, moving=references, team=team, non_finite=run.non_finite, devices=devices)
    author.begin(source, [move.name for move in learner.moves])
    refuse_without_latents(policy, rewards or {}, evaluation.judges)
    held = _held_out(policy, learner, source, evaluation, run, batch, lambda broken: journal.put_aside(broken, "held-out records"))
    asked = [] if policy.kind == "score" else _distinct([record.prompt for record in first])[:16]
    plan = evaluation_plan(evaluation, prompts=asked, rewards=rewards or {}, reference=compared_with(policy), held_out=held)
    learner.kept.keep(batch.reference_memory, lambda line: journal.say(line))
    entangled = Entanglement(learner, run.gradients)
    fitting = MicroRows(batch.micro_rows, learner, say=lambda line: journal.say(line))
    states = {"micro_rows": fitting, "records": SameRecords(source)}
    journal = Journal(learner, plan, run, steps=steps, resume=resume, stop=evaluation.stop, states=states)

    with journal, Background(threaded=isinstance(source, Undecoded)) as background:
        aside = dict(journal.broken.why)  # of a resumed run, what it has met before
        ahead = Ahead(coming_from(start=journal.state.get("position", 0)), source, background)
        coming = put_aside(ahead, held, aside, called=_called)
        for step in journal.steps():
            moved = learner.begin(step)
            with journal.profile.part("rollout"):
                drawn, known = partial(stream, run.seed, step, "encode"), ahead.decoded
                records, feedback, rollout = _encoded(policy, method, coming, batch.records, drawn, aside, finish, team, known=known)
            if step + 1 < steps:
                ahead.fill(batch.records, team.share(batch.records))
            with journal.profile.part("references"):
                fitting.fit(partial(learner.remember, rollout), partial(min, len(rollout)))
            tables = fitting.fit(lambda most: learner.tables(rollout, micro_rows=most), partial(min, len(rollout)))  # noqa: B023
            feedback = replace(feedback, tables=tables)
            signal = method.signal(feedback)
            kept = torch.ones(len(signal), dtype=torch.bool) if method.keep is None else method.keep(feedback)
            rows = in_units(method, feedback, kept)
            experience = Experience(rollout, signal, rows, of_all.whole(team, rollout))
            if len(rows):
                largest = partial(learner.largest, [experience])
                journal.once("preflight_difference", lambda: fitting.fit(partial(_checked, learner, experience), largest))  # noqa: B023
            update = lambda most: learner.update([experience], micro_rows=most, step=step)  # noqa: B023, E731
            with entangled.watched(step, [experience], batch.micro_rows) as found:
                measured = fitting.fit(update, largest) if len(rows) else {}
            silent = float((signal.flatten(1) == 0).all(1).double().mean())
            measured |= {**found, "updates": float(len(rows) > 0), "signal_zero": silent, "lr": _rate(learner)}
            journal.put_aside(aside | ahead.broken)
            journal.state.update(position=records[-1].position, kl=measured.get("kl", math.nan))
            measured |= {"known": float(kept.double().mean()), "broken": float(len(aside | ahead.broken))}
            journal.trained({**measured, **moved, **fitting.row, **learner.kept.row})
    return concluded(journal, policy)


def _refuse_of_steps(policy: Encoder, method: Method) -> None:
    """Errors: UserError for a policy and a method that do not fit each other, or that learn from what they sample."""
    refuse_mismatch(policy, method)
    if policy.kind == "transition":
        raise UserError(f"policy: learns from steps that it samples itself, and records hold finished outputs; {as_bound('diffusers')}")
    if method.behaviors:
        raise UserError(f"method: takes rows that {method.behaviors[0].name} draws, and nothing is sampled here; takes the recipe online")


def _refuse_of_scores(policy: Encoder, evaluation: Evaluation, references: dict[str, Reference]) -> None:
    """Errors: UserError for what only a policy with outputs and references is asked, and where a reward model is not evaluated."""
    if policy.kind != "score":
        return
    if references:
        raise UserError(f"references.{next(iter(references))}: a reward model has no reference; takes none")
    for name in ("prompts", "judges", "metrics", "real", "mark", "blind"):
        if getattr(evaluation, name):
            raise UserError(f"evaluation.{name}: a reward model makes no outputs; takes evaluation.records, which it is not trained on")
    if evaluation.records is None:
        raise UserError("evaluation.records: missing; a reward model is evaluated on records that it is not trained on")


def _held_out(
    policy: Encoder, learner: Learner, trained: Records, evaluation: Evaluation, run: RunSettings, batch: RecordBatch,
    put_aside: Callable[[dict[str, str]], None],
) -> HeldOut | None:  # fmt: skip
    """The measurement on held-out records; None without any. Errors: UserError where the method learns nothing from them."""
    if evaluation.records is None:
        return None
    method, others = learner.method, streamed(evaluation.records, seed=run.seed)[0]
    if isinstance(others, Unfinished):
        raise UserError("evaluation.records: leave rows to the policy; takes finished ones, which are the same at every evaluation")
    records = list(suited(distinct(others, evaluation.held_out, seed=run.seed, trained=trained), policy, "evaluation."))
    refuse_unknown(method, iter([_rows(records, method)[2]]), key="evaluation.records")
    dimensions.refuse_unlabelled(method, records, key="evaluation.records")
    team_for(len(records), "evaluation.records")

    def encoded() -> tuple[Feedback, Rollout]:
        aside, draw = dict[str, str](), partial(stream, run.seed, 0, NAME)
        _, feedback, rollout = _encoded(policy, method, iter(records), len(records), draw, aside, list, learner.team, refill=False)
        put_aside(aside)
        return feedback, rollout

    return HeldOut(learner, encoded, batch.micro_rows, contents(others, records, seed=run.seed))


def _checked(learner: Learner, experience: Experience, micro_rows: int) -> dict[str, float] | None:
    """The preflight of the rows that each process holds."""
    own = whole_units(learner.method.unit, experience)
    checked = preflight(learner.policy, learner.method, own, micro_rows=micro_rows) if len(own.rows) else None
    return Preflight.facts(learner.team.tell(checked))


def _encoded(  # what a step of records depends on
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
        records += _take(_unrefused(coming, aside, passed), count - len(records))
        if not team.alone:
            team.agree("records", {_called(record): _contents(record) for record in records})
        prompts, outputs, feedback = _rows(finish(records), method)
        feedback = labelled(feedback, records)
        part, refused, rollout = team.share(len(records)), None, None
        inside = torch.nonzero((feedback.group >= part.start) & (feedback.group < part.stop)).flatten()
        own = slice(int(inside[0]), int(inside[-1]) + 1)
        try:
            usable = seen_prompts(prompts, own), read_media(outputs, own, read)
            rollout = policy.encode(*usable, feedback.group, draw(), part=own)
        except RefusedRow as error:
            refused = [error.row, error.why]
        others = [other for other in team.tell(refused) if other is not None]
        if rollout is not None and not others:
            rollout.columns = {} if feedback.annotators is None else {"annotator": list(feedback.annotators[own])}
            return records, feedback, rollout
        row, why = min(others)
        aside[_called(records.pop(int(feedback.group[row])))] = why
        count -= not refill
        if not count:
            raise UserError(f"evaluation.records: the policy refuses all {len(aside)}; the last one: {why}")


def _unrefused(coming: Iterator[Any], aside: Mapping[str, str], passed: Counter[str]) -> Iterator[Any]:
    """Records that are not put aside. passed: how often those that were came by since the last other; at a third time, a round is over."""
    for record in coming:
        name = _called(record)
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
    return hashed([record.prompt, outputs, numbers, record.labels if isinstance(record, Pair) else {}, list(record.ratings)])


def _told_apart_by(output: Any) -> Any:
    if isinstance(output, Unread):
        return output.name
    return list(output.shape) if isinstance(output, Tensor) else output


def _called(record: Any) -> str:
    return record.id or f"record at {record.position}"


def _take(coming: Iterator[Any], count: int) -> list[Any]:
    records = list(islice(coming, count))
    if len(records) < count:
        raise UserError(f"records: got {len(records)} and no more, takes at least batch.records ({count})")
    return records


def _rows(records: Sequence[Record], method: Method) -> tuple[list[Any], Any, Feedback]:
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
    prompts = [record.prompt for record, several in zip(records, several_of, strict=True) for _ in several]
    feedback = _feedback(records, group, method)
    of_rows = [records[number] for number in group.tolist()]
    who = None if isinstance(records[0], Ranking) else [record.annotator for record in of_rows]  # type: ignore[union-attr]
    feedback = dimensions.labelled(feedback, method, records)
    return prompts, outputs, replace(feedback, ids=[record.id for record in of_rows], annotators=who)


def _feedbacks(
    coming: Iterator[Record], method: Method, finish: Callable[[list[Any]], list[Any]], *, count: int
) -> Iterator[Feedback]:  # fmt: skip
    """What batches of records say, one after another; of rows that nobody has drawn yet, what was said of them before."""
    while True:
        records = _take(coming, count)
        drawn = any(isinstance(output, Drawn) for record in records for output in outputs_of(record))
        yield _rows(records if drawn else finish(records), method)[2]


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
            raise UserError(f"records: {_called(short)}: a list of one output; this method compares the rows of a list, takes two or more")
        feedback = Feedback(rewards, group)
        return comparisons.best_and_worst(feedback) if method.unit == "pair" else feedback
    strength = torch.tensor([record.strength for record in records], dtype=torch.float64)  # type: ignore[union-attr]
    if method.unit == "group" and bool(rewards.isnan().any()):
        rewards = torch.stack([strength, 1 - strength], 1).flatten()  # a list of two in their order
    return Feedback(rewards, group, pairs=number.view(-1, 2), strength=strength)


def _distinct(prompts: Sequence[Any]) -> list[Any]:
    """Each prompt once, in their order; conversations are compared by what they say."""
    return list({json.dumps(prompt, sort_keys=True, default=str): prompt for prompt in prompts}.values())


def _rate(learner: Learner) -> float:
    return float(learner.optimizer.param_groups[0]["lr"])
