"""What is minimised for a margin: ``margin -> value``, elementwise, low where the first row is clearly the better one.

Finite, with finite gradients, at margins of any size that float64 squares.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.types import UserError

Link = Callable[[Tensor], Tensor]


def logistic(margin: Tensor, *, beta: float) -> Tensor:
    """``-log sigmoid(beta margin)``: the Bradley-Terry likelihood of the preference (DPO, arXiv 2305.18290, eq. 7)."""
    return -functional.logsigmoid(beta * margin)


def hinge(margin: Tensor, *, beta: float) -> Tensor:
    """``max(0, 1 - beta margin)`` (SLiC's loss on DPO's margin; RSO, arXiv 2309.06657, eq. 10)."""
    return torch.relu(1 - beta * margin)


def squared(margin: Tensor, *, beta: float) -> Tensor:
    """``(margin - 1 / (2 beta))^2``: a margin of ``1 / (2 beta)`` is enough, and more is too much (IPO, arXiv 2310.12036, eq. 17)."""
    return (margin - 1 / (2 * beta)) ** 2


def soft(link: Link, margin: Tensor, strength: Tensor) -> Tensor:
    """``p link(margin) + (1 - p) link(-margin)``: the expected loss where the first row is better with probability p.

    With a logistic link that is conservative DPO; its minimum is at ``beta margin = logit p``, and 0 for a tie.
    """
    return strength * link(margin) + (1 - strength) * link(-margin)


def smoothed(strength: Tensor, *, flips: float) -> Tensor:
    """``p (1 - e) + (1 - p) e``: the probability that is left where a fraction e of the labels is flipped."""
    return strength * (1 - flips) + (1 - strength) * flips


_NAMED: dict[str, Callable[..., Tensor]] = {"logistic": logistic, "hinge": hinge, "squared": squared}


def named(name: str, *, beta: float) -> Link:
    """The link of that name at ``beta``. Raises UserError for an unknown name, or a ``beta`` that is not above 0."""
    if name not in _NAMED:
        raise UserError(f"link: got {name!r}, takes one of {', '.join(_NAMED)}")
    if not beta > 0:
        raise UserError(f"beta: got {beta}, takes a number above 0")
    function = _NAMED[name]
    return lambda margin: function(margin, beta=beta)
