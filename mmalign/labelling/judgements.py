"""What people said: a log that only grows, each line on the disk before its sender is answered, and the pairs that it means."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import combinations, pairwise
from pathlib import Path
from typing import Any, Literal

from mmalign.files import write_text
from mmalign.labelling.items import OUTPUTS, Item, Items
from mmalign.types import UserError

LOG = "judgements.jsonl"
STRENGTHS = {"clearly": 1.0, "slightly": 0.75}
"""How sure a pair is whose better one is so much better: what ``strength`` says in the file of pairs. A tie is .5."""

Grade = Literal["clearly", "slightly"]
Span = tuple[int, int]


@dataclass(frozen=True)
class Judgement:
    """What one annotator said of one item; the last word counts.

    ranking: numbers of outputs, the best first; those that tie stand together. Empty: skipped. grade: how much better each is than the
    next. bad: none is any good. wrong: number of an output (as text) -> spans of it that are wrong, from and up to a character.
    shown: in which order they stood. seconds: that it took. at: when, UTC. undone: the annotator took the word before this back.
    """

    item: str
    annotator: str
    ranking: tuple[tuple[int, ...], ...] = ()
    grade: Grade = "clearly"
    bad: bool = False
    wrong: Mapping[str, Sequence[Span]] = field(default_factory=dict)
    shown: tuple[int, ...] = ()
    seconds: float = 0.0
    at: str = ""
    undone: bool = False

    def refuse(self, item: Item) -> None:
        """Errors: UserError for a judgement that does not go with its item."""
        if not self.annotator.strip() or len(self.annotator) > 80:
            raise UserError(f"annotator: got {self.annotator[:80]!r}, takes a name of 1 to 80 letters")
        if self.grade not in STRENGTHS:
            raise UserError(f"grade: got {self.grade!r}, takes {', '.join(STRENGTHS)}")
        ranked = sorted(output for tier in self.ranking for output in tier)
        if self.ranking and ranked != list(range(len(item.outputs))):
            raise UserError(f"ranking: got {[list(tier) for tier in self.ranking]}, takes each of {len(item.outputs)} outputs once")
        for output, spans in self.wrong.items():
            place = int(output) if output.isdecimal() else -1
            if item.kind != "text" or not 0 <= place < len(item.outputs):
                raise UserError(f"wrong: got a span of output {output}, takes one of the {len(item.outputs)} texts")
            if any(not 0 <= start < end <= len(item.outputs[place]) for start, end in spans):
                raise UserError(f"wrong.{output}: got {list(spans)}, takes [from, to) within {len(item.outputs[place])} characters")
            if any(later < end for (_, end), (later, _) in pairwise(sorted(spans))):
                raise UserError(f"wrong.{output}: got {list(spans)}, which overlap; takes each character once")


class Judgements:
    """All that was said in a folder, and the file of pairs made of it, which is written anew with each word.

    A line that a killed process left half written was never answered for: it is cut off, which ``torn`` tells. Safe between threads.
    """

    def __init__(self, items: Items, out: Path):
        self.items, self.out, self.torn = items, out, False
        self._lock = threading.Lock()
        self._log = items.folder / LOG
        self._said: list[Judgement] = list(self._read())
        self._write_pairs()

    def _read(self) -> Iterator[Judgement]:
        if not self._log.is_file():
            return
        data = self._log.read_bytes()
        whole, newline, rest = data.rpartition(b"\n")
        if rest:
            self.torn = True
            with open(self._log, "r+b") as file:
                file.truncate(len(whole + newline))
        for number, line in enumerate(whole.decode("utf-8", "surrogateescape").split("\n"), start=1):
            if not line:
                continue
            try:
                row = json.loads(line)
                row["ranking"] = tuple(tuple(tier) for tier in row["ranking"])
                row["wrong"] = {output: [tuple(span) for span in spans] for output, spans in row.get("wrong", {}).items()}
                judgement = Judgement(**{**row, "shown": tuple(row["shown"])})
                judgement.refuse(self.items.by_id[judgement.item])
            except (ValueError, KeyError, TypeError, UserError) as error:
                raise UserError(f"{self._log}, line {number}: is no judgement of these items: {' '.join(str(error).split())}") from error
            yield judgement

    def say(self, judgement: Judgement) -> None:
        """Keeps a judgement. Errors: UserError for what does not go with its item; OSError where it cannot be written, and then nothing is
        kept of it."""
        if judgement.item not in self.items.by_id:
            raise UserError(f"item: got {judgement.item!r}, takes one of the {len(self.items.all)} that are judged here")
        judgement.refuse(self.items.by_id[judgement.item])
        with self._lock:
            self._append(judgement)
            self._said.append(judgement)
            self._write_pairs()

    def undo(self, annotator: str) -> str | None:
        """Takes the last word of an annotator back; the item that it was about, or None where there is none."""
        with self._lock:
            last = next((one for one in reversed(self._said) if one.annotator == annotator and one in self._standing().values()), None)
            if last is None:
                return None
            gone = Judgement(last.item, annotator, undone=True, at=last.at)
            self._append(gone)
            self._said.append(gone)
            self._write_pairs()
        return last.item

    def standing(self) -> dict[tuple[str, str], Judgement]:
        """(item, annotator) -> what holds of all that was said, in the order in which it was said."""
        with self._lock:
            return self._standing()

    def _standing(self) -> dict[tuple[str, str], Judgement]:
        standing = dict[tuple[str, str], Judgement]()
        for one in self._said:
            standing.pop((one.item, one.annotator), None)
            if not one.undone:
                standing[one.item, one.annotator] = one
        return standing

    def _append(self, judgement: Judgement) -> None:
        self._log.parent.mkdir(parents=True, exist_ok=True)
        size = self._log.stat().st_size if self._log.is_file() else 0
        line = json.dumps(asdict(judgement), ensure_ascii=False) + "\n"
        with open(self._log, "ab") as file:
            try:
                file.write(line.encode("utf-8", "surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
            except OSError:
                file.truncate(size)
                raise

    def _write_pairs(self) -> None:
        standing = self._standing().values()
        marking = any(one.wrong for one in standing)
        lines = [line for one in standing for line in pairs(self.items, one, self.out.parent, marking=marking)]
        write_text(self.out, "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))


def pairs(items: Items, judgement: Judgement, beside: Path, *, marking: bool) -> Iterator[dict[str, Any]]:
    """The rows of the file of pairs that a judgement means: one for every two outputs, none where it was skipped.

    beside: the folder of that file, from where files of outputs are named. Keys: ``prompt, chosen, rejected, strength, id, annotator``.
    marking: whether words are marked in the file; then texts have ``wrong_chosen`` and ``wrong_rejected`` too, spans of characters, empty
    where nobody found any.
    """
    item = items.by_id[judgement.item]
    tier_of = {output: tier for tier, outputs in enumerate(judgement.ranking) for output in outputs}

    def told(output: int) -> str:
        return item.outputs[output] if item.kind == "text" else os.path.relpath(items.folder / OUTPUTS / item.outputs[output], beside)

    for first, second in combinations(sorted(tier_of), 2):
        better, worse = sorted((first, second), key=lambda output: tier_of[output])
        tie = tier_of[better] == tier_of[worse]
        if told(better) == told(worse):
            continue  # nobody can learn from the same words twice
        spans = {
            f"wrong_{side}": [list(span) for span in judgement.wrong.get(str(output), ())]
            for side, output in (("chosen", better), ("rejected", worse))
            if marking and item.kind == "text"
        }
        yield {
            "prompt": item.prompt,
            "chosen": told(better),
            "rejected": told(worse),
            "strength": 0.5 if tie else STRENGTHS[judgement.grade],
            "id": item.id if len(item.outputs) == 2 else f"{item.id}:{first}-{second}",
            "annotator": judgement.annotator,
            **spans,
        }
