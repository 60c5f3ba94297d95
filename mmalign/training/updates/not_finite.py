"""Numbers that are not finite (NaN, infinite): which rows of an update have them, what becomes of it, and when they end a run."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.training.updates.experience import Experience
from mmalign.training.updates.units import unit_sizes
from mmalign.types import Steps, Unit, UserError

Then = Literal["raise", "skip", "drop"]
GRADIENT = "the gradient"


class Odd(NamedTuple):
    """Rows of an experience, by their places among those that the update takes: with log-probabilities (those of the policy, of whoever
    sampled, of a reference) and with a loss that are not finite."""

    log_probs: list[int]
    loss: list[int]


def odd(steps: Steps, losses: Tensor, places: Tensor) -> Odd:
    """Of a micro-batch. losses: ``[R, C]``, weighted. places: ``[R]`` int64, of its rows in the update."""
    tables = [steps.log_probs, *([] if steps.old is None else [steps.old]), *steps.refs.values()]
    ratios = [~table.detach().isfinite() & steps.mask for table in tables]
    rows = torch.stack([cells.any(1).cpu() for cells in ratios]).any(0)
    return Odd(places[rows].tolist(), places[~losses.detach().isfinite().all(1).cpu() & ~rows].tolist())


def together(parts: Sequence[Sequence[Sequence[int]]]) -> Odd:
    """What several micro-batches, or processes, have of one experience: each row once."""
    log_probs = {place for part in parts for place in part[0]}
    return Odd(sorted(log_probs), sorted({place for part in parts for place in part[1]} - log_probs))


def without(unit: Unit, experience: Experience, some: Odd) -> Experience:
    """The same experience without those rows, and without the others of their units."""
    gone = torch.zeros(len(experience.rows), dtype=torch.bool)
    gone[[*some.log_probs, *some.loss]] = True
    kept = [~part.any().expand(len(part)) for part in gone.split(unit_sizes(unit, experience.group))]
    return replace(experience, rows=experience.rows[torch.cat(kept)])


@dataclass
class NotFinite:
    """What of a step's updates was not finite, and what became of them: in words, and counted.

    then: ``raise`` ends the run; ``skip`` leaves the update out; ``drop`` makes it of the rows whose numbers are finite, and leaves it out
    where that does not help. skipped: updates. dropped: rows.
    """

    then: Then = "skip"
    what: str = ""
    skipped: int = 0
    dropped: int = 0

    def begin(self) -> None:
        """A step begins."""
        self.what, self.skipped, self.dropped = "", 0, 0

    def met(self, odd_rows: Sequence[Odd], rows: int) -> None:
        """Rows of an update of so many have such numbers. Errors: UserError where that is to be raised."""
        counts = {"the log-probabilities": sum(len(one.log_probs) for one in odd_rows), "the loss": sum(len(one.loss) for one in odd_rows)}
        self._say(" and ".join(f"{name} of {count} of {rows} rows" for name, count in counts.items() if count))

    def left_out(self, rows: int) -> None:
        """So many rows are left out of an update."""
        self.dropped += rows

    def left(self, *, gradient: bool) -> None:
        """An update is left out. gradient: since its gradient is not finite. Errors: UserError where that is to be raised."""
        self.skipped += 1
        if gradient:
            self._say(GRADIENT)

    def _say(self, what: str) -> None:
        self.what = self.what or what
        if self.then == "raise":
            raise UserError(
                f"{what}: not finite (NaN or infinite); takes a lower optimizer.rate, or bfloat16 or float32 weights; or run.non_finite: "
                "skip (which leaves such updates out) or drop (which leaves such rows out), also at a resume"
            )

    def row(self) -> dict[str, float]:
        """What the log holds of the step."""
        return {"dropped": float(self.dropped)} if self.dropped else {}

    def counted(self, state: dict[str, Any]) -> str:
        """Counts the step in ``state`` (``not_finite``: by name; ``not_finite_in_a_row``); what is to be said of it, "" for nothing."""
        state["not_finite_in_a_row"] = state.get("not_finite_in_a_row", 0) + 1 if self.what else 0
        if not self.what:
            return ""
        before, now = state.get("not_finite", {}), {"skipped_updates": self.skipped, "dropped_rows": self.dropped}
        state["not_finite"] = {name: before.get(name, 0) + count for name, count in now.items()} | {"what": before.get("what", self.what)}
        return f"{self.what} not finite, {in_words(now)}" if state["not_finite_in_a_row"] == 1 else ""


def in_words(counts: Mapping[str, Any]) -> str:
    """``2 updates skipped, 3 rows dropped``."""
    named = (("update", "skipped", counts.get("skipped_updates", 0)), ("row", "dropped", counts.get("dropped_rows", 0)))
    return ", ".join(f"{count} {what}{'s' * (count != 1)} {became}" for what, became, count in named if count)


def summed_up(counts: Mapping[str, Any]) -> dict[str, Any]:
    """Of a run's summary, where there are any: ``skipped_updates``, ``dropped_rows``, and what was met first, ``not_finite``."""
    known = {name: counts[name] for name in ("skipped_updates", "dropped_rows") if counts.get(name)}
    return {**known, "not_finite": counts["what"]} if known else {}
