"""Benchmarks of rewards as data: outputs of one prompt, what people said of them, and a function from scores to numbers.

Who scores them is nobody's business here: a reward, a trained reward model, a language model's implicit reward, a judge.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Literal

from torch import Tensor

from mmalign.data._reading.tables import blocks, in_order, located, placed
from mmalign.evaluation.intervals import Scores
from mmalign.evaluation.reward_scores import pair_scores
from mmalign.media import Broken, Limits, footage, image
from mmalign.records import Unread
from mmalign.types import UserError

__all__ = ["Comparison", "RewardSuite"]

Row = Mapping[str, Any]
Of = Literal["texts", "images", "videos"]
Kind = Literal["image", "video"]
PREFERENCES = ("accuracy", "accuracy_with_ties")
"""What is shown first of ``preferences``."""


@dataclass(frozen=True)
class Comparison:
    """Two or more outputs of one prompt.

    id: its name in files of scores. prompt: a string, or a conversation. outputs: texts, or images and videos that are not decoded yet
    (`records.Unread`). known: what its scorer has to know: which outputs are right, what people preferred. subset: the part of the
    benchmark that it belongs to.
    """

    id: str
    prompt: Any
    outputs: tuple[Any, ...]
    known: Mapping[str, Any] = field(default_factory=dict)
    subset: str = ""

    def read(self) -> tuple[Any, ...]:
        """The outputs, decoded. Errors: `media.Broken` where one of them cannot be used."""
        return tuple(output.read() if isinstance(output, Unread) else output for output in self.outputs)


@dataclass(frozen=True)
class RewardSuite:
    """A benchmark of rewards.

    name: of the suite. items: its comparisons. score: ``(items, scores) -> Scores``, for each item in order a score of each of its
    outputs, NaN for one that is missing. of: what its outputs are. headline: numbers to show first. notes: lines that belong beside the
    numbers. whole: how many comparisons there were before ``first``.

    Errors: UserError for no items, and for two with one id.
    """

    name: str
    items: Sequence[Comparison]
    score: Callable[[Sequence[Comparison], Sequence[Sequence[float]]], Scores]
    of: Of = "texts"
    headline: Sequence[str] = ()
    notes: Sequence[str] = ()
    whole: int = 0

    def __post_init__(self) -> None:
        if not self.items:
            raise UserError(f"{self.name}: its files hold no comparison")
        ids: set[str] = set()
        for item in self.items:
            if item.id in ids:
                raise UserError(f"{self.name}: two comparisons with the id {item.id}; takes one of each")
            ids.add(item.id)

    def first(self, count: int | None) -> RewardSuite:
        """The first ``count`` comparisons, and a note that it is not all of them; all for None."""
        if count is None or count >= len(self.items):
            return self
        if count < 1:
            raise UserError(f"limit: got {count}, takes 1 or more")
        note = f"the first {count} of {len(self.items)} comparisons"
        return replace(self, items=list(self.items)[:count], notes=[*self.notes, note], whole=len(self.items))


def rows_of(data: Path, suite: str, needs: Sequence[str]) -> Iterator[tuple[str, dict[str, Any]]]:
    """(what to call it, the row) of every row of a file or a folder: JSON, JSON lines, CSV, parquet or tar.

    Errors: UserError for no such file, a row that cannot be read, and one without the columns that the suite needs.
    """
    if not data.exists():
        raise UserError(f"{suite}: {data} is not there; takes the benchmark's file, with the columns {', '.join(needs)}")
    for _, name, row in in_order(blocks(str(data)), seed=None):
        if isinstance(row, Broken):
            raise UserError(f"{suite}: {name} of {data} cannot be read: {row}") from row
        if absent := next((need for need in needs if row.get(need) is None), None):
            has = ", ".join(key for key in row if not key.startswith("__"))
            raise UserError(f"{suite}: {name} of {data} has no {absent}; takes the columns {', '.join(needs)}, and it has {has[:240]}")
        yield name, row


def medium(row: Row, source: Any, folder: Path | None, kind: Kind, limits: Limits) -> Unread:
    """An image or a video of a row that is decoded when it is scored. A path starts at the row's file, or in ``folder``."""
    name = Path(source).name[-120:] if isinstance(source, str) else kind
    return Unread(located(placed(row, source), folder), name, lambda given: _decoded(given, kind, limits))


def _decoded(source: Any, kind: str, limits: Limits) -> Tensor:
    return footage(source, limits).frames.float() / 255 if kind == "video" else image(source, limits)


def shown_with(row: Row, source: Any, folder: Path | None, text: str, kind: Kind = "image") -> list[dict[str, Any]]:
    """A question about an image or a video as a conversation, the picture first."""
    place = located(placed(row, source), folder)
    held = place.get("bytes") if isinstance(place, Mapping) and place.get("bytes") is not None else place
    medium = {"type": kind, "path" if isinstance(held, str) else kind: held}
    return [{"role": "user", "content": [medium, {"type": "text", "text": text}]}]


def preferences(threshold: float | None, resamples: int) -> Callable[[Sequence[Comparison], Sequence[Sequence[float]]], Scores]:
    """The scores of pairs whose items know which is ``preferred``, as `pair_scores` has it, with intervals over prompts."""

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        gaps = [first - second for first, second in scores]
        labels = [item.known["preferred"] for item in chosen]
        return pair_scores(gaps, labels, threshold=threshold, prompts=[str(item.prompt) for item in chosen], resamples=resamples)

    return score
