"""Rows of a file that are kept by what rewards say of their outputs: a data set filtered by a reward model."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Proportion
from mmalign.commands._lines import Line, read, refuse_there, written
from mmalign.data._schemas.outputs import instructed
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined
from mmalign.media import Broken, Limits, image, video
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, combined, refuse_columns
from mmalign.types import UserError

__all__ = ["keep_best"]

VIDEOS = (".mp4", ".webm", ".mov", ".avi", ".mkv")
PICTURES = (".png", ".jpg", ".jpeg", ".webp", ".bmp")


def keep_best(  # what a command may be told
    path: str,
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    output: str = "output",
    source: str | None = None,
    combine: Callable[..., Any] | None = None,
    part: Proportion | None = None,
    least: Finite | None = None,
    frames: Count = 16,
    rows_at_once: Count = 16,
) -> dict[str, int]:
    """Writes the rows whose outputs rewards score highest, as they are and in their order, with ``score``; returns counts.

    Args:
        path: JSON lines of ``prompt`` and an output; what else a row holds is a column that rewards may read.
        rewards: name -> reward. combine: how they become one number; their sum by default.
        out: the file; it appears whole or not at all. Paths stay as they are: it belongs beside ``path``.
        output: the key of the output: a text, or the path of an image or video, from ``path``'s folder on.
        source: of edits, the key of the picture that was changed: the prompt then shows it in front of the instruction, as
            ``records: {use: pairs, columns: {source: ...}}`` does where a reward model is trained.
        part: the share of the scored rows that is kept, the best ones; of equal ones the first.
        least: keeps those that score at least this much.
        frames: of a video, spread evenly. rows_at_once: that are scored at once.

    Counts: ``kept``, ``left_out``, ``missing`` (without a score), ``broken`` (whose output cannot be read); the last two are left out.

    Paper: EditReward, https://arxiv.org/abs/2509.26346, which keeps the best part of a set of edits so, and trains an editing model on it.

    Of several processes each scores some, and the main one writes. Errors: UserError for a file that is there already or is not, neither
    or both of ``part`` and ``least``, a row without the keys, and where nothing is left.
    """
    refuse_there(out)
    if not rewards or (part is None) == (least is None):
        raise UserError(f"keep_best: got {len(rewards)} rewards, part {part} and least {least}; takes rewards, and one of part and least")
    rows, team = read(path, "prompt", output, *([] if source is None else [source])), joined()
    columns = {name for row in rows for name in row} - {"prompt", output}
    refuse_columns(rewards, columns, kind="reward")
    folder, limits, counts = Path(path).parent, Limits(frames=frames), {"kept": 0, "left_out": 0, "missing": 0, "broken": 0}

    def scored(start: int) -> list[float | str | None]:
        some = rows[start : start + rows_at_once]
        shown = [_shown(folder, row[output], limits) for row in some]
        said: list[float | str | None] = [str(one) if isinstance(one, Broken) else None for one in shown]
        usable = [place for place, one in enumerate(shown) if not isinstance(one, Broken)]
        for _, of in groupby(usable, key=lambda place: getattr(shown[place], "shape", None)):
            places = list(of)
            prompts = [_asked(folder, some[place], source) for place in places]
            outputs = [shown[place] for place in places]
            stack = torch.stack(outputs) if isinstance(outputs[0], Tensor) else outputs
            named = {name: [some[place].get(name) for place in places] for name in columns}
            answers = ask(rewards, stack, prompts, named, drop=True)
            for place, value in zip(places, combined(answers, torch.arange(len(places)), prompts, combine).tolist(), strict=True):
                said[place] = None if math.isnan(value) else value
        return said

    def lines() -> Iterator[Line]:
        scores = [score for _, made in in_turn(team, range(0, len(rows), rows_at_once), scored) for score in made]
        kept = _kept(scores, part, least)
        known = sum(isinstance(score, float) for score in scores)
        counts["kept"], counts["left_out"], counts["missing"] = len(kept), known - len(kept), scores.count(None)
        counts["broken"] = len(scores) - known - counts["missing"]
        if not kept:
            why = next((score for score in scores if isinstance(score, str)), "")
            raise UserError(
                f"keep_best: none of {len(rows)} rows is left ({known} have a score{f'; {why}' if why else ''}); takes other bounds"
            )
        yield from ({**rows[place], "score": scores[place]} for place in kept)

    with stopping_together(team):
        settings = {"rewards": sorted(rewards), "part": part, "least": least, "source": source, "rows_at_once": rows_at_once}
        team.agree("keep_best", {"rows": hashed(rows), **settings})
        written(Path(out), lines(), team)
    return counts


def _kept(scores: Sequence[float | str | None], part: float | None, least: float | None) -> list[int]:
    """Places of the rows that are kept, in their order."""
    known = {place: score for place, score in enumerate(scores) if isinstance(score, float)}
    if least is not None:
        return [place for place, score in known.items() if score >= least]
    best = sorted(known, key=lambda place: -known[place])
    return sorted(best[: math.ceil((part or 0.0) * len(best) - 1e-9)])


def _shown(folder: Path, output: Any, limits: Limits) -> Any:
    """An output as rewards see it."""
    if not isinstance(output, str) or not output.strip():
        return Broken("has no output that is a text or a path")
    try:
        if output.lower().endswith(VIDEOS):
            return video(str(folder / output), limits)
        return image(str(folder / output), limits) if output.lower().endswith(PICTURES) else output
    except Broken as error:
        return error


def _asked(folder: Path, row: Line, source: str | None) -> Any:
    return row["prompt"] if source is None else instructed(str(folder / str(row[source])), str(row["prompt"]))
