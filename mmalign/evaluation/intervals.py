"""Rates with bootstrap intervals: everything that is measured here is a formula of sums over rows, resampled by cluster.

Rows of one image, or of one prompt, are not independent, so that whole clusters are drawn, with replacement and as many as there are
(Cameron, Gelbach, Miller, "Bootstrap-based improvements for inference with clustered errors", 2008, calls it the pairs cluster
bootstrap), and the interval is between two percentiles of what the formula says of the draws.

A rate of exactly 0 or 1 resamples to itself: its interval has no width, and says nothing of how many rows there were. Read it
beside that number.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Seed
from mmalign.types import UserError

__all__ = ["Interval", "Scores", "estimates"]

Sums = Mapping[str, NDArray[np.float64]]
Formulas = Callable[[Sums], Mapping[str, NDArray[np.float64]]]
Column = Sequence[Any]
"""Numbers, NaN for one that is missing: which nothing takes that is annotated as numbers (`arguments.ranges`)."""

RESAMPLES = 2000
AT_ONCE = 2**22  # numbers in the largest table of draws


class Interval(NamedTuple):
    """A number with its interval.

    value: NaN for 0 / 0. low, high: the ends. error: the standard error. NaN where there is none.
    """

    value: float
    low: float
    high: float
    error: float


@dataclass(frozen=True)
class Scores:
    """What a set of answers came to.

    values: name -> number with its interval. rows: what was found in each answer, in their order (None for a missing one). counts: how
    many answers, and how many of them are missing, unparsed and the like. published: the same numbers in the words, the units and the
    rounding of the benchmark's own script, where it has one.
    """

    values: Mapping[str, Interval]
    rows: Sequence[Mapping[str, Any] | None]
    counts: Mapping[str, int]
    published: Mapping[str, float] = field(default_factory=dict)


def estimates(
    counts: Mapping[str, Sequence[float]], clusters: Sequence[Hashable], formulas: Formulas, *, level: float = 0.95,
    resamples: Count = RESAMPLES, seed: Seed = 0,
) -> dict[str, Interval]:  # fmt: skip
    """Formulas of sums over rows, each with its percentile interval under the cluster bootstrap.

    Args:
        counts: name -> a number for each row. clusters: what each row belongs to, such as its image.
        formulas: sums by name (arrays of any one shape) -> numbers by name (of that shape), such as ``ratio(sums["a"], sums["b"])``.
        level: the part of the draws that lies inside. resamples, seed: of the bootstrap; the same seed draws the same clusters.

    A draw without a value (0 / 0) is left out. One cluster alone has no interval: NaN.

    Errors: UserError for a level outside 0..1, no resamples, and columns of another length than ``clusters``.

    Examples:
        >>> counts = {"right": [1, 0, 1, 1], "rows": [1, 1, 1, 1]}
        >>> rates = estimates(counts, ["cat", "cat", "dog", "owl"], lambda sums: {"accuracy": ratio(sums["right"], sums["rows"])})
        >>> rates["accuracy"].value, rates["accuracy"].high
        (0.75, 1.0)
    """
    if not 0 < level < 1 or resamples < 1:
        raise UserError(f"intervals: got level {level}, resamples {resamples}; takes a level between 0 and 1, and 1 resample or more")
    names = list(counts)
    if odd := next((name for name in names if len(counts[name]) != len(clusters)), None):
        raise UserError(f"intervals: got {len(counts[odd])} numbers of {odd} and {len(clusters)} clusters, takes one for each row")
    number = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    table = np.zeros((len(number), len(names)))
    if len(clusters):
        np.add.at(table, [number[cluster] for cluster in clusters], np.array([counts[name] for name in names], dtype=float).T)
    whole = formulas(dict(zip(names, table.sum(0), strict=True)))
    drawn = formulas(dict(zip(names, _draws(table, resamples, seed).T, strict=True))) if len(number) > 1 else {}
    return {name: interval(float(value), drawn.get(name), level) for name, value in whole.items()}


def ratio(a: Any, b: Any) -> NDArray[np.float64]:
    """``a / b`` of numbers or arrays, NaN where b is 0: a share of nothing is not known."""
    a, b = np.broadcast_arrays(np.asarray(a, dtype=float), np.asarray(b, dtype=float))
    return np.divide(a, b, out=np.full(a.shape, np.nan), where=b != 0)


def draws(clusters: Sequence[Hashable], resamples: int, seed: int) -> NDArray[np.float64]:
    """``[resamples, rows]``: how often each row is in a draw of whole clusters."""
    number = {cluster: place for place, cluster in enumerate(dict.fromkeys(clusters))}
    of_rows = np.eye(len(number))[:, [number[cluster] for cluster in clusters]]
    return _draws(of_rows, resamples, seed)


def _draws(table: NDArray[np.float64], resamples: int, seed: int) -> NDArray[np.float64]:
    """``[resamples, columns]`` sums over clusters ``[clusters, columns]`` that were drawn with replacement."""
    rng, size = np.random.default_rng(seed), len(table)
    at_once = max(1, AT_ONCE // size)
    sizes = [min(at_once, resamples - start) for start in range(0, resamples, at_once)]
    return np.concatenate([rng.multinomial(size, np.full(size, 1 / size), size=rows) @ table for rows in sizes])


def interval(value: float, drawn: NDArray[np.float64] | None, level: float) -> Interval:
    """A number with the percentiles and the deviation of what draws say of it; NaN where fewer than two say anything."""
    known = np.array([]) if drawn is None else drawn[~np.isnan(drawn)]
    if np.isnan(value) or len(known) < 2:
        return Interval(value, np.nan, np.nan, np.nan)
    low, high = np.quantile(known, [(1 - level) / 2, (1 + level) / 2])
    return Interval(value, float(low), float(high), float(known.std(ddof=1)))
