"""RAG-RewardBench: pairs of answers that were written from retrieved passages."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.reward_scores import best_scores

NEEDS = ("prompt", "chosen", "rejected")
SCENARIOS = ("helpful", "harmless", "reason", "citation", "abstain", "conflict")


def rag_reward_bench(data: Path, *, resamples: Count = RESAMPLES) -> RewardSuite:
    """RAG-RewardBench's pairs (jinzhuoran/RAG-RewardBench): accuracy, by scenario.

    Args:
        data: its folder ``Dataset/`` (helpful.jsonl, harmless.jsonl, reason.jsonl, citation.jsonl, abstain.jsonl, conflict.jsonl), whose
            files are the scenarios, or one of them; columns prompt (the passages in it), chosen, rejected; and subset, where a row has one.
        resamples: of the bootstrap.

    Paper: Jin et al., "RAG-RewardBench" (2024), https://arxiv.org/abs/2412.13746

    Errors: UserError for a row without these columns.
    """
    items = [
        Comparison(name, row["prompt"], (row["chosen"], row["rejected"]), {}, _scenario(name, row.get("subset")))
        for name, row in rows_of(data, "rag_reward_bench", NEEDS)
    ]

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        return best_scores(scores, subsets=[item.subset for item in chosen], resamples=resamples)

    return RewardSuite("rag_reward_bench", items, score, headline=("accuracy",))


def _scenario(name: str, subset: object) -> str:
    file = name.partition(".")[0]
    return file if file in SCENARIOS or not subset else str(subset)
