"""Records beside rollouts: what ``mix`` adds to every update of an online run."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from typing import Any

from mmalign.distributed.team import team_for
from mmalign.needs import as_bound
from mmalign.recipes._beside import Beside
from mmalign.recipes._foreseen import refuse_records, streamed
from mmalign.recipes._records import feedbacks, learned_from, next_encoded
from mmalign.records import Unfinished
from mmalign.training.rollouts.dead_steps import refuse_unknown
from mmalign.training.rollouts.same_records import SameRecords
from mmalign.training.seeds import stream
from mmalign.training.settings import Mix
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.micro_rows import MicroRows
from mmalign.training.updates.units import refuse_mismatch
from mmalign.types import Method, Policy, UserError

PREFIX = "mix/"
"""How the names of numbers begin that the log has of them."""


def mixed_in(
    mix: Mix | None, learner: Learner, fitting: MicroRows, *, seed: int, put_aside: Callable[[dict[str, str]], None]
) -> Mixed | None:
    """What is mixed into a run's updates, asked for from now on by its learner; None without any.

    Errors: UserError for records that the policy or their method cannot use, which begins with ``mix``.
    """
    if mix is None:
        return None
    try:
        return Mixed(mix, learner, fitting, seed=seed, put_aside=put_aside)
    except UserError as error:
        raise UserError(f"mix.{error}") from error


class Mixed:
    """The records of a ``settings.Mix``, ``count`` for each update; it has state, the place in the data.

    learner: of the run, whose optimiser moves the parameters: another one around the same policy makes the gradients. put_aside: is told,
    id -> why, of records that cannot be used. Errors: UserError as ``mixed_in``, without its prefix.
    """

    def __init__(self, mix: Mix, learner: Learner, fitting: MicroRows, *, seed: int, put_aside: Callable[[dict[str, str]], None]):
        self.mix, self.learner, self.fitting, self.seed, self.put_aside = mix, learner, fitting, seed, put_aside
        self.policy: Any = learner.policy
        refuse_method(mix.method)
        _refuse_policy(self.policy, mix.method)
        self.source, self.coming_from = streamed(mix.records, seed=seed)
        if isinstance(self.source, Unfinished):
            raise UserError("records: leave rows to the policy, which has those of its rollouts; takes finished ones")
        refuse_records(self.policy, self.coming_from, mix.method, count=mix.count)
        refuse_unknown(mix.method, feedbacks(self.coming_from(), mix.method, list, count=mix.count))
        team_for(mix.count, "count")
        self.beside = Beside(learner, mix.method, PREFIX, weight=mix.weight)
        self.own, self.largest = self.beside.own, self.beside.largest
        self.same, self.position, self.aside = SameRecords(self.source), 0, dict[str, str]()
        self.coming: Iterator[Any] | None = None

    def next(self, step: int, update: int) -> None:
        """The records of the next update are read, encoded and known to the references. step, update: what randomness depends on."""
        if self.coming is None:
            self.coming = self.coming_from(start=self.position)
        draw = partial(stream, self.seed, step, "mix", update)
        method, team, fit = self.own.method, self.own.team, self.fitting.fit
        try:
            records, feedback, rollout = next_encoded(self.policy, method, self.coming, self.mix.count, draw, self.aside, list, team)
        except UserError as error:
            raise UserError(f"mix.{error}") from error
        self.position = records[-1].position
        self.put_aside(self.aside | self.source.broken)
        least = partial(min, len(rollout))
        fit(partial(self.own.remember, rollout), least)
        tables = fit(lambda most: self.own.tables(rollout, micro_rows=most), least)
        self.beside.begin()
        self.beside.experience, _ = learned_from(method, replace(feedback, tables=tables), rollout, team)

    def dump(self) -> dict[str, Any]:
        """As JSON."""
        return {"position": self.position, **self.same.dump(), "method": self.beside.dump()}

    def load(self, kept: Mapping[str, Any]) -> None:
        """Goes on where ``dump`` was. Errors: UserError for other records than those that the run began with."""
        try:
            self.same.load({"digest": kept["digest"]})
        except UserError as error:
            raise UserError(f"mix.{error}") from error
        self.position, self.coming = kept["position"], None
        self.beside.load(kept["method"])


def refuse_method(method: Method) -> None:
    """Errors: UserError for a method of rollouts, and for one with sets of parameters of its own that move: those are the run's."""
    own = {"behaviors": method.behaviors, "moves": method.moves, "companions": method.companions, "gradients": method.reward_gradient}
    if held := [name for name, value in own.items() if value]:
        raise UserError(f"method: has {held[0]} of its own, which belong to a run; takes one that learns from records alone (sft, dpo)")


def _refuse_policy(policy: Policy, method: Method) -> None:
    if policy.kind == "transition":
        raise UserError(f"records: hold finished outputs, and the policy learns from steps that it samples; {as_bound('diffusers')}")
    refuse_mismatch(policy, method)
