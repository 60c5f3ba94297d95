"""The best of many in stages: a cheap reward is asked about all candidates, and a dear one about those that are left."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from itertools import pairwise
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.types import UserError


class Staged(NamedTuple):
    """What the stages said. last: ``[B]`` float64, the score by the last one, NaN of rows that it was not asked about.

    asked, missing: by stage, how many rows it was asked about, and of how many of these it had no score. reached: ``[B]`` by stage,
    whether it was asked about a row.
    """

    last: Tensor
    asked: dict[str, int]
    missing: dict[str, int]
    reached: dict[str, Tensor]


def refuse_stages(owner: str, keep: Mapping[str, int], names: Sequence[str]) -> None:
    """Errors: UserError for a stage without a reward, none that is left for the last one, and numbers that do not fall."""
    if unknown := [name for name in keep if name not in names]:
        raise UserError(f"{owner}.keep: got {unknown[0]!r}, takes names of rewards: {', '.join(names)}")
    if len(keep) >= len(names):
        raise UserError(f"{owner}.keep: got {', '.join(keep)}, which is every reward; takes all but those of the last stage")
    numbers = list(keep.values())
    if any(number < 1 for number in numbers) or any(more <= fewer for more, fewer in pairwise(numbers)):
        raise UserError(f"{owner}.keep: got {dict(keep)}, takes 1 or more, each fewer than the one before")


def in_stages(stages: Mapping[str, Callable[[list[int]], Tensor]], group: Tensor, keep: Mapping[str, int]) -> Staged:
    """Asks one stage after the other, each about what the ones before have kept of a group.

    stages: name -> scores of the rows that it is given, in their order; the last one keeps nothing. group: ``[B]``, whose candidate a row
    is. keep: name -> how many rows of a group go on: the best, of equal ones the first; a row without a score goes on only where there is
    room behind all that have one.
    """
    alive, last = torch.arange(len(group)), torch.full((len(group),), torch.nan, dtype=torch.float64)
    asked, missing, reached = dict[str, int](), dict[str, int](), dict[str, Tensor]()
    for name, score in stages.items():
        scores = score(alive.tolist()).detach().double().cpu()
        asked[name], missing[name] = len(alive), int((~scores.isfinite()).sum())
        reached[name] = torch.zeros(len(group), dtype=torch.bool).index_fill(0, alive, True)
        if name not in keep:
            return Staged(last.index_copy(0, alive, scores), asked, missing, reached)
        alive = alive[_kept(scores, group[alive], keep[name])]
    raise UserError(f"stages: {', '.join(stages)} all keep some; takes one more, which is the last")


def _kept(scores: Tensor, group: Tensor, count: int) -> Tensor:
    """Places of the ``count`` best of each group, in their order."""
    known = torch.where(scores.isfinite(), scores, -torch.inf)
    chosen = []
    for one in group.unique().tolist():
        places = (group == one).nonzero()[:, 0]
        chosen.append(places[known[places].argsort(descending=True, stable=True)[:count]])
    return torch.cat(chosen).sort().values if chosen else torch.zeros(0, dtype=torch.int64)
