"""RewardBench 2: the best of four answers, and answers that tie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of
from mmalign.evaluation.intervals import RESAMPLES, Interval, Scores
from mmalign.evaluation.reward_scores import best_scores, tied_answer_scores
from mmalign.types import UserError

NEEDS = ("id", "prompt", "chosen", "rejected", "subset")
TIES = "Ties"


def reward_bench_2(data: Path, *, resamples: Count = RESAMPLES) -> RewardSuite:
    """RewardBench 2 (allenai/reward-bench-2): how often the right one of four answers is best, by subset; and its subset of ties.

    Args:
        data: its file or folder; columns id, prompt, chosen and rejected (lists of texts), subset; num_correct, where it is not the
            number of chosen ones. Of the subset ``Ties`` ids are ``ref:12`` and ``tied:12``, as published.
        resamples: of the bootstrap.

    ``sections`` is the benchmark's score: the mean of its subsets, ``ties`` among them (`tied_answer_scores` has its rule). Its
    interval supposes that subsets are independent.

    Paper: Malik et al., "RewardBench 2: Advancing Reward Model Evaluation" (2025), https://arxiv.org/abs/2506.01937

    Errors: UserError for a row without these columns, no right or no wrong answer, and an id of ``Ties`` of another form.
    """
    items = [_item(name, row) for name, row in rows_of(data, "reward_bench_2", NEEDS)]

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        return _scores(chosen, scores, resamples)

    return RewardSuite("reward_bench_2", items, score, headline=("sections", "ties"))


def _item(name: str, row: dict[str, Any]) -> Comparison:
    sides = [row["chosen"], row["rejected"]]
    if not all(isinstance(side, (list, tuple)) and len(side) for side in sides):
        raise UserError(f"reward_bench_2: {name} has chosen and rejected that are no lists of texts; takes one or more of each")
    right = int(row.get("num_correct") or len(row["chosen"]))
    known: dict[str, Any] = {"right": right}
    if row["subset"] == TIES:
        kind, colon, number = str(row["id"]).partition(":")
        if kind not in ("ref", "tied") or not colon:
            raise UserError(f"reward_bench_2: {name} has the id {row['id']!r} in {TIES}; takes ref:NUMBER or tied:NUMBER")
        known |= {"kind": kind, "prompt": number}
    elif right != 1:
        raise UserError(f"reward_bench_2: {name} has {right} right answers in {row['subset']}; takes one, and several in {TIES}")
    return Comparison(f"{row['subset']}/{row['id']}", row["prompt"], (*row["chosen"], *row["rejected"]), known, str(row["subset"]))


def _scores(items: Sequence[Comparison], scores: Sequence[Sequence[float]], resamples: int) -> Scores:
    """The best of four and the ties, put together: every subset counts as much as another."""
    tied = [number for number, item in enumerate(items) if item.subset == TIES]
    others = [number for number, item in enumerate(items) if item.subset != TIES]
    names = list(dict.fromkeys(items[number].subset for number in others))
    best = best_scores(
        [scores[number] for number in others], subsets=[items[number].subset for number in others],
        sections={name: {name: 1.0} for name in names}, resamples=resamples,
    )  # fmt: skip
    values = {name: value for name, value in best.values.items() if name not in (*names, "sections")}
    counts, rows = dict(best.counts), dict(zip(others, best.rows, strict=True))
    means = [values[f"accuracy/{name}"] for name in names]
    if tied:
        ties = tied_answer_scores(
            [scores[number] for number in tied], [items[number].known["right"] for number in tied],
            kinds=[items[number].known["kind"] for number in tied], prompts=[items[number].known["prompt"] for number in tied],
            resamples=resamples,
        )  # fmt: skip
        values |= ties.values
        means.append(ties.values["ties"])
        rows |= dict(zip(tied, ties.rows, strict=True))
        counts = {name: counts[name] + ties.counts.get(name, 0) for name in counts}
    values["sections"] = _mean(means)
    return replace(best, values=values, rows=[rows[number] for number in range(len(items))], counts=counts)


def _mean(parts: Sequence[Interval]) -> Interval:
    """The mean of independent numbers, with a normal interval; NaN where one of them is."""
    value = float(np.mean([part.value for part in parts]))
    error = float(np.sqrt(np.sum([part.error**2 for part in parts]))) / len(parts)
    return Interval(value, value - 1.96 * error, value + 1.96 * error, error)
