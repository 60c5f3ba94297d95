"""An oracle of pairs as what a server of rewards asks: the rows of one question are compared with each other."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch

from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.types import UserError

ORACLE = "oracle"
"""What it is called on a server, and in a question."""


class Compared:
    """A reward of parts: of each row ``(other row, other row, probability that it is better than that one)`` of all it is compared with.

    The column ``group`` says which rows are compared. What the oracle says nothing of is not among them.
    """

    def __init__(self, oracle: Callable[..., Any]):
        self.oracle, self.reads = oracle, frozenset({"group"}) | columns_read(oracle)

    def __call__(self, outputs: Any, prompts: list[Any], group: list[int], **columns: Any) -> list[list[tuple[int, int, float]]]:
        numbers = torch.tensor(group, dtype=torch.int64)
        wins = torch.as_tensor(self.oracle(outputs, prompts, numbers, **accepted(self.oracle, columns)))
        if tuple(wins.shape) != (len(prompts), len(prompts)):
            raise UserError(f"oracle: returned shape {list(wins.shape)}, takes [{len(prompts)}, {len(prompts)}]")
        table = wins.detach().double().cpu().tolist()
        return [
            [(other, other, p) for other, p in enumerate(row) if other != place and group[other] == group[place] and not math.isnan(p)]
            for place, row in enumerate(table)
        ]
