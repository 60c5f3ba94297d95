"""How far people agree who judged the same."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import combinations
from typing import NamedTuple

import numpy as np

from mmalign.labelling.judgements import Judgement


class Agreement(NamedTuple):
    """compared: pairs of outputs that two or more annotators judged. same: of any two of their words, the share that says the same (NaN:
    none). alpha: Krippendorff's, 1 for agreement and 0 for what chance alone gives; NaN where there is nothing that could differ."""

    compared: int
    same: float
    alpha: float


def agreement(standing: Mapping[tuple[str, str], Judgement]) -> Agreement:
    """Of all judgements that hold, a comparison of two outputs each: first better, second better, or a tie. Skipped items say nothing.

    Krippendorff's alpha at the ordinal level (first, tie, second), which allows for annotators who have not judged everything;
    Krippendorff, Computing Krippendorff's Alpha-Reliability (2011), by the package ``krippendorff``.
    """
    words = dict[tuple[str, int, int], dict[str, int]]()
    for (item, annotator), judgement in standing.items():
        tier_of = {output: tier for tier, outputs in enumerate(judgement.ranking) for output in outputs}
        for first, second in combinations(sorted(tier_of), 2):
            words.setdefault((item, first, second), {})[annotator] = int(np.sign(tier_of[second] - tier_of[first]))
    shared = [said for said in words.values() if len(said) > 1]
    same = [one == other for said in shared for one, other in combinations(said.values(), 2)]
    if not shared:
        return Agreement(0, float("nan"), float("nan"))
    return Agreement(len(shared), float(np.mean(same)), _alpha(shared))


def _alpha(shared: list[dict[str, int]]) -> float:
    from krippendorff import alpha

    if len({word for said in shared for word in said.values()}) < 2:
        return float("nan")
    people = sorted({annotator for said in shared for annotator in said})
    table = np.array([[said.get(annotator, np.nan) for said in shared] for annotator in people], dtype=float)
    return float(alpha(reliability_data=table, level_of_measurement="ordinal"))
