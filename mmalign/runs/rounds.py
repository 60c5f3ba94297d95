"""The folder of a run of rounds: what its stages made, and which of them are done.

::

    runs/<name>/
        config.yaml  versions.json  summary.json  report.html
        rounds.json         the state: an entry for each stage that is done, in order; what it made, and what was counted or evaluated
        metrics.jsonl       the same as curves: a step is a round, 0 is before the first one
        round_001/          what the stages of a round made: files, folders of runs, and <stage>.yaml, the config that a stage was in it
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from mmalign.files import finite, gone, plain, write_json, write_text
from mmalign.runs import folder as folders
from mmalign.runs.metrics import read_metrics
from mmalign.types import UserError

STATE = "rounds.json"
NO_NUMBER = ("step", "phase", "seconds")


class Entry(NamedTuple):
    """A stage that is done. product: what it made, in the run's folder. counts: of a command. before, after: a run's evaluations, and
    ``trained`` its last step. rewards, judges: names of those of the run."""

    round: int
    stage: str
    use: str
    seconds: float
    product: str | None = None
    counts: Mapping[str, float] = MappingProxyType({})
    before: Mapping[str, float] = MappingProxyType({})
    after: Mapping[str, float] = MappingProxyType({})
    trained: Mapping[str, float] = MappingProxyType({})
    rewards: Sequence[str] = ()
    judges: Sequence[str] = ()


class Book(NamedTuple):
    """An opened run of rounds. notes: lines worth telling the user."""

    path: Path
    entries: list[Entry]
    notes: tuple[str, ...] = ()

    def done(self, number: int, stage: str) -> bool:
        """Whether a stage has been carried out in a round."""
        return any((entry.round, entry.stage) == (number, stage) for entry in self.entries)

    def add(self, entry: Entry) -> None:
        """Says that a stage is done: the state, whole or not at all, and then the curves, which follow from it."""
        self.entries.append(entry)
        write_json(self.path / STATE, {"entries": [{**entry._asdict()} for entry in self.entries]})
        self.write_metrics()

    def write_metrics(self) -> None:
        """The numbers of all rounds as the log of a run."""
        write_text(self.path / "metrics.jsonl", "".join(f"{json.dumps(finite(row))}\n" for row in self.rows()))

    def rows(self) -> Iterator[dict[str, Any]]:
        """A row for each stage, whose step is its round; of every evaluated number the first one is that of round 0.

        Evaluated numbers have their own names, and the last stage of a round that has one says it; others begin with their stage.
        """
        seconds = 0.0
        if first := before(self.entries):
            yield {"step": 0, "phase": "eval", "seconds": 0.0, **first}
        for entry in self.entries:
            seconds += entry.seconds
            at: dict[str, Any] = {"step": entry.round, "seconds": round(seconds, 3)}
            if numbers := {**entry.counts, **entry.trained}:
                yield {**at, "phase": "train", **{f"{entry.stage}/{name}": value for name, value in numbers.items()}}
            if entry.after:
                yield {**at, "phase": "eval", **entry.after}


def before(entries: Sequence[Entry]) -> dict[str, float]:
    """Every evaluated number as the first stage that has it found it, before it trained."""
    return {name: value for entry in reversed(entries) for name, value in entry.before.items()}


@contextmanager
def opened(root: str | Path, name: str, *, config: Mapping[str, Any], resume: bool) -> Iterator[Book]:
    """Makes ``root/name``, or opens it to go on behind what is done; no other process does until the block ends.

    Stages may say other things than before where a run is resumed (a filter that left nothing): what is done stays as it is, and a line
    says so. Their names and their order are the same.

    Errors: UserError where a run exists and ``resume`` is False, where there is nothing to resume, and where the configs differ otherwise.
    """
    path = folders.refuse(root, name, resume=resume)
    with folders.held(path, "goes through rounds", takes="give this run another name (run.name=...)"):
        kept = plain(config)
        for half in [*path.glob(".*.tmp"), *path.glob("round_*/.*.tmp")]:  # whether the kill came before its config was whole, or later
            if folders.STRAY.fullmatch(half.name):
                gone(half)
        if not (path / "config.yaml").is_file():
            folders.write_identity(path, kept)
            yield Book(path, [])
            return
        was = folders.read_config(path)
        before, now = (", ".join(node.get("stages") or {}) for node in (was, kept))
        if before != now:
            raise UserError(f"{path}: cannot resume with other stages: they were {before}, and are {now}; takes another name (run.name)")
        notes = folders.refuse_other_config(path, was, kept, ("rounds",), ("stages.*", "run.folder"))
        book = Book(path, read_entries(path), tuple(notes))
        folders.write_identity(path, kept)
        book.write_metrics()  # which a kill may have come before
        yield book


def read_entries(path: Path) -> list[Entry]:
    """The stages that are done, in order. Errors: UserError for a state that cannot be read."""
    if not (path / STATE).is_file():
        return []
    try:
        return [Entry(**entry) for entry in json.loads((path / STATE).read_text(encoding="utf-8"))["entries"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = " ".join(str(error).split())
        raise UserError(f"{path / STATE}: cannot be read ({why}); takes the file as it was, or another name (run.name)") from error


def last_run(path: Path) -> Path | None:
    """The run of the last stage that made one, of a run of rounds; None where there is none."""
    made = [path / entry.product for entry in read_entries(path) if entry.product and (path / entry.product / "config.yaml").is_file()]
    return made[-1] if made else None


def numbers_of(path: Path, summary: Mapping[str, Any]) -> dict[str, Any]:
    """What an entry says of a run that has ended, from its log: its first evaluation, its last or best one, and its last step."""
    rows = read_metrics(path / "metrics.jsonl")[0]
    evaluated = [row for row in rows if row["phase"] == "eval"]
    trained = [row for row in rows if row["phase"] == "train"]
    best = [row for row in evaluated if row["step"] == summary.get("best_step")]
    return {
        "before": _numbers(evaluated[:1]), "after": _numbers(best or evaluated[-1:]), "trained": _numbers(trained[-1:]),
        "rewards": list(summary.get("rewards", [])), "judges": list(summary.get("judges", [])),
    }  # fmt: skip


def _numbers(rows: list[dict[str, Any]]) -> dict[str, float]:
    return {key: value for row in rows for key, value in row.items() if key not in NO_NUMBER}
