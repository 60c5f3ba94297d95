"""What the best of n samples is worth, from samples that are scored already: one reward's choice, seen by another.

With N samples of a prompt, the mean over all subsets of n of them, not over some: sorted by the reward that chooses, sample i (from 1) is
the best of ``C(i - 1, n - 1)`` of the ``C(N, n)`` subsets. This is unbiased for every n up to N, and needs no further sample.
"""

from __future__ import annotations

import math
from collections.abc import Hashable, Sequence
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Interval, estimates, ratio
from mmalign.types import UserError

__all__ = ["best_of_n", "best_of_n_curve", "best_of_n_kl"]


def best_of_n_kl(count: int) -> float:
    """``log n - (n - 1) / n`` nats: how far the best of n moves from the policy that drew the n.

    count: n. The KL itself for outputs that are never alike, and an upper bound of it for others.

    Paper: Beirami et al., "Theoretical guarantees on the best-of-n alignment policy" (2024), https://arxiv.org/abs/2401.01879

    Errors: UserError for a count below 1.

    Examples:
        >>> round(best_of_n_kl(4), 4)
        0.6363
    """
    if count < 1:
        raise UserError(f"best of n: got n = {count}, takes 1 or more")
    return math.log(count) - (count - 1) / count


def best_of_n(chooses: Column, judged: Column, counts: Sequence[int]) -> NDArray[np.float64]:
    """``[len(counts)]``: the expected ``judged`` of that of n samples of one prompt which ``chooses`` scores highest.

    Args:
        chooses: the score by which the best is chosen, of each of N samples. judged: what the choice is judged by (a gold reward; or the
            same score again). A sample without either is none: NaN in one of them leaves it out, and N is less.
        counts: every n. NaN where there are fewer samples.

    Of samples with equal scores each is chosen as often.

    Paper: Nakano et al., "WebGPT" (2021), https://arxiv.org/abs/2112.09332, appendix I; used for over-optimisation by Gao, Schulman,
    Hilton, "Scaling Laws for Reward Model Overoptimization" (2022), https://arxiv.org/abs/2210.10760

    Errors: UserError for lists of different lengths, and a count below 1.

    Examples:
        >>> best_of_n([0.1, 0.9, 0.5], [3.0, 6.0, 0.0], [1, 2, 3, 4]).tolist()  # of two: 6 in two of the three pairs, 0 in the third
        [3.0, 4.0, 6.0, nan]
    """
    scores, values = np.asarray(chooses, dtype=float), np.asarray(judged, dtype=float)
    if scores.shape != values.shape or scores.ndim != 1:
        raise UserError(f"best of n: got {len(scores)} scores that choose and {len(values)} that judge, takes one of each for each sample")
    if any(count < 1 for count in counts):
        raise UserError(f"best of n: got n = {min(counts)}, takes 1 or more")
    known = ~(np.isnan(scores) | np.isnan(values))
    levels, place = np.unique(scores[known], return_inverse=True)
    at_level = np.bincount(place, minlength=len(levels))
    means = np.bincount(place, values[known], minlength=len(levels)) / at_level
    upto = [0, *np.cumsum(at_level).tolist()]
    best = np.full(len(counts), np.nan)
    for number, count in enumerate(counts):
        if count <= upto[-1]:
            subsets = [math.comb(samples, count) for samples in upto]  # whole numbers, however large
            shares = [(more - fewer) / subsets[-1] for fewer, more in pairwise(subsets)]
            best[number] = float(np.dot(shares, means))
    return best


def best_of_n_curve(
    chooses: Sequence[Column], judged: Sequence[Column], counts: Sequence[int], *,
    prompts: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES, seed: Seed = 0,
) -> list[Interval]:  # fmt: skip
    """``best_of_n`` at every count, the mean over prompts, with an interval over prompts.

    Args:
        chooses, judged: of each prompt a list of its samples' scores; as in ``best_of_n``.
        counts: every n, such as 1, 2, 4, 8, ...
        prompts: what belongs together; by default every list is a prompt of its own.
        resamples, seed: of the bootstrap.

    A prompt with fewer than n samples is left out at n, so that prompts with unequal numbers of samples are not the same at every n.

    Errors: UserError for lists of different lengths, and as ``best_of_n``.
    """
    clusters = list(range(len(chooses)) if prompts is None else prompts)
    if len(chooses) != len(judged) or len(clusters) != len(chooses):
        got = f"{len(chooses)} prompts that choose, {len(judged)} that judge, {len(clusters)} names"
        raise UserError(f"best of n: got {got}; takes one of each")
    table = np.array([best_of_n(scores, values, counts) for scores, values in zip(chooses, judged, strict=True)]).reshape(-1, len(counts))
    points = []
    for column in table.T:
        known = ~np.isnan(column)
        sums = {"sum": column[known].tolist(), "prompts": [1.0] * int(known.sum())}
        kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
        mean = estimates(sums, kept, lambda sums: {"mean": ratio(sums["sum"], sums["prompts"])}, resamples=resamples, seed=seed)
        points.append(mean["mean"])
    return points
