"""What a run's records are told apart by, in its checkpoints: a resume goes on in the stream of those that it began with."""

from __future__ import annotations

from mmalign.records import AT, Digested, Records
from mmalign.types import UserError


class SameRecords:
    """The digest of records as a state of a run. Errors: UserError where a checkpoint holds another one."""

    def __init__(self, records: Records):
        self.digest = records.digest() if isinstance(records, Digested) else ""

    def dump(self) -> dict[str, str]:
        """The digest; '' where records cannot be told apart."""
        return {"digest": self.digest}

    def load(self, kept: dict[str, str]) -> None:
        """Compares it with that of the run's beginning."""
        if not (self.digest and kept["digest"]) or self.digest == kept["digest"]:
            return
        (now, at, commit), (before, _, began) = self.digest.partition(AT), kept["digest"].partition(AT)
        if at and now == before:
            raise UserError(f"records: {now} is at commit {commit}, and this run began with {began}; takes records.revision={began}")
        raise UserError("records: are others than those that this run began with; undo that, or give the run another name")
