"""Records of the next step, read and decoded while a step trains: the same records in the same order, whoever waits for them."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any

from mmalign.records import Records, RefusedRow, Unread, looked_at, outputs_of, prompts_of
from mmalign.training.rollouts.background import Background
from mmalign.types import UserError


class Ahead(Iterator[Any]):
    """Records as they come, of which some are taken before they are asked for.

    coming: records without end. source: of which they are. broken: what could not be read of them before the last record that was handed
    out, so that a run that ends in between knows no more than one that never looked ahead. decoded: images and videos, or the UserError of
    one that cannot be used. Only one thread asks for records at a time.
    """

    def __init__(self, coming: Iterator[Any], source: Records, background: Background):
        self.coming, self.source, self.background = coming, source, background
        self.broken, self.decoded = dict(source.broken), dict[Unread, Any]()
        self.waiting = deque[tuple[Any, dict[str, str]]]()
        self.filling: Callable[[], None] | None = None

    def __next__(self) -> Any:
        self._filled()
        came, self.broken = self.waiting.popleft() if self.waiting else self._pulled()
        if isinstance(came, Exception):
            raise came
        return came

    def fill(self, count: int, own: slice) -> None:
        """Begins to take the next ``count`` records, and to decode those of them that are ``own``; those of a step before are forgotten."""
        self._filled()
        self.decoded.clear()
        self.filling = self.background(partial(self._fill, count, own))

    def _filled(self) -> None:
        """Waits for what ``fill`` has begun."""
        filling, self.filling = self.filling, None
        if filling is not None:
            filling()

    def _fill(self, count: int, own: slice) -> None:
        for place in range(count):
            if place == len(self.waiting):
                self.waiting.append(self._pulled())
            came, _ = self.waiting[place]
            if isinstance(came, Exception):
                return
            if own.start <= place < own.stop:
                self._decode(came)

    def _pulled(self) -> tuple[Any, dict[str, str]]:
        try:
            came = next(self.coming)
        except Exception as error:  # whatever it is, it is raised where its record is asked for
            came = error
        broken = self.source.broken
        return came, self.broken if len(broken) == len(self.broken) else dict(broken)

    def _decode(self, record: Any) -> None:
        for output in outputs_of(record):
            if isinstance(output, Unread) and output not in self.decoded:
                self.decoded[output] = decoded(output)
        try:
            for prompt in prompts_of(record):
                looked_at(prompt)
        except UserError:  # who encodes it looks again, and says so
            return


def decoded(output: Unread) -> Any:
    """What it is, or the UserError of one that cannot be used."""
    try:
        return output.read()
    except UserError as error:
        return error


def seen_prompts(prompts: Sequence[Any], own: slice) -> list[Any]:
    """Prompts, of which the media of a process's own rows can be used. Errors: RefusedRow."""
    seen = list(prompts)
    for row in range(len(prompts))[own]:
        try:
            seen[row] = looked_at(prompts[row])
        except UserError as error:
            raise RefusedRow(row, str(error)) from error
    return seen


def read_media(outputs: Sequence[Any], own: slice, known: dict[Unread, Any]) -> list[Any]:
    """Outputs, of which those of a process's own rows are decoded. known: those that are already, to which these are added.

    Errors: RefusedRow.
    """
    read = list(outputs)
    for row in range(len(outputs))[own]:
        output = outputs[row]
        if isinstance(output, Unread):
            if output not in known:
                known[output] = decoded(output)
            if isinstance(known[output], UserError):
                raise RefusedRow(row, str(known[output])) from known[output]
            read[row] = known[output]
    return read
