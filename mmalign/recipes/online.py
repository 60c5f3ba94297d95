"""Online alignment: sample, score, update; the same for every policy and every method.

What differs from the papers, and from well-known code:

1. A rollout may have several updates (``epochs`` times ``updates_per_epoch``), each on rows spread over all groups, so that ratios leave
   1 and the clip acts. Rows are not shuffled: within an update the loss is one sum, and their order does not matter.
   Several ``updates_per_epoch`` of a group of G rows take every so many of them, and share the group's advantages.
2. Weights are computed once for each update, over all of its rows; micro-batches only split the sum.
3. The KL to the reference is exact where the policy knows it (a Gaussian step), and is measured also where no method asks for it.
4. Evaluation samples as a user would: the pipeline's own sampler, fixed seeds, the EMA of the weights where there is one.
5. A method for pairs gets the best and the worst row of each group, by reward or by the oracle's win rate; a tied group makes no pair.
6. All randomness of a step comes from generators seeded by (seed, step, attempt), so that a resumed run equals an uninterrupted one.
7. Nothing is trained before a rollout, scored again, has ratio 1, a reference without KL to itself, and a gradient that arrives
   (``training.preflight``).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.objectives.feedback import comparisons
from mmalign.report import build
from mmalign.samplers.seats import seats
from mmalign.training import references as stored
from mmalign.training.evaluation import exam
from mmalign.training.feedback import feedback
from mmalign.training.journal import Journal, Run
from mmalign.training.learner import Learner
from mmalign.training.preflight import preflight
from mmalign.training.seeds import stream
from mmalign.training.units import Cells, in_units, refuse_micro_steps, refuse_mismatch, unit_sizes
from mmalign.types import Feedback, Method, Policy, Rollout, Unit, UserError

Rewards = Mapping[str, Callable[..., Any]]


class Batch(NamedTuple):
    """One rollout with what was said of it: ``signal [B, 1 or T]``, and the rows worth an update."""

    rollout: Rollout
    feedback: Feedback
    signal: Tensor
    rows: Tensor


def online(
    policy: Policy,
    prompts: Sequence[str],
    rewards: Rewards,
    method: Method,
    *,
    name: str = "online",
    runs: str = "runs",
    seed: int = 0,
    steps: int = 100,
    prompts_per_step: int = 8,
    group_size: int = 8,
    epochs: int = 1,
    updates_per_epoch: int = 1,
    micro_rows: int = 64,
    micro_steps: int | None = None,
    learning_rate: float = 1e-4,
    warmup: int = 0,
    decay_steps: int | None = None,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    ema: float | None = None,
    references: dict[str, str] | None = None,
    refresh: dict[str, Any] | None = None,
    reward_weights: dict[str, float] | None = None,
    combine: Callable[..., Any] | None = None,
    oracle: Callable[..., Any] | None = None,
    missing: Literal["stop", "drop"] = "stop",
    resample: int = 3,
    judges: Rewards | None = None,
    metrics: Rewards | None = None,
    evaluation: dict[str, Any] | None = None,
    early_stop: dict[str, Any] | None = None,
    checkpoint_every: int = 50,
    trackers: Sequence[str] = ("tensorboard",),
    resume: bool = False,
    config: dict[str, Any] | None = None,
) -> Run:
    """Aligns a policy with rewards by an online method; returns the finished run.

    Args:
        prompts: the training prompts; each step takes ``prompts_per_step`` of them in turn, shuffled anew each pass.
        rewards, reward_weights: name -> reward, and what each counts for in the sum (1 by default).
        combine: how rewards become one number in place of that sum, of ``combinations/``: ``{use: worst}``.
        oracle: a judge of pairs, ``(outputs, prompts, group) -> [B, B]`` win probabilities (NaN: not compared), for methods that learn
            from those; others get Bradley-Terry's from the rewards.
        name, runs, seed: the run's folder is ``runs/name``; everything random follows from ``seed``.
        steps: rollouts. group_size: outputs of each prompt. epochs, updates_per_epoch: updates on each rollout.
        micro_rows, micro_steps: rows, and steps of each (null: all), in one backward pass, which keeps the activations of both; they do
            not change the loss. Only a method that weighs steps one by one takes micro_steps. Of text, each costs a forward pass.
        learning_rate, warmup, weight_decay, max_grad_norm: of AdamW; warmup in steps.
        decay_steps: steps over which the learning rate falls to 0 in a line; None keeps it constant.
        ema: decay of the average that is evaluated and exported, at most ``(1 + n) / (10 + n)`` after n updates; None for none.
        references: name -> a folder (an adapter for peft, or a model) or a run in ``runs``, whose parameters are a set of that name: an
            opponent, the DPO model of RTO. They are kept in the checkpoints.
        refresh: name of a reference -> every how many steps it becomes a copy of the current parameters, or, as ``{every: N, SET:
            share}``, a mixture of sets: ``{ref: {every: 1, ref: 0.4, current: 0.6}}``, a soup of two. ``previous`` is a copy of every
            step's policy by default, where the method asks for it. ``ref`` stays what it was, unless it is named here. A set may be
            made of another one, which is renewed after it: ``{before: {every: 9, last: 1.0}, last: 9}`` is a league of two.
        missing: what to do about NaN rewards. resample: further rollouts where the method drops groups (dynamic sampling).
        judges, metrics: further rewards, and functions of the whole set, that only evaluate.
        evaluation: ``every`` (steps), ``prompts``, ``samples`` (of each), ``columns`` (shown), ``call`` (of the
            sampler), ``real`` (a function ``(prompts, columns) -> [prompts, columns, C, H, W]``, to show real data beside them).
        early_stop: ``{judge: NAME, patience: N}``: stop after N evaluations without a new best. The parameters of the best one are
            kept as the set ``best``, and its numbers are the run's. That judge then takes part in training: report another one.
        checkpoint_every, trackers: how often to save, and where to log besides, in accelerate's words.
        resume: continue ``runs/name`` from its newest checkpoint; all else has to be as it was, but ``steps`` may be more.
        config: what ``config.yaml`` shall hold; None writes down what can be said of this call.

    In the log, ``kl`` is the KL of the trained policy to ``ref`` over a whole trajectory, in nats; beside an evaluation it is that
    of the step before.

    Errors: UserError before anything is sampled (what the method needs and the policy cannot give, an existing run), and by
    name for a reward that fails; where that is before the first step is done, no folder is left behind. Ctrl-C finishes the
    step, saves, and says how to resume.
    """
    config = _described(locals()) if config is None else config
    refuse_mismatch(policy, method)
    refuse_micro_steps(method, micro_steps)
    _refuse_both(reward_weights, combine)
    seats(group_size, method.samplers)  # refuses a group too small for all who draw
    _refuse_sizes(
        prompts, rewards, ema=ema, steps=steps, prompts_per_step=prompts_per_step, group_size=group_size, epochs=epochs,
        updates_per_epoch=updates_per_epoch, micro_rows=micro_rows, checkpoint_every=checkpoint_every,
    )  # fmt: skip
    drawing: dict[str, Any] = {"samplers": method.samplers} if method.samplers else {}
    stored.load(policy, references or {}, runs=runs)
    learner = Learner(
        policy, method, learning_rate=learning_rate, warmup=warmup, decay_steps=decay_steps, weight_decay=weight_decay,
        max_grad_norm=max_grad_norm, ema=ema, refresh=refresh,
    )  # fmt: skip
    asked = exam(evaluation, prompts=list(prompts)[:16], rewards=rewards, judges=judges or {}, metrics=metrics or {})
    journal = Journal(
        learner, asked, name=name, runs=runs, seed=seed, steps=steps, checkpoint_every=checkpoint_every, early_stop=early_stop,
        trackers=trackers, resume=resume, config=config, states={"combine": getattr(combine, "state", None)},
    )  # fmt: skip

    def collect(step: int) -> list[Batch]:
        """Rollouts of a step, until enough groups are worth an update (one rollout, where the method keeps all)."""
        batches: list[Batch] = []
        wanted = prompts_per_step
        for attempt in range(1 + (resample if method.keep is not None and method.unit in ("cell", "row") else 0)):
            chosen = _in_turn(prompts, seed=seed, attempt=attempt, start=step * prompts_per_step, count=prompts_per_step)
            rollout = policy.sample(chosen, group_size, stream(seed, step, attempt), step=step, **drawing)
            said = feedback(rewards, rollout, weights=reward_weights, missing=missing, oracle=oracle, combine=combine)
            if method.unit == "pair":
                said = (method.pairs or comparisons.best_and_worst)(said)
            said = replace(said, tables={**said.tables, **learner.tables(rollout, micro_rows=micro_rows)})
            kept = ~said.rewards.isnan() if method.keep is None else method.keep(said) & ~said.rewards.isnan()
            groups = rollout.group[kept].unique()[:wanted]
            inside = kept & torch.isin(rollout.group, groups)
            batches.append(Batch(rollout, said, method.signal(said), in_units(method, said, inside)))
            wanted -= len(groups)
            if wanted <= 0:
                break
        return batches

    with journal:
        for step in journal.steps():
            learner.begin(step)
            _tell(rewards, step)
            batches = collect(step)
            for batch in batches:
                policy.remember(batch.rollout, learner.references, micro_rows)
            journal.once("preflight_difference", lambda: _checked(policy, method, batches, micro_rows=micro_rows, micro_steps=micro_steps))  # noqa: B023
            parts = _parts(batches, method.unit, epochs, updates_per_epoch)
            found = [learner.update(cells, micro_rows=micro_rows, micro_steps=micro_steps, step=step) for cells in parts]
            if not found:
                journal.say(f"step {step + 1}: no group is informative after {len(batches)} rollouts, so nothing was updated")
            journal.trained(_row(batches, found, lr=learner.optimizer.param_groups[0]["lr"]))
    run = journal.conclude()
    build(run.path)
    return run


def _parts(batches: Sequence[Batch], unit: Unit, epochs: int, updates_per_epoch: int) -> Iterator[Cells]:
    """The rows of each update: every epoch sees all rows once, in updates that take every so many units of them; none is empty."""
    for part in range(epochs * updates_per_epoch):
        cells = []
        for batch in batches:
            sizes = unit_sizes(unit, batch.rollout.group[batch.rows])
            share = torch.arange(len(sizes)).repeat_interleave(torch.tensor(sizes, dtype=torch.int64)) % updates_per_epoch
            cells.append((batch.rollout, batch.signal, batch.rows[share == part % updates_per_epoch]))
        if any(len(rows) for _, _, rows in cells):
            yield cells


def _checked(policy: Policy, method: Method, batches: Sequence[Batch], micro_rows: int, micro_steps: int | None) -> float | None:
    """The preflight of the first rollout with a signal; None where there is none, and so no gradient to look for."""
    held = next((batch for batch in batches if bool((batch.signal[batch.rows] != 0).any())), None)
    if held is None:
        return None
    return preflight(policy, held.rollout, method, held.signal, held.rows, micro_rows=micro_rows, micro_steps=micro_steps).difference


def _row(batches: Sequence[Batch], found: Sequence[Mapping[str, float]], *, lr: float) -> dict[str, float]:
    """What a training step says: rewards of all its rollouts, and the mean over its updates of what they measured.

    ``reward``: of the policy's own rows; ``reward_NAME``: of those that a sampler drew. ``missing/NAME``: rows without that reward,
    where there are any. ``rows``: that were worth an update. ``signal_zero``: the part of all rows whose signal is 0. ``kl`` becomes
    nats per trajectory: the mean of a step times the steps of a row that are trained.
    """
    own = torch.cat([comparisons.own(batch.feedback) for batch in batches])
    rewards = torch.cat([batch.feedback.rewards for batch in batches])
    known = rewards[own & ~rewards.isnan()]
    signal = torch.cat([batch.signal.flatten(1).abs().amax(1) for batch in batches])
    row = {
        "reward": float(known.mean()),
        "reward_std": float(known.std()) if len(known) > 1 else float("nan"),
        "signal_zero": float((signal == 0).double().mean()),
        "rows": float(sum(len(batch.rows) for batch in batches)),
        "updates": float(len(found)),
    }
    for name in batches[0].rollout.drawn:
        theirs = torch.cat([batch.rollout.drawn[name] for batch in batches])
        row[f"reward_{name}"] = float(rewards[theirs].nanmean())
    for name in batches[0].feedback.parts:
        scores = torch.cat([batch.feedback.parts[name] for batch in batches])
        row[f"reward/{name}"] = float(scores.nanmean())
        if missing := int(scores.isnan().sum()):
            row[f"missing/{name}"] = float(missing)
    for name in batches[0].rollout.metrics:
        row[name] = sum(batch.rollout.metrics.get(name, math.nan) for batch in batches) / len(batches)
    for name in dict.fromkeys(name for update in found for name in update):
        values = [update[name] for update in found if name in update]
        row[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    if "kl" in row:
        row["kl"] *= float(torch.cat([batch.rollout.mask[batch.rows].sum(1) for batch in batches]).double().mean())
    return {**row, "lr": lr}


def _in_turn(prompts: Sequence[str], *, seed: int, attempt: int, start: int, count: int) -> list[str]:
    """``count`` prompts from position ``start`` of an endless list: all prompts shuffled, then shuffled again, and so on.

    Every attempt of a step has a list of its own, so that what it takes depends on nothing that came before.
    """
    chosen: list[str] = []
    for position in range(start, start + count):
        number, place = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=stream(seed, number, attempt, "prompts"))
        chosen.append(prompts[int(order[place])])
    return chosen


def _described(call: Mapping[str, Any]) -> dict[str, Any]:
    """A call from Python as far as YAML can say it: objects become the names of their types."""
    return {"use": "online", **{key: value for key, value in call.items() if key not in ("resume", "config")}}


def _refuse_sizes(prompts: Sequence[str], rewards: Rewards, *, ema: float | None, **sizes: int) -> None:
    if isinstance(prompts, str) or not prompts:
        raise UserError(f"prompts: got {prompts!r}, takes a list of at least one")
    if not rewards:
        raise UserError("rewards: got none, takes at least one {name: reward}")
    if ema is not None and not 0 <= ema < 1:
        raise UserError(f"ema: got {ema}, takes a number from 0 to below 1")
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: got {size}, takes 1 or more")


def _tell(rewards: Rewards, step: int) -> None:
    """Says the step to rewards that change as training goes: those with a function ``at``."""
    for reward in rewards.values():
        at = getattr(reward, "at", None)
        if callable(at):
            at(step)


def _refuse_both(reward_weights: Mapping[str, float] | None, combine: Callable[..., Any] | None) -> None:
    if reward_weights and combine is not None:
        raise UserError("reward_weights: given beside combine, which has weights of its own; takes one of the two")
