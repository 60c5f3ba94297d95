"""Rows of records that the policy draws itself, and what is said of them: what `records.Unfinished` records ask of it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any

import torch

from mmalign.distributed.shards import held
from mmalign.distributed.team import Team
from mmalign.needs import refs
from mmalign.records import Drawn, Pair, Unfinished
from mmalign.training.rollouts.feedback import ask, combined
from mmalign.training.seeds import stream
from mmalign.types import Encoder, Feedback, Method, Rollout, UserError


class OwnRows:
    """The ``Author`` of a run. seed: of the run. began: whether its sets of parameters are there; before, all are the current."""

    def __init__(self, policy: Encoder, method: Method, *, seed: int, rows_at_once: int):
        self.policy, self.method, self.seed, self.rows_at_once, self.began = policy, method, seed, rows_at_once, False

    def begin(self, source: Any, moved: Sequence[str]) -> None:
        """From now on the sets of parameters are there. moved: names of those that steps begin with making.

        Errors: UserError for records that name one that nothing makes.
        """
        self.began = True
        known = {"current", "ref", *self.policy.sets.tables(), *self.policy.sets.foreign, *moved} - {"trained"}
        for name in drawing(source):
            if name not in known:
                takes = f"takes {', '.join(sorted(known))}, or references.{name}: {{every: N}}"
                raise UserError(f"records.by: got {name!r}, which nothing makes; {takes}")

    def _under(self, by: str | None) -> AbstractContextManager[None]:
        return self.policy.using((by or self.method.sampled_by) if self.began else "current")

    @torch.no_grad()
    def draw(self, prompts: list[Any], names: list[str], *, by: str | None, call: Mapping[str, Any]) -> list[Any]:
        """See ``Author``."""
        seeds = [int(torch.randint(2**31, (), generator=stream(self.seed, "own", name))) for name in names]
        if not prompts:
            return []
        with self._under(by), held(self.policy):
            return list(self.policy.generate(prompts, seeds, **call))

    @torch.no_grad()
    def gains(
        self, prompts: list[Any], outputs: list[Any], group: list[int], *, by: str | None, looks: int, names: list[str]
    ) -> list[float]:
        """See ``Author``: of a bound the mean over its draws, of tokens their sum."""
        if not outputs or not self.began:
            return [0.0] * len(outputs)
        total = torch.zeros(len(outputs), dtype=torch.float64)
        several = [[place for place, one in enumerate(group) if one == number] for number in dict.fromkeys(group)]
        for look in range(looks):
            rollout = Rollout.join([self._noised(prompts, outputs, rows, look, names[rows[0]]) for rows in several])
            with self._under(by):  # the set in place is the current one there
                self.policy.remember(rollout, ["ref"], self.rows_at_once)
                needs = frozenset({refs("ref")})
                parts = [self.policy.steps(rollout, rows, needs=needs) for rows in torch.arange(len(outputs)).split(self.rows_at_once)]
            apart = [((part.log_probs - part.refs["ref"]) * part.mask).sum(1) for part in parts]
            total += torch.cat(apart) / (rollout.mask.sum(1).clamp(min=1) if parts[0].kind == "bound" else 1)
        return (total / looks).tolist()

    def _noised(self, prompts: list[Any], outputs: list[Any], rows: list[int], look: int, name: str) -> Rollout:
        """The rows of one group, with noise that depends on its name alone, whoever has the others."""
        one_group, rng = torch.zeros(len(rows), dtype=torch.int64), stream(self.seed, "looks", look, name)
        return self.policy.encode([prompts[row] for row in rows], [outputs[row] for row in rows], one_group, rng)

    @torch.no_grad()
    def rewards(
        self, rewards: Mapping[str, Callable[..., Any]], combine: Callable[..., Any] | None, prompts: list[Any], outputs: list[Any],
        group: list[int], columns: Mapping[str, list[Any]],
    ) -> list[float]:  # fmt: skip
        """See ``Author``."""
        images = torch.stack(outputs) if isinstance(outputs[0], torch.Tensor) else outputs
        return combined(ask(rewards, images, prompts, dict(columns), drop=True), torch.tensor(group), prompts, combine).tolist()


def drawing(source: Any) -> list[str]:
    """The set of parameters that records name to draw rows, if they name one."""
    return [source.by] if isinstance(source, Unfinished) and source.by is not None else []


def finished(source: Any, records: list[Any], author: OwnRows, team: Team) -> list[Any]:
    """A step's records with outputs that the policy drew, each in the process whose row it is; what is said of them in all."""
    if not isinstance(source, Unfinished):
        return records
    part = team.share(len(records))
    own = source.finished(records[part], author)
    said = [one for several in team.tell([_said(record) for record in own]) for one in several]
    done = [*records[: part.start], *own, *records[part.stop :]]
    return source.settled([record._replace(**words) for record, words in zip(done, said, strict=True)])


def _said(record: Any) -> dict[str, Any]:
    return {"strength": record.strength, "scores": tuple(record.scores)} if isinstance(record, Pair) else {}


def labelled(feedback: Feedback, records: list[Any]) -> Feedback:
    """Of records as they were before they were finished: rows that were given are labelled 1, the drawn ones beside them 0.

    Rows of a record of which all, or none, was drawn are labelled by its strength. The feedback as it is where no pair has one of each.
    """
    drawn = [[isinstance(output, Drawn) for output in record[1:3]] if isinstance(record, Pair) else [] for record in records]
    if not any(len(set(both)) == 2 for both in drawn):
        return feedback
    labels = [
        [1.0 - own for own in both] if len(set(both)) == 2 else [record.strength, 1 - record.strength]
        for both, record in zip(drawn, records, strict=True)
    ]
    return replace(feedback, labels=torch.tensor([label for both in labels for label in both], dtype=torch.float64))
