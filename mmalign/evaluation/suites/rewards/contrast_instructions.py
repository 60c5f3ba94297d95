"""Contrast instructions: pairs of similar questions whose answers differ, and whether a reward knows which belongs to which."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of
from mmalign.evaluation.consistency import contrast_consistency
from mmalign.evaluation.intervals import RESAMPLES, Scores

NEEDS = ("prompt_1", "answer_1", "prompt_2", "answer_2")


def contrast_instructions(data: Path, *, resamples: Count = RESAMPLES) -> RewardSuite:
    """Contrast instructions: ``c_res``, a question's own answer is above the other's, and ``c_ins``, an answer's own question is.

    Args:
        data: a file with a row for each pair of questions; columns prompt_1, answer_1, prompt_2, answer_2.
        resamples: of the bootstrap, over pairs.

    A reward that does not read the question has one half of each (`contrast_consistency`). Both questions of a pair are comparisons of
    their own, ``.../1`` and ``.../2``, with their own answer first.

    Paper: Shen et al., "The Trickle-down Impact of Reward (In-)consistency on RLHF" (2023), https://arxiv.org/abs/2309.16155

    Errors: UserError for a row without these columns.
    """
    items = []
    for name, row in rows_of(data, "contrast_instructions", NEEDS):
        for own, other in ((1, 2), (2, 1)):
            answers = (row[f"answer_{own}"], row[f"answer_{other}"])
            items.append(Comparison(f"{name}/{own}", row[f"prompt_{own}"], answers, {"pair": name, "own": own}))

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        nothing = [math.nan, math.nan]
        tables = {item.known["pair"]: [nothing, nothing] for item in chosen}
        for item, (own, other) in zip(chosen, scores, strict=True):
            tables[item.known["pair"]][item.known["own"] - 1] = [own, other] if item.known["own"] == 1 else [other, own]
        found = contrast_consistency(list(tables.values()), resamples=resamples)
        rows = dict(zip(tables, found.rows, strict=True))
        return Scores(found.values, [rows[item.known["pair"]] for item in chosen], found.counts)

    return RewardSuite("contrast_instructions", items, score, headline=("c_res", "c_ins"))
