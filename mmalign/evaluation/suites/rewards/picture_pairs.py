"""Pairs of images with what people said of them, in the formats of ImageReward, HPDv2, HPDv3 and Pick-a-Pic."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Literal

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.data._reading.groups import in_groups
from mmalign.data._reading.tables import blocks, in_order, located
from mmalign.data._schemas import outputs
from mmalign.evaluation.comparisons import PREFERENCES, Comparison, RewardSuite, preferences
from mmalign.evaluation.intervals import RESAMPLES
from mmalign.media import Broken, Limits, image
from mmalign.records import Unread
from mmalign.types import UserError

SCHEMAS = {"pickapic": outputs.pickapic, "hpdv2": outputs.hpdv2, "hpdv3": outputs.hpdv3, "imagereward": outputs.hpdv2}


def picture_pairs(
    data: Path, *, schema: Literal["auto", "pickapic", "hpdv2", "hpdv3", "imagereward"] = "auto", images: Path | None = None,
    threshold: NotNegative | None = None, resamples: Count = RESAMPLES,
) -> RewardSuite:  # fmt: skip
    """Test sets of image rewards: how often a reward prefers the image that people prefer, without their ties and with them.

    Args:
        data: a file or a folder; Pick-a-Pic (caption, jpg_0, jpg_1, label_0, label_1), HPDv2 and ImageReward (prompt, a list of images
            under image_path or generations, and rank, ranking or raw_annotations; every pair of a list counts), HPDv3 (prompt, path1,
            path2).
        schema: which of these; ``auto`` looks at the columns of the first row.
        images: where paths start that do not start at the file.
        threshold: differences up to it are ties; by default searched on these pairs (`pair_scores`).
        resamples: of the bootstrap, over prompts.

    People who disagree prefer what most of them do; as many on both sides are a tie. Without ties as HPS, ImageReward and MPS count;
    Pick-a-Pic's own number has ties, of which it counts a half.

    Source: https://arxiv.org/abs/2305.01569 (Pick-a-Pic), https://arxiv.org/abs/2306.09341 (HPDv2), https://arxiv.org/abs/2508.03789
    (HPDv3), https://arxiv.org/abs/2304.05977 (ImageReward)

    Errors: UserError for no such file, a row that is none of these, and no pair that people judged.
    """
    if not data.exists():
        raise UserError(f"picture_pairs: {data} is not there; takes the test file of Pick-a-Pic, HPDv2, HPDv3 or ImageReward")
    known: outputs.Schema | None = None if schema == "auto" else SCHEMAS[schema]
    items: list[Comparison] = []
    source = in_groups(blocks(str(data)))
    for _, name, row in in_order(source if isinstance(source, list) else [], seed=None):
        try:
            if isinstance(row, Broken):
                raise row
            read = outputs.guess(row, None) if known is None else known
            drafts = list(read(row, name))
        except Broken as error:
            raise UserError(f"picture_pairs: {name} of {data}: {error}") from error
        known = read
        for draft in drafts:
            if draft.second is None:
                raise UserError(f"picture_pairs: {name} of {data} has one image; takes pairs of them, or lists")
            sides = tuple(_unread(side, images) for side in (draft.first, draft.second))
            liked = math.nan if math.isnan(draft.strength) else float((draft.strength > 0.5) - (draft.strength < 0.5))
            items.append(Comparison(f"{len(items)}/{draft.id}", draft.prompt, sides, {"preferred": liked}))
    if items and all(math.isnan(item.known["preferred"]) for item in items):
        raise UserError(f"picture_pairs: of {len(items)} pairs of {data} nobody judged one; takes labels or ranks beside them")
    return RewardSuite("picture_pairs", items, preferences(threshold, resamples), of="images", headline=PREFERENCES)


def _unread(source: object, folder: Path | None) -> Unread:
    name = Path(source).name[-120:] if isinstance(source, str) else "image"
    return Unread(located(source, folder), name, lambda given: image(given, Limits()))
