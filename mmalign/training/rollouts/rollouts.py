"""Rollouts of an online run, a part after another, and what rewards say of each part while the next one is sampled."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch

from mmalign.distributed.shards import held
from mmalign.distributed.team import ALONE, Team
from mmalign.needs import DRIFT
from mmalign.training.rollouts.background import Background
from mmalign.training.rollouts.feedback import Scores, beside
from mmalign.training.rollouts.prompts import Prompts
from mmalign.training.seeds import stream
from mmalign.training.settings import Batch
from mmalign.training.updates.learner import BEHIND
from mmalign.types import Method, Policy, Rollout, contents


class Sampled(NamedTuple):
    """A rollout and its prompts, those of all processes; ``scores()`` waits for what was said of its rows.

    position: of its first prompt in the list of prompts.
    """

    prompts: list[Any]
    rollout: Rollout
    scores: Callable[[], Scores]
    position: int


class Rollouts:
    """What a step samples: ``batch.prompts`` prompts in ``batch.overlap`` parts, of which each is shown to ``ask`` in the background.

    A row is that of its place in the step, whatever the parts, and ``ask`` sees the parts in their order, whole groups. So the numbers
    are those of one part, but for rounding where a part has other batches than the whole (``rows_at_once``).

    With ``batch.staleness`` a step's rollout is sampled in the step before, while ``ask`` looks at that one's; the first one, and the
    first of a resumed run, by the parameters that were kept for it (``learner.BEHIND``). method: whose ``behaviors`` and
    ``sampled_by`` draw the rows; None: the current policy alone. steps: of the run, behind whose end nothing is sampled.
    decode: whether somebody looks at outputs.
    """

    def __init__(  # all that a rollout depends on
        self, policy: Policy, prompts: Prompts, ask: Callable[[Rollout], Scores], background: Background, *, batch: Batch, seed: int,
        method: Method | None = None, team: Team = ALONE, steps: int = 0, decode: bool = True,
    ):  # fmt: skip
        self.policy, self.prompts, self.ask, self.background, self.batch, self.seed = policy, prompts, ask, background, batch, seed
        self.parts = parts_of(team.share(batch.prompts), min(batch.overlap, batch.prompts // team.size))
        self.drawing: dict[str, Any] = {"behaviors": method.behaviors} if method is not None and method.behaviors else {}
        self.drawing |= {} if decode else {"decode": False}
        if method is not None and DRIFT in method.needs | method.survey_needs:
            self.drawing["drift"] = True
        if method is not None and method.masking is not None:
            self.drawing["masking"] = method.masking
        self.sampled_by = "current" if method is None else method.sampled_by
        self.steps, self.coming = steps, None  # type: int, Sampled | None

    @property
    def position(self) -> int:
        """Where, in the list of prompts, a run goes on that is resumed after this step."""
        return self.prompts.upcoming if self.coming is None else self.coming.position

    def __call__(self, step: int, *, attempt: int = 0) -> Sampled:
        """The rollout of a step. attempt: a further one of the same step, which is never sampled early."""
        if attempt or not self.batch.staleness:
            return self._sampled(step, attempt)
        if self.coming is None:
            with self.policy.using(BEHIND):
                self.coming = self._sampled(step, 0)
        now, rollout = self.coming, self.coming.rollout
        scores = self.background(lambda: self.ask(rollout))
        self.coming = self._sampled(step + 1, 0) if step + 1 < self.steps else None
        self.prompts.position = now.position  # from where further attempts of this step go on
        return now._replace(scores=scores)

    def _sampled(self, step: int, attempt: int) -> Sampled:
        rollouts, waiting = list[Rollout](), list[Callable[[], Scores]]()
        asked_at_once = bool(attempt) or not self.batch.staleness

        def sample(some: list[Any]) -> Rollout:
            prompts = contents(some)
            rollouts.clear()  # those of prompts that were refused
            waiting.clear()
            for part in self.parts:
                rng = stream(self.seed, step, attempt)
                with nullcontext() if self.sampled_by == "current" else self.policy.using(self.sampled_by), held(self.policy):
                    rollout = self.policy.sample(prompts, self.batch.group, rng, step=step, part=part, **self.drawing)
                rollout.columns |= beside(some[part], rows=len(rollout))
                rollouts.append(rollout)
                if asked_at_once:
                    waiting.append(self.background(partial(self.ask, rollout)))
            return rollouts[0]

        chosen, _ = self.prompts.sampled(sample, self.batch.prompts, attempt=attempt)
        return Sampled(chosen, joined(rollouts), lambda: Scores.join([wait() for wait in waiting]), self.prompts.position)


def parts_of(some: slice, count: int) -> list[slice]:
    """A stretch of a list in so many parts of the same length, or one less."""
    length = some.stop - some.start
    return [slice(some.start + length * part // count, some.start + length * (part + 1) // count) for part in range(count)]


def joined(parts: Sequence[Rollout]) -> Rollout:
    """Parts of one rollout as the whole: its groups and branches keep their numbers."""
    if len(parts) == 1:
        return parts[0]
    whole = Rollout.join(parts)
    whole.group = torch.cat([part.group for part in parts])
    whole.branch = None if whole.branch is None else torch.cat([part.branch for part in parts if part.branch is not None])
    return whole
