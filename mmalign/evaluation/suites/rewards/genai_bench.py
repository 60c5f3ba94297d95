"""GenAI-Bench: pairs of generated images or videos, with people's votes from an arena."""

from __future__ import annotations

from pathlib import Path

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.evaluation.comparisons import PREFERENCES, Comparison, Kind, Of, RewardSuite, medium, preferences, rows_of
from mmalign.evaluation.intervals import RESAMPLES
from mmalign.media import Limits
from mmalign.types import UserError

NEEDS = ("vote_type",)
VOTES = {"leftvote": 1.0, "rightvote": -1.0, "tievote": 0.0, "bothbad_vote": 0.0}
PROMPTS = ("prompt", "instruct_prompt")
SIDES: dict[tuple[str, str], Kind] = {
    ("left_video", "right_video"): "video", ("left_image", "right_image"): "image", ("left_output_image", "right_output_image"): "image",
}  # fmt: skip


def genai_bench(
    data: Path, *, images: Path | None = None, frames: Count = 16, threshold: NotNegative | None = None, resamples: Count = RESAMPLES
) -> RewardSuite:
    """GenAI-Bench (TIGER-Lab/GenAI-Bench): how often a reward prefers what people voted for, without ties and with them.

    Args:
        data: a parquet file of image_generation, image_edition or video_generation; columns prompt (of editing instruct_prompt),
            left_image, left_output_image or left_video, the same of the right, and vote_type.
        images: where the paths of media start that do not start at the file.
        frames: of a video, spread evenly.
        threshold: differences up to it are ties; by default searched on these pairs (`pair_scores`).
        resamples: of the bootstrap, over prompts.

    Both votes for none, ``tievote`` and ``bothbad_vote``, are ties: a reward of one output cannot tell them apart. A vote of editing sees
    the instruction, and not the picture that was edited.

    Paper: Jiang et al., "GenAI Arena" (2024), https://arxiv.org/abs/2406.04485; with ties as VideoReward does,
    https://arxiv.org/abs/2501.13918

    Errors: UserError for a row without these columns, images beside videos, and another vote.
    """
    limits, items, kinds = Limits(frames=frames), [], set[Kind]()
    for name, row in rows_of(data, "genai_bench", NEEDS):
        sides = next((pair for pair in SIDES if all(row.get(side) is not None for side in pair)), None)
        prompt = next((row[key] for key in PROMPTS if row.get(key)), None)
        if sides is None or prompt is None or row["vote_type"] not in VOTES:
            takes = f"a prompt, one of {', '.join(left for left, _ in SIDES)} with its right one, and vote_type of {', '.join(VOTES)}"
            raise UserError(f"genai_bench: {name} has {', '.join(sorted(row))[:200]}, vote_type {row['vote_type']!r}; takes {takes}")
        kinds.add(SIDES[sides])
        media = tuple(medium(row, row[side], images, SIDES[sides], limits) for side in sides)
        items.append(Comparison(name, prompt, media, {"preferred": VOTES[row["vote_type"]]}))
    if len(kinds) > 1:
        raise UserError(f"genai_bench: {data} has images and videos; takes one of them at a time")
    of: Of = "videos" if "video" in kinds else "images"
    return RewardSuite("genai_bench", items, preferences(threshold, resamples), of=of, headline=PREFERENCES)
