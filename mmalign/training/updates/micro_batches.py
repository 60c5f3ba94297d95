"""The rows of an update in micro-batches: what a method sees of them at once, its signal, and what each cell counts for in all of it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.distributed import tables as of_all
from mmalign.distributed.team import Team
from mmalign.stacking import joined, stacked
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.units import inside_processes, live_columns, micro_sizes
from mmalign.types import Method, Need, Policy, Steps


class MicroBatch(NamedTuple):
    """Rows that are seen at once. steps: their table, with gradient. signal: theirs. weight: ``[R, C]``, what each cell counts for in the
    loss of the whole update. places: ``[R]``, of these rows among those of their experience."""

    steps: Steps
    signal: Tensor
    weight: Tensor
    places: Tensor


@dataclass(frozen=True)
class MicroBatches:
    """How the rows of an update are split, those that this process holds. needs: what steps must hold. team: the processes of the run."""

    policy: Policy
    method: Method
    needs: frozenset[Need]
    team: Team

    def weighed(self, experiences: Sequence[Experience], micro_rows: int) -> list[tuple[Experience, Tensor]]:
        """The rows of one update, surveyed, and what each of their cells counts for in all of it."""
        experiences = [self._surveyed(experience, micro_rows) for experience in experiences]
        masks = [experience.mask for experience in experiences]  # texts of one rollout may be longer than all of another
        return list(zip(experiences, self.method.weigh(stacked(masks)).split([len(mask) for mask in masks]), strict=True))

    def of(self, experience: Experience, weight: Tensor, micro_rows: int, micro_steps: int | None) -> Iterator[MicroBatch]:
        """The micro-batches of weighed rows; one of all of them where those to be seen at once are held by several processes."""
        places = torch.arange(len(experience.rows))
        if self.apart(experience):
            live = torch.nonzero(experience.mask.any(0)).flatten()
            if len(live):
                steps = self._steps_of_all(experience, live, self.needs)
                yield MicroBatch(steps, experience.signal_at(experience.rows, live), weight[:, live], places)
            return
        own, weight, places = experience.own(), weight[experience.here], places[experience.here]
        sizes = micro_sizes(self.method.unit, own.group, micro_rows)
        for rows, part, at in zip(own.rows.split(sizes), weight.split(sizes), places.split(sizes), strict=True):
            every = live_columns(own.rollout, rows)  # none: no row, or none with a live cell
            for live in every.split(micro_steps or len(every)) if len(every) else ():
                steps = self.policy.steps(own.rollout, rows, live, needs=self.needs)
                yield MicroBatch(steps, own.signal_at(rows, live), part[:, live], at)

    def whole_rows(self, experiences: Sequence[Experience], micro_rows: int) -> Iterator[MicroBatch]:
        """The micro-batches of an update with all steps of their rows."""
        for experience, weight in self.weighed(experiences, micro_rows):
            yield from self.of(experience, weight, micro_rows, None)

    def largest(self, experiences: Sequence[Experience], micro_rows: int) -> int:
        """Rows of the largest micro-batch of an update in this process."""
        sizes = [0]
        for experience in experiences:
            apart, own = self.apart(experience), experience.own()
            sizes += [len(experience.rows)] if apart else micro_sizes(self.method.unit, own.group, micro_rows)
        return max(sizes)

    def apart(self, experience: Experience) -> bool:
        """Whether rows that the method has to see at once are held by several processes."""
        return not bool(inside_processes(self.method.unit, experience).all())

    def _steps_of_all(self, experience: Experience, columns: Tensor, needs: frozenset[Need], *, rows_at_once: int = 0) -> Steps:
        """Steps ``[R, C]`` of the experience's rows, wherever they are held; rows_at_once: of this process's, 0 for all."""
        own, here = experience.own(), experience.here
        columns = columns[columns < own.rollout.mask.shape[1]]
        parts = [
            self.policy.steps(own.rollout, rows, columns, needs=needs) for rows in own.rows.split(rows_at_once or len(here)) if len(rows)
        ]
        if self.team.size == 1:
            return joined(parts)
        return of_all.steps(self.team, joined(parts) if parts else None, torch.nonzero(here).flatten(), kind=self.policy.kind)

    def _surveyed(self, experience: Experience, micro_rows: int) -> Experience:
        """The same rows with what the method's survey of them has put into the signal; as it is for a method without one."""
        rows = experience.rows
        if self.method.survey is None or not len(rows):
            return experience
        columns = torch.arange(experience.tables.mask.shape[1])
        with torch.no_grad():
            needs = self.needs | self.method.survey_needs
            steps = self._steps_of_all(experience, columns, needs, rows_at_once=micro_rows)
            surveyed = self.method.survey(steps, experience.signal[rows])
        filled = surveyed.new_zeros((len(experience.signal), *surveyed.shape[1:]))
        filled[rows] = surveyed
        return replace(experience, signal=filled)
