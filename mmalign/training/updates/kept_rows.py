"""Rows of several rollouts as one table of a limited height: a ring of the newest."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import torch
from torch import Tensor

from mmalign.stacking import stacked


class Kept(Protocol):
    """What has tensors of its own in checkpoints, group -> name -> tensor, and takes them back."""

    def tensors(self) -> dict[str, dict[str, Tensor]]: ...

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None: ...


def newest(parts: Sequence[Mapping[str, Tensor]], most: int) -> dict[str, Tensor]:
    """The last ``most`` rows of tables by name, the oldest part first: numbers of rows ``[B]``, and tables ``[B, T]`` of any widths, filled
    up with zeros (False).

    Examples:
        >>> old, new = {"a": torch.tensor([1, 2]), "b": torch.tensor([[3], [4]])}, {"a": torch.tensor([5]), "b": torch.tensor([[6, 7]])}
        >>> {name: value.tolist() for name, value in newest([old, new], 2).items()}
        {'a': [2, 5], 'b': [[4, 0], [6, 7]]}
    """
    tables = {name: [part[name] for part in parts] for name in parts[-1]}
    return {name: (stacked(several) if several[0].ndim > 1 else torch.cat(several))[-most:] for name, several in tables.items()}
