"""What is wrong with a judge of pairs: which place it likes, which length, how often it says something else when asked again.

Verdicts are a table ``[pairs, 2, repetitions]``: the probability that the judge prefers what it reads first, where a pair is shown as
(first, second) in column 0 and as (second, first) in column 1; NaN where it gave none. A choice is what has more than one half; exactly one
half is half of either.

A position bias of 1 is a judge that always takes what it reads first, of -1 one that takes what it reads last; a length bias of 1 is one
that is right where people prefer the longer output, and wrong elsewhere. A coin has a flip rate of one half.
"""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Interval, Scores, Sums, estimates, ratio
from mmalign.types import UserError

__all__ = ["judge_agreement", "judge_statistics"]

Table = NDArray[np.float64]


def judge_statistics(
    verdicts: Any, *, lengths: Any = None, preferred: Column | None = None, prompts: Sequence[Hashable] | None = None,
    resamples: Count = RESAMPLES, seed: Seed = 0,
) -> Scores:  # fmt: skip
    """The biases of one judge under one template, each with an interval over prompts.

    Args:
        verdicts: ``[pairs, 2, repetitions]`` as above; ``[pairs, 2]`` for one repetition.
        lengths: ``[pairs, 2]``, of first and second, for ``prefers_longer`` and ``length_bias``.
        preferred: 1 where people prefer the first, -1 the second, 0 neither; NaN where nobody said.
        prompts: what is resampled together; by default each pair by itself.
        resamples, seed: of the bootstrap.

    The numbers, of choices c (1: what was read first), of pairs whose two orders are known where both are needed::

        position_bias    mean of 2 c - 1 over both orders
        order_flips      share of pairs that go to another output when the order is turned; a tie in one order is half of it
        flip_rate        share of pairs of repetitions of one question that differ
        self_consistency mean share of the commoner answer of a question's repetitions
        prefers_longer   share of choices that are the longer output
        accuracy         share of choices that people make; accuracy_both: of pairs, in both orders
        length_bias      accuracy where people prefer the longer output, minus accuracy where they prefer the shorter one
        noise            q of flip_rate = 2 q (1 - q): how often a choice is turned by chance
        accuracy_without_noise   (accuracy - q) / (1 - 2 q), and position_bias_without_noise = position_bias / (1 - 2 q)

    Missing choices are left out of each number and counted. A flip rate above one half has no q: NaN.

    Paper: Wei et al., "Systematic Evaluation of LLM-as-a-Judge in LLM Alignment Tasks" (2024), https://arxiv.org/abs/2408.13006: length
    bias, flipping noise and what is left without it; position bias: Zheng et al. (2023), https://arxiv.org/abs/2306.05685

    Deviations: Wei et al. take accuracies apart by position; here the bias is that of the choices, which needs no labels.

    Errors: UserError for verdicts of another shape or outside 0..1, and columns of another length.

    Examples:
        >>> always_first = judge_statistics([[1.0, 1.0], [1.0, 1.0]], resamples=10).values
        >>> always_first["position_bias"].value, always_first["order_flips"].value
        (1.0, 1.0)
    """
    table = _table(verdicts)
    clusters = list(range(len(table)) if prompts is None else prompts)
    sizes = None if lengths is None else np.asarray(lengths, dtype=float).reshape(-1, 2)
    labels = np.full(len(table), np.nan) if preferred is None else np.asarray(preferred, dtype=float)
    for name, count in (("prompts", len(clusters)), ("lengths", len(table) if sizes is None else len(sizes)), ("preferred", len(labels))):
        if count != len(table):
            raise UserError(f"judge: got {len(table)} pairs and {count} {name}, takes one of each")
    choices = np.where(np.isnan(table), np.nan, (np.sign(table - 0.5) + 1) / 2)
    of_first = np.stack([choices[:, 0], 1 - choices[:, 1]], axis=1)  # whether a choice is the pair's first output
    columns = {**_places(choices, of_first), **_repeated(choices), **_compared(of_first, sizes, labels)}
    values = estimates({name: column.tolist() for name, column in columns.items()}, clusters, _formulas, resamples=resamples, seed=seed)
    values = {name: value for name, value in values.items() if not np.isnan(value.value)}
    with_nothing = np.isnan(choices).reshape(len(table), -1)
    rows = [
        None if nothing.all() else {"first": float(np.nanmean(own)), "verdicts": np.round(table[number], 4).tolist()}
        for number, (nothing, own) in enumerate(zip(with_nothing, of_first, strict=True))
    ]
    return Scores(values, rows, {"pairs": len(table), "asked": int(table.size), "missing": int(with_nothing.sum())})


def _table(verdicts: Any) -> Table:
    table = np.asarray(verdicts, dtype=float)
    table = table[:, :, None] if table.ndim == 2 else table
    if table.ndim != 3 or table.shape[1] != 2 or not table.shape[2]:
        raise UserError(f"verdicts: got a table of shape {list(np.shape(verdicts))}, takes [pairs, 2 orders, repetitions]")
    if ((table < 0) | (table > 1)).any():
        raise UserError(f"verdicts: got {table[(table < 0) | (table > 1)][0]:g}, takes probabilities of what is read first, 0 to 1")
    return table


def _places(choices: Table, of_first: Table) -> dict[str, Table]:
    """Sums of each pair for what is said of places: over repetitions in which both orders are known."""
    both = ~np.isnan(choices).any(1)
    total = np.where(both, (2 * choices - 1).mean(1), 0.0)
    turned = np.where(both, np.abs(of_first[:, 0] - of_first[:, 1]), 0.0)
    return {"both": both.sum(1), "toward_first": total.sum(1), "turned": turned.sum(1)}


def _repeated(choices: Table) -> dict[str, Table]:
    """Sums of each pair for what is said of repetitions: of each order's question, over pairs of its answers."""
    known = ~np.isnan(choices)
    count, firsts = known.sum(2), np.where(known, choices, 0.0).sum(2)
    repeated = count > 1
    halves = np.where(known, (choices == 0.5), False).sum(2)
    whole = firsts - halves / 2  # choices that are what was read first, and not half of it
    others = count - halves - whole
    differ = whole * others + halves * (whole + others) / 2  # a tie differs by half from either
    commoner = np.maximum(np.maximum(whole, others), halves) / np.maximum(count, 1)
    return {
        "repeats": np.where(repeated, count * (count - 1) / 2, 0.0).sum(1), "differ": np.where(repeated, differ, 0.0).sum(1),
        "questions": repeated.sum(1).astype(float), "commoner": np.where(repeated, commoner, 0.0).sum(1),
    }  # fmt: skip


def _compared(of_first: Table, sizes: Table | None, labels: Table) -> dict[str, Table]:
    """Sums of each pair for what is said against lengths and people."""
    known = ~np.isnan(of_first)
    first, count = np.where(known, of_first, 0.0).sum((1, 2)), known.sum((1, 2))
    gap = np.zeros(len(of_first)) if sizes is None else np.sign(np.nan_to_num(sizes[:, 0] - sizes[:, 1]))
    decided = ~np.isnan(labels) & (labels != 0)
    right = np.where(labels > 0, first, count - first)
    both = known.all(1)
    hits = np.where(labels[:, None, None] > 0, of_first, 1 - of_first)
    hits_both = np.where(both, (hits == 1).all(1), 0.0).sum(1)
    people_longer, people_shorter = decided & (labels == gap) & (gap != 0), decided & (labels == -gap) & (gap != 0)
    sums = {
        "differing": count * (gap != 0), "longer": np.where(gap > 0, first, count - first) * (gap != 0),
        "decided": count * decided, "right": right * decided, "decided_both": both.sum(1) * decided, "right_both": hits_both * decided,
        "long": count * people_longer, "right_long": right * people_longer, "short": count * people_shorter,
        "right_short": right * people_shorter,
    }  # fmt: skip
    return {name: np.asarray(column, dtype=float) for name, column in sums.items()}


def _formulas(sums: Sums) -> dict[str, Any]:
    flips = ratio(sums["differ"], sums["repeats"])
    noise = (1 - np.sqrt(np.where(flips <= 0.5, 1 - 2 * flips, np.nan))) / 2
    bias, accuracy = ratio(sums["toward_first"], sums["both"]), ratio(sums["right"], sums["decided"])
    return {
        "position_bias": bias,
        "order_flips": ratio(sums["turned"], sums["both"]),
        "flip_rate": flips,
        "self_consistency": ratio(sums["commoner"], sums["questions"]),
        "accuracy": accuracy,
        "accuracy_both": ratio(sums["right_both"], sums["decided_both"]),
        "prefers_longer": ratio(sums["longer"], sums["differing"]),
        "length_bias": ratio(sums["right_long"], sums["long"]) - ratio(sums["right_short"], sums["short"]),
        "noise": noise,
        "accuracy_without_noise": ratio(accuracy - noise, 1 - 2 * noise),
        "position_bias_without_noise": ratio(bias, 1 - 2 * noise),
    }


def judge_agreement(verdicts: Mapping[str, Any]) -> dict[str, Interval]:
    """How often two judges, or two templates of one, choose the same output of a pair: ``A x B`` and, less what chance does, Cohen's kappa.

    verdicts: name -> a table as ``judge_statistics`` takes it; of the same pairs. Orders and repetitions of a pair are averaged first.

    A pair that one of them has no verdict on, or is torn over, is left out.

    Source: Cohen, "A coefficient of agreement for nominal scales" (1960).

    Errors: UserError for fewer than two, and tables of different numbers of pairs.

    Examples:
        >>> judge_agreement({"a": [[1.0, 0.0], [0.0, 1.0]], "b": [[0.9, 0.2], [0.7, 0.4]]})["a x b"].value
        0.5
    """
    tables = {name: _table(table) for name, table in verdicts.items()}
    if len(tables) < 2 or len({len(table) for table in tables.values()}) > 1:
        raise UserError(
            f"agreement: got {', '.join(f'{len(table)} pairs of {name}' for name, table in tables.items())}; takes two or more of the same"
        )
    choices = {name: _choice(table) for name, table in tables.items()}
    names, values = list(choices), dict[str, Interval]()
    for place, one in enumerate(names):
        for other in names[place + 1 :]:
            a, b = choices[one], choices[other]
            known = ~np.isnan(a) & ~np.isnan(b)
            counts = {"rows": np.ones(known.sum()), "same": a[known] == b[known], "a": a[known], "b": b[known]}
            found = estimates(
                {name: np.asarray(column, dtype=float).tolist() for name, column in counts.items()}, np.flatnonzero(known).tolist(), _agree
            )
            values |= {f"{one} x {other}": found["same"], f"kappa {one} x {other}": found["kappa"]}
    return values


def _choice(table: Table) -> Table:
    """1 where a pair's first output is preferred over orders and repetitions, 0 for the second, NaN for neither."""
    first = np.concatenate([table[:, 0], 1 - table[:, 1]], axis=1)
    known = (~np.isnan(first)).sum(1)
    mean = np.where(known > 0, np.nansum(first, axis=1) / np.maximum(known, 1), np.nan)
    return np.where(np.isnan(mean) | (np.abs(mean - 0.5) < 1e-12), np.nan, (mean > 0.5).astype(float))


def _agree(sums: Sums) -> dict[str, Any]:
    same, a, b = (ratio(sums[name], sums["rows"]) for name in ("same", "a", "b"))
    chance = a * b + (1 - a) * (1 - b)
    return {"same": same, "kappa": ratio(same - chance, 1 - chance)}
