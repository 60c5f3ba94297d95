"""Does a policy rank answers as people do: by its likelihoods, by its implicit reward, and at best, if its training were perfect?"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import numpy as np

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Scores, Sums, estimates, ratio
from mmalign.types import UserError

__all__ = ["ranking_accuracies"]


def ranking_accuracies(
    log_probs: Any, references: Any, *, beta: Positive = 0.1, agreed: Column | None = None, lengths: Any = None,
    prompts: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES, seed: Seed = 0,
) -> Scores:  # fmt: skip
    """Raw, implicit and idealised ranking accuracy of a policy on pairs of a better and a worse answer.

    Args:
        log_probs: ``[pairs, 2]``, nats of the whole better and worse answer under the policy. references: the same under its reference.
        beta: of the loss that it was trained with.
        agreed: alpha of each pair, the share of people who prefer the better one; by default 1, all of them, above one half.
        lengths: ``[pairs, 2]``, tokens of both, for the numbers ``.../per_token``.
        prompts, resamples, seed: what is resampled together, and the bootstrap.

    With ``c = log ref(worse) - log ref(better)``, of each pair::

        raw        log pi(better) > log pi(worse)
        reference  c < 0
        implicit   log pi / ref (better) > log pi / ref (worse): what training logs as its accuracy
        idealised  log (alpha / (1 - alpha)) / beta > c: where the loss is at its minimum
        flipped    of the pairs that the reference ranks wrongly, those that pi ranks rightly

    and ``flip_loss``, the mean over those pairs of the DPO loss ``-log sigmoid(beta c)`` that pi must reach to rank them rightly. A pair is
    ranked rightly exactly where its DPO loss is below that (theorem 4.1). A tie is a half. Rows without one of the four are missing.

    Paper: Chen et al., "Preference Learning Algorithms Do Not Learn Preference Rankings" (2024), https://arxiv.org/abs/2405.19534

    Errors: UserError for tables of another shape, and agreement outside of (1/2, 1].

    Examples:
        >>> scores = ranking_accuracies([[-1.0, -2.0], [-4.0, -2.0]], [[-2.0, -1.0], [-5.0, -2.0]], resamples=10)
        >>> [scores.values[name].value for name in ("raw", "reference", "implicit", "flipped")]
        [0.5, 0.0, 1.0, 0.5]
    """
    policy, reference = np.asarray(log_probs, dtype=float), np.asarray(references, dtype=float)
    alpha = np.ones(len(policy)) if agreed is None else np.asarray(agreed, dtype=float)
    clusters = list(range(len(policy)) if prompts is None else prompts)
    if policy.ndim != 2 or policy.shape[1:] != (2,) or policy.shape != reference.shape or not len(policy) == len(alpha) == len(clusters):
        got = f"{list(policy.shape)} of the policy, {list(reference.shape)} of the reference, {len(alpha)} shares, {len(clusters)} prompts"
        raise UserError(f"ranking: got {got}; takes [pairs, 2] of both, and one of each")
    if (odd := alpha[~np.isnan(alpha) & ((alpha <= 0.5) | (alpha > 1))]).size:
        raise UserError(f"agreed: got {odd[0]:g}, takes more than 0.5, up to 1: the share of people who prefer the better answer")
    known = ~np.isnan(np.column_stack([policy, reference, alpha])).any(1)
    gap, behind = policy[:, 0] - policy[:, 1], reference[:, 1] - reference[:, 0]
    with np.errstate(divide="ignore"):
        pull = np.log(alpha) - np.log1p(-alpha)  # infinite where all agree: then every order is in reach
    wrong = behind > 0
    columns = {
        "pairs": np.ones_like(gap), "raw": _right(gap), "reference": _right(-behind), "implicit": _right(gap + behind),
        "idealised": _right(pull / beta - behind), "wrong": wrong, "flipped": _right(gap) * wrong,
        "flip_loss": np.logaddexp(0.0, -beta * behind) * wrong,
    }  # fmt: skip
    if lengths is not None:
        tokens = np.asarray(lengths, dtype=float)
        per_token = policy / tokens, reference / tokens
        columns |= {
            "raw/per_token": _right(per_token[0][:, 0] - per_token[0][:, 1]),
            "reference/per_token": _right(per_token[1][:, 0] - per_token[1][:, 1]),
        }
    counts = {name: np.asarray(column, dtype=float)[known].tolist() for name, column in columns.items()}
    kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    values = estimates(counts, kept, _shares, resamples=resamples, seed=seed)
    rows = [{"raw": float(one), "implicit": float(gain)} if is_known else None
            for one, gain, is_known in zip(gap, gap + behind, known, strict=True)]  # fmt: skip
    return Scores(values, rows, {"pairs": len(policy), "missing": int((~known).sum())})


def _right(gap: Any) -> Any:
    return (np.sign(gap) + 1) / 2


def _shares(sums: Sums) -> dict[str, Any]:
    of_wrong = {name: ratio(sums[name], sums["wrong"]) for name in ("flipped", "flip_loss")}
    return {**{name: ratio(sums[name], sums["pairs"]) for name in sums if name not in ("pairs", "wrong", *of_wrong)}, **of_wrong}
