"""Online alignment: sample, score, update; the same for every policy and every method.

What differs from the papers, and from well-known code:

1. A rollout may have several updates (``batch.epochs`` times ``batch.updates``), each on rows spread over all groups, so that ratios leave
   1 and the clip acts. Rows are not shuffled: within an update the loss is one sum, and their order does not matter.
   Several updates an epoch of a group of G rows take every so many of them, and share the group's advantages.
2. Weights are computed once for each update, over all of its rows; micro-batches only split the sum.
3. The KL to the reference is exact where the policy knows it (a Gaussian step), and is measured also where no method asks for it.
4. Evaluation samples as a user would: the pipeline's own sampler, fixed seeds, the EMA of the weights where there is one.
5. A method for pairs gets the best and the worst row of each group, by reward or by the oracle's win rate; a tied group makes no pair.
6. All randomness of a step comes from generators seeded by (seed, step, attempt), so that a resumed run equals an uninterrupted one.
7. Prompts that the policy refuses (too long, a picture that cannot be read) are named in ``broken.jsonl`` and counted, and the next ones
   take their place.
8. Nothing is trained before a rollout, scored again, has ratio 1, a reference without KL to itself, and a gradient that arrives
   (``training.evaluations.preflight``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from functools import partial
from typing import Any, NamedTuple

import torch

from mmalign.arguments.facts import Hearing, Stepped, Structured
from mmalign.arguments.ranges import Steps
from mmalign.distributed import tables as of_all
from mmalign.distributed.team import team_for
from mmalign.objectives.feedback import comparisons
from mmalign.recipes._foreseen import of_prompts as FORESEEN  # noqa: F401 (config asks for it)
from mmalign.recipes._foreseen import refuse_prompts, streamed
from mmalign.recipes._mixed import Mixed, mixed_in
from mmalign.recipes._replayed import Replayed, replayed_in
from mmalign.recipes._run import Run, concluded
from mmalign.records import Record, Records
from mmalign.samplers.assignment import assignment
from mmalign.training import references as stored
from mmalign.training.evaluations.entanglement import Entanglement
from mmalign.training.evaluations.evaluation import compared_with, evaluation_plan
from mmalign.training.evaluations.inner_products import InnerProducts
from mmalign.training.evaluations.preflight import Preflight, preflight
from mmalign.training.journal import Journal, hashed
from mmalign.training.optimizers import Optimizer, adamw
from mmalign.training.rollouts.background import Background
from mmalign.training.rollouts.dead_steps import refuse_silent
from mmalign.training.rollouts.feedback import feedback_of, refuse_asked, refuse_columns, scores_on, states_of, unasked
from mmalign.training.rollouts.given import Given, refuse_given
from mmalign.training.rollouts.latents import looked_at, refuse_without_latents
from mmalign.training.rollouts.prompts import Prompts, refuse_unusable
from mmalign.training.rollouts.reward_gradients import RewardGradients, refuse_not_random, refuse_steps, refuse_without
from mmalign.training.rollouts.rollouts import Rollouts
from mmalign.training.settings import Batch, Devices, Evaluation, Mix, Reference, RunSettings, at_least
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import BEHIND, Learner
from mmalign.training.updates.micro_rows import MicroRows
from mmalign.training.updates.units import in_units, refuse_micro_steps, refuse_mismatch, refuse_stale, unit_sizes, whole_units
from mmalign.types import Feedback, Method, Oracle, Policy, Unit, UserError, columns_of, contents

Rewards = Mapping[str, Callable[..., Any]]
Fit = Callable[..., Any]  # ``MicroRows.fit``


class Scored(NamedTuple):
    """What was said of one rollout, and what is learned from it: its rows are those worth an update."""

    feedback: Feedback
    experience: Experience


def online(  # one argument for each thing that a run is made of
    policy: Policy,
    prompts: Sequence[Any],
    rewards: Rewards,
    method: Method,
    *,
    combine: Callable[..., Any] | None = None,
    oracle: Oracle | None = None,
    records: Records | Sequence[Record] | None = None,
    steps: Steps = 100,
    batch: Batch = Batch(),  # noqa: B008 (records are frozen)
    optimizer: Optimizer = adamw(),  # noqa: B008
    references: dict[str, Reference] | None = None,
    mix: Mix | None = None,
    evaluation: Evaluation = Evaluation(),  # noqa: B008
    devices: Devices = Devices(),  # noqa: B008
    run: RunSettings = RunSettings(name="online"),  # noqa: B008
    resume: bool = False,
) -> Run:
    """Aligns a policy with rewards by an online method; returns the finished run.

    Args:
        policy: what is trained (`mmalign list policies`).
        prompts: the training prompts; each step takes ``batch.prompts`` of them in turn, shuffled anew each pass.
        rewards: name -> reward.
        method: what is optimised (`mmalign list methods`).
        combine: how rewards become one number (`mmalign list combinations`); their sum by default.
        oracle: a judge of pairs, ``(outputs, prompts, group) -> [B, B]`` win probabilities (NaN: not compared), for methods that learn
            from those; others get Bradley-Terry's from the rewards.
        records: given images or videos of the samples' size, for methods that tell samples from those (the gan of ``dmd2``); each update
            of theirs takes as many as a rollout has rows, the better one of each pair.
        steps: rollouts.
        batch: what a step samples, and how it is learned from.
        optimizer: by name, with its schedule and moving average (`mmalign list optimizers`).
        references: name -> where a set of parameters comes from, an opponent or the DPO model of RTO, and how it moves: ``{ref: {every: 1,
            shares: {ref: 0.4, current: 0.6}}}`` is a soup of two. ``previous`` is a copy of every step's policy by default, where the
            method asks for it. ``ref`` stays what it was, unless it is named here. A set may be made of another one, which is renewed
            after it: ``{before: {every: 9, shares: {last: 1.0}}, last: {every: 9}}`` is a league of two. Or another model that scores
            the same rows, a teacher or a larger reference: ``{ref: {policy: {use: transformers, model: FOLDER}}}``, of the policy's kind.
            ``{ref: {soup: [ref, runs/other]}}`` is SALSA's, the mean of two or more tuned models.
        mix: records whose loss is added to every update's, such as texts of the kind that the model was pretrained on (PPO-ptx).
        evaluation: what is asked every so often, by whom it is judged, and when to stop.
        devices: where the model is, in a run of several processes.
        run: what the run is called, where it is kept, and its seed.
        resume: continue the run from its newest checkpoint; all else has to be as it was, but ``steps`` may be more (which,
            where the rate falls over them, changes those that follow: ``optimizer.decay``).

    In the log, ``kl`` is the KL of the trained policy to ``ref`` over a whole trajectory, in nats; beside an evaluation it is that
    of its own samples (``training.evaluations.own_samples``), or, of denoising steps, that of the step before. Of denoising steps it is
    measured in every step where the method asks the reference, and otherwise in those that an evaluation follows: a reference is half an
    update. ``broken`` counts the prompts that are put aside, where there are any; ``mix/loss`` is that of records mixed in, before its
    weight.

    Errors: UserError before anything is sampled (what the method needs and the policy cannot give, an existing run), and by
    name for a reward that fails; where that is before the first step is done, no folder is left behind. Ctrl-C finishes the
    step, saves, and says how to resume.
    """
    _refuse(policy, method, batch, prompts, rewards, oracle, evaluation, steps, records, devices)
    pairs = method.pairs or comparisons.best_and_worst
    team = team_for(batch.prompts, "batch.prompts", together=devices.together)
    coming = Prompts(prompts, policy, seed=run.seed, team=team)
    first = coming.first(16)
    refuse_steps(method, policy, contents(first))
    stored.load(policy, references or {}, runs=run.folder, method=method, examples=contents(first), measured=evaluation.references)
    more: dict[str, Any] = {"team": team, "non_finite": run.non_finite, "devices": devices, "stale": batch.staleness > 0}
    learner = Learner(policy, method, optimizer, steps=steps, moving=references, **more)
    plan = evaluation_plan(evaluation, prompts=first, rewards=rewards, reference=compared_with(policy))
    fitting = MicroRows(batch.micro_rows, learner, say=lambda line: journal.say(line))
    entangled, products = Entanglement(learner, run.gradients), InnerProducts(learner, combine)
    mixed = mixed_in(mix, learner, fitting, seed=run.seed, put_aside=lambda broken: journal.put_aside(broken, "mix.records"))
    replayed = replayed_in(learner, prompts, fitting.fit, seed=run.seed)
    gradients = RewardGradients(learner, rewards, combine, fitting.fit, optimizer=optimizer, seed=run.seed, given=_given(records, run.seed))
    states = {"micro_rows": fitting, "mix": mixed, **gradients.states, **states_of(combine, rewards, plan.judges)}
    journal = Journal(learner, plan, run, steps=steps, resume=resume, stop=evaluation.stop, states=states, prompts=prompts)

    def collect(step: int) -> list[Scored]:
        """Rollouts of a step, until enough groups are worth an update (one rollout, where the method keeps all)."""
        scored, wanted = list[Scored](), batch.prompts
        for attempt in range(1 + (batch.resample if method.keep is not None and method.unit in ("cell", "row") else 0)):
            with journal.profile.part("rollout"):
                chosen, rollout, scores, _ = rollouts(step, attempt=attempt)
            whole = of_all.whole(team, rollout)
            refuse_not_random(method, whole.mask)
            gradients.remember(rollout)  # while rewards are at work
            with journal.profile.part("rewards"):
                answers = scores()
            feedback = feedback_of(answers, rollout, combine=combine, missing=batch.missing, group_prompts=contents(chosen), team=team)
            feedback = pairs(feedback) if method.unit == "pair" else feedback
            rollout, whole = gradients.carried(rollout, whole, feedback, contents(chosen), purpose=(step, attempt))
            tables = fitting.fit(lambda most: learner.tables(rollout, micro_rows=most), partial(min, len(rollout)))  # noqa: B023
            feedback = replace(feedback, tables={**feedback.tables, **tables}, prompts=_names(chosen, feedback.group))
            inside = _worth_an_update(method, feedback, most=wanted)
            scored.append(Scored(feedback, Experience(rollout, method.signal(feedback), in_units(method, feedback, inside), whole)))
            products.tell(*scored[-1], contents(chosen), fitting.fit)
            if (wanted := wanted - len(feedback.group[inside].unique())) <= 0:
                break
        return scored

    with journal, Background(threaded=batch.overlap > 1 or learner.stale) as background:
        ask = partial(scores_on if team.asks else unasked, rewards, oracle=oracle, missing=batch.missing, policy=policy)
        sampling: dict[str, Any] = {"batch": batch, "seed": run.seed, "method": method, "decode": looked_at(rewards, oracle)}
        rollouts = Rollouts(policy, coming, ask, background, **sampling, team=team, steps=steps)
        coming.resumed(journal.broken.why, position=journal.state.get("position", journal.state["step"] * batch.prompts))
        for step in journal.steps():
            moved = learner.begin(step)
            _tell(rewards, combine, step, journal.state["evaluations"])
            scored = collect(step)
            journal.put_aside(coming.aside, "prompts")
            journal.once("preflight_difference", lambda: _checked(learner, scored, batch.micro_steps, fitting.fit))  # noqa: B023
            updates = _updates(learner, scored, batch, fitting.fit, entangled, mixed, replayed, step=step)
            if not updates:
                journal.say(f"step {step + 1}: no group is informative after {len(scored)} rollouts, so nothing was updated")
            learner.end(step)
            journal.state["position"] = rollouts.position
            moved |= products.row | ({"broken": float(len(coming.aside))} if coming.aside else {})
            journal.trained({**_row(scored, updates, lr=float(learner.optimizer.param_groups[0]["lr"])), **moved, **fitting.row})
    return concluded(journal, policy)


def _given(records: Records | Sequence[Record] | None, seed: int) -> Given | None:
    """The rows of records beside samples; None without any."""
    return None if records is None else Given(streamed(records, seed=seed)[0], seed=seed)


def _worth_an_update(method: Method, feedback: Feedback, *, most: int) -> torch.Tensor:
    """``[B]`` bool: rows with a reward that the method keeps, of the first ``most`` groups that have any."""
    kept = ~feedback.rewards.isnan() if method.keep is None else method.keep(feedback) & ~feedback.rewards.isnan()
    return kept & torch.isin(feedback.group, feedback.group[kept].unique()[:most])


def _names(prompts: Sequence[Any], group: torch.Tensor) -> list[str]:
    """What the prompts of rows are told apart by; group: ``[B]``, their places among the prompts."""
    names = [hashed([prompt]) for prompt in prompts]
    return [names[place] for place in group.tolist()]


def _parts(experiences: Sequence[Experience], unit: Unit, epochs: int, updates: int) -> Iterator[list[Experience]]:
    """The rows of each update: every epoch sees all rows once, in updates that take every so many units of them; none is empty."""
    for part in range(epochs * updates):
        taken = []
        for experience in experiences:
            sizes = unit_sizes(unit, experience.group)
            share = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64)) % updates
            taken.append(replace(experience, rows=experience.rows[share == part % updates]))
        if any(len(experience.rows) for experience in taken):
            yield taken


def _updates(  # all that adds to an update
    learner: Learner, batches: Sequence[Scored], batch: Batch, fit: Fit, entangled: Entanglement, mixed: Mixed | None,
    replayed: Replayed | None, *, step: int,
) -> list[dict[str, float]]:  # fmt: skip
    """What the updates of a step measure, each in passes that fit into memory."""
    if replayed is not None:
        for scored in batches:
            replayed.take_in(scored.experience.rollout, scored.feedback)
    beside = [one for one in (mixed, replayed) if one is not None]
    measured = list[dict[str, float]]()
    for part in _parts([scored.experience for scored in batches], learner.method.unit, batch.epochs, batch.updates):
        for one in beside:
            one.next(step, len(measured))
        largest = lambda most: max(learner.micro_batches.largest(part, most), *(one.largest(most) for one in beside), 0)  # noqa: B023, E731
        update = lambda most: learner.update(part, micro_rows=most, micro_steps=batch.micro_steps, step=step)  # noqa: B023, E731
        with entangled.watched(step, part, batch.micro_rows) as found:
            measured.append(fit(update, largest))
        measured[-1] |= found
    return measured


def _checked(learner: Learner, batches: Sequence[Scored], micro_steps: int | None, fit: Fit) -> dict[str, float] | None:
    """The preflight of the first rollout with a signal; None where there is none, and so no gradient to look for.

    Each process looks at rows of its own.
    """

    def check(micro_rows: int) -> Preflight | None:
        if first is None:
            return None
        needs = learner.micro_batches.needs
        return preflight(learner.policy, learner.method, first, micro_rows=micro_rows, micro_steps=micro_steps, needs=needs)

    whole = [whole_units(learner.method.unit, experience) for _, experience in batches]
    first = next((own for own in whole if not own.silent), None)
    with learner.policy.using(BEHIND) if learner.stale else nullcontext():  # those that sampled the rollout
        checked = fit(check, partial(learner.micro_batches.largest, [] if first is None else [first]))
    return Preflight.facts(learner.team.tell(checked))


def _row(batches: Sequence[Scored], updates: Sequence[Mapping[str, float]], *, lr: float) -> dict[str, float]:
    """What a training step says: rewards of all its rollouts, and the mean over its updates of what they measured.

    ``reward``: of the policy's own rows; ``reward_NAME``: of those that a behavior drew. ``missing/NAME``: rows without that reward,
    where there are any. ``rows``: that were worth an update. ``signal_zero``: the part of all rows whose signal is 0. ``kl`` becomes
    nats per trajectory: ``kl_step``, the mean of a step, times the steps of a row that are trained.
    """
    own = torch.cat([comparisons.own(batch.feedback) for batch in batches])
    rewards = torch.cat([batch.feedback.rewards for batch in batches])
    known = rewards[own & ~rewards.isnan()]
    signal = torch.cat([batch.experience.signal.flatten(1).abs().amax(1) for batch in batches])
    row = {
        "reward": float(known.mean()),
        "reward_std": float(known.std()) if len(known) > 1 else float("nan"),
        "signal_zero": float((signal == 0).double().mean()),
        "rows": float(sum(len(batch.experience.rows) for batch in batches)),
        "updates": float(len(updates)),
    }
    for name in batches[0].feedback.drawn:
        theirs = torch.cat([batch.feedback.drawn[name] for batch in batches])
        row[f"reward_{name}"] = float(rewards[theirs].nanmean())
    for name in batches[0].feedback.parts:
        scores = torch.cat([batch.feedback.parts[name] for batch in batches])
        row[f"reward/{name}"] = float(scores.nanmean())
        if missing := int(scores.isnan().sum()):
            row[f"missing/{name}"] = float(missing)
    for name in batches[0].experience.rollout.metrics:
        row[name] = sum(batch.experience.rollout.metrics.get(name, math.nan) for batch in batches) / len(batches)
    for name in dict.fromkeys(name for update in updates for name in update):
        values = [update[name] for update in updates if name in update]
        row[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    if "kl" in row:
        row["kl_step"] = row["kl"]
        row["kl"] *= float(torch.cat([batch.experience.mask.sum(1) for batch in batches]).double().mean())
    return {**row, "lr": lr}


def _refuse(  # what a run is made of
    policy: Policy, method: Method, batch: Batch, prompts: Sequence[Any], rewards: Rewards, oracle: Oracle | None, evaluation: Evaluation,
    steps: int, records: Any, devices: Devices,
) -> None:  # fmt: skip
    at_least(1, steps=steps)
    refuse_mismatch(policy, method)
    refuse_asked(oracle, policy, batch, devices)
    refuse_micro_steps(method, batch.micro_steps)
    refuse_stale(method, batch.staleness)
    assignment(batch.group, method.behaviors)  # refuses a group too small for all who draw
    if isinstance(policy, Structured):
        policy.refuse_structure(method, batch.group, steps)
    if isinstance(prompts, str) or not prompts:
        raise UserError(f"prompts: got {prompts!r}, takes a list of at least one")
    refuse_prompts(policy, prompts, method)
    if not rewards:
        raise UserError("rewards: got none, takes at least one {name: reward}")
    refuse_columns({**rewards, **({} if oracle is None else {"of pairs": oracle})}, columns_of(prompts), kind="reward")
    refuse_without(method, rewards, batch)
    refuse_given(method, records)
    refuse_without_latents(policy, rewards, evaluation.judges)
    refuse_unusable(policy, evaluation.prompts)
    refuse_silent(method, batch, list(rewards), oracle=oracle, pairs=method.pairs or comparisons.best_and_worst)


def _tell(rewards: Rewards, combine: Callable[..., Any] | None, step: int, evaluations: Sequence[Mapping[str, Any]]) -> None:
    """Says the step to rewards that change as training goes (those with a function ``at``), and evaluations to what ``hears`` of them."""
    for reward in rewards.values():
        if isinstance(reward, Stepped) and callable(reward.at):
            reward.at(step)
    if isinstance(combine, Hearing) and callable(combine.hears):
        combine.hears(evaluations)
