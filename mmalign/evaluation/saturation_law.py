"""The law of data: what more records buy, and how many are enough."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Fraction
from mmalign.types import UserError

__all__ = ["Saturation", "saturation_law"]

GRID, ROUNDS = 200, 60


class Saturation(NamedTuple):
    """``score(n) = plateau - drop exp(-rate n)`` as it was fitted.

    plateau: what is come to without end. drop: how far below it one begins. rate: of a record.
    enough: the n at which ``share`` of what there is to gain from none is gained, NaN where more records gain nothing or without end.
    explained: the share of the scores' variance that the law accounts for. points: how many there were.
    """

    plateau: float
    drop: float
    rate: float
    enough: float
    explained: float
    points: int

    def __call__(self, count: float) -> float:
        """The score that the law says of so many records."""
        return self.plateau - self.drop * math.exp(-self.rate * count)


def saturation_law(counts: Sequence[float], scores: Sequence[float], *, share: Fraction = 0.95) -> Saturation:
    """Fits ``score(n) = a - b exp(-c n)`` by least squares: an exponential plateau, c above 0.

    a and b follow from c, which is looked for on a grid of its logarithm and then by a golden section.

    Args:
        counts: n, how many records each run was trained on. scores: of each run. A NaN is left out.
        share: of the gain ``b``, after which it is enough.

    Paper: Efficient Alignment of Large Language Models via Data Sampling, https://arxiv.org/abs/2411.10545 (*its abstract*: performance
    against data is an exponential plateau, and a small subset is enough).

    Errors: UserError for columns of different lengths, a count below 0, and fewer than three different counts.

    Examples:
        >>> law = saturation_law([8, 16, 32, 64], [0.6 - 0.4 * math.exp(-n / 16) for n in (8, 16, 32, 64)])
        >>> round(law.plateau, 6), round(law.drop, 6), round(1 / law.rate, 4), round(law.enough, 1)
        (0.6, 0.4, 16.0, 47.9)
    """
    if len(counts) != len(scores):
        raise UserError(f"saturation_law: got {len(counts)} counts and {len(scores)} scores, takes one of each")
    pairs = np.asarray([(n, y) for n, y in zip(counts, scores, strict=True) if math.isfinite(n) and math.isfinite(y)], dtype=float)
    if (len(pairs) and pairs[:, 0].min() < 0) or len({n for n, _ in pairs.tolist()}) < 3:
        raise UserError(f"saturation_law: got counts {sorted({*map(float, counts)})}, takes three different ones of 0 or more")
    n, y = pairs.T
    low, high = math.log(1e-2 / n.max()), math.log(1e2 / n[n > 0].min())
    rates = np.exp(np.linspace(low, high, GRID))
    errors = [_fitted(n, y, rate)[2] for rate in rates]
    place, width = math.log(rates[int(np.argmin(errors))]), (high - low) / GRID
    rate = math.exp(_golden(lambda log: _fitted(n, y, math.exp(log))[2], place - width, place + width))
    plateau, drop, error = _fitted(n, y, rate)
    spread = float(((y - y.mean()) ** 2).sum())
    ends = low + width < math.log(rate) < high - width  # at an end of the range it is a line or a step, and no plateau is known
    enough = -math.log(1 - share) / rate if drop > 0 and ends and share < 1 else math.nan
    return Saturation(plateau, drop, rate, enough, 1 - error / spread if spread else math.nan, len(pairs))


def _fitted(n: NDArray[np.float64], y: NDArray[np.float64], rate: float) -> tuple[float, float, float]:
    """(a, b, sum of squares) of the best curve with this rate."""
    table = np.stack([np.ones_like(n), -np.exp(-rate * n)], axis=1)
    (a, b), *_ = np.linalg.lstsq(table, y, rcond=None)
    return float(a), float(b), float(((y - table @ np.array([a, b])) ** 2).sum())


def _golden(of: object, low: float, high: float) -> float:
    """Where a function of one number is least, between two."""
    assert callable(of)
    ratio = (math.sqrt(5) - 1) / 2
    for _ in range(ROUNDS):
        one, two = high - ratio * (high - low), low + ratio * (high - low)
        low, high = (low, two) if of(one) < of(two) else (one, high)
    return (low + high) / 2
