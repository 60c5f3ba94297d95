"""Over-optimisation: what the best of n samples by a reward is worth to gold, which scored them already."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.best_of import best_of_n_curve, best_of_n_kl
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of
from mmalign.evaluation.intervals import RESAMPLES, Interval, Scores
from mmalign.types import UserError

NEEDS = ("prompt", "outputs", "gold")


def best_of_samples(data: Path, *, counts: Sequence[Count] | None = None, resamples: Count = RESAMPLES) -> RewardSuite:
    """Gold against the divergence of best-of-n: for each n the gold, and the reward, of the one sample that the reward scores highest.

    Args:
        data: a file with a row for each prompt: prompt, outputs (a list of samples of one policy), gold (a score of each; null: none).
        counts: every n; by default 1, 2, 4, ... up to the samples that every prompt has.
        resamples: of the bootstrap, over prompts.

    ``gold/n=4`` and ``reward/n=4`` have no bias for any n up to the number of samples (`best_of_n`); the notes say how far n moves from
    the policy, ``log n - (n - 1) / n`` nats at most. An ensemble is a reward as any other: ``{use: combined, rewards: {...}, combine:
    {use: lower_bound}}``. `mmalign table` draws several of them over each other. A sample without a score is no sample.

    Paper: Gao, Schulman, Hilton, "Scaling Laws for Reward Model Overoptimization" (2022), https://arxiv.org/abs/2210.10760; ensembles:
    Coste et al. (2023), https://arxiv.org/abs/2310.02743

    Errors: UserError for a row without these columns, lists of different lengths, fewer than two samples, and counts below 1.
    """
    items = [_item(name, row) for name, row in rows_of(data, "best_of_samples", NEEDS)]
    least = min((len(item.outputs) for item in items), default=2)
    chosen_counts = [2**power for power in range(int(math.log2(least)) + 1)] if counts is None else list(counts)
    if not chosen_counts or min(chosen_counts) < 1:
        raise UserError(f"best_of_samples.counts: got {chosen_counts}, takes numbers of 1 or more")

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        gold = [item.known["gold"] for item in chosen]
        curves = {
            "gold": best_of_n_curve(scores, gold, chosen_counts, resamples=resamples),
            "reward": best_of_n_curve(scores, scores, chosen_counts, resamples=resamples),
        }
        values: dict[str, Interval] = {}
        for name, curve in curves.items():
            values |= {f"{name}/n={count}": point for count, point in zip(chosen_counts, curve, strict=True)}
        missing = sum(math.isnan(value) for own in scores for value in own)
        return Scores(values, [{} for _ in chosen], {"prompts": len(chosen), "samples": sum(map(len, scores)), "missing": missing})

    far = ", ".join(f"{best_of_n_kl(count):.3f} at n = {count}" for count in chosen_counts)
    notes = [f"KL to the policy that drew the samples, at most, in nats: {far}"]
    return RewardSuite("best_of_samples", items, score, notes=notes, headline=tuple(f"gold/n={count}" for count in chosen_counts))


def _item(name: str, row: Mapping[str, Any]) -> Comparison:
    outputs, gold = row["outputs"], row["gold"]
    if not isinstance(outputs, (list, tuple)) or not isinstance(gold, (list, tuple)) or len(outputs) != len(gold) or len(outputs) < 2:
        raise UserError(f"best_of_samples: {name} has no two or more outputs with a gold score each; takes lists of one length")
    known = {"gold": [math.nan if value is None else float(value) for value in gold]}
    return Comparison(name, row["prompt"], tuple(outputs), known)
