"""Models of several times, followed to where they are going."""

from __future__ import annotations

from mmalign.arguments.ranges import Count
from mmalign.merges._parts import Merge
from mmalign.types import UserError


def extrapolate(*, of: list[str], ahead: Count = 1) -> Merge:
    """The polynomial through the parameters of models at equal steps of time, ``ahead`` steps behind the last: ``sum_k c_k theta_k``.

    ``c_k = prod_{j != k} (K + ahead - j) / (k - j)`` for times 0 to K, so that with two models ``theta_1 + ahead (theta_1 - theta_0)``, and
    with three the difference of differences goes on, too. They add up to 1.

    of: parts, the oldest first; ``base`` is the policy's own weights. ahead: steps.

    Paper: ProgressGym, https://arxiv.org/abs/2406.20087, extrapolates preferences so (``data.forecast``); of two models it is ExPO's
    (Zheng et al., "Model Extrapolation Expedites Alignment" (2024), https://arxiv.org/abs/2404.16792, with ``alpha`` = ``ahead``).

    Errors: UserError for fewer than two parts, and for one named twice.

    Examples:
        >>> extrapolate(of=["base", "a", "b"]).shares
        ({'base': 1.0, 'a': -3.0, 'b': 3.0},)
    """
    if len(of) < 2 or len({*of}) < len(of):
        raise UserError(f"rule.of: got {of}, takes two or more parts, each once, the oldest first")
    return Merge((dict(zip(of, _weights(len(of), ahead), strict=True)),))


def _weights(times: int, ahead: int) -> list[float]:
    shares = []
    for place in range(times):
        share = 1.0
        for other in (other for other in range(times) if other != place):
            share *= (times - 1 + ahead - other) / (place - other)
        shares.append(share)
    return shares
