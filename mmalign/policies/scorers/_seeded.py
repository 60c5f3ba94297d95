"""What a reader holds that draws something for each row of another one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Seeded:
    """Rows of another reader that something is drawn for. of: what it holds. seeds: ``[B]`` int64, of each row's draw; below 0: none."""

    of: Any
    seeds: Tensor

    def take(self, rows: Tensor) -> Seeded:
        return Seeded(self.of.take(rows), self.seeds[rows])

    @staticmethod
    def join(parts: Sequence[Seeded]) -> Seeded:
        return Seeded(type(parts[0].of).join([part.of for part in parts]), torch.cat([part.seeds for part in parts]))
