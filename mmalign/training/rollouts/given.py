"""Data that nobody sampled, beside a policy's own samples: what a classifier learns to tell these from."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor

from mmalign.needs import REALISM
from mmalign.records import Pair, Ranking, Record, Records
from mmalign.types import Method, UserError


class Given:
    """The good outputs of records, in turn; a state of the run, which a resume goes on from.

    Of a pair the better one, of a ranking the best, of thumbs those that are not down. seed: of their order.
    """

    def __init__(self, records: Records, *, seed: int):
        self.records, self.seed, self.position = records, seed, 0
        self._coming: Iterator[Any] | None = None

    def rows(self, count: int, own: Tensor) -> tuple[list[Any], Tensor]:
        """Prompts and outputs of the next ``count``, of those that this process holds, ``own [count]`` bool.

        Errors: UserError for outputs that are no images or videos of one size, and records none of which is good.
        """
        if self._coming is None:
            self._coming = self._good()
        taken = list(islice(self._coming, count))
        shapes = {tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__ for _, output in taken}
        if len(shapes) != 1 or isinstance(next(iter(shapes)), str):
            raise UserError(
                f"records: got outputs of {', '.join(sorted(map(str, shapes))) or 'none'}; takes images, or videos, of one size"
            )
        held = [row for row, mine in zip(taken, own.tolist(), strict=True) if mine]
        return [prompt for prompt, _ in held], torch.stack([output for _, output in held])

    def _good(self) -> Iterator[tuple[Any, Any]]:
        passed = 0
        for record in self.records.stream(seed=self.seed, start=self.position):
            self.position = record.position
            output = best_of(record)
            passed = passed + 1 if output is None else 0
            if output is not None:
                yield record.prompt, output
            if passed > MOST:
                raise UserError(f"records: {MOST} in a row say of no output that it is good; takes records that do")

    def dump(self) -> dict[str, int]:
        """How many records are over."""
        return {"position": self.position}

    def load(self, kept: dict[str, int]) -> None:
        """Goes on from there."""
        self.position, self._coming = kept["position"], None


MOST = 10_000


def best_of(record: Record) -> Any:
    """The output that a record calls good; None where it calls none so."""
    if isinstance(record, Pair):
        return record.second if record.strength < 0.5 else record.first
    if isinstance(record, Ranking):
        return max(zip(record.scores, record.outputs, strict=True), key=lambda pair: (pair[0] == pair[0], pair[0]))[1]
    return None if record.label < 0.5 else record.output


def refuse_given(method: Method, records: object) -> None:
    """Errors: UserError for a method that tells samples from given data, without records, and for records that nobody reads."""
    wanted = any(REALISM in companion.method.needs for companion in method.companions)
    if wanted and records is None:
        raise UserError("records: missing; this method (its gan) tells samples from given images or videos, and takes records of those")
    if records is not None and not wanted:
        raise UserError("records: nothing in this method reads them; takes a method with a gan above 0 (dmd2, flash_dmd), or no records")
