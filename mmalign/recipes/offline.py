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
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

from mmalign.arguments.ranges import Steps
from mmalign.distributed.team import team_for
from mmalign.needs import as_bound
from mmalign.recipes._foreseen import of_records as FORESEEN  # noqa: F401 (config asks for it)
from mmalign.recipes._foreseen import refuse_records, streamed
from mmalign.recipes._records import called, feedbacks, learned_from, next_encoded, rows_of
from mmalign.recipes._run import Run, concluded
from mmalign.records import Record, Records, Undecoded, Unfinished, suited
from mmalign.training import references as stored
from mmalign.training.evaluations.entanglement import Entanglement
from mmalign.training.evaluations.evaluation import compared_with, evaluation_plan
from mmalign.training.evaluations.held_out import NAME, HeldOut, contents, distinct, put_aside
from mmalign.training.evaluations.preflight import Preflight, preflight
from mmalign.training.journal import Journal
from mmalign.training.optimizers import Optimizer, adamw
from mmalign.training.records import dimensions
from mmalign.training.records.ahead import Ahead
from mmalign.training.records.own_rows import OwnRows, drawing, finished
from mmalign.training.rollouts.background import Background
from mmalign.training.rollouts.dead_steps import refuse_unknown
from mmalign.training.rollouts.latents import refuse_without_latents
from mmalign.training.rollouts.prompts import refuse_unusable
from mmalign.training.rollouts.same_records import SameRecords
from mmalign.training.seeds import stream
from mmalign.training.settings import Devices, Evaluation, RecordBatch, Reference, RunSettings, at_least
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.micro_rows import MicroRows
from mmalign.training.updates.units import refuse_mismatch, whole_units
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
    (``ref``), in nats of a whole sample, over its own samples there (`training.evaluations.own_samples`): those of records are not its own.
    Of text and of images as tokens, whether the method has a reference or not; a bound has no KL, and none is reported.

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
    refuse_unknown(method, feedbacks(coming_from(), method, finish, count=batch.records))
    refuse_unusable(policy, evaluation.prompts)
    if evaluation.prompts is None:  # then it asks what the first step asks, and only what the policy can use
        first = next_encoded(policy, method, coming_from(), batch.records, lambda: stream(run.seed, 0, "encode"), {}, finish, team)[0]
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
        coming = put_aside(ahead, held, aside, called=called)
        for step in journal.steps():
            moved = learner.begin(step)
            with journal.profile.part("rollout"):
                drawn, known = partial(stream, run.seed, step, "encode"), ahead.decoded
                records, feedback, rollout = next_encoded(policy, method, coming, batch.records, drawn, aside, finish, team, known=known)
            if step + 1 < steps:
                ahead.fill(batch.records, team.share(batch.records))
            with journal.profile.part("references"):
                fitting.fit(partial(learner.remember, rollout), partial(min, len(rollout)))
            tables = fitting.fit(lambda most: learner.tables(rollout, micro_rows=most), partial(min, len(rollout)))  # noqa: B023
            experience, kept = learned_from(method, replace(feedback, tables=tables), rollout, team)
            if len(rows := experience.rows):
                largest = partial(learner.micro_batches.largest, [experience])
                journal.once("preflight_difference", lambda: fitting.fit(partial(_checked, learner, experience), largest))  # noqa: B023
            update = lambda most: learner.update([experience], micro_rows=most, step=step)  # noqa: B023, E731
            with entangled.watched(step, [experience], batch.micro_rows) as found:
                measured = fitting.fit(update, largest) if len(rows) else {}
            silent = float((experience.signal.flatten(1) == 0).all(1).double().mean())
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
    refuse_unknown(method, iter([rows_of(records, method)[2]]), key="evaluation.records")
    dimensions.refuse_unlabelled(method, records, key="evaluation.records")
    team_for(len(records), "evaluation.records")

    def encoded() -> tuple[Feedback, Rollout]:
        aside, draw = dict[str, str](), partial(stream, run.seed, 0, NAME)
        _, feedback, rollout = next_encoded(policy, method, iter(records), len(records), draw, aside, list, learner.team, refill=False)
        put_aside(aside)
        return feedback, rollout

    return HeldOut(learner, encoded, batch.micro_rows, contents(others, records, seed=run.seed))


def _checked(learner: Learner, experience: Experience, micro_rows: int) -> dict[str, float] | None:
    """The preflight of the rows that each process holds."""
    own = whole_units(learner.method.unit, experience)
    checked = preflight(learner.policy, learner.method, own, micro_rows=micro_rows) if len(own.rows) else None
    return Preflight.facts(learner.team.tell(checked))


def _distinct(prompts: Sequence[Any]) -> list[Any]:
    """Each prompt once, in their order; conversations are compared by what they say."""
    return list({json.dumps(prompt, sort_keys=True, default=str): prompt for prompt in prompts}.values())


def _rate(learner: Learner) -> float:
    return float(learner.optimizer.param_groups[0]["lr"])
