"""What a gain is worth to a person: elementwise, increasing, ``x -> U(x)``."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.types import UserError

_NAMED: dict[str, Callable[[Tensor], Tensor]] = {
    "kahneman_tversky": torch.sigmoid,
    "loss_averse": functional.logsigmoid,
    "risk_seeking": functional.softplus,
}


def named(name: str) -> Callable[[Tensor], Tensor]:
    """``kahneman_tversky``, sigmoid(x); ``loss_averse``, log sigmoid(x); ``risk_seeking``, -log sigmoid(-x) (arXiv 2404.04465).

    Errors: UserError for another name.

    Examples:
        >>> [round(float(named(name)(torch.tensor(1.0))), 4) for name in ("kahneman_tversky", "loss_averse", "risk_seeking")]
        [0.7311, -0.3133, 1.3133]
    """
    if name not in _NAMED:
        raise UserError(f"utility: got {name!r}, takes one of {', '.join(_NAMED)}")
    return _NAMED[name]
