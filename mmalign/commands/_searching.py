"""Numbers that no gradient reaches, found by what rewards say of the outputs: CMA-ES, with every answer kept, so that it goes on."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from mmalign.arguments.facts import Stateful
from mmalign.commands._answers import seeds_of
from mmalign.files import plain, write_text
from mmalign.merges.settings import Search
from mmalign.runs.progress import Progress
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, beside, combined, refuse_columns
from mmalign.types import UserError, columns_of, contents

FAR = 1e12  # worse than any reward: where a candidate loses what is to be kept


class Objective:
    """What a policy's outputs are worth once it has become what some numbers say. become: makes it so."""

    def __init__(self, policy: Any, search: Search, become: Callable[[Sequence[float]], None]):
        if not search.prompts:
            raise UserError("search.prompts: got none, takes one or more")
        self.policy, self.search, self.become = policy, search, become
        if isinstance(search.combine, Stateful) and search.combine.state is not None:
            raise UserError(
                "search.combine: keeps what it has seen, so that candidates would not be compared alike; takes one that does not"
            )
        for kind, functions in (("reward", search.rewards), ("kept", search.kept)):
            refuse_columns(functions, columns_of(search.prompts), kind=kind)
        self.rows = [prompt for prompt in search.prompts for _ in range(search.samples)]

    def __call__(self, numbers: Sequence[float]) -> dict[str, float]:
        """Means over outputs: ``reward``, combined, and ``kept/NAME``; the same seeds whatever the numbers are.

        Errors: UserError where a reward says nothing of any output.
        """
        self.become(numbers)
        scores: dict[str, list[torch.Tensor]] = {}
        for start in range(0, len(self.rows), self.search.rows_at_once):
            some = self.rows[start : start + self.search.rows_at_once]
            seeds = seeds_of(self.search.seed, start, len(some))
            prompts = contents(some)
            outputs = self.policy.generate(prompts, seeds, **self.search.call)
            columns = beside(some, rows=len(some))
            rewards = ask(self.search.rewards, outputs, prompts, columns)
            group = torch.arange(start, start + len(some)) // self.search.samples
            scores.setdefault("reward", []).append(combined(rewards, group, prompts, self.search.combine))
            for name, values in ask(self.search.kept, outputs, prompts, columns, kind="kept").items():
                scores.setdefault(f"kept/{name}", []).append(values)
        means = {name: float(torch.cat(parts).nanmean()) for name, parts in scores.items()}
        if silent := [name for name, value in means.items() if math.isnan(value)]:
            raise UserError(f"search: {silent[0]} says nothing of any output; takes one that does")
        return means


class Found(NamedTuple):
    """What a search came to. best: the numbers. before, after: what was measured of the start, and of the best. log: its file."""

    best: tuple[float, ...]
    before: dict[str, float]
    after: dict[str, float]
    evaluations: int
    rows: int
    log: Path

    @property
    def numbers(self) -> list[tuple[str, float, float]]:
        """Name, before, after."""
        return [(name, value, self.after[name]) for name, value in self.before.items()]

    def forget(self) -> None:
        """Takes the log away, now that the model's folder has it."""
        self.log.unlink()
        self.log.parent.rmdir()


def log_of(out: Path) -> Path:
    """Where the answers of a search are kept until the folder is there."""
    return out.with_name(f"{out.name}.search") / "search.jsonl"


def searched(objective: Objective, start: Sequence[float], *, log: Path, identity: Mapping[str, Any]) -> Found:
    """The best numbers of ``search.evaluations`` candidates, the start among them.

    A candidate that loses what is to be kept (a ``kept`` mean below the start's) is worse than any that does not, and the worse the more it
    loses (Deb's rule). log: a file of JSON lines with every answer; where it is there, its answers are taken in place of asking again, and
    the search goes on behind them to the same end. identity: what makes it another search.

    Errors: UserError for a log of another search, and without the package cma.
    """
    search, answers = objective.search, _Answers(log, identity, objective)
    before = answers(start)
    best, least = tuple(start), _loss(before, before)
    after = before
    with Progress(search.evaluations) as progress:
        for candidate, tell in _candidates(start, search):
            if answers.count >= search.evaluations:
                break
            numbers = answers(candidate)
            loss = _loss(numbers, before)
            tell(loss)
            if loss < least:
                best, least, after = tuple(candidate), loss, numbers
            progress.update(answers.count, {"reward": after["reward"]})
    return Found(best, before, after, answers.count, len(objective.rows), log)


def _loss(numbers: Mapping[str, float], before: Mapping[str, float]) -> float:
    lost = [max(0.0, before[name] - value) / max(1e-12, abs(before[name])) for name, value in numbers.items() if name.startswith("kept/")]
    return FAR * (1 + sum(lost)) if any(lost) else -numbers["reward"]


def _candidates(start: Sequence[float], search: Search) -> Any:
    """Candidates without end, each with whom to tell its loss; a generation is told once it is whole."""
    try:
        import cma
    except ImportError as error:
        raise UserError("search: needs the package cma, which is not installed: pip install 'mmalign[evolution]'") from error
    rng = np.random.default_rng(search.seed)
    settings = {"verbose": -9, "verb_log": 0, "seed": math.nan, "randn": lambda *shape: rng.standard_normal(shape)}
    strategy = cma.CMAEvolutionStrategy(list(start), search.spread, settings)
    while True:
        generation, losses = strategy.ask(), list[float]()
        for candidate in generation:
            yield [float(value) for value in candidate], losses.append
        strategy.tell(generation, losses)


class _Answers:
    """What candidates were found to be worth, asked once each and kept in a file."""

    def __init__(self, log: Path, identity: Mapping[str, Any], objective: Objective):
        self.log, self.objective, self.count = log, objective, 0
        search = objective.search
        asked = {"prompts": hashed(search.prompts), "rewards": sorted(search.rewards), "kept": sorted(search.kept)}
        head = plain({**identity, **asked, "samples": search.samples, "call": search.call, "spread": search.spread, "seed": search.seed})
        self.known: list[dict[str, Any]] = []
        if log.is_file():
            first, *self.known = _lines(log)
            if first != json.loads(json.dumps(head)):
                odd = next(key for key in head if first.get(key) != json.loads(json.dumps(head[key])))
                raise UserError(f"out: {log} is of another search, which differs in {odd}; takes another out, or take that file away")
        write_text(log, "".join(json.dumps(line) + "\n" for line in (head, *self.known)))

    def __call__(self, candidate: Sequence[float]) -> dict[str, float]:
        numbers = [float(value) for value in candidate]
        if self.count < len(self.known):
            line = self.known[self.count]
            if not np.allclose(line["numbers"], numbers, rtol=1e-9, atol=1e-12):
                raise UserError(f"out: {self.log} holds other candidates than this search makes; takes another out, or take it away")
            self.count += 1
            return dict(line["found"])
        found = self.objective(numbers)
        with open(self.log, "a", encoding="utf-8") as file:
            file.write(json.dumps({"numbers": numbers, "found": found}) + "\n")
        self.count += 1
        return found


def _lines(log: Path) -> list[dict[str, Any]]:
    """Whole lines; what a process that was killed wrote half of the last one is left out. Errors: UserError for no search's file."""
    lines = log.read_text(encoding="utf-8").split("\n")[:-1]
    try:
        read = [json.loads(line) for line in lines]
    except ValueError as error:
        raise UserError(f"out: {log} is no log of a search; takes another out, or take that file away") from error
    if not read:
        raise UserError(f"out: {log} is no log of a search; takes another out, or take that file away")
    return read
