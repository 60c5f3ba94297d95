"""Whether a reward knows what was asked, and how an annotator stands to the principles that it was given."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.evaluation.intervals import RESAMPLES, Column, Scores, Sums, estimates, ratio
from mmalign.types import UserError

__all__ = ["contrast_consistency", "fused_rewards", "length_ratio", "principle_statistics"]

Table = NDArray[np.float64]


def contrast_consistency(scores: Any, *, prompts: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES, seed: Seed = 0) -> Scores:
    """Contrast instructions: of two similar questions, is an answer scored higher for its own, and a question's own answer higher?

    Args:
        scores: ``[pairs, 2, 2]``: of question i with the answer to question j; NaN for a missing one.
        prompts, resamples, seed: what is resampled together, and the bootstrap.

    ``c_res``: for a question its own answer is above the other's, ``s_ii > s_ij``. ``c_ins``: for an answer its own question is above the
    other's, ``s_jj > s_ij``. Both over the two questions of a pair; ``c_all`` of pairs with all four right. A tie is a half, and no pair
    with a missing score counts.

    Paper: Shen et al., "The Trickle-down Impact of Reward (In-)consistency on RLHF" (2023), https://arxiv.org/abs/2309.16155; the two
    measures as recalled.

    Errors: UserError for a table of another shape.

    Examples:
        >>> blind = contrast_consistency([[[2.0, 1.0], [2.0, 1.0]]], resamples=10).values  # it does not read the question
        >>> blind["c_res"].value, blind["c_ins"].value
        (0.5, 0.5)
    """
    table = np.asarray(scores, dtype=float)
    clusters = list(range(len(table)) if prompts is None else prompts)
    if table.ndim != 3 or table.shape[1:] != (2, 2) or len(clusters) != len(table):
        raise UserError(
            f"consistency: got scores of shape {list(table.shape)} and {len(clusters)} prompts, takes [pairs, 2, 2] and one of each"
        )
    known = ~np.isnan(table).any((1, 2))
    own, crossed = table[:, [0, 1], [0, 1]], table[:, [0, 1], [1, 0]]  # s_00, s_11; s_01, s_10
    by_question, by_answer = _right(own - crossed), _right(own - crossed[:, ::-1])
    columns = {
        "pairs": np.ones(len(table)), "c_res": by_question.mean(1), "c_ins": by_answer.mean(1),
        "c_all": (np.concatenate([by_question, by_answer], axis=1) == 1).all(1),
    }  # fmt: skip
    counts = {name: np.asarray(column, dtype=float)[known].tolist() for name, column in columns.items()}
    kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    values = estimates(counts, kept, _shares, resamples=resamples, seed=seed)
    rows = [{"c_res": float(one), "c_ins": float(other)} if is_known else None
            for one, other, is_known in zip(columns["c_res"], columns["c_ins"], known, strict=True)]  # fmt: skip
    return Scores(values, rows, {"pairs": len(table), "missing": int((~known).sum())})


def _right(gap: Table) -> Table:
    return (np.sign(gap) + 1) / 2


def _shares(sums: Sums) -> dict[str, Any]:
    return {name: ratio(sums[name], sums["pairs"]) for name in sums if name != "pairs"}


def fused_rewards(scores: Column, similar: Any, stored: Any, *, count: Count = 5, weight: Positive = 1.0) -> Table:
    """``[outputs]``: each score, averaged with those of its nearest neighbours in a store: ``(s + w sum_j k_j s_j) / (1 + w sum_j k_j)``.

    Args:
        scores: of the outputs. similar: ``[outputs, stored]``, the similarity 0..1 of each to what is stored; below 0 counts as 0.
        stored: ``[stored]`` scores, or ``[outputs, stored]``, the reward of a stored answer to this output's question.
        count: neighbours at most. weight: of them all, w; k_j are their similarities.

    A stored score that is missing is no neighbour; without any the score stays.

    Paper: Shen et al. (2023), https://arxiv.org/abs/2309.16155, RewardFusion, as recalled.

    Deviations: the paper finds neighbours by SimCSE; here similarities are given.

    Errors: UserError for tables of different sizes.

    Examples:
        >>> fused_rewards([1.0], [[1.0, 0.5, 0.0]], [4.0, 1.0, 9.0], count=2).tolist()  # (1 + 4 + .5) / (1 + 1.5)
        [2.2]
    """
    own, near = np.asarray(scores, dtype=float), np.asarray(similar, dtype=float)
    others = np.broadcast_to(np.asarray(stored, dtype=float), near.shape) if np.ndim(stored) < 3 else np.empty(0)
    if near.ndim != 2 or len(near) != len(own) or others.shape != near.shape:
        raise UserError(f"fused rewards: got {len(own)} scores, similarities {list(near.shape)}; takes [outputs, stored] of both")
    shares = np.where(np.isnan(others), 0.0, np.clip(near, 0.0, None))
    rank = np.argsort(np.argsort(-shares, axis=1, kind="stable"), axis=1)
    kept = weight * np.where(rank < count, shares, 0.0)
    fused: Table = (own + (kept * np.nan_to_num(others)).sum(1)) / (1 + kept.sum(1))
    return fused


def length_ratio(lengths: Column, references: Column, *, resamples: Count = RESAMPLES, seed: Seed = 0) -> Scores:
    """How much longer a policy's answers are than its reference's: ``length_ratio``, mean over mean; and the share that is longer.

    lengths, references: of each prompt, of one unit; NaN for a missing one. resamples, seed: of the bootstrap over prompts.

    Paper: Hein et al., "Preference Fine-Tuning for Factuality in Chest X-Ray Interpretation Models Without Human Feedback" (2024),
    https://arxiv.org/abs/2410.07025

    Errors: UserError for lists of different lengths.

    Examples:
        >>> length_ratio([6, 2], [2, 2], resamples=10).values["length_ratio"].value
        2.0
    """
    own, other = np.asarray(lengths, dtype=float), np.asarray(references, dtype=float)
    if own.shape != other.shape or own.ndim != 1:
        raise UserError(f"length ratio: got {len(own)} lengths and {len(other)} references, takes one of each")
    known = ~(np.isnan(own) | np.isnan(other))
    columns = {"pairs": np.ones_like(own), "own": own, "other": other, "longer": own > other}
    counts = {name: np.asarray(column, dtype=float)[known].tolist() for name, column in columns.items()}
    values = estimates(counts, np.flatnonzero(known).tolist(), _lengths, resamples=resamples, seed=seed)
    return Scores(
        values, [{"ratio": float(one)} if one == one else None for one in own / other], {"pairs": len(own), "missing": int((~known).sum())}
    )


def _lengths(sums: Sums) -> dict[str, Any]:
    return {"length_ratio": ratio(sums["own"], sums["other"]), "longer": ratio(sums["longer"], sums["pairs"])}


def principle_statistics(
    principles: Mapping[str, Column], preferred: Column, *, prompts: Sequence[Hashable] | None = None, resamples: Count = RESAMPLES,
    seed: Seed = 0,
) -> Scores:  # fmt: skip
    """How principles stand to each other, and whether an annotator, or a judge, goes by them.

    Args:
        principles: name -> which output each principle prefers by itself: 1 for the first, -1 for the second, 0 for neither; NaN: not
            known, and the pair is left out. preferred: the same of the annotator.
        prompts, resamples, seed: what is resampled together, and the bootstrap.

    ``consensus``: share of pairs on which some principle prefers, and none the other output; ``conflict``: on which principles prefer
    different outputs; ``indifference``: on which none prefers. ``arbitrariness``: of the pairs with a consensus those on which the
    annotator prefers the other output. ``agreement/P``: of the pairs on which P prefers, those on which the annotator does so too.
    ``supremacy/P over Q``: of the pairs on which P and Q conflict and the annotator decides, those that go to P.

    Paper: Buyl et al., "AI Alignment at Your Discretion" (2025), https://arxiv.org/abs/2502.10441: discretion arbitrariness, principle
    supremacy

    Errors: UserError for no principle, lists of different lengths, and other preferences.

    Examples:
        >>> found = principle_statistics({"kind": [1, 1, 0], "true": [1, -1, 0]}, [-1, 1, 1], resamples=10).values
        >>> [found[name].value for name in ("arbitrariness", "supremacy/kind over true")]
        [1.0, 1.0]
    """
    names, own = list(principles), np.asarray(preferred, dtype=float)
    if not names or any(len(principles[name]) != len(own) for name in names):
        raise UserError(
            f"principles: got {len(names)} with {[len(principles[name]) for name in names]} pairs for {len(own)}; takes one of each"
        )
    table = np.array([principles[name] for name in names], dtype=float)
    if (odd := np.concatenate([table.ravel(), own])[~np.isin(np.nan_to_num(np.concatenate([table.ravel(), own])), (-1, 0, 1))]).size:
        raise UserError(f"principles: got the preference {odd[0]:g}, takes 1, -1, 0 for neither, NaN for not known")
    clusters = list(range(len(own)) if prompts is None else prompts)
    known = ~np.isnan(table).any(0) & ~np.isnan(own)
    some, other = (table > 0).any(0), (table < 0).any(0)
    one_side = np.where(some ^ other, some.astype(float) - other, 0.0)
    columns: dict[str, Any] = {
        "pairs": np.ones_like(own), "consensus": some ^ other, "conflict": some & other, "indifference": ~some & ~other,
        "against": (one_side != 0) & (own == -one_side),
    }  # fmt: skip
    for place, name in enumerate(names):
        columns |= {f"prefers/{name}": table[place] != 0, f"agrees/{name}": (table[place] != 0) & (own == table[place])}
        for later in range(place + 1, len(names)):
            parted = (table[place] == -table[later]) & (table[place] != 0) & (own != 0)
            key = f"{name} over {names[later]}"
            columns |= {f"parted/{key}": parted, f"won/{key}": parted & (own == table[place])}
    counts = {name: np.asarray(column, dtype=float)[known].tolist() for name, column in columns.items()}
    kept = [cluster for cluster, is_known in zip(clusters, known, strict=True) if is_known]
    values = estimates(counts, kept, _of_principles, resamples=resamples, seed=seed)
    return Scores(values, [{} if is_known else None for is_known in known], {"pairs": len(own), "missing": int((~known).sum())})


def _of_principles(sums: Sums) -> dict[str, Any]:
    shares = {name: ratio(sums[name], sums["pairs"]) for name in ("consensus", "conflict", "indifference")}
    agreed = {f"agreement/{name[8:]}": ratio(sums[f"agrees/{name[8:]}"], sums[name]) for name in sums if name.startswith("prefers/")}
    won = {f"supremacy/{name[7:]}": ratio(sums[f"won/{name[7:]}"], sums[name]) for name in sums if name.startswith("parted/")}
    return {**shares, "arbitrariness": ratio(sums["against"], sums["consensus"]), **agreed, **won}
