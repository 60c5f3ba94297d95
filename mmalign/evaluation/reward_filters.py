"""How far a reward can be trusted on the rows that a filter of its own keeps: by which the filter of ``pf_ppo`` is chosen."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Literal, get_args

import numpy as np
import torch

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Scores, Sums, estimates, ratio
from mmalign.objectives.feedback.advantages import filtered
from mmalign.types import UserError

__all__ = ["filter_r2"]

Filter = Literal["best_worst", "best_random", "power"]


def filter_r2(
    rewards: Column, scores: Column, prompts: Sequence[Hashable], *, power: Positive = 2.0, resamples: Count = RESAMPLES, seed: Seed = 0
) -> Scores:
    """R2 of the true score on the reward, of all rows (``none``) and of what each filter of ``pf_ppo`` keeps of them.

    ``w_i = n_prompt P(i)`` as in ``pf_ppo``, 1 for ``none``; means are ``sum w x / sum w``, and R2 that of the line of least squares::

        R2 = cov_w(reward, score)^2 / (var_w(reward) var_w(score))

    The filter with the highest R2 is the one whose rewards say most of the truth: ``pf_ppo(keep=...)``.

    Args:
        rewards: of each answer, by the reward to train with. scores: its true score (passed tests, a gold reward, people's).
            NaN for a missing one: without a reward a row is in no filter, without a score in no sum.
        prompts: what each answered: the filters choose among answers of one prompt, and prompts are what is resampled.
        power: of the filter ``power``.
        resamples, seed: of the bootstrap.

    The rows have the weight of each filter. A filter whose rows all have one reward, or one score, has no R2: NaN.

    Paper: Policy Filtration in RLHF to Fine-Tune LLM for Code Generation, arXiv 2409.06957.

    Deviations: rows weigh by P where the paper draws by it; intervals are ours. The R2 is of single
    answers, as its abstract says it; whether its tables bin answers by reward first was not read.

    Errors: UserError for columns of different lengths.

    Examples:
        >>> found = filter_r2([0.0, 1.0, 2.0, 0.0, 1.1, 2.0], [0, 1, 1, 0, 0, 1], ["a", "a", "a", "b", "b", "b"])
        >>> {name: round(value.value, 3) for name, value in found.values.items()}
        {'none': 0.632, 'best_worst': 1.0, 'best_random': 0.706, 'power': 0.417}
    """
    judged, truth = np.asarray(rewards, dtype=float), np.asarray(scores, dtype=float)
    if not len(judged) == len(truth) == len(prompts):
        raise UserError(f"filter_r2: got {len(judged)} rewards, {len(truth)} scores and {len(prompts)} prompts, takes one of each")
    number = {prompt: place for place, prompt in enumerate(dict.fromkeys(prompts))}
    group = torch.tensor([number[prompt] for prompt in prompts], dtype=torch.int64)
    weights = {"none": np.ones_like(judged)}
    for keep in get_args(Filter):
        weights[keep] = filtered(torch.from_numpy(judged), group, keep=keep, power=power).numpy()
    known = ~(np.isnan(judged) | np.isnan(truth))
    x, y = judged[known], truth[known]
    x, y = (x - x.mean(), y - y.mean()) if len(x) else (x, y)  # only so that squares of large means do not cancel
    products = {"": np.ones_like(x), "x": x, "y": y, "xx": x * x, "yy": y * y, "xy": x * y}
    sums = {f"{keep}/{name}": (own[known] * product).tolist() for keep, own in weights.items() for name, product in products.items()}
    clusters = [prompt for prompt, there in zip(prompts, known.tolist(), strict=True) if there]

    def formulas(sums: Sums) -> dict[str, np.ndarray]:
        return {keep: _r2(*(sums[f"{keep}/{name}"] for name in products)) for keep in weights}

    values = estimates(sums, clusters, formulas, resamples=resamples, seed=seed)
    rows = [{keep: float(own[row]) for keep, own in weights.items()} if there else None for row, there in enumerate(known)]
    return Scores(values, rows, {"rows": len(rows), "missing": int((~known).sum())})


def _r2(count: np.ndarray, x: np.ndarray, y: np.ndarray, xx: np.ndarray, yy: np.ndarray, xy: np.ndarray) -> np.ndarray:
    """Of weighted sums of two columns and of their products; NaN where either varies by no more than rounding."""
    x, y, xx, yy, xy = (ratio(total, count) for total in (x, y, xx, yy, xy))
    own, other = xx - x * x, yy - y * y
    own, other = np.where(own > 1e-12 * xx, own, 0.0), np.where(other > 1e-12 * yy, other, 0.0)
    return ratio((xy - x * y) ** 2, own * other)
