"""Sets of the policy's parameters that are trained beside it, each by a method and an optimiser of its own (``types.Companion``)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.abilities import Featured
from mmalign.distributed.tables import Whole
from mmalign.needs import REALISM, lacking
from mmalign.samplers.score_differences import Companion
from mmalign.training.optimizers import Optimizer
from mmalign.training.rollouts.given import Given
from mmalign.training.seeds import stream
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.units import in_units
from mmalign.types import Feedback, Rollout, UserError

Fit = Callable[..., Any]


class Companions:
    """Trains the companions of a run's method on its rollouts, before the policy learns from these.

    learner: of the policy, in whose checkpoints they are. optimizer: of the policy, whose rate each may have another of. fit:
    ``MicroRows.fit``. given: for those that tell samples from given data. Every update draws the step whose clean estimates are noised,
    the levels and the noise anew.
    """

    def __init__(self, learner: Learner, optimizer: Optimizer, fit: Fit, *, seed: int, given: Given | None = None):
        self.learner, self.fit, self.seed, self.policy, self.given = learner, fit, seed, learner.policy, given
        self.each = learner.method.companions
        for companion in self.each:
            if companion.name not in self.policy.sets.tables():
                self.policy.sets.keep(companion.name)
            own = replace(optimizer, ema=None, rate=optimizer.rate if companion.rate is None else companion.rate)
            view = self.policy.errors  # type: ignore[attr-defined]
            if REALISM in companion.method.needs and isinstance(view, Featured):
                with self.policy.using(companion.name):
                    view = view.classifying(companion.name)
            if lacks := lacking(companion.method, view.gives):
                raise UserError(f"method: its {companion.name} needs {', '.join(lacks)}; this policy gives {', '.join(sorted(view.gives))}")
            learner.companions[companion.name] = Learner(
                view, companion.method, own, steps=learner.steps, team=learner.team, non_finite=learner.non_finite.then
            )

    def trained(self, rollout: Rollout, whole: Whole, feedback: Feedback, purpose: tuple[int, int]) -> dict[str, float]:
        """Trains all of them on a rollout; what was measured, by ``NAME_``. whole, feedback: of all rows, those of other processes too.
        purpose: step and attempt, which randomness depends on."""
        measured = dict[str, float]()
        for companion in self.each:
            learner = self.learner.companions[companion.name]
            learner.profile = self.learner.profile
            learner.begin(purpose[0])
            update = partial(self._update, companion, learner, rollout, whole, feedback)
            rows = [update(stream(self.seed, *purpose, companion.name, number), purpose[0]) for number in range(companion.updates)]
            for name in ("loss", "grad_norm", "skipped"):
                values = [row[name] for row in rows]
                measured[f"{companion.name}_{name}"] = sum(values) / len(values)
        return measured

    def _update(
        self, companion: Companion, learner: Learner, rollout: Rollout, whole: Whole, feedback: Feedback, rng: torch.Generator, step: int
    ) -> dict[str, float]:
        column = companion.plan(torch.zeros(rollout.mask.shape[1], dtype=torch.bool), rng).last
        seeds = own_seeds(rng, whole, 1, shared=companion.noising.shared)[:, 0]
        noised = partial(self.policy.noised, rollout, column, companion.noising, seeds)  # type: ignore[attr-defined]
        more: dict[str, Any] = {}
        if REALISM in companion.method.needs and self.given is not None:
            more["given"] = self.given.rows(len(whole.owner), whole.owner == whole.rank)
        _, rows = self.fit(lambda most: noised(rows_at_once=most, **more), partial(min, len(rollout)))
        method = companion.method
        kept = torch.ones_like(feedback.rewards, dtype=torch.bool) if method.keep is None else method.keep(feedback)
        everywhere = Whole(torch.ones((len(whole.owner), 1), dtype=torch.bool), whole.group, whole.owner, whole.rank)
        experience = Experience(rows, method.signal(feedback), in_units(method, feedback, kept), everywhere)
        if not len(experience.rows):
            return {"loss": 0.0, "grad_norm": 0.0, "skipped": 0.0}

        def update(most: int) -> dict[str, float]:
            learner.policy.remember(rows, learner.references, most)
            with self.policy.using(companion.name):
                found = learner.update([experience], micro_rows=most, step=step)
                self.policy.sets.keep(companion.name)
            return found

        return self.fit(update, partial(learner.micro_batches.largest, [experience]))  # type: ignore[no-any-return]


def own_seeds(rng: torch.Generator, whole: Whole, count: int, *, shared: bool = False) -> Tensor:
    """Seeds ``[B, count]`` of the rows that this process holds, whichever others do. shared: rows of a group have the same."""
    seeds = torch.randint(2**62, (len(whole.owner), count), generator=rng)
    return (seeds[whole.group] if shared else seeds)[whole.owner == whole.rank]
