"""What an update learns from: rows of a rollout, whoever made them, with the signal of a method."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.distributed.tables import Whole
from mmalign.types import Rollout, UserError


@dataclass(frozen=True)
class Experience:
    """Rows of a rollout with what an update learns them by.

    signal: ``[B, 1 or T, ...]`` of all rows of the rollout, see ``Method.signal``. rows: ``[R]`` int64, the numbers of those that the
    update takes, those side by side that a method has to see at once. whole: where several processes made the rollout, of which ``rollout``
    holds this one's rows alone: signal and rows are then those of all. Errors: UserError for other shapes, and rows that are not there.
    """

    rollout: Rollout
    signal: Tensor
    rows: Tensor
    whole: Whole | None = None

    def __post_init__(self) -> None:
        count, width = self.tables.mask.shape
        shape = tuple(self.signal.shape)
        fits = len(shape) >= 2 and shape[0] == count and shape[1] in (1, width)
        if not fits:
            raise UserError(f"Experience.signal: got shape {list(shape)}, takes [{count}, 1 or {width}, ...]")
        whole = self.rows.ndim == 1 and self.rows.dtype == torch.int64
        if not whole:
            raise UserError(f"Experience.rows: got {self.rows.dtype} {list(self.rows.shape)}, takes torch.int64 [rows]")
        inside = bool(((self.rows >= 0) & (self.rows < count)).all())
        if not inside:
            raise UserError(f"Experience.rows: got row numbers outside 0..{count - 1}")

    @property
    def tables(self) -> Whole:
        """Mask and group of all rows that the signal is of."""
        rollout = self.rollout
        return Whole(rollout.mask, rollout.group, torch.zeros_like(rollout.group)) if self.whole is None else self.whole

    @property
    def mask(self) -> Tensor:
        """``[R, T]``: the cells of its rows that count."""
        return self.tables.mask[self.rows]

    @property
    def group(self) -> Tensor:
        """``[R]``: the groups of its rows."""
        return self.tables.group[self.rows]

    @property
    def here(self) -> Tensor:
        """``[R]`` bool: those of its rows that this process holds."""
        return self.tables.owner[self.rows] == self.tables.rank

    def own(self) -> Experience:
        """The rows that this process holds, as the experience of its own rollout."""
        before, (count, width) = int((self.tables.owner < self.tables.rank).sum()), self.rollout.mask.shape
        signal = self.signal[before : before + count]
        signal = signal if signal.shape[1] == 1 else signal[:, :width]
        return Experience(self.rollout, signal, self.rows[self.here] - before)

    @property
    def silent(self) -> bool:
        """Whether no row of it has a signal, and so nothing is to be learned."""
        return not bool((self.signal[self.rows] != 0).any())

    def signal_at(self, rows: Tensor, columns: Tensor) -> Tensor:
        """The signal of some of the rollout's rows and steps, ``[R, 1 or C, ...]``."""
        return self.signal[rows] if self.signal.shape[1] == 1 else self.signal[rows][:, columns]
