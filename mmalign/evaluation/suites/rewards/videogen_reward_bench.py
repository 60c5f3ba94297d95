"""VideoGen-RewardBench: pairs of generated videos, judged in three dimensions and overall, ties among them."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.evaluation.comparisons import PREFERENCES, Comparison, RewardSuite, medium, preferences, rows_of
from mmalign.evaluation.intervals import RESAMPLES
from mmalign.media import Limits
from mmalign.types import UserError

NEEDS = ("path_A", "path_B", "prompt")
PREFERS = {"A": 1.0, "B": -1.0, "same": 0.0}


def videogen_reward_bench(
    data: Path, *, images: Path | None = None, dimension: Literal["Overall", "VQ", "MQ", "TA"] = "Overall", frames: Count = 16,
    threshold: NotNegative | None = None, resamples: Count = RESAMPLES,
) -> RewardSuite:  # fmt: skip
    """VideoGen-RewardBench: how often a reward prefers the video that people prefer, without their ties and with them.

    Args:
        data: ``videogen-rewardbench.csv`` of KwaiVGI/VideoGen-RewardBench; columns path_A, path_B, prompt, and VQ, MQ, TA, Overall with A,
            B or same.
        images: where the paths of videos start that do not start at the file.
        dimension: what people judged: VQ (visual quality), MQ (motion quality), TA (fit to the text), or Overall.
        frames: of a video, spread evenly.
        threshold: differences up to it are ties; by default searched on these pairs, as published (`pair_scores`).
        resamples: of the bootstrap, over prompts.

    Paper: Liu et al., "Improving Video Generation with Human Feedback" (2025), https://arxiv.org/abs/2501.13918

    Errors: UserError for a row without these columns, and another judgement than A, B and same; an empty one is a pair nobody judged.
    """
    limits = Limits(frames=frames)
    items = []
    for name, row in rows_of(data, "videogen_reward_bench", NEEDS):
        said = str(row.get(dimension) or "").strip()
        if dimension not in row or (said and said not in PREFERS):
            raise UserError(f"videogen_reward_bench: {name} says {said or 'nothing'!r} under {dimension}; takes A, B or same")
        sides = tuple(medium(row, row[side], images, "video", limits) for side in ("path_A", "path_B"))
        items.append(Comparison(name, row["prompt"], sides, {"preferred": PREFERS.get(said, float("nan"))}))
    return RewardSuite("videogen_reward_bench", items, preferences(threshold, resamples), of="videos", headline=PREFERENCES)
