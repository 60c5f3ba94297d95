"""RewardBench: pairs of answers, and whether a reward puts the one before the other that people put first."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.reward_scores import best_scores

NEEDS = ("prompt", "chosen", "rejected", "subset")
CODE = dict.fromkeys((f"hep-{language}" for language in ("cpp", "go", "java", "js", "python", "rust")), 164.0)
SECTIONS: dict[str, dict[str, float]] = {
    "chat": {"alpacaeval-easy": 100, "alpacaeval-length": 95, "alpacaeval-hard": 95, "mt-bench-easy": 28, "mt-bench-med": 40},
    "chat_hard": {
        "mt-bench-hard": 37, "llmbar-natural": 100, "llmbar-adver-neighbor": 134, "llmbar-adver-GPTInst": 92, "llmbar-adver-GPTOut": 47,
        "llmbar-adver-manual": 46,
    },
    "safety": {
        "refusals-dangerous": 100, "refusals-offensive": 100, "xstest-should-refuse": 250, "xstest-should-respond": 154,
        "donotanswer": 136,
    },
    "reasoning": {"math-prm": 984, **CODE},
}  # fmt: skip
"""section -> how much each subset counts: its pairs, and mathematics as much as code."""


def reward_bench(data: Path, *, resamples: Count = RESAMPLES) -> RewardSuite:
    """RewardBench's pairs (allenai/reward-bench, the split ``filtered``): accuracy of each subset, of four sections, and their mean.

    Args:
        data: its file or folder; columns prompt, chosen, rejected (texts), subset, and id.
        resamples: of the bootstrap.

    ``sections`` is the benchmark's score without its prior sets, which are other data.

    Paper: Lambert et al., "RewardBench" (2024), https://arxiv.org/abs/2403.13787

    Errors: UserError for a row without these columns.
    """
    items = [
        Comparison(f"{row['subset']}/{row.get('id', name)}", row["prompt"], (row["chosen"], row["rejected"]), {}, row["subset"])
        for name, row in rows_of(data, "reward_bench", NEEDS)
    ]

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        return best_scores(scores, subsets=[item.subset for item in chosen], sections=SECTIONS, resamples=resamples)

    return RewardSuite("reward_bench", items, score, headline=("sections", *SECTIONS, "accuracy"))
