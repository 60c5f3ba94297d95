"""Clean estimates of a pipeline's recorded steps, noised, and what sets of parameters say of them (``samplers.score_differences``)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from typing import Protocol

import torch
from torch import Tensor
from torch.nn.functional import softplus

from mmalign.policies.pipelines.denoising_errors import DenoisingErrors, Noised
from mmalign.policies.pipelines.latents import latents
from mmalign.policies.pipelines.probing import Cut
from mmalign.policies.pipelines.replay import Played, at_work, in_calls, transition_at_once
from mmalign.policies.pipelines.trajectories import Behind, Trajectories, Transition
from mmalign.samplers import score_differences
from mmalign.samplers.score_differences import Adversary, Noising, ScoreDifference
from mmalign.types import Level, Rollout, UserError


class Distilled(Played, Protocol):
    """What this needs of a policy."""

    @property
    def errors(self) -> DenoisingErrors:
        """How well it denoises given latents."""
        ...

    @property
    def cut(self) -> Cut:
        """Where the chunks of a video lie in the whole of it."""
        ...


@torch.no_grad()
def noised(  # as of the protocol
    policy: Distilled, rollout: Rollout, column: int, noising: Noising, seeds: Tensor, *, rows_at_once: int,
    given: tuple[list[str], Tensor] | None = None,
) -> Rollout:  # fmt: skip
    """See ``abilities.Differentiable``. Errors: UserError for given rows of another shape."""
    parts = list[Noised]()
    for rows in in_calls(rollout, torch.arange(len(rollout)), rows_at_once):
        step = transition_at_once(policy, rollout, rows, column)
        parts.append(_noised(policy, rollout, rows, column, step, noising, seeds[rows]))
    shape, held = (len(rollout), 1), Noised.join(parts)
    if given is not None:
        beside, given_behind = _cut(policy, rollout.held, column, latents(policy, given[1], given[0]), held.clean)
        held = replace(held, given=beside, given_prompts=given[0], given_behind=given_behind)
    return Rollout(
        prompts=rollout.prompts,
        outputs=rollout.outputs,
        log_probs=torch.full(shape, float("nan"), dtype=torch.float64),
        mask=torch.ones(shape, dtype=torch.bool),
        group=rollout.group,
        held=held,
    )


def _cut(policy: Distilled, held: Trajectories, column: int, whole: Tensor, clean: Tensor) -> tuple[Tensor, Behind | None]:
    """Given latents ``[B, ...]`` as the samples of a step are, ``clean``: all of them, or the chunk that the step makes, and those before.

    Errors: UserError for another shape than that of the samples, chunk by chunk or whole.
    """
    cut, behind = (None, None) if held.chunks == 1 else (policy.cut, held.behind(column))
    got, takes = list(whole.shape), [len(clean), *(clean.shape[1:] if cut is None else cut.shape)]
    if got != takes:
        raise UserError(f"records: got rows whose latents are {got}, and those of samples are {takes}; takes the size of the samples")
    if cut is None:
        return whole.to(clean), None
    chunks = [part.of(whole.to(clean)) for part in cut.parts]
    if behind is not None:
        behind = replace(behind, ends=torch.stack([chunk.cpu() for chunk in chunks[: len(behind.ends)]]))
    return chunks[int(held.chunk[column])], behind


def _noised(policy: Distilled, rollout: Rollout, rows: Tensor, column: int, step: Transition, noising: Noising, seeds: Tensor) -> Noised:
    """Of some rows. step: the recorded one, under the parameters that are in place."""
    x_next, levels = at_work(policy, rows, rollout.held.x_next[column]), policy.errors.schedule.levels
    clean = step.clean.to(x_next)
    uniform, noise = score_differences.draws(seeds, clean)
    places = score_differences.places(uniform, levels, noising, step.level, step.next_level)
    if noising.trajectory:
        noise = score_differences.kept_noise(clean, x_next, noise, step.next_level, _wide(levels, places, clean)).to(noise)
    behind = rollout.held.behind(column)
    own = {} if behind is None else {"behind": behind.take(rows)}
    return Noised(clean, noise.unsqueeze(1), places.unsqueeze(1), torch.arange(len(rows)), [None] * len(rows), **own)


@torch.no_grad()
def pulls(
    policy: Distilled, rollout: Rollout, rows: Tensor, column: int, step: Transition, seeds: Tensor,
    differences: tuple[ScoreDifference | Adversary, ...],
) -> Iterator[Tensor]:  # fmt: skip
    """Where each of some differences of scores pulls the clean estimates of a step, ``[R, ...]``, times its weight.

    step: the recorded one, under the parameters of now. seeds: ``[R, D]``.

    Errors: UserError for guidance of a pipeline that takes no prompt.
    """
    prompts, errors = [rollout.prompts[row] for row in rows.tolist()], policy.errors
    for number, one in enumerate(differences):
        held = _noised(policy, rollout, rows, column, step, one.noising, seeds[:, number])
        places, clean = held.places[:, 0], held.clean
        wide = _wide(errors.schedule.levels, places, clean)
        x = wide.signal * clean + wide.noise * held.noise[:, 0]
        at = errors.schedule.timesteps[places].to(clean.device), Level(*(value[places].to(clean) for value in errors.schedule.levels))
        if isinstance(one, Adversary):
            yield _to_given(policy, one, prompts, x, at, held.behind) * wide.signal
            continue
        with policy.using(str(one.toward)):
            toward = errors.predicted(prompts, x, *at, held.behind).clean
            if one.guidance != 1.0:
                _refuse_unprompted(policy, one.guidance)
                without = errors.predicted([""] * len(prompts), x, *at, held.behind).clean
                toward = without + one.guidance * (toward - without)
        with policy.using(one.away):
            away = errors.predicted(prompts, x, *at, held.behind).clean
        yield one.weight * score_differences.pull(toward, away, clean, wide, one.normaliser)


def _to_given(
    policy: Distilled, one: Adversary, prompts: list[str], x: Tensor, at: tuple[Tensor, Level], behind: Behind | None
) -> Tensor:  # fmt: skip
    """By how much a classifier takes noised rows ``x`` for given data, ``-weight softplus(-logit)``, differentiated by these."""
    with policy.using(one.of), torch.enable_grad():
        leaf = x.detach().requires_grad_()
        logits = policy.errors.classifying(one.of).logits(prompts, leaf, *at, behind)  # type: ignore[attr-defined]
        (gradient,) = torch.autograd.grad(-one.weight * softplus(-logits).sum(), leaf)
    return torch.where(gradient.flatten(1).isfinite().all(1).view(-1, *(1,) * (x.ndim - 1)), gradient, 0.0)


def _wide(levels: Level, places: Tensor, like: Tensor) -> Level:
    """The levels of some rows, which broadcast against ``like``."""
    return Level(*(value[places].to(like).view(-1, *(1,) * (like.ndim - 1)) for value in levels))


def _refuse_unprompted(policy: Distilled, guidance: float) -> None:
    if "prompt" not in policy.caller.accepts:
        name = type(policy.pipe).__name__
        raise UserError(f"method.guidance: got {guidance:g}, and {name} takes no prompt that could be left empty; takes 1")
