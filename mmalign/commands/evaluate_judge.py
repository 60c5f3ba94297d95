"""What is wrong with a judge: pairs of a benchmark shown in both orders, again and again, under several templates."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count
from mmalign.commands._resumed import resumed
from mmalign.commands.evaluate import Evaluated, scored
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.evaluation.comparisons import Comparison, RewardSuite
from mmalign.evaluation.consistency import principle_statistics
from mmalign.evaluation.intervals import Interval, Scores
from mmalign.evaluation.judge_statistics import judge_agreement, judge_statistics
from mmalign.media import Broken
from mmalign.runs.folder import held
from mmalign.types import UserError

Verdicts = Mapping[str, list[list[float]]]
"""template -> of each order the verdicts of its repetitions."""


def evaluate_judge(
    suite: RewardSuite, *, judges: Mapping[str, Callable[..., list[float]]], out: str | Path, repetitions: Count = 1,
    by_principle: bool = False, batch: Count = 8, who: str = "",
) -> Evaluated:  # fmt: skip
    """Asks judges about a benchmark's pairs in both orders, and counts their biases: of place, of length, and by chance.

    Args:
        suite: from ``mm.evaluation.suites``, of pairs.
        judges: template -> a judge that is asked in one order, ``mm.rewards.judge_in_order(...)``: what is asked under several wordings is
            compared (``A x B``).
        out: a folder. ``verdicts.jsonl`` there grows with every batch, and a call that was interrupted goes on behind it.
        repetitions: how often each order is asked; 2 or more for a flip rate, with a judge whose ``temperature`` is above 0.
        by_principle: templates are principles: how they stand to each other, and how people's preferences stand to them
            (`evaluation.principle_statistics`), is counted, too.
        batch: pairs at once. who: the judge's name, for the files.

    `evaluation.judge_statistics` says what the numbers are. A verdict that could not be had is missing and counted.

    Errors: UserError for no judge, comparisons of more than two outputs, no verdict at all, a folder that another process asks for.
    """
    if not judges:
        raise UserError("judges: got none, takes one {template: judge} or more")
    if odd := next((item for item in suite.items if len(item.outputs) != 2), None):
        raise UserError(f"evaluate_judge: {suite.name} compares {len(odd.outputs)} outputs ({odd.id}), takes a benchmark of pairs")
    team, folder = joined(), Path(out)
    head = {"suite": suite.name, "who": who, "templates": list(judges), "repetitions": repetitions}
    with stopping_together(team), ExitStack() as stack:
        team_for(-(-len(suite.items) // batch), f"batches of {batch} pairs")
        team.agree("eval", head)
        if team.main:
            stack.enter_context(held(folder, "verdicts"))

        def ask(places: list[int]) -> list[Verdicts]:
            return _asked([suite.items[place] for place in places], judges, repetitions)

        ids = [item.id for item in suite.items]
        found = resumed(folder / "verdicts.jsonl", ids, ask, field="verdicts", head=head, batch=batch, team=team)
        judged = replace(
            suite, score=_principled if by_principle else _statistics, headline=("position_bias", "order_flips", "flip_rate", "accuracy")
        )
        return Evaluated(folder, judged, scored(judged, [found[name] for name in ids], folder, {"who": who}, team, _shown))


def _shown(item: Comparison, verdicts: Verdicts) -> dict[str, Any]:
    return {"id": item.id, "subset": item.subset, "verdicts": dict(verdicts)}


@torch.no_grad()
def _asked(items: Sequence[Comparison], judges: Mapping[str, Callable[..., list[float]]], repetitions: int) -> list[Verdicts]:
    read: list[tuple[Any, ...] | None] = []
    for item in items:
        try:
            read.append(item.read())
        except Broken:
            read.append(None)
    asked = [number for number, own in enumerate(read) if own is not None]
    table: list[dict[str, list[list[float]]]] = [{name: [[math.nan] * repetitions] * 2 for name in judges} for _ in items]
    for name, judge in judges.items():
        questions = [(number, order) for number in asked for order in (0, 1) for _ in range(repetitions)]
        pairs = [read[number] or () for number, _ in questions]
        verdicts = judge(
            [items[number].prompt for number, _ in questions],
            [pair[order] for pair, (_, order) in zip(pairs, questions, strict=True)],
            [pair[1 - order] for pair, (_, order) in zip(pairs, questions, strict=True)],
        )
        for place, number in enumerate(asked):
            start = 2 * repetitions * place
            table[number][name] = [verdicts[start : start + repetitions], verdicts[start + repetitions : start + 2 * repetitions]]
    return list(table)


def _statistics(items: Sequence[Comparison], replies: Sequence[Any]) -> Scores:
    """The statistics of each template, and how far templates agree."""
    templates = list(replies[0])
    tables = {name: [_numbers(reply[name]) for reply in replies] for name in templates}
    lengths = [[len(output) if isinstance(output, str) else 0 for output in item.outputs] for item in items]
    people = [_liked(item) for item in items]
    prompts = [str(item.prompt) for item in items]
    values: dict[str, Interval] = {}
    counts = {"pairs": len(items), "asked": 0, "missing": 0}
    for name, table in tables.items():
        own = judge_statistics(table, lengths=lengths, preferred=people, prompts=prompts)
        values |= {statistic if len(templates) == 1 else f"{name}/{statistic}": value for statistic, value in own.values.items()}
        counts = {key: own.counts[key] + (0 if key == "pairs" else counts[key]) for key in counts}
    if counts["missing"] == counts["asked"]:
        raise UserError(f"evaluate_judge: of {counts['asked']} questions the judge answered none")
    if len(templates) > 1:
        values |= judge_agreement(tables)
    return Scores(values, [{} for _ in items], counts)


def _principled(items: Sequence[Comparison], replies: Sequence[Any]) -> Scores:
    """The same, and what people's preferences are to those by each template."""
    scores, people = _statistics(items, replies), [_liked(item) for item in items]
    prefers = {}
    for name in replies[0]:
        rows = judge_statistics([_numbers(reply[name]) for reply in replies], resamples=1).rows
        prefers[name] = [math.nan if row is None else float((row["first"] > 0.5) - (row["first"] < 0.5)) for row in rows]
    found = principle_statistics(prefers, people, prompts=[str(item.prompt) for item in items])
    return replace(scores, values={**scores.values, **{f"principles/{name}": value for name, value in found.values.items()}})


def _liked(item: Comparison) -> float:
    """1 where people prefer the first output, -1 the second, 0 neither."""
    return float(item.known.get("preferred", 1.0 - 2.0 * item.known.get("right", 0)))


def _numbers(orders: Sequence[Sequence[float | None]]) -> list[list[float]]:
    return [[math.nan if value is None else value for value in verdicts] for verdicts in orders]
