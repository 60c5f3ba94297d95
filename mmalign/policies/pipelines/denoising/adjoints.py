"""The gradient of a reward by the latents of a pipeline's recorded steps (``samplers.adjoints``)."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from functools import partial
from typing import Protocol

import torch
from torch import Tensor

from mmalign.needs import ADJOINT_SIZE
from mmalign.policies.pipelines.denoising import score_differences
from mmalign.policies.pipelines.denoising.score_differences import Distilled
from mmalign.policies.pipelines.rollouts.latents import last_frames, weights_of
from mmalign.policies.pipelines.rollouts.replay import Played, at_work, decoded, in_calls, transition, transition_at_once
from mmalign.policies.pipelines.rollouts.trajectories import Adjoint, Trajectories, Transition
from mmalign.samplers import adjoints as carrying
from mmalign.samplers.adjoints import Plan, RewardGradient, by_chunk
from mmalign.types import Level, Rollout, UserError

__all__: list[str] = []  # no policy


class Value(Protocol):
    """What is maximised."""

    def __call__(self, leaf: Tensor, rows: Tensor) -> Tensor:
        """leaf: last latents ``[R, ...]`` of rows ``[R]`` -> ``[R]``, with its graph."""
        ...


def adjoints(  # all that a gradient depends on
    policy: Distilled, rollout: Rollout, how: RewardGradient, utility: Callable[..., Tensor], rng: torch.Generator,
    *, rows_at_once: int, seeds: Tensor | None = None, latents: bool = False, decode: bool = True,
) -> Rollout:  # fmt: skip
    """See ``abilities.Differentiable``. Errors: UserError for a plan that the schedule does not fit.

    A video that is made in chunks is a sample for each: a plan of its own, whose gradients end where the chunk begins, with all the others
    as they were made. So what a chunk does to those that go on from it is not in its gradient, as where a student forces itself
    (Self Forcing, arXiv 2506.08009, whose keys and values of frames before have no graph; recalled). With ``how.across`` it is, see
    ``_through_chunks``.
    """
    held: Trajectories = rollout.held
    refuse_subjects(policy, held, how)
    plans = by_chunk(how.plan, held.random, held.chunk if len(held.chunk) else torch.zeros(len(held.random)), rng)
    copies = torch.randint(2**62, (how.copies - 1, len(rollout)), generator=rng)
    if how.copies > 1 and any(plan.last == 0 for plan in plans):
        raise UserError("policy.schedule.steps: got 1, takes 2 or more where the last step is taken again from other noise (copies)")
    own = torch.zeros((len(rollout), 0), dtype=torch.int64) if seeds is None else seeds

    def values(plan: Plan) -> Value:
        ends = None if len(plans) == 1 else plan.start + len(plan.trained) - 1
        return partial(_value, policy, rollout, utility, latents=latents, decode=decode, column=ends)

    def of(rows: Tensor) -> list[Adjoint]:
        if how.across and len(plans) > 1:
            return _through_chunks(policy, rollout, how, plans, rows, values)
        return [one for plan in plans for one in _of_rows(policy, rollout, how, plan, rows, (copies, own), values(plan))]

    parts = [of(rows) for rows in in_calls(rollout, torch.arange(len(rollout)), rows_at_once)]
    made = [Adjoint.join(same) for same in zip(*parts, strict=True)]
    squares = torch.zeros(len(rollout), len(held.random), dtype=torch.float64)
    for adjoint in made:
        squares[:, adjoint.column] += adjoint.vector.double().flatten(1).square().sum(1)
    facts, trained = {**rollout.facts, str(ADJOINT_SIZE): squares.sqrt()}, torch.cat([plan.trained for plan in plans])
    return replace(rollout, mask=trained.repeat(len(rollout), 1), held=replace(held, adjoints=tuple(made)), facts=facts)


def _value(  # all that a reward is asked with
    policy: Distilled, rollout: Rollout, utility: Callable[..., Tensor], leaf: Tensor, rows: Tensor,
    *, latents: bool, decode: bool, column: int | None,
) -> Tensor:  # fmt: skip
    """What is maximised of some rows, ``[R]``, with last latents ``leaf``, or those of the chunk that ends with the step ``column``."""
    return utility(decoded(policy, rollout, rows, leaf, column) if decode else None, rows, *([leaf] if latents else []))


def refuse_subjects(policy: Played, held: Trajectories, how: RewardGradient) -> None:
    """Errors: UserError for subjects in a video that is made in chunks: in which a word's maps lie over other frames each time."""
    if held.chunks > 1 and how.subjects:
        raise UserError(
            f"method.subjects: {type(policy.pipe).__name__} makes this video in {held.chunks} chunks, and subjects are looked for in one "
            "latent; takes 0"
        )


def grown(policy: Played, rollout: Rollout, rows: Tensor, column: int, step: Transition) -> Tensor:
    """The term ``adjoint`` of a step, ``[R]`` float64; step: the recorded one under the current parameters, with gradient."""
    total = torch.zeros(len(rows), dtype=torch.float64, device=step.mean.device)
    for adjoint in rollout.held.adjoints:
        if adjoint.column == column:
            total = total + adjoint.grown(step if adjoint.x is None else transition(policy, rollout, rows, column, adjoint.x), rows)
    return total


def _of_rows(
    policy: Distilled, rollout: Rollout, how: RewardGradient, plan: Plan, rows: Tensor, seeds_of: tuple[Tensor, Tensor],
    value: Value,
) -> list[Adjoint]:  # fmt: skip
    """The adjoints of some rows, those of trained steps first, and then those of copies of the last one.

    seeds_of: copies ``[K, B]``, and differences of scores ``[B, D]``.
    """
    held: Trajectories = rollout.held
    there = partial(at_work, policy, rows)

    def outcome(number: int, x: Tensor) -> Tensor:
        step = transition_at_once(policy, rollout, rows, plan.start + number, x, through=how.through)
        return step.clean if number == plan.end else step.mean

    def gradient(sample: Tensor) -> Tensor:
        if how.utility is None:
            return torch.zeros_like(sample)
        return carrying.of_reward(lambda leaf: value(leaf, rows), sample) / how.copies

    with torch.no_grad():
        place = plan.start + plan.last
        last = None if plan.end is None else transition_at_once(policy, rollout, rows, place)
        sample = there(held.x_next[place]) if last is None else last.clean
        seeds, of_differences = (some + plan.start for some in seeds_of)  # each chunk has noise of its own
        pulls = [] if last is None else score_differences.pulls(policy, rollout, rows, place, last, of_differences[rows], how.differences)
        pulled = sum((pull.to(sample) for pull in pulls), torch.zeros_like(sample))
        if how.tail < 1 and held.chunks > 1:
            pulled = pulled * _share_of_chunk(how.tail, int(held.chunk[place]), held.chunks)
        elif how.tail < 1:
            pulled = pulled * weights_of(policy, last_frames(rollout.outputs[rows], how.tail), rollout.outputs[rows], sample).to(sample)
    running = partial(_running, policy, rollout, rows, how) if how.subjects else None
    vectors = carrying.carried_back(
        plan, gradient(sample) + pulled, lambda number: there(held.x[plan.start + number]), outcome, partial(_under, policy, how), running
    )
    made = list[Adjoint]()
    for number in sorted(vectors):
        point = sample if number == plan.last else held.x_next[plan.start + number][rows]
        made.append(Adjoint(plan.start + number, vectors[number].cpu(), point.cpu(), clean=number == plan.end))
    with torch.no_grad():
        levels = [transition_at_once(policy, rollout, rows, place).level] * len(seeds) if len(seeds) else []
    for drawn, level in zip(seeds[:, rows], levels, strict=True):
        with torch.no_grad():
            x = level.signal * sample + level.noise * _noise(sample, drawn)
            again = transition_at_once(policy, rollout, rows, place, x.to(sample.dtype)).mean.to(sample.dtype)
        made.append(Adjoint(place, gradient(again).cpu(), again.cpu(), x.to(sample.dtype).cpu()))
    return made


def _through_chunks(
    policy: Distilled, rollout: Rollout, how: RewardGradient, plans: Sequence[Plan], rows: Tensor, values: Callable[[Plan], Value]
) -> list[Adjoint]:  # fmt: skip
    """The adjoints of some rows' trained steps, chunks that go on from a step included.

    The adjoint of a chunk's end is the reward's own derivative by it, and what is said of it by each chunk that goes on from it.
    """
    held, made = rollout.held, list[Adjoint]()
    ends = [at_work(policy, rows, held.x_next[plan.start + plan.last]) for plan in plans]
    said = [torch.zeros_like(end) for end in ends]
    for number, plan in reversed(list(enumerate(plans))):
        own = carrying.of_reward(partial(values(plan), rows=rows), ends[number])
        vectors, of_ends = _through_chunk(policy, rollout, how, plan, rows, ends[:number], own + said[number])
        said = [one + more for one, more in zip(said[:number], of_ends, strict=True)]
        made += [Adjoint(column, vector.cpu(), held.x_next[column][rows]) for column, vector in vectors.items()]
    return sorted(made, key=lambda one: one.column)


def _through_chunk(
    policy: Distilled, rollout: Rollout, how: RewardGradient, plan: Plan, rows: Tensor, before: list[Tensor], gradient: Tensor
) -> tuple[dict[int, Tensor], list[Tensor]]:  # fmt: skip
    """Step -> the adjoint of its outcome, of a chunk's trained steps, and the adjoints of what the chunks ``before`` became.

    The state of its steps is the latent and what those before became, which a step leaves as it is: ``[1 + chunks before, R, ...]``. A
    first move, which is no step, makes the state that the chunk begins with. gradient: by the chunk's end.
    """
    there, start = partial(at_work, policy, rows), plan.start - 1

    def begun(move: int) -> Tensor:
        return torch.stack([there(rollout.held.x[start + move]), *before])

    def outcome(move: int, state: Tensor) -> Tensor:
        x = state[0] if move > 1 else None  # the first latent of a chunk is noise
        mean = transition_at_once(policy, rollout, rows, start + move, x, through=how.through, ends=state[1:]).mean
        return torch.cat([mean.to(state)[None], state[1:]])

    adjoint = torch.stack([gradient, *map(torch.zeros_like, before)])
    moves = Plan(torch.cat([torch.tensor([bool(before)]), plan.trained]))
    vectors = dict(carrying.carried_back(moves, adjoint, begun, outcome, partial(_under, policy, how)))
    of_ends = list(vectors.pop(0)[1:]) if before else []
    return {start + move: vector[0] for move, vector in vectors.items()}, of_ends


def _under(policy: Distilled, how: RewardGradient) -> AbstractContextManager[None]:
    """The parameters that are gone back through."""
    return nullcontext() if how.under == "current" else policy.using(how.under)  # type: ignore[no-any-return]


def _share_of_chunk(tail: float, chunk: int, chunks: int) -> float:
    """What a chunk counts where the last ``tail`` of those that are made do, 1 on average.

    Examples:
        >>> [round(_share_of_chunk(0.375, chunk, 4), 3) for chunk in range(4)]
        [0.0, 0.0, 1.333, 2.667]
    """
    return min(max((chunk + 1) / chunks - (1 - tail), 0.0), 1 / chunks) * chunks / tail


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

    with _under(policy, how), torch.enable_grad():
        leaf = at_work(policy, rows, held.x[column]).detach().requires_grad_()
        (gradient,) = torch.autograd.grad(view.subject_cost(ask, prompts, named, leaf).sum(), leaf)
    length = held.dt[rows, column].to(gradient).view(-1, *(1,) * (gradient.ndim - 1))
    return torch.where(gradient.isfinite(), -how.subjects * length * gradient, 0.0)


def _noise(like: Tensor, seeds: Tensor) -> Tensor:
    drawn = [torch.randn(like.shape[1:], generator=torch.Generator().manual_seed(seed)) for seed in seeds.tolist()]
    return torch.stack(drawn).to(like)
