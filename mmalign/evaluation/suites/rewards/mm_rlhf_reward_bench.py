"""MM-RLHF-RewardBench: pairs of answers about an image or a video, several of each question."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from mmalign.arguments.ranges import Count
from mmalign.evaluation.comparisons import Comparison, Kind, RewardSuite, rows_of, shown_with
from mmalign.evaluation.intervals import RESAMPLES, Scores, Sums, estimates, ratio
from mmalign.evaluation.reward_scores import best_scores
from mmalign.types import UserError

NEEDS = ("id", "prompt", "chosen", "rejected")
KINDS = ("mcq", "long", "short", "safety", "video")
FRAMES = (".jpg", ".jpeg", ".png", ".webp")


def mm_rlhf_reward_bench(data: Path, *, images: Path | None = None, resamples: Count = RESAMPLES) -> RewardSuite:
    """MM-RLHF-RewardBench (yifanzhang114/MM-RLHF-RewardBench): ``accuracy`` of pairs, and ``acc_plus`` of questions with all pairs right.

    Args:
        data: ``mm_reward_bench.jsonl``; fields id, prompt, chosen, rejected, and image or video (a folder of frames, or a file).
        images: where paths start that do not start at the file.
        resamples: of the bootstrap, over questions.

    Subsets go by the path of the image or video: mcq, long, short, safety, video.

    Paper: Zhang et al., "MM-RLHF" (2025), https://arxiv.org/abs/2502.10391, section 4.3

    Deviations: a question with a missing score is left out of ``acc_plus``, and of two equal scores neither is right there.

    Errors: UserError for a row without these fields, and one without image and video.
    """
    items = [_item(name, row, images) for name, row in rows_of(data, "mm_rlhf_reward_bench", NEEDS)]

    def score(chosen: Sequence[Comparison], scores: Sequence[Sequence[float]]) -> Scores:
        questions = [item.known["question"] for item in chosen]
        pairs = best_scores(scores, subsets=[item.subset for item in chosen], prompts=questions, resamples=resamples)
        names = list(dict.fromkeys(questions))
        margins = {
            name: [row["margin"] if row else None for row, own in zip(pairs.rows, questions, strict=True) if own == name] for name in names
        }
        known = [name for name in names if None not in margins[name]]
        counts = {"rows": [1.0] * len(known), "right": [float(all((gap or 0) > 0 for gap in margins[name])) for name in known]}
        whole = estimates(counts, known, _acc_plus, resamples=resamples)
        return replace(pairs, values={**pairs.values, **whole}, counts={**pairs.counts, "questions": len(names)})

    return RewardSuite("mm_rlhf_reward_bench", items, score, headline=("accuracy", "acc_plus"))


def _acc_plus(sums: Sums) -> dict[str, Any]:
    return {"acc_plus": ratio(sums["right"], sums["rows"])}


def _item(name: str, row: Mapping[str, Any], images: Path | None) -> Comparison:
    kind: Kind = "image" if row.get("image") else "video"
    source = row.get(kind)
    if not source:
        raise UserError(f"mm_rlhf_reward_bench: {name} has neither image nor video; takes one of them")
    prompt = shown_with(row, source, images, str(row["prompt"]).replace("<image>", "").strip(), kind)
    medium = prompt[0]["content"][0]
    if kind == "video" and Path(str(medium.get("path"))).is_dir():  # frames, one picture each
        frames = sorted(str(file) for file in Path(medium["path"]).iterdir() if file.suffix.lower() in FRAMES)
        prompt[0]["content"][0] = {"type": "video", "video": frames}
    subset = next((word for word in KINDS if word in str(source)), "video" if kind == "video" else "")
    return Comparison(f"{row['id']}/{name}", prompt, (row["chosen"], row["rejected"]), {"question": str(row["id"])}, subset)
