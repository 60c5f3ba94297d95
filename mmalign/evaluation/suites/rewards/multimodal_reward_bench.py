"""Multimodal RewardBench: pairs of answers about an image, of six kinds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, RewardSuite, rows_of, shown_with
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.reward_scores import best_scores
from mmalign.types import UserError

NEEDS = ("ID", "Text", "Image", "Output1", "Output2", "Better", "Category")


def multimodal_reward_bench(data: Path, *, images: Path | None = None, resamples: Count = RESAMPLES) -> RewardSuite:
    """Multimodal RewardBench: accuracy of all pairs, and by category, with reasoning and safety cut in two as its script does.

    Args:
        data: ``all_data.json`` of facebookresearch/multimodal_rewardbench; fields ID, Text, Image, Output1, Output2, Better, Category.
        images: where the paths of images start that do not start at the file.
        resamples: of the bootstrap.

    Paper: Yasunaga et al., "Multimodal RewardBench" (2025), https://arxiv.org/abs/2502.14191

    Deviations: a judge is asked in both orders, and a missing verdict is missing; the script asks in one, and draws for such a verdict.

    Errors: UserError for a row without these fields, and for another ``Better`` than Output1 or Output2.
    """
    items = [_item(name, row, images) for name, row in rows_of(data, "multimodal_reward_bench", NEEDS)]

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        right = [item.known["right"] for item in chosen]
        return best_scores(scores, right=right, subsets=[item.subset for item in chosen], resamples=resamples)

    return RewardSuite("multimodal_reward_bench", items, score, headline=("accuracy",))


def _item(name: str, row: Mapping[str, Any], images: Path | None) -> Comparison:
    if row["Better"] not in ("Output1", "Output2"):
        raise UserError(f"multimodal_reward_bench: {name} has Better {row['Better']!r}; takes Output1 or Output2")
    right = int(row["Better"] == "Output2")
    prompt = shown_with(row, row["Image"], images, row["Text"])
    return Comparison(f"{row['ID']}/{name}", prompt, (row["Output1"], row["Output2"]), {"right": right}, _part(row))


def _part(row: Mapping[str, Any]) -> str:
    name = str(row["ID"]).lower()
    if row["Category"] == "safety":
        return "safety/bias" if name.startswith("pairs") else "safety/toxicity"
    if row["Category"] == "reasoning":
        return "reasoning/math" if name.startswith("math") else "reasoning/coding"
    return str(row["Category"])
