"""Online alignment: sample, score, update; the same for every policy and every method.

What differs from the papers, and from well-known code:

1. A rollout may have several updates (``epochs`` times ``updates_per_epoch``), each on rows spread over all groups, so that ratios leave
   1 and the clip acts. Rows are not shuffled: within an update the loss is one sum, and their order does not matter.
2. Weights are computed once for each update, over all of its rows; micro-batches only split the sum.
3. The KL to the reference is exact where the policy knows it (a Gaussian step), and is measured also where no method asks for it.
4. Evaluation samples as a user would: the pipeline's own sampler, fixed seeds, the EMA of the weights where there is one.
5. All randomness of a step comes from generators seeded by (seed, step, attempt), so that a resumed run equals an uninterrupted one.
6. Nothing is trained before the first rollout, scored again, has ratio 1, KL 0 and a gradient (``runtime.preflight``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.runtime.feedback import feedback
from mmalign.runtime.journal import Evaluated, Journal, Run
from mmalign.runtime.learner import Learner, refuse_mismatch
from mmalign.runtime.preflight import preflight
from mmalign.runtime.seeds import stream
from mmalign.types import Feedback, Method, Policy, Rollout, UserError

__all__ = ["online"]

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
    learning_rate: float = 1e-4,
    warmup: int = 0,
    weight_decay: float = 0.0,
    max_grad_norm: float = 1.0,
    ema: float | None = None,
    reward_weights: dict[str, float] | None = None,
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
        name, runs, seed: the run's folder is ``runs/name``; everything random follows from ``seed``.
        steps: rollouts. group_size: outputs of each prompt. epochs, updates_per_epoch: updates on each rollout.
        micro_rows: rows in one backward pass; does not change the loss.
        learning_rate, warmup, weight_decay, max_grad_norm: of AdamW; warmup in steps.
        ema: decay of the average that is evaluated and exported, at most ``(1 + n) / (10 + n)`` after n updates; None for none.
        missing: what to do about NaN rewards. resample: further rollouts where the method drops groups (dynamic sampling).
        judges, metrics: further rewards, and functions of the whole set, that only evaluate.
        evaluation: ``every`` (steps), ``prompts``, ``samples`` (of each), ``columns`` (shown), ``call`` (of the sampler).
        early_stop: ``{judge: NAME, patience: N}``: stop after N evaluations without a new best, whose parameters are kept as the
            set ``best``. That judge then takes part in training: report another one.
        checkpoint_every, trackers, resume, config: how often to save, what accelerate calls trackers, whether to continue
            ``runs/name``, and what ``config.yaml`` shall hold.

    Errors: UserError before anything is sampled (what the method needs and the policy cannot give, an existing run), and by
    name for a reward that fails. Ctrl-C finishes the step, saves, and says how to resume.
    """
    refuse_mismatch(policy, method)
    _refuse_sizes(prompts, rewards, steps=steps, prompts_per_step=prompts_per_step, group_size=group_size, epochs=epochs, updates=updates_per_epoch, micro_rows=micro_rows)
    learner = Learner(policy, method, learning_rate=learning_rate, warmup=warmup, weight_decay=weight_decay, max_grad_norm=max_grad_norm, ema=ema)
    journal = Journal(
        learner, name=name, runs=runs, seed=seed, steps=steps, config=config or {}, resume=resume, trackers=trackers, rewards=rewards,
        judges=judges or {}, metrics=metrics or {}, evaluated=_evaluated(prompts, evaluation), early_stop=early_stop, checkpoint_every=checkpoint_every,
    )  # fmt: skip

    def collect(step: int) -> list[Batch]:
        """Rollouts of a step, until enough groups are worth an update (one rollout, where the method keeps all)."""
        batches: list[Batch] = []
        wanted = prompts_per_step
        for attempt in range(1 + (resample if method.keep is not None else 0)):
            chosen = _in_turn(prompts, seed=seed, start=step * prompts_per_step + attempt * len(prompts) // 2, count=prompts_per_step)
            rollout = policy.sample(chosen, group_size, stream(seed, step, attempt), step=step)
            said = feedback(rewards, rollout, weights=reward_weights, missing=missing)
            kept = ~said.rewards.isnan() if method.keep is None else method.keep(said) & ~said.rewards.isnan()
            groups = rollout.group[kept].unique()[:wanted]
            rows = torch.nonzero(kept & torch.isin(rollout.group, groups)).flatten()
            batches.append(Batch(rollout, said, method.signal(said), rows))
            wanted -= len(groups)
            if wanted <= 0:
                break
        return batches

    with journal:
        for step in journal.steps():
            batches = collect(step)
            for batch in batches:
                policy.remember(batch.rollout, learner.references, micro_rows)
            first = batches[0]
            journal.fact("preflight_difference", lambda: preflight(policy, first.rollout, method, first.signal, micro_rows=micro_rows).difference)  # noqa: B023
            found = []
            for part in range(epochs * updates_per_epoch):
                cells = [(b.rollout, b.signal, b.rows[part % updates_per_epoch :: updates_per_epoch]) for b in batches]
                found.append(learner.update(cells, micro_rows=micro_rows, step=step))
            journal.trained(_row(batches, found, lr=learner.optimizer.param_groups[0]["lr"]))
    return journal.conclude()


def _row(batches: list[Batch], found: list[dict[str, float]], *, lr: float) -> dict[str, float]:
    """What a training step says: rewards of all its rollouts, and the mean over its updates of what they measured.

    ``kl`` becomes nats per trajectory: the mean of a step times the steps that are trained.
    """
    rewards = torch.cat([batch.feedback.rewards for batch in batches])
    signal = torch.cat([batch.signal.abs().amax(1) for batch in batches])
    row = {"reward": float(rewards.nanmean()), "reward_std": float(rewards[~rewards.isnan()].std()), "signal_zero": float((signal == 0).double().mean())}
    for name in batches[0].feedback.parts:
        row[f"reward/{name}"] = float(torch.cat([batch.feedback.parts[name] for batch in batches]).nanmean())
    for name in found[0]:
        values = [update[name] for update in found]
        row[name] = max(values) if name.endswith("_max") else sum(values) / len(values)
    if "kl" in row:
        row["kl"] *= float(batches[0].rollout.mask.sum(1).double().mean())
    return {**row, "lr": lr}


def _in_turn(prompts: Sequence[str], *, seed: int, start: int, count: int) -> list[str]:
    """``count`` prompts from position ``start`` of an endless list: all prompts shuffled, then shuffled again, and so on."""
    chosen: list[str] = []
    for position in range(start, start + count):
        number, place = divmod(position, len(prompts))
        order = torch.randperm(len(prompts), generator=stream(seed, number, "prompts"))
        chosen.append(prompts[int(order[place])])
    return chosen


def _evaluated(prompts: Sequence[str], evaluation: Mapping[str, Any] | None) -> Evaluated:
    given = {"prompts": list(prompts)[:16], **(evaluation or {})}
    known = list(Evaluated.__dataclass_fields__)
    if unknown := sorted(given.keys() - set(known)):
        raise UserError(f"evaluation.{unknown[0]}: unknown key; takes {', '.join(known)}")
    return Evaluated(**given)


def _refuse_sizes(prompts: Sequence[str], rewards: Rewards, **sizes: int) -> None:
    if not prompts:
        raise UserError("prompts: got none, takes at least one")
    if not rewards:
        raise UserError("rewards: got none, takes at least one {name: reward}")
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: got {size}, takes 1 or more")
