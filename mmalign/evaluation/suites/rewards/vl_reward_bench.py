"""VL-RewardBench: pairs of answers about an image."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of, shown_with
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.reward_scores import best_scores
from mmalign.types import UserError

NEEDS = ("id", "query", "response")
GROUPS = {
    "vlfeedback": "general", "wildvision-battle": "general", "povid": "hallucination", "rlhf-v": "hallucination",
    "rlaif-v": "hallucination", "reasoning_tasks": "reasoning",
}  # fmt: skip
"""source -> the group that its script counts it in."""
BEGINS = {
    "rlaif": "rlaif-v", "rlhf": "rlhf-v", "mathverse": "reasoning_tasks", "mmmu": "reasoning_tasks", "wildvision": "wildvision-battle",
    "hallucination": "povid",
}  # fmt: skip
"""what an id begins with, up to its first - or _, -> its source; any other is VLFeedback's."""


def vl_reward_bench(data: Path, *, images: Path | None = None, resamples: Count = RESAMPLES) -> RewardSuite:
    """VL-RewardBench (MMInstruction/VL-RewardBench): accuracy of general, hallucination and reasoning pairs, of all, and the groups' mean.

    Args:
        data: its file; columns id, query, response (two texts), human_ranking or ranking (0 for the better), image (bytes) or
            image_path; and query_source, where a row names its source.
        images: where paths start that do not start at the file.
        resamples: of the bootstrap.

    ``accuracy`` is the benchmark's overall accuracy, ``sections`` its macro average.

    Paper: Li et al., "VL-RewardBench" (2024), https://arxiv.org/abs/2411.17451

    Deviations: a judge is asked in both orders; the script draws one, ten times.

    Errors: UserError for a row without these columns, a ranking that is none of two, and no image.
    """
    items = [_item(name, row, images) for name, row in rows_of(data, "vl_reward_bench", NEEDS)]
    sections = {group: {group: 1.0} for group in dict.fromkeys(GROUPS.values())}

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        right = [item.known["right"] for item in chosen]
        return best_scores(scores, right=right, subsets=[item.subset for item in chosen], sections=sections, resamples=resamples)

    return RewardSuite("vl_reward_bench", items, score, headline=("accuracy", "sections"))


def _item(name: str, row: Mapping[str, Any], images: Path | None) -> Comparison:
    ranking = [int(place) for place in row.get("human_ranking", row.get("ranking")) or ()]
    if sorted(ranking) != [0, 1] or len(row["response"]) != 2:
        raise UserError(f"vl_reward_bench: {name} ranks {len(row['response'])} answers as {ranking}; takes two, and 0 for the better one")
    picture = row.get("image") if row.get("image") is not None else row.get("image_path")
    if picture is None:
        raise UserError(f"vl_reward_bench: {name} has no image; takes image or image_path")
    words = str(row["query"]).replace("<image>", "").strip()
    return Comparison(
        f"{row['id']}/{name}", shown_with(row, picture, images, words), tuple(row["response"]), {"right": ranking.index(0)}, _group(row)
    )


def _group(row: Mapping[str, Any]) -> str:
    source = str(row.get("query_source") or "").lower()
    begins = str(row["id"]).replace("_", "-").partition("-")[0].lower()
    return GROUPS.get(source) or GROUPS[BEGINS.get(begins, "vlfeedback")]
