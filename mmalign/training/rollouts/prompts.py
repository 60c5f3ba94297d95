"""The prompts of an online run in turn, without those that the policy refuses: these are put aside, and the next ones take their place."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import count as numbers_from
from itertools import islice
from typing import Any

import torch

from mmalign.distributed.team import ALONE, Team
from mmalign.training.seeds import stream
from mmalign.training.updates.recovery import out_of_memory
from mmalign.types import Policy, Prompt, Rollout, UserError, contents

REFUSED = (UserError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, RuntimeError)
"""What a rollout raises where a prompt may be the cause; the policy is then asked which."""


class Prompts:
    """An endless list of prompts: all of them shuffled, then shuffled again, and so on, those that are put aside left out.

    A step takes the next ones. Every further attempt of a step has a list of its own, from the same place on, so that what it takes depends
    on nothing that came before. Whether a prompt was known to be refused, or is found to be, changes nothing of what follows.

    Of several processes, ``team``, each samples its part of the same prompts.

    position: in the list, of the step's first prompt. upcoming: of the next step's. aside: name -> why, of the prompts that are put aside.
    """

    def __init__(self, prompts: Sequence[Any], policy: Policy, *, seed: int, team: Team = ALONE):
        self.prompts, self.policy, self.seed, self.team = prompts, policy, seed, team
        self.position = self.upcoming = 0
        self.aside: dict[str, str] = {}
        self._out: set[int] = set()  # their places

    def resumed(self, aside: Mapping[str, str], *, position: int) -> None:
        """Goes on from a place in the list, and does not ask again what was put aside before."""
        self.upcoming = position
        places = {_name(self.prompts, place): place for place in range(len(self.prompts))} if aside else {}
        self._put_aside({places[name]: why for name, why in aside.items() if name in places})

    def first(self, count: int) -> list[Any]:
        """The first so many that the policy can be asked. Errors: UserError where there is none."""
        usable: list[Any] = []
        for start in range(0, len(self.prompts), count):
            places = range(start, min(start + count, len(self.prompts)))
            refused = self._refused(places)
            usable += [self.prompts[place] for place in places if place not in refused]
            if len(usable) >= count:
                break
        if not usable:
            raise self._none_left()
        return usable[:count]

    def sampled(self, sample: Callable[[list[Any]], Rollout], count: int, *, attempt: int) -> tuple[list[Any], Rollout]:
        """The next ``count`` prompts, and what ``sample`` makes of them.

        sample: called again, without the prompts that the policy refuses, where it raises because of some. Errors: what it raises where
        no prompt is the cause; UserError where all prompts are put aside.
        """
        if attempt == 0:
            self.position = self.upcoming
        while True:
            places, end = self._next(count, attempt)
            chosen = [self.prompts[place] for place in places]
            rollout, refused = None, None
            try:
                rollout = sample(chosen)
            except REFUSED as error:
                if out_of_memory(error):
                    raise
                refused = error
            if self.team.any(refused is not None):  # then each process asks its policy about all of them, and hears the same
                if not self._refused(places) and refused is not None:
                    raise refused
            elif rollout is not None:
                if attempt == 0:
                    self.upcoming = end
                return chosen, rollout

    def _next(self, count: int, attempt: int) -> tuple[list[int], int]:
        """The places of the next prompts that are not put aside, and where in the endless list they end."""
        if len(self._out) == len(self.prompts):
            raise self._none_left()
        coming = ((position, place) for position, place in self._in_turn(attempt) if place not in self._out)
        positions, places = zip(*islice(coming, count), strict=True)
        return list(places), positions[-1] + 1

    def _in_turn(self, attempt: int) -> Iterator[tuple[int, int]]:
        """Position in the endless list, and place among the prompts, from the step's first on."""
        first, start = divmod(self.position, len(self.prompts))
        for number in numbers_from(first):
            order = torch.randperm(len(self.prompts), generator=stream(self.seed, number, attempt, "prompts")).tolist()
            yield from ((number * len(order) + at, order[at]) for at in range(start, len(order)))
            start = 0

    def _refused(self, places: Sequence[int]) -> set[int]:
        """Asks the policy, and puts aside what it refuses."""
        distinct = list(dict.fromkeys(places))
        refusals = self.policy.refusals(contents([self.prompts[place] for place in distinct]))
        self._put_aside({distinct[at]: why for at, why in refusals.items()})
        return {distinct[at] for at in refusals}

    def _put_aside(self, refused: Mapping[int, str]) -> None:
        self._out |= refused.keys()
        self.aside |= {_name(self.prompts, place): why for place, why in refused.items()}

    def _none_left(self) -> UserError:
        name, why = list(self.aside.items())[-1]
        return UserError(f"prompts: the policy refuses all {len(self.prompts)}; the last one, {name}: {why}")


def refuse_unusable(policy: Policy, prompts: Sequence[Any] | None) -> None:
    """Errors: UserError, in one line, for prompts of evaluations that were named and that the policy cannot be asked."""
    for place, why in policy.refusals(contents(prompts or [])).items():
        raise UserError(f"evaluation.prompts: the policy refuses {_name(prompts or [], place)}: {why}")


def _name(prompts: Sequence[Any], place: int) -> str:
    """``prompt 3``, counted from 1, with the id that it has as a column."""
    prompt = prompts[place]
    columns = prompt.columns if isinstance(prompt, Prompt) else {}
    return f"prompt {place + 1}" + (f" (id {columns['id']})" if columns.get("id") is not None else "")
