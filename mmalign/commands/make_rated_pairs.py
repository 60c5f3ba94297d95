"""Pairs of outputs that people have rated dimension by dimension, and what becomes of those that they do not agree about."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmalign.arguments.ranges import NotNegative, Proportion
from mmalign.commands._lines import Line, read, refuse_there, written
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import joined
from mmalign.types import UserError

__all__ = ["make_rated_pairs"]

Ratings = Mapping[str, float]


class Verdict(NamedTuple):
    """What is said of two outputs.

    strength, labels: the probability that the first is better, overall and by dimension. scores: of both, means of all ratings. agreement:
    the largest share of annotators of one opinion. first: whether the first is the better one.
    """

    strength: float
    labels: dict[str, float]
    scores: tuple[float, float]
    agreement: float
    first: bool


def make_rated_pairs(
    path: str, *, out: str, ties: Literal["split", "keep", "drop"] = "split", tie: NotNegative = 0.0, least_agreement: Proportion = 0.0
) -> dict[str, int]:
    """Writes every two rated outputs of a prompt as a pair with a label in each dimension; returns counts.

    Args:
        path: JSON lines of ``prompt``, ``outputs`` (texts, or paths of images or videos) and ``ratings``: for each output an object,
            dimension -> number, the higher the better, or a list of such, one of each annotator, who stands in one place in all lists
            (null: did not rate it). What else a row holds, such as the picture that was edited, goes along.
        out: the file, JSON lines of ``prompt, chosen, rejected, strength, labels, score_chosen, score_rejected, id``; it appears whole or
            not at all. Paths stay as they are: it belongs beside ``path``, or its reader is told the ``folder``.
        ties: pairs whose scores are equal. ``split``, where one output is ahead in some dimensions and the other in others, into two pairs,
            each labelled in those alone that its better one wins; ``keep``, with a strength of one half; ``drop``. A tie in all dimensions
            has nothing to split, and is dropped by ``split``.
        tie: ratings, and scores, that are no further apart than this are equal.
        least_agreement: the smallest share of annotators of one opinion, by the mean of their ratings, with which a pair is kept.

    A label is the share of annotators who rate the first higher in that dimension, one half for each who rates both equal; the strength is
    the same by the mean of each annotator's ratings. The better one is who has the higher mean of all.

    Counts: ``rows``, ``pairs`` (lines written), ``split`` (ties that became two), ``tied`` (dropped), ``disagreed`` (too few of one
    opinion), ``missing`` (that no annotator rated both of).

    Paper: EditReward, https://arxiv.org/abs/2509.26346: candidates of one instruction, rated by how they follow it and how they look, and
    ties between the two disentangled (*recalled*; its filter by agreement is not known here in detail).

    Errors: UserError for a file that is there already or is not, a row that has not one rating for each of two outputs or more, a rating
    that is no number, and where no pair is left.
    """
    refuse_there(out)
    rows, counts, team = read(path, "prompt", "outputs", "ratings"), Counter[str](), joined()
    made = list(_lines(rows, path, counts, ties=ties, tie=tie, least_agreement=least_agreement))
    if not made:
        why = ", ".join(f"{counts[name]} {name}" for name in ("tied", "disagreed", "missing"))
        raise UserError(f"make_rated_pairs: none of {counts['compared']} pairs is left ({why}); takes other rows, or ties: keep")
    with stopping_together(team):
        written(Path(out), iter(made), team)
    return {"rows": len(rows), "pairs": len(made)} | {name: counts[name] for name in ("split", "tied", "disagreed", "missing")}


def _lines(
    rows: Sequence[Line], path: str, counts: Counter[str], *, ties: str, tie: float, least_agreement: float
) -> Iterator[Line]:  # fmt: skip
    for number, row in enumerate(rows, start=1):
        rated, rest = _rated(row, f"{path}, row {number}"), {key: row[key] for key in row if key not in ("outputs", "ratings")}
        for a, b in combinations(range(len(rated)), 2):
            counts["compared"] += 1
            verdict = compared(rated[a], rated[b], tie=tie)
            if verdict is None:
                counts["missing"] += 1
                continue
            if verdict.agreement < least_agreement:
                counts["disagreed"] += 1
                continue
            some = _parted(verdict, tie=tie, ties=ties)
            counts["split"] += len(some) == 2
            counts["tied"] += not some
            for one in some:
                better, worse = (a, b) if one.first else (b, a)
                yield {**rest, "id": f"{row.get('id', number)}-{better}-{worse}", **_line(row["outputs"], better, worse, one)}


def compared(first: Sequence[Ratings], second: Sequence[Ratings], *, tie: float = 0.0) -> Verdict | None:
    """What annotators say of two outputs, whose ratings of both stand in the same places; None where none rated both in any dimension."""
    gaps, scores, opinions = dict[str, list[float]](), list[tuple[float, float]](), list[float]()
    for one, other in zip(first, second, strict=True):
        if both := [name for name in one if name in other]:
            for name in both:
                gaps.setdefault(name, []).append(one[name] - other[name])
            scores.append((sum(one[name] for name in both) / len(both), sum(other[name] for name in both) / len(both)))
            opinions.append(_ahead(scores[-1][0] - scores[-1][1], tie))
    if not scores:
        return None
    labels = {name: sum(_ahead(gap, tie) for gap in said) / len(said) for name, said in gaps.items()}
    means = (sum(mine for mine, _ in scores) / len(scores), sum(its for _, its in scores) / len(scores))
    agreement = max(Counter(opinions).values()) / len(opinions)
    return Verdict(sum(opinions) / len(opinions), labels, means, agreement, means[0] >= means[1])


def _ahead(gap: float, tie: float) -> float:
    return 0.5 if abs(gap) <= tie else float(gap > 0)


def _parted(verdict: Verdict, *, tie: float, ties: str) -> list[Verdict]:
    """A verdict as it is, or a tie as what becomes of it."""
    if abs(verdict.scores[0] - verdict.scores[1]) > tie or ties == "keep":
        return [verdict]
    ahead = {name: p for name, p in verdict.labels.items() if p > 0.5}
    behind = {name: p for name, p in verdict.labels.items() if p < 0.5}
    if ties == "drop" or not ahead or not behind:
        return []
    return [verdict._replace(strength=1.0, labels=ahead, first=True), verdict._replace(strength=0.0, labels=behind, first=False)]


def _line(outputs: Sequence[Any], better: int, worse: int, verdict: Verdict) -> Line:
    """A pair, the better output first."""
    (a, b), p, turned = verdict.scores, verdict.strength, not verdict.first
    return {
        "chosen": outputs[better], "rejected": outputs[worse], "strength": 1 - p if turned else p,
        "labels": {name: 1 - one if turned else one for name, one in verdict.labels.items()},
        "score_chosen": b if turned else a, "score_rejected": a if turned else b,
    }  # fmt: skip


def _rated(row: Line, where: str) -> list[list[Ratings]]:
    """Of each output what each annotator says. Errors: UserError."""
    outputs, ratings = row["outputs"], row["ratings"]
    if not isinstance(outputs, list) or not isinstance(ratings, list) or len(outputs) != len(ratings) or len(outputs) < 2:
        raise UserError(f"{where}: takes a list of two outputs or more, and a list of as many ratings")
    listed = [one if isinstance(one, list) else [one] for one in ratings]
    if len({len(one) for one in listed}) > 1:
        raise UserError(
            f"{where}: outputs have {', '.join(str(len(one)) for one in listed)} annotators; takes as many of each (null: none)"
        )
    return [[_numbers(said, where) for said in one] for one in listed]


def _numbers(said: Any, where: str) -> Ratings:
    if said is None:
        return {}
    if not isinstance(said, Mapping):
        raise UserError(f"{where}: got the rating {said!r}, takes an object, dimension -> number")
    known = {name: value for name, value in said.items() if value is not None}
    for name, value in known.items():
        if isinstance(value, bool) or not isinstance(value, (int, float)) or not math.isfinite(value):
            raise UserError(f"{where}: got {value!r} as the rating of {name}, takes a number, or null where there is none")
    return known
