"""What is minimised for a pair, elementwise: ``margin -> value``, or ``(better score, worse score) -> value``.

A link of a margin is low where the better row is clearly ahead; ``ahead`` makes one a comparison of two scores. A comparison that looks
at each score by itself holds both in place, and not their difference alone. Finite, with finite gradients, at scores of any size that
float64 squares.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.types import UserError

Link = Callable[[Tensor], Tensor]
Compare = Callable[[Tensor, Tensor], Tensor]


def logistic(margin: Tensor, *, beta: float) -> Tensor:
    """``-log sigmoid(beta margin)``: the Bradley-Terry likelihood of the preference (DPO, arXiv 2305.18290, eq. 7).

    Examples:
        >>> logistic(torch.tensor([0.0, 10.0, -10.0]), beta=0.1)  # log 2, log(1 + 1/e), log(1 + e)
        tensor([0.6931, 0.3133, 1.3133])
    """
    return -functional.logsigmoid(beta * margin)


def hinge(margin: Tensor, *, beta: float) -> Tensor:
    """``max(0, 1 - beta margin)`` (SLiC's loss on DPO's margin; RSO, arXiv 2309.06657, eq. 10).

    Examples:
        >>> hinge(torch.tensor([-5.0, 5.0, 10.0, 20.0]), beta=0.1)
        tensor([1.5000, 0.5000, 0.0000, 0.0000])
    """
    return torch.relu(1 - beta * margin)


def squared(margin: Tensor, *, beta: float) -> Tensor:
    """``(margin - 1 / (2 beta))^2``: a margin of ``1 / (2 beta)`` is enough, and more is too much (IPO, arXiv 2310.12036, eq. 17).

    Examples:
        >>> squared(torch.tensor([0.0, 5.0, 7.0]), beta=0.1)  # 5 is enough
        tensor([25.,  0.,  4.])
    """
    return (margin - 1 / (2 * beta)) ** 2


def discovered(margin: Tensor, *, beta: float, tau: float) -> Tensor:
    """``(1 - m) softplus(-z) + m e^(-z)``, ``z = beta margin``, ``m = sigmoid(z / tau)``: DiscoPOP (arXiv 2406.08414, eq. 5).

    ``m e^(-z)`` is ``exp(-z + log sigmoid(z / tau))``: as a product it is inf * 0 for ``z`` below about -89 in float32.

    tau: temperature of the mixture, in units of z.
    """
    z = beta * margin
    return torch.sigmoid(-z / tau) * functional.softplus(-z) + torch.exp(functional.logsigmoid(z / tau) - z)


def exact(margin: Tensor, *, beta: float, flips: float) -> Tensor:
    """``KL(q || (1 - e, e))``, ``q = sigmoid(beta margin)``: EXO for pairs (arXiv 2402.00856, eq. 16)."""
    log_better, log_worse = functional.logsigmoid(beta * margin), functional.logsigmoid(-beta * margin)
    return log_better.exp() * (log_better - math.log1p(-flips)) + log_worse.exp() * (log_worse - math.log(flips))


_NAMED: dict[str, Callable[..., Tensor]] = {"logistic": logistic, "hinge": hinge, "squared": squared}


def positive(**values: float) -> None:
    """Errors: UserError for the first value that is not above 0."""
    for name, value in values.items():
        if not value > 0:
            raise UserError(f"{name}: got {value}, takes a number above 0")


def not_negative(**values: float) -> None:
    """Errors: UserError for the first value that is below 0."""
    for name, value in values.items():
        if not value >= 0:
            raise UserError(f"{name}: got {value}, takes 0 or more")


def named(name: str, *, beta: float) -> Link:
    """The link of that name at ``beta``. Errors: UserError for an unknown name, or a ``beta`` that is not above 0."""
    if name not in _NAMED:
        raise UserError(f"link: got {name!r}, takes one of {', '.join(_NAMED)}")
    positive(beta=beta)
    function = _NAMED[name]
    return lambda margin: function(margin, beta=beta)


def ahead(link: Link, *, by: float = 0.0) -> Compare:
    """A link of the margin between two scores, less ``by``: the margin that is asked for.

    by: nats.

    Examples:
        >>> compare = ahead(named("squared", beta=0.5), by=2.0)  # a margin of 2, and then 1 / (2 beta) = 1
        >>> compare(torch.tensor([4.0, 2.0]), torch.tensor([1.0, 2.0]))
        tensor([0., 9.])
    """
    return lambda better, worse: link(better - worse - by)


def smoothed(compare: Compare, *, flips: float) -> Compare:
    """``(1 - e) compare(better, worse) + e compare(worse, better)``: a fraction e of the labels is taken to be flipped (cDPO).

    A soft label p then counts as ``p (1 - e) + (1 - p) e``.

    Errors: UserError for ``flips`` outside 0 to below 0.5.

    Examples:
        >>> compare = smoothed(ahead(named("hinge", beta=1.0)), flips=0.25)  # 3/4 of 0, and 1/4 of 1 + 1
        >>> compare(torch.tensor(3.0), torch.tensor(2.0))
        tensor(0.5000)
    """
    if not 0 <= flips < 0.5:
        raise UserError(f"smoothing: got {flips}, takes 0 to below 0.5")
    return lambda better, worse: (1 - flips) * compare(better, worse) + flips * compare(worse, better)


def unbiased(compare: Compare, *, flips: float) -> Compare:
    """``[(1 - e) compare(better, worse) - e compare(worse, better)] / (1 - 2 e)``: its mean over flipped labels is the clean loss.

    rDPO (arXiv 2403.00409). A soft label p counts as ``(p - e) / (1 - 2 e)``.

    Errors: UserError for ``flips`` outside 0 to below 0.5.

    Examples:
        >>> compare = unbiased(ahead(named("hinge", beta=1.0)), flips=0.25)
        >>> right, flipped = compare(torch.tensor(3.0), torch.tensor(2.0)), compare(torch.tensor(2.0), torch.tensor(3.0))
        >>> 0.75 * right + 0.25 * flipped  # what the loss of the right label is: max(0, 1 - 1)
        tensor(0.)
    """
    if not 0 <= flips < 0.5:
        raise UserError(f"flips: got {flips}, takes 0 to below 0.5")
    return lambda better, worse: ((1 - flips) * compare(better, worse) - flips * compare(worse, better)) / (1 - 2 * flips)


def likely(compare: Compare, *, flips: float) -> Compare:
    """``-log [(1 - e) exp(-compare(better, worse)) + e exp(-compare(worse, better))]``: how likely a label is that is flipped with e.

    Of a comparison that is minus a log-likelihood. Bounded by ``-log e``, so that a label which the scores clearly speak against is let go
    in place of fitted (forward correction, arXiv 1609.03683, eq. 7, of two classes).

    Errors: UserError for ``flips`` outside 0 to below 0.5.

    Examples:
        >>> compare = likely(ahead(named("logistic", beta=1.0)), flips=0.25)
        >>> compare(torch.tensor(100.0), torch.tensor(0.0)).exp()  # 1 / (1 - e)
        tensor(1.3333)
    """
    if not 0 <= flips < 0.5:
        raise UserError(f"flips: got {flips}, takes 0 to below 0.5")
    if not flips:
        return compare
    right, flipped = math.log1p(-flips), math.log(flips)
    return lambda better, worse: -torch.logaddexp(right - compare(better, worse), flipped - compare(worse, better))


# ---- comparisons that hold each score in place, of ``better`` and ``worse`` in nats


def noise_contrastive(better: Tensor, worse: Tensor, *, beta: float) -> Tensor:
    """``-log sigmoid(b w) - 1/2 log sigmoid(-b w) - 1/2 log sigmoid(-b l)``: NCA for pairs (arXiv 2402.05369, table 1)."""
    softplus = functional.softplus
    return softplus(-beta * better) + 0.5 * softplus(beta * better) + 0.5 * softplus(beta * worse)


def classified(better: Tensor, worse: Tensor, *, beta: float) -> Tensor:
    """``-log sigmoid(b w) - log sigmoid(-b l)``: each row is good or bad by itself (BCO, arXiv 2404.04656)."""
    return functional.softplus(-beta * better) + functional.softplus(beta * worse)


def anchored_up(better: Tensor, worse: Tensor, *, beta: float) -> Tensor:
    """``1 - sigmoid(b w) + sigmoid(b l)``: better rows up, worse rows down (APO-zero, arXiv 2408.06266, eq. 7)."""
    return torch.sigmoid(-beta * better) + torch.sigmoid(beta * worse)


def anchored_down(better: Tensor, worse: Tensor, *, beta: float) -> Tensor:
    """``sigmoid(b w) + 1 - sigmoid(b (w - l))``: both down, worse rows more (APO-down, arXiv 2408.06266, eq. 8)."""
    return torch.sigmoid(beta * better) + torch.sigmoid(-beta * (better - worse))


def regressed(better: Tensor, worse: Tensor, *, beta: float) -> Tensor:
    """``1/2 (w - 1/(2b))^2 + 1/2 (l + 1/(2b))^2``: each score to its own target (SPPO, arXiv 2405.00675, eq. 4.7, P = 1 and 0)."""
    return 0.5 * (better - 0.5 / beta) ** 2 + 0.5 * (worse + 0.5 / beta) ** 2
