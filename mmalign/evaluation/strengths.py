"""How strong several are who were compared in pairs, and which comparison would tell most: Zermelo's fit of Bradley and Terry's model."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mmalign.types import UserError

__all__ = ["Strengths", "next_comparison", "zermelo"]

Table = NDArray[np.float64]
ROUNDS, PRECISION = 10_000, 1e-12


class Strengths(NamedTuple):
    """How strong each of n is.

    values: ``[n]``, ``P(i beats j) = sigmoid(values_i - values_j)``, with mean 0. covariance: ``[n, n]``, of their likelihood.
    """

    values: Table
    covariance: Table

    @property
    def errors(self) -> Table:
        """Standard errors of the values, ``[n]``."""
        return np.sqrt(np.diag(self.covariance))


def zermelo(wins: ArrayLike) -> Strengths:
    """The strengths under which what was seen is likeliest.

    The fixed point ``e^s_i = sum_j w_ij e^s_j / (e^s_i + e^s_j) / sum_j w_ji / (e^s_i + e^s_j)`` is gone to one by one. A tie counts one
    half for either. The covariance is the pseudo-inverse of the information, over pairs ``sum n p (1 - p) (e_i - e_j)(e_i - e_j)'``.

    wins: ``[n, n]``, how often i was found better than j; the diagonal is not read.

    Source: Zermelo, Die Berechnung der Turnier-Ergebnisse (1929); the iteration is Newman's, arXiv 2207.00076, eq. 27 (number recalled).

    Errors: UserError for what is no such table, and where no finite strengths are likeliest: somebody never lost to the others, or never
    met them.

    Examples:
        >>> zermelo([[0, 3], [1, 0]]).values.round(4).tolist()  # 3 to 1: log 3 apart
        [0.5493, -0.5493]
    """
    table = np.array(wins, dtype=np.float64)
    if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2 or not np.isfinite(table).all() or (table < 0).any():
        raise UserError(f"wins: got shape {list(table.shape)}, takes counts of 0 or more, [n, n], of two or more")
    np.fill_diagonal(table, 0.0)
    _refuse_apart(table)
    strength = np.ones(len(table))
    for _ in range(ROUNDS):
        before = strength.copy()
        for i in range(len(table)):
            met = strength[i] + strength
            strength[i] = (table[i] * strength / met).sum() / (table[:, i] / met).sum()
        strength /= np.exp(np.log(strength).mean())
        if np.abs(np.log(strength / before)).max() < PRECISION:
            break
    values = np.log(strength)
    chance = 1 / (1 + np.exp(values[None] - values[:, None]))
    weights = (table + table.T) * chance * (1 - chance)
    return Strengths(values, np.linalg.pinv(np.diag(weights.sum(1)) - weights, hermitian=True))


def next_comparison(wins: ArrayLike) -> tuple[int, int]:
    """Whom to compare next so that most is learned of all strengths: ``argmax p (1 - p) Var(s_i - s_j)``.

    It is the pair by which the determinant of the information grows most, one after the other (D-optimal). As long as strengths are not
    known to be finite, the two who met least, the first of several.

    wins: as of ``zermelo``.

    Source: D-optimal design, as of Mukherjee et al., Optimal Design for Human Preference Elicitation, arXiv 2404.13895.

    Errors: UserError as of ``zermelo`` for what is no table.

    Examples:
        >>> next_comparison([[0, 9, 2], [9, 0, 9], [2, 9, 0]])  # who met least, where all are alike
        (0, 2)
    """
    table = np.array(wins, dtype=np.float64)
    try:
        fit = zermelo(table)
    except UserError:
        if table.ndim != 2 or table.shape[0] != table.shape[1] or len(table) < 2:
            raise
        gain = -(table + table.T)
    else:
        chance = 1 / (1 + np.exp(fit.values[None] - fit.values[:, None]))
        variance = np.diag(fit.covariance)
        gain = chance * (1 - chance) * (variance[:, None] + variance[None] - 2 * fit.covariance)
    rows, columns = np.triu_indices(len(table), 1)
    best = int(gain[rows, columns].round(12).argmax())
    return int(rows[best]), int(columns[best])


def _refuse_apart(table: Table) -> None:
    """Errors: UserError where some beat all others and were never beaten: everybody has to be beaten, by somebody, by everybody."""
    reach = (table > 0) | np.eye(len(table), dtype=bool)
    for middle in range(len(table)):
        reach |= reach[:, middle : middle + 1] & reach[middle : middle + 1]
    if not reach.all():
        one, other = (int(place[0]) for place in np.nonzero(~reach))
        raise UserError(f"wins: number {one} is not better than number {other}, nor than any who are; takes more comparisons")
