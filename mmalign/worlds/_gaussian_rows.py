"""Rows of the closed-form world noised and denoised, and what is wanted of a sample carried back through its steps."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import ADJOINT_SIZE
from mmalign.samplers import kernels, score_differences
from mmalign.samplers.adjoints import RewardGradient, carried_back, of_reward
from mmalign.samplers.score_differences import Adversary, Noising
from mmalign.stacking import offset, stacked_by_name
from mmalign.types import Kind, Level, Need, Rollout, Steps, UserError


@dataclass(frozen=True)
class Draws:
    """Rows with what was drawn for them. clean: ``[B, D]``. noise: ``[B, C, D]``. places: ``[B, C]``, numbers of levels. refs: name -> the
    velocities ``[B, C, D]`` that were predicted under it. which: ``[B]``, the rows of ``noise`` and ``places`` that are theirs."""

    clean: Tensor
    noise: Tensor
    places: Tensor
    which: Tensor
    refs: dict[str, Tensor] = field(default_factory=dict)

    def take(self, rows: Tensor) -> Draws:
        return replace(self, clean=self.clean[rows], which=self.which[rows], refs={name: table[rows] for name, table in self.refs.items()})

    @staticmethod
    def join(parts: Sequence[Draws]) -> Draws:
        clean, noise, places = (torch.cat([vars(part)[name] for part in parts]) for name in ("clean", "noise", "places"))
        which = offset([part.which for part in parts], [len(part.noise) for part in parts])
        return Draws(clean, noise, places, which, stacked_by_name([part.refs for part in parts]))


class GaussianErrors:
    """A ``types.Policy`` of kind ``bound`` but for sampling, around a ``GaussianPolicy``: errors of the velocity ``noise - clean``."""

    kind: Kind = "bound"
    gives = frozenset({"refs", "kls", "absolute", "noise"})

    def __init__(self, of: Any) -> None:
        self.of, self.sets = of, of.sets

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.of.parameters()  # type: ignore[no-any-return]

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.of.using(name)  # type: ignore[no-any-return]

    def velocity(self, drawn: Draws, rows: Tensor, columns: Tensor) -> tuple[Tensor, Tensor, Level]:
        """What is predicted, and the target, ``[B, C, D]`` each, and the levels ``[B, C, 1]``."""
        which = drawn.which[rows]
        places, noise = drawn.places[which][:, columns], drawn.noise[which][:, columns]
        level = Level(*(value[places].unsqueeze(-1) for value in self.of.levels))
        clean = drawn.clean[rows].unsqueeze(1)
        x = level.signal * clean + level.noise * noise
        guess = self.of.clean(x, places)
        return (x - level.signal * guess) / level.noise - guess, noise - clean, level

    @torch.no_grad()
    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int = 0) -> None:
        """Velocities under named sets of parameters."""
        drawn: Draws = rollout.held
        for name in names:
            with self.using(name):
                every = torch.arange(len(drawn.clean)), torch.arange(drawn.places.shape[1])
                drawn.refs[name] = self.velocity(drawn, *every)[0]

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        drawn: Draws = rollout.held
        columns = torch.arange(drawn.places.shape[1]) if columns is None else columns
        own, target, level = self.velocity(drawn, rows, columns)
        refs = {name: table[rows][:, columns] for name, table in drawn.refs.items()}
        facts = {"noise": level.noise.squeeze(-1)} if Need("noise") in needs else {}
        for need in (need for need in needs if need.kind == "absolute"):
            mixture = refs[need.name] + need.share * (own.detach() - refs[need.name])
            facts[str(need)] = (mixture - target).abs().mean(-1)
        return Steps(
            log_probs=-_halved(own, target),
            mask=rollout.mask[rows][:, columns],
            refs={name: -_halved(table, target) for name, table in refs.items() if {Need("refs"), Need("refs", name)} & needs},
            kls={name: _halved(own, table) for name, table in refs.items() if {Need("kls"), Need("kls", name)} & needs},
            facts=facts,
            event_size=self.of.size,
            kind="bound",
        )


def gone_back(
    policy: Any, rollout: Rollout, how: RewardGradient, utility: Callable[[Tensor, Tensor], Tensor], rng: torch.Generator,
    seeds: Tensor | None,
) -> Rollout:  # fmt: skip
    """See ``abilities.Differentiable.adjoints``; all rows at once. Errors: UserError for copies."""
    paths, rows = rollout.held, torch.arange(len(rollout))
    plan = how.plan(paths.stochastic.any(0) & rollout.mask.any(0), rng)
    if how.copies > 1:
        raise UserError(f"method.copies: got {how.copies}, takes 1 in this world")
    if how.subjects or how.tail < 1:
        raise UserError("method: its subjects or tail ask for attention or frames, and points of this world have none")
    last = torch.tensor([plan.last])

    def outcome(column: int, x: Tensor) -> Tensor:
        seen = (x if how.through else x.detach()).unsqueeze(1)
        return policy.outcome(x.unsqueeze(1), torch.tensor([column]), paths.stochastic, plan.end, seen).squeeze(1)  # type: ignore[no-any-return]

    def under() -> AbstractContextManager[None]:
        return nullcontext() if how.under == "current" else policy.using(how.under)  # type: ignore[no-any-return]

    with torch.no_grad():
        sample = paths.states[:, -1] if plan.end is None else policy.clean(paths.states[:, last], last).squeeze(1)
    gradient = torch.zeros_like(sample) if how.utility is None else of_reward(lambda x: utility(x, rows), sample)
    for one, own in zip(how.differences, () if seeds is None else seeds.T, strict=True):
        gradient = gradient + _pull(policy, rollout, plan.last, one, own)
    vectors = carried_back(plan, gradient, lambda column: paths.states[:, column], outcome, under)
    table = torch.zeros_like(paths.states[:, 1:])
    for column, vector in vectors.items():
        table[:, column] = vector
    facts = {**rollout.facts, str(ADJOINT_SIZE): table.norm(dim=-1)}
    held = replace(paths, adjoints=table, end=plan.end)
    return replace(rollout, mask=plan.trained.repeat(len(rollout), 1), held=held, facts=facts)


@torch.no_grad()
def noised(policy: Any, rollout: Rollout, column: int, noising: Noising, seeds: Tensor) -> Rollout:
    """See ``abilities.Differentiable.noised``; levels are those of the policy's own steps."""
    t, t_next = (Level(*(value[column + after] for value in policy.levels)) for after in (0, 1))
    levels = Level(*(value[:-1] for value in policy.levels))
    clean = policy.clean(rollout.held.states[:, [column]], torch.tensor([column])).squeeze(1)
    uniform, noise = score_differences.draws(seeds, clean)
    places = score_differences.places(uniform, levels, noising, t, t_next)
    if noising.trajectory:
        wide = Level(*(value[places].unsqueeze(-1) for value in levels))
        noise = score_differences.kept_noise(clean, rollout.held.states[:, column + 1], noise, t_next, wide)
    nothing = torch.full((len(clean), 1), torch.nan, dtype=torch.float64)
    held = Draws(clean, noise.unsqueeze(1), places.unsqueeze(1), torch.arange(len(clean)))
    return Rollout(rollout.prompts, rollout.outputs, nothing, nothing.isnan(), rollout.group, held)


@torch.no_grad()
def _pull(policy: Any, rollout: Rollout, column: int, one: score_differences.ScoreDifference | Adversary, seeds: Tensor) -> Tensor:
    if isinstance(one, Adversary):
        raise UserError("method.gan: asks for features of a denoiser, and points of this world have none; takes 0")
    if one.guidance != 1.0:
        raise UserError(f"method.guidance: got {one.guidance:g}, takes 1 in this world, whose prompts mean nothing")
    held: Draws = noised(policy, rollout, column, one.noising, seeds).held
    level = Level(*(value[held.places] for value in policy.levels))
    x = (level.signal * held.clean + level.noise * held.noise[:, 0]).unsqueeze(1)
    with policy.using(one.toward):
        toward = policy.clean(x, held.places).squeeze(1)
    with policy.using(one.away):
        away = policy.clean(x, held.places).squeeze(1)
    return one.weight * score_differences.pull(toward, away, held.clean, level, one.normaliser)


def _halved(one: Tensor, two: Tensor) -> Tensor:
    """Half of the squared distance, ``[B, C, D]`` twice -> ``[B, C]``."""
    return 0.5 * kernels.per_row((one - two).flatten(0, 1).square()).unflatten(0, one.shape[:2])
