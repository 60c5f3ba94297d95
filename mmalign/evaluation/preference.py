"""How often one model's answers are preferred to another's: the win rate, with its interval, and what is left of it at equal length."""

from __future__ import annotations

from collections.abc import Hashable, Sequence

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Interval, Scores, Sums, draws, estimates, interval, ratio
from mmalign.types import UserError

__all__ = ["length_controlled_win_rate", "win_rate"]

Table = NDArray[np.float64]
ROUNDS = 50  # of Newton's method
FAR = 30.0  # logits beyond which a rate is 0 or 1


def win_rate(outcomes: Column, prompts: Sequence[Hashable], *, resamples: Count = RESAMPLES, seed: Seed = 0) -> Scores:
    """The mean outcome, with an interval over prompts, and the shares of wins, ties and losses.

    outcomes: 1 for a win, 0 for a loss, .5 for a tie, or a win probability; NaN for a comparison that nobody decided, which is left out
    and counted. prompts: what each comparison was about; several of one prompt (repetitions, both orders) are resampled together.

    Errors: UserError for an outcome outside 0..1 and lists of different lengths.

    Examples:
        >>> scores = win_rate([1, 1, 0, 0.5], ["a", "b", "c", "d"])
        >>> scores.values["win_rate"].value, scores.values["ties"].value
        (0.625, 0.25)
    """
    results, clusters = _checked(outcomes, prompts)
    known = [place for place, outcome in enumerate(results) if not np.isnan(outcome)]
    chosen = results[known]
    counts: dict[str, Sequence[float]] = {
        "rows": [1.0] * len(known),
        "points": chosen.tolist(),
        "wins": (chosen > 0.5).astype(float).tolist(),
        "ties": (chosen == 0.5).astype(float).tolist(),
    }

    def shares(sums: Sums) -> dict[str, Table]:
        wins, ties = ratio(sums["wins"], sums["rows"]), ratio(sums["ties"], sums["rows"])
        return {"win_rate": ratio(sums["points"], sums["rows"]), "wins": wins, "ties": ties, "losses": 1 - wins - ties}

    values = estimates(counts, [clusters[place] for place in known], shares, resamples=resamples, seed=seed)
    rows = [None if np.isnan(outcome) else {"outcome": float(outcome)} for outcome in results]
    return Scores(values, rows, {"comparisons": len(results), "missing": len(results) - len(known)})


def length_controlled_win_rate(
    outcomes: Column, lengths: Sequence[float], others: Sequence[float], prompts: Sequence[Hashable], *, resamples: Count = 500,
    seed: Seed = 0,
) -> Interval:  # fmt: skip
    """The win rate that a logistic model expects at equal length: ``sigmoid(a)`` of ``P(win) = sigmoid(a + b tanh(d / std(d)))``.

    Fitted by maximum likelihood with soft outcomes, anew on each draw.

    outcomes, prompts: as in ``win_rate``. lengths, others: of the model's answer and of the other's, ``d = lengths - others``
    (characters in the published code).

    Paper: Dubois, Galambosi, Liang, Hashimoto, "Length-Controlled AlpacaEval" (2024), https://arxiv.org/abs/2404.04475

    Deviations: the paper's model has a term of instruction difficulty besides, whose values are AlpacaEval's own, is pulled to gamed
    baselines, and is fitted with an L1 penalty; this is its length term and its constant alone, without a penalty.

    Errors: as ``win_rate``.
    """
    results, clusters = _checked(outcomes, prompts)
    if len(lengths) != len(results) or len(others) != len(results):
        raise UserError(f"win rate: got {len(results)} outcomes, {len(lengths)} and {len(others)} lengths; takes one of each")
    known = ~np.isnan(results)
    gap = (np.asarray(lengths, dtype=float) - np.asarray(others, dtype=float))[known]
    spread = gap.std(ddof=1) if len(gap) > 1 else 0.0
    feature = np.tanh(gap / spread) if spread > 0 else np.zeros_like(gap)
    if not len(gap):
        return Interval(np.nan, np.nan, np.nan, np.nan)
    whole = _fitted(np.ones((1, len(gap))), feature, results[known])[0]
    places = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    drawn = _fitted(draws(places, resamples, seed), feature, results[known]) if len(set(places)) > 1 else None
    return interval(float(whole), drawn, 0.95)


def _fitted(weights: Table, feature: Table, outcomes: Table) -> Table:
    """``sigmoid(a)`` of each row of weights ``[draws, rows]``, by Newton's method on (a, b) with a hair of ridge."""
    a, b = np.zeros(len(weights)), np.zeros(len(weights))
    tiny = 1e-6 * weights.sum(1).clip(1)
    for _ in range(ROUNDS):
        rate = 1 / (1 + np.exp(-np.clip(a[:, None] + b[:, None] * feature, -FAR, FAR)))
        left, curve = weights * (outcomes - rate), weights * rate * (1 - rate)
        pull_a, pull_b = left.sum(1) - tiny * a, left @ feature - tiny * b
        aa, ab, bb = curve.sum(1) + tiny, curve @ feature, curve @ feature**2 + tiny
        scale = aa * bb - ab**2
        step_a, step_b = (bb * pull_a - ab * pull_b) / scale, (aa * pull_b - ab * pull_a) / scale
        a, b = a + np.clip(step_a, -2, 2), b + np.clip(step_b, -2, 2)
        if max(np.abs(step_a).max(), np.abs(step_b).max()) < 1e-9:
            break
    return 1 / (1 + np.exp(-np.clip(a, -FAR, FAR)))


def _checked(outcomes: Sequence[float], prompts: Sequence[Hashable]) -> tuple[Table, list[Hashable]]:
    results = np.asarray(outcomes, dtype=float)
    if len(results) != len(prompts):
        raise UserError(f"win rate: got {len(results)} outcomes and {len(prompts)} prompts, takes one for each")
    if (odd := results[(results < 0) | (results > 1)]).size:
        raise UserError(f"win rate: got the outcome {odd[0]:g}, takes 0 to 1, and NaN for a comparison that nobody decided")
    return results, list(prompts)
