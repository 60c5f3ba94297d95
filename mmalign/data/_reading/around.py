"""Records around other records: each of theirs changed, or passed over, with their places, digests and broken ones."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from mmalign.data.pairs import listed
from mmalign.records import Digested, Pair, Record, Records, Undecoded, read
from mmalign.types import UserError

PATIENCE = 1000  # records in a row that are passed over, after which there is nothing to learn from


class Around:
    """See the module. useless: what records are that are passed over."""

    useless = "say nothing"

    def __init__(self, source: Records):
        self.source, self.broken = source, source.broken

    def digest(self) -> str:
        """That of the records inside."""
        return self.source.digest() if isinstance(self.source, Digested) else ""

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Records``."""
        yield from self._changed(self.source.stream(seed=seed, start=start))

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Undecoded``."""
        coming = self.source.undecoded if isinstance(self.source, Undecoded) else self.source.stream
        yield from self._changed(coming(seed=seed, start=start))

    def _changed(self, coming: Iterator[Any]) -> Iterator[Any]:
        idle = 0
        for record in coming:
            changed = self._change(record)
            idle = 0 if changed is not None else idle + 1
            if idle >= PATIENCE:
                raise UserError(f"records: {PATIENCE} records in a row {self.useless}")
            if changed is not None:
                yield changed

    def _change(self, record: Any) -> Any:
        """A record as it is here; None passes it over."""
        return record


class Doubled(Around, ABC):
    """Two records of each. A position is twice that of its source, and odd between the two."""

    def stream(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Records``."""
        return self._twice(self.source.stream, seed, start)

    def undecoded(self, *, seed: int, start: int = 0) -> Iterator[Any]:
        """As in ``records.Undecoded``."""
        return self._twice(self.source.undecoded if isinstance(self.source, Undecoded) else self.source.stream, seed, start)

    def _twice(self, coming: Callable[..., Iterator[Any]], seed: int, start: int) -> Iterator[Any]:
        before, odd = divmod(start, 2)
        for record in coming(seed=seed, start=before):
            first, second = self._halves(record)
            if not odd:
                yield first._replace(position=2 * before + 1)
            yield second._replace(position=2 * record.position)
            before, odd = record.position, 0

    @abstractmethod
    def _halves(self, record: Any) -> tuple[Any, Any]:
        """The two. Errors: UserError for a record of which there are none."""


def inside(of: Records | Sequence[Record]) -> Records:
    """Records, or a list of them as such."""
    return listed(of) if isinstance(of, Sequence) else of


def refuse_two_prompts(record: Any) -> None:
    """Errors: UserError for a pair with two prompts, where the prompt is to be written anew."""
    if isinstance(record, Pair) and record.other is not None:
        raise UserError(f"records.of: {record.id or 'a pair'} has two prompts, takes pairs with one; put what gives the second around this")


def decoded_pair(pair: Pair) -> Pair | None:
    """The pair with its media, None where one cannot be used."""
    try:
        decoded: Pair = read(pair)
    except UserError:
        return None
    return decoded
