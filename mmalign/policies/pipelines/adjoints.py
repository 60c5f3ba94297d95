"""The gradient of a reward by the latents of a pipeline's recorded steps (``samplers.adjoints``)."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from mmalign.needs import ADJOINT_SIZE
from mmalign.policies.pipelines import score_differences
from mmalign.policies.pipelines.latents import last_frames, weights_of
from mmalign.policies.pipelines.replay import Played, at_work, decoded, in_calls, transition, transition_at_once
from mmalign.policies.pipelines.score_differences import Distilled
from mmalign.policies.pipelines.trajectories import Adjoint, Trajectories, Transition
from mmalign.samplers import adjoints as carrying
from mmalign.samplers.adjoints import Plan, RewardGradient
from mmalign.types import Level, Rollout, UserError


def adjoints(  # all that a gradient depends on
    policy: Distilled, rollout: Rollout, how: RewardGradient, utility: Callable[..., Tensor], rng: torch.Generator,
    *, rows_at_once: int, seeds: Tensor | None = None, latents: bool = False, decode: bool = True,
) -> Rollout:  # fmt: skip
    """See ``abilities.Differentiable``. Errors: UserError for a plan that the schedule does not fit."""
    held: Trajectories = rollout.held
    plan = how.plan(held.random, rng)
    refuse_chunks(policy, held, plan, how)
    copies = torch.randint(2**62, (how.copies - 1, len(rollout)), generator=rng)
    if how.copies > 1 and plan.last == 0:
        raise UserError("policy.schedule.steps: got 1, takes 2 or more where the last step is taken again from other noise (copies)")

    def value(leaf: Tensor, rows: Tensor) -> Tensor:
        return utility(decoded(policy, rollout, rows, leaf) if decode else None, rows, *([leaf] if latents else []))

    own = torch.zeros((len(rollout), 0), dtype=torch.int64) if seeds is None else seeds
    parts = [
        _of_rows(policy, rollout, how, plan, rows, (copies, own), value)
        for rows in in_calls(rollout, torch.arange(len(rollout)), rows_at_once)
    ]
    made = tuple(Adjoint.join(same) for same in zip(*parts, strict=True))
    squares = torch.zeros(len(rollout), len(plan.trained), dtype=torch.float64)
    for adjoint in made:
        squares[:, adjoint.column] += adjoint.vector.double().flatten(1).square().sum(1)
    facts = {**rollout.facts, str(ADJOINT_SIZE): squares.sqrt()}
    return replace(rollout, mask=plan.trained.repeat(len(rollout), 1), held=replace(held, adjoints=made), facts=facts)


def refuse_chunks(policy: Played, held: Trajectories, plan: Plan, how: RewardGradient) -> None:
    """Errors: UserError for what has to see chunks of a video behind each other: a later one goes on from those before by more than its
    first latent, and a probe knows of no chunk before."""
    made = f"method: {type(policy.pipe).__name__} makes this video in {held.chunks} chunks"
    if held.chunks > 1 and (how.differences or how.subjects):
        raise UserError(f"{made}, and what is asked at noised latents knows the first one alone; takes policy gradients")
    if held.chunks > 1 and held.chunk[plan.trained].min() < held.chunk.max():
        last = int((held.chunk == held.chunk.max()).sum())
        raise UserError(f"{made}, and gradients of rewards go back through the last one; takes its steps, the last {last}")


def grown(policy: Played, rollout: Rollout, rows: Tensor, column: int, step: Transition) -> Tensor:
    """The term ``adjoint`` of a step, ``[R]`` float64; step: the recorded one under the current parameters, with gradient."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=step.mean.device)
    for adjoint in rollout.held.adjoints:
        if adjoint.column == column:
            total = total + adjoint.grown(step if adjoint.x is None else transition(policy, rollout, rows, column, adjoint.x), rows)
    return total


def _of_rows(
    policy: Distilled, rollout: Rollout, how: RewardGradient, plan: Plan, rows: Tensor, seeds_of: tuple[Tensor, Tensor],
    value: Callable[[Tensor, Tensor], Tensor],
) -> list[Adjoint]:  # fmt: skip
    """The adjoints of some rows, those of trained steps first, and then those of copies of the last one.

    seeds_of: copies ``[K, B]``, and differences of scores ``[B, D]``.
    """
    held: Trajectories = rollout.held
    there = partial(at_work, policy, rows)

    def outcome(column: int, x: Tensor) -> Tensor:
        step = transition_at_once(policy, rollout, rows, column, x, through=how.through)
        return step.clean if column == plan.end else step.mean

    def under() -> AbstractContextManager[None]:
        return nullcontext() if how.under == "current" else policy.using(how.under)  # type: ignore[no-any-return]

    def gradient(sample: Tensor) -> Tensor:
        if how.utility is None:
            return torch.zeros_like(sample)
        return carrying.of_reward(lambda leaf: value(leaf, rows), sample) / how.copies

    with torch.no_grad():
        last = None if plan.end is None else transition_at_once(policy, rollout, rows, plan.end)
        sample = there(held.x_next[-1]) if last is None else last.clean
        seeds, of_differences = seeds_of
        pulls = (
            [] if last is None else score_differences.pulls(policy, rollout, rows, plan.last, last, of_differences[rows], how.differences)
        )
        pulled = sum((pull.to(sample) for pull in pulls), torch.zeros_like(sample))
        if how.tail < 1:
            pulled = pulled * weights_of(policy, last_frames(rollout.outputs[rows], how.tail), rollout.outputs[rows], sample).to(sample)
    running = partial(_running, policy, rollout, rows, how) if how.subjects else None
    vectors = carrying.carried_back(plan, gradient(sample) + pulled, lambda column: there(held.x[column]), outcome, under, running)
    points = {column: sample if column == plan.last else held.x_next[column][rows] for column in vectors}
    made = [Adjoint(column, vectors[column].cpu(), points[column].cpu(), clean=column == plan.end) for column in sorted(vectors)]
    with torch.no_grad():
        levels = [transition_at_once(policy, rollout, rows, plan.last).level] * len(seeds) if len(seeds) else []
    for drawn, level in zip(seeds[:, rows], levels, strict=True):
        with torch.no_grad():
            x = level.signal * sample + level.noise * _noise(sample, drawn)
            again = transition_at_once(policy, rollout, rows, plan.last, x.to(sample.dtype)).mean.to(sample.dtype)
        made.append(Adjoint(plan.last, gradient(again).cpu(), again.cpu(), x.to(sample.dtype).cpu()))
    return made


def _running(policy: Distilled, rollout: Rollout, rows: Tensor, how: RewardGradient, column: int) -> Tensor:
    """``-weight length dC / dx`` of a step's first latent, ``[R, ...]``: C says how far the subjects of a prompt share attention.

    Errors: UserError for prompts that name no subjects.
    """
    if "subjects" not in rollout.columns:
        raise UserError(
            "prompts: have no column subjects, a list of the words that are kept apart; takes prompts with that, or method.subjects 0"
        )
    prompts, named = ([values[row] for row in rows.tolist()] for values in (rollout.prompts, rollout.columns["subjects"]))
    held, view = rollout.held, policy.errors
    first = view.of.first()
    level = Level(*(value[column] for value in first.levels))

    def ask(some: list[str], x: Tensor) -> object:
        times, levels = first.timesteps[column].to(x.device).expand(len(x)), Level(*(value.to(x).expand(len(x)) for value in level))
        return view.of.probe(some, x, times, levels)

    with nullcontext() if how.under == "current" else policy.using(how.under), torch.enable_grad():
        leaf = at_work(policy, rows, held.x[column]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(view.subject_cost(ask, prompts, named, leaf).sum(), leaf)
    length = held.dt[rows, column].to(gradient).view(-1, *(1,) * (gradient.ndim - 1))
    return torch.where(gradient.isfinite(), -how.subjects * length * gradient, 0.0)


def _noise(like: Tensor, seeds: Tensor) -> Tensor:
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn).to(like)
