"""Reference log-probabilities of rows that come again: they are computed once, and not in every pass over the data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.distributed.team import Team
from mmalign.types import Rollout

GROUP = "recalled"
"""What its part of a checkpoint is called."""
MIB, DIGEST = 2**20, 16  # bytes
BESIDE = 600  # bytes that a row takes beside its numbers, about


class KeptReferences:
    """What references that never change said of rows, for when these come again.

    It works for policies whose scores depend on the row alone (they give ``recall``), and not on noise that is drawn for it, as those of
    denoising errors. Rows are told apart by all that is scored, ids, pixels and which tokens count, and not by their records: of data that
    change from pass to pass, each version is a row of its own. Those that come first are kept: in passes over more data than there is room
    for, what was thrown out for another row would be gone by the time it is asked for. Every process keeps what all of them computed,
    since a row may come to another one in the next pass.

    names: of references that nothing moves. It is part of a checkpoint (``tensors``, ``load``): what is computed again, beside other
    rows, differs by rounding. row: what the log says of the last rollout: ``recalled``, the part of its rows that was known.
    """

    def __init__(self, policy: Any, names: Sequence[str], team: Team):
        self.policy, self.team, self.fixed = policy, team, tuple(names) if "recall" in policy.gives else ()
        self.names: tuple[str, ...] = ()
        self.room, self.full = 0, False
        self.say: Callable[[str], None] = print
        self.rows: dict[bytes, Tensor] = {}
        self.row: dict[str, float] = {}

    def keep(self, most: int, say: Callable[[str], None]) -> None:
        """Keeps up to ``most`` MiB from here on, in every process; 0: nothing. say: hears of it once there is no more room."""
        self.names, self.room, self.say = self.fixed if most else (), most * MIB, say

    def remember(self, rollout: Rollout, references: Iterable[str], rows_at_once: int) -> None:
        """``policy.remember``; fixed references are asked about rows alone that were not met before."""
        if self.names:
            self._recall(rollout, rows_at_once)
        self.policy.remember(rollout, references, rows_at_once)

    def _recall(self, rollout: Rollout, rows_at_once: int) -> None:
        digests, masks = self.policy.digests(rollout), rollout.mask
        new = [row for row, digest in enumerate(digests) if digest not in self.rows]
        table = torch.zeros((len(self.names), *masks.shape), dtype=torch.float64)
        for row, digest in enumerate(digests):
            if digest in self.rows:
                table[:, row, masks[row]] = self.rows[digest]
        if new:
            part = rollout if len(new) == len(digests) else rollout.take(torch.tensor(new))
            self.policy.remember(part, self.names, rows_at_once)
            said = self.policy.remembered(part)
            table[:, new] = torch.stack([said[name] for name in self.names])
        self.policy.remembered(rollout).update(zip(self.names, table, strict=True))
        values = [table[:, row, masks[row]] for row in new]
        own = {**packed([digests[row] for row in new], values, len(self.names)), "rows": torch.tensor([len(digests)])}
        every = self.team.gather(own)
        for theirs in every:
            self._put(theirs)
        asked, rows = (sum(counts) for counts in zip(*((len(one["live"]), int(one["rows"])) for one in every), strict=True))
        self.row = {"recalled": 1 - asked / rows}

    def _put(self, part: Mapping[str, Tensor]) -> None:
        """Keeps the rows that there is room for; which these are depends on what is kept by then, and on nothing else."""
        for digest, values in unpacked(part):
            size = values.numel() * values.element_size() + BESIDE
            if digest not in self.rows and size <= self.room:
                self.rows[digest], self.room = values, self.room - size
            elif digest not in self.rows and not self.full:
                self.full = True
                self.say(f"batch.reference_memory: is full with {len(self.rows)} rows; of others, references are asked in every pass")

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """What it keeps, for a checkpoint; nothing where it keeps nothing."""
        return {GROUP: packed(list(self.rows), list(self.rows.values()), len(self.names))} if self.names else {}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Goes on with what ``tensors`` gave, as far as there is room."""
        if self.names and GROUP in tensors:
            self._put(tensors[GROUP])


def packed(digests: Sequence[bytes], values: Sequence[Tensor], names: int) -> dict[str, Tensor]:
    """Rows as tensors: digests ``[N, DIGEST]`` uint8, live ``[N]`` numbers of each, values ``[names, sum of live]`` float64."""
    return {
        "digests": torch.tensor([list(digest) for digest in digests], dtype=torch.uint8).reshape(len(digests), DIGEST),
        "live": torch.tensor([value.shape[1] for value in values], dtype=torch.int64),
        "values": torch.cat([torch.zeros((names, 0), dtype=torch.float64), *values], dim=1),
    }


def unpacked(part: Mapping[str, Tensor]) -> Iterable[tuple[bytes, Tensor]]:
    """What ``packed`` put together."""
    values = part["values"].split(part["live"].tolist(), dim=1)
    return [(bytes(digest), value.clone()) for digest, value in zip(part["digests"].tolist(), values, strict=True)]
