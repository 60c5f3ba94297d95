"""Have chosen outputs become less likely while the margin rose? And what the gradients of good and bad rows said of it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, variance
from typing import Any, NamedTuple

from mmalign.report.plots import Figure, Plot, Rule, Series, draw, short, thin
from mmalign.report.read import RunData

FEWEST = 4  # steps at each end of a run
PREFIX = "gradients/"


class Displacement(NamedTuple):
    """Means over the first and the last fifth of a run's steps: of the chosen outputs' log-ratio, and of the margin."""

    chosen_before: float
    chosen_after: float
    margin_before: float
    margin_after: float


def displaced(train: Sequence[dict[str, Any]]) -> Displacement | None:
    """Likelihood displacement: chosen outputs fell, and the margin rose, each by more than two standard errors; None where not.

    The two ends are the first and the last fifth of the logged steps, of four steps or more each. ``better`` is the method's own number of
    chosen rows: their log-ratio to the reference, or their log-probability where it has none.

    Paper: Razin et al., "Unintentional Unalignment: Likelihood Displacement in Direct Preference Optimization" (2024),
    https://arxiv.org/abs/2410.08847.
    """
    pairs = [(float(row["better"]), float(row["margin"])) for row in train if _known(row.get("better")) and _known(row.get("margin"))]
    count = len(pairs) // 5
    if count < FEWEST:
        return None
    (chosen_before, margin_before), (chosen_after, margin_after) = (list(zip(*end, strict=True)) for end in (pairs[:count], pairs[-count:]))
    if not (_moved(chosen_after, chosen_before) and _moved(margin_before, margin_after)):
        return None
    return Displacement(*map(fmean, (chosen_before, chosen_after, margin_before, margin_after)))


def _moved(low: Sequence[float], high: Sequence[float]) -> bool:
    """Whether the mean of the one is below the other's by more than two standard errors of their difference."""
    return fmean(high) - fmean(low) > 2 * math.sqrt(variance(low) / len(low) + variance(high) / len(high))


def in_words(found: Displacement) -> str:
    """What the page says of it."""
    fell = f"chosen outputs went from {short(found.chosen_before)} to {short(found.chosen_after)} nats"
    rose = f"the margin went from {short(found.margin_before)} to {short(found.margin_after)}"
    return f"{fell} while {rose}: rejected ones fell further, and what rose instead is in no pair"


def figures(run: RunData) -> list[Figure]:
    """What updates did to good and to bad rows, beside the cosine of their gradients; none where gradients were not measured."""
    rows = [row for row in run.train if _known(row.get(f"{PREFIX}cosine"))]
    if not rows:
        return []
    right = fmean(float(row[f"{PREFIX}rule"]) for row in rows)
    changes = _lines(rows, {"chosen_change": "chosen", "rejected_change": "rejected"})
    note = f"By how much an update changed their mean log-probability, nats. Their gradients foretold {100 * right:.0f} % of the signs."
    cosine = "Of the gradients of good and of bad rows: near 1, what pulls the one up pulls the other up too."
    return [
        _drawn("What updates did to good and bad rows", note, changes, Rule(0.0, "")),
        _drawn("Gradient entanglement", cosine, _lines(rows, {"cosine": "cosine"}), Rule(0.0, "")),
    ]


def _lines(rows: Sequence[dict[str, Any]], names: dict[str, str]) -> list[Series]:
    points = {word: [(float(row["step"]), float(row[PREFIX + name])) for row in rows] for name, word in names.items()}
    return [Series(word, thin(line), colour=number) for number, (word, line) in enumerate(points.items())]


def _drawn(title: str, note: str, series: Sequence[Series], rule: Rule) -> Figure:
    ends = "; ".join(f"{one.name} ends at {short(one.points[-1][1])}" for one in series)
    legend = tuple((one.name, f"s{one.colour}") for one in series) if len(series) > 1 else ()
    return Figure(title, note, draw(Plot(series, "step", f"{title}: {ends}", (rule,))), legend)


def _known(value: Any) -> bool:
    return isinstance(value, (int, float)) and math.isfinite(value)
