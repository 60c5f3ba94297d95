"""The law of over-optimisation: what a distance from the reference buys, and from where on it costs."""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from typing import NamedTuple

import numpy as np

from mmalign.arguments.ranges import Count, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Interval, Sums, estimates, ratio
from mmalign.types import UserError

__all__ = ["Law", "overoptimisation_law"]


class Law(NamedTuple):
    """``gain(d) = d (alpha - beta log d)`` as it was fitted, ``d = sqrt(KL)``.

    alpha, beta: per sqrt(nat), with intervals. peak: the KL in nats beyond which the law falls, ``exp(alpha / beta - 1)^2``. best: its gain
    there. Both are NaN where it never falls (``beta <= 0``). explained: the share of the gains' squares that the law accounts for.
    points, runs: how many of them there were, and of how many runs. furthest: the largest KL among them.
    """

    alpha: Interval
    beta: Interval
    peak: Interval
    best: Interval
    explained: float
    points: int
    runs: int
    furthest: float

    @property
    def turns(self) -> bool:
        """Whether the peak lies inside of what was measured, and ``beta`` is above 0 by its interval."""
        return self.beta.low > 0 and self.peak.value < self.furthest

    def __call__(self, kl: float) -> float:
        """The gain that the law says of a KL in nats.

        Examples:
            >>> none = Interval(0.0, 0.0, 0.0, 0.0)
            >>> Law(none._replace(value=2.0), none._replace(value=1.0), none, none, 1.0, 2, 1, 4.0)(1.0)
            2.0
        """
        d = math.sqrt(max(kl, 0.0))
        return d * (self.alpha.value - self.beta.value * math.log(d)) if d else 0.0


def overoptimisation_law(
    kl: Column, gain: Column, runs: Sequence[Hashable], *, level: float = 0.95, resamples: Count = RESAMPLES, seed: Seed = 0
) -> Law:
    """Fits ``gain(d) = d (alpha - beta log d)``, ``d = sqrt(KL)``, by least squares over checkpoints.

    It is linear in alpha and beta. Intervals are percentiles over draws of whole runs (``intervals``): checkpoints of one run are not
    independent, and one run alone has none.

    Args:
        kl: nats of each checkpoint, of the policy's own samples (``training.evaluations.own_samples``). gain: its gold reward less that of
            the reference, so that 0 at KL 0 is right. runs: which run each is of. A point with a NaN is left out.
        level: the part of the draws that lies inside. resamples, seed: of the bootstrap.

    Paper: Rafailov et al., "Scaling Laws for Reward Model Overoptimization in Direct Alignment Algorithms" (2024),
    https://arxiv.org/abs/2406.02900, equation 6; the law is that of Gao, Schulman, Hilton (2022), https://arxiv.org/abs/2210.10760,
    section 3.1, for reinforcement learning.

    Deviations: they say of a fit how well it is; intervals are ours.

    Errors: UserError for columns of different lengths, and a KL below 0.

    Examples:
        >>> law = overoptimisation_law([1.0, 4.0, 9.0], [1.0, 2 * (1 - 0.5 * np.log(2)), 3 * (1 - 0.5 * np.log(3))], ["a", "b", "b"])
        >>> round(law.alpha.value, 6), round(law.beta.value, 6)
        (1.0, 0.5)
    """
    nats, gains = np.asarray(kl, dtype=float), np.asarray(gain, dtype=float)
    if nats.shape != gains.shape or len(nats) != len(runs):
        raise UserError(f"overoptimisation_law: got {len(nats)} KLs, {len(gains)} gains and {len(runs)} runs, takes one of each")
    if bool((nats < -1e-6).any()):
        raise UserError(f"overoptimisation_law: got a KL of {np.nanmin(nats):g}, takes 0 or more")
    known = ~(np.isnan(nats) | np.isnan(gains)) & (nats > 0)  # at 0 the law says 0, whatever alpha and beta are
    nats, gains, of = nats[known], gains[known], [run for run, there in zip(runs, known.tolist(), strict=True) if there]
    d = np.sqrt(nats)
    bent = -d * np.log(d)
    columns = {"dd": d * d, "db": d * bent, "bb": bent * bent, "dg": d * gains, "bg": bent * gains, "gg": gains * gains}
    found = estimates({name: list(column) for name, column in columns.items()}, of, _fitted, level=level, resamples=resamples, seed=seed)
    furthest = float(nats.max()) if len(nats) else math.nan
    named = {name: found[name] for name in ("alpha", "beta", "peak", "best")}
    return Law(**named, explained=found["explained"].value, points=len(of), runs=len(set(of)), furthest=furthest)


def _fitted(sums: Sums) -> dict[str, np.ndarray]:
    """The least squares of two columns, from sums of their products."""
    dd, db, bb, dg, bg = (np.asarray(sums[name]) for name in ("dd", "db", "bb", "dg", "bg"))
    area = dd * bb - db * db
    area = np.where(area > 1e-9 * dd * bb, area, 0.0)  # points at one distance fix no law
    alpha, beta = ratio(bb * dg - db * bg, area), ratio(dd * bg - db * dg, area)
    d = np.exp(np.clip(ratio(alpha, np.where(beta > 0, beta, 0.0)) - 1, -300, 150))
    explained = ratio(alpha * dg + beta * bg, sums["gg"])
    return {"alpha": alpha, "beta": beta, "peak": d * d, "best": beta * d, "explained": explained}
