"""What each cell counts for: ``mask [B, T]`` bool of the whole batch ``-> [B, T]`` float64; the loss is ``sum(weight * values)``.

Computed once on the whole batch, so that no loss depends on the micro-batch split. Dead cells and empty rows weigh 0, and
empty rows are not counted: padding a batch changes nothing.
"""

from __future__ import annotations

from torch import Tensor

from mmalign.types import UserError


def _rows(mask: Tensor) -> Tensor:
    return mask.any(1).sum().clamp(min=1)


def token_mean(mask: Tensor) -> Tensor:
    """Every live cell counts the same: ``1 / (live cells)``.

    Examples:
        >>> token_mean(torch.tensor([[True, True, True], [True, False, False]])).tolist()
        [[0.25, 0.25, 0.25], [0.25, 0.0, 0.0]]
    """
    return mask.double() / mask.sum().clamp(min=1)


def sequence_mean(mask: Tensor) -> Tensor:
    """Every row counts the same, and every live cell of a row: ``1 / (rows * live cells of the row)``.

    Examples:
        >>> sequence_mean(torch.tensor([[True, True], [True, False]])).tolist()
        [[0.25, 0.25], [0.5, 0.0]]
    """
    return mask.double() / mask.sum(1, keepdim=True).clamp(min=1) / _rows(mask)


def constant_length(mask: Tensor, *, length: float) -> Tensor:
    """The sum over each row divided by a constant: ``1 / (rows * length)``; long rows count more. ``length=1``: sums.

    length: steps that count as one row, above 0.

    Examples:
        >>> constant_length(torch.tensor([[True, True], [True, False]]), length=4).tolist()  # 1 / (2 rows * 4)
        [[0.125, 0.125], [0.125, 0.0]]
    """
    if length <= 0:
        raise UserError(f"length: got {length}, takes a number above 0")
    return mask.double() / length / _rows(mask)
