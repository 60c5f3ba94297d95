"""Preference pairs of a policy's own answers, ranked by rewards, as a file that ``data.texts`` and ``data.picture_texts`` read.

With ``rewards.claims`` it is RLAIF-V's way. The answers of a generator, images and videos, make a file that ``data.pairs`` reads.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Seed
from mmalign.commands._answers import Cut, groups_of
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.runs.pictures import write_mp4, write_png
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, beside, combined, refuse_columns
from mmalign.training.seeds import stream
from mmalign.training.settings import at_least
from mmalign.types import Policy, columns_of, contents


def make_pairs(  # what a command may be told
    policy: Policy,
    prompts: Sequence[Any],
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    combine: Callable[..., Any] | None = None,
    samplers: Mapping[str, Policy] | None = None,
    group: Count = 10,
    most: Count = 1,
    least_gap: NotNegative = 0.0,
    cut: Cut = "drop",
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes the policy's own answers as pairs, the better one by the rewards first; returns counts.

    Args:
        policy: what answers, in words, images or videos. prompts: each is asked once. rewards: name -> reward, what ranks its answers.
        out: the file, JSON lines of ``prompt, chosen, rejected, score_chosen, score_rejected, id``; it appears whole or not at all. Images
            (PNG) and videos (MP4) are in a folder beside it, which has its name without the ending; ``data.pairs`` reads such a file.
        combine: how rewards become one number; their sum by default.
        samplers: name -> a policy that answers every prompt too, another temperature or another run; its answers are ranked among the
            policy's, and a pair may be of two who drew.
        group: answers to each prompt, drawn by the policy's own sampler, and by that of each of ``samplers``. most: pairs of one prompt:
            the best with the worst, the second best with the second worst, and so on, each answer once. least_gap: by how much more than
            this a score has to be ahead.
        cut: what becomes of answers that came to no end within the policy's ``max_completion``: ``drop`` leaves them out, ``keep`` takes
            them, though whoever trains on the file is told that they end there.
        prompts_at_once: prompts in one rollout. seed: of the sampling.

    An answer without a score is in no pair, nor one without a word, which no reader of such files takes. Counts: ``pairs``, ``prompts``
    (asked), ``tied`` (that gave none), ``missing`` (answers without a score), ``cut`` and ``empty`` (answers left out for that).

    Of several processes each does some of the rollouts, and writes the pictures of these; the main one writes the file.

    Errors: UserError for a file that is there already, numbers out of range, prompts that are not JSON, a policy that answers in neither
    words, images nor videos, more processes than rollouts, and processes that do not share the folder.
    """
    refuse_there(out)
    at_least(1, prompts=len(prompts), most=most, prompts_at_once=prompts_at_once)
    at_least(2, group=group)
    refuse_columns(rewards, columns_of(prompts), kind="reward")
    counts = {"pairs": 0, "prompts": 0, "tied": 0, "missing": 0, "cut": 0, "empty": 0}
    starts, team = range(0, len(prompts), prompts_at_once), joined()
    who = {"pairs": policy, **{f"pairs/{name}": one for name, one in (samplers or {}).items()}}
    rows_of = group * len(who)

    pictures = dict[str, Tensor]()  # of the rollout that this process made last, by their digests

    def answered(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        drawn = [groups_of(one, contents(some), group, stream(seed, start, 0, name)) for name, one in who.items()]
        rows = [row for of_prompt in zip(*drawn, strict=True) for of_one in of_prompt for row in of_one]
        answers, asked = [answer for answer, _ in rows], [prompt for prompt in contents(some) for _ in range(rows_of)]
        shown = torch.stack(answers) if isinstance(answers[0], Tensor) else answers
        scores = ask(rewards, shown, asked, beside(some, rows=len(rows)), drop=True)
        pictures.clear()
        if isinstance(shown, Tensor):
            answers = [_digest(pixels) for pixels in _bytes(shown)]
            pictures.update(zip(answers, _bytes(shown), strict=True))
        return {
            "answers": answers,
            "ending": {4: "png", 5: "mp4"}[shown.ndim] if isinstance(shown, Tensor) else None,
            "scores": {name: values.tolist() for name, values in scores.items()},
            "cut": [endless for _, endless in rows],
        }

    def lines() -> Iterator[Line]:
        for start, made in in_turn(team, starts, answered):
            some, answers = contents(list(prompts[start : start + prompts_at_once])), made["answers"]
            scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in made["scores"].items()}
            numbers = torch.arange(len(some)).repeat_interleave(rows_of)  # its state sees all rollouts in their order, in every process
            rewarded = combined(scores, numbers, [some[number] for number in numbers.tolist()], combine)
            counts["missing"] += int(rewarded.isnan().sum())
            for name, rows_out in {"cut": made["cut"] if cut == "drop" else [], "empty": [not one.strip() for one in answers]}.items():
                counts[name] += sum(rows_out)
                rewarded = rewarded.masked_fill(torch.tensor(rows_out), math.nan) if rows_out else rewarded
            for number, prompt in enumerate(some):
                of = slice(number * rows_of, (number + 1) * rows_of)
                ranked = list(_ranked(prompt, answers[of], rewarded[of].tolist(), most, least_gap))
                counts["prompts"] += 1
                counts["tied"] += not ranked
                for place, line in enumerate(ranked):
                    counts["pairs"] += 1
                    named = {**line, "id": f"{start + number}" if most == 1 else f"{start + number}-{place}"}
                    yield named if made["ending"] is None else _pictured(Path(out), named, made["ending"], pictures)

    with stopping_together(team):
        team_for(len(starts), f"rollouts of {prompts_at_once} prompts")
        settings = {"group": group, "most": most, "least_gap": least_gap, "cut": cut, "prompts_at_once": prompts_at_once, "seed": seed}
        team.agree("make_pairs", {"prompts": hashed(prompts), "rewards": sorted(rewards), "samplers": [*who], **settings})
        written(Path(out), lines(), team)
    return counts


def _bytes(outputs: Tensor) -> Tensor:
    """What 0 to 1 is in a file: 0 to 255."""
    return (outputs.float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()


def _ranked(prompt: Any, answers: Sequence[Any], rewards: Sequence[float], most: int, least_gap: float) -> Iterator[Line]:
    """Pairs of one prompt's answers, the clearest first."""
    known = sorted((row for row, reward in enumerate(rewards) if not math.isnan(reward)), key=lambda row: rewards[row])
    for place in range(min(most, len(known) // 2)):
        worse, better = known[place], known[-1 - place]
        if rewards[better] - rewards[worse] > least_gap and answers[better] != answers[worse]:
            yield {
                "prompt": prompt, "chosen": answers[better], "rejected": answers[worse],
                "score_chosen": rewards[better], "score_rejected": rewards[worse],
            }  # fmt: skip


def _digest(picture: Tensor) -> str:
    return hashlib.sha256(picture.numpy().tobytes()).hexdigest()


def _pictured(out: Path, line: Line, ending: str, pictures: Mapping[str, Tensor]) -> Line:
    """The line, with paths of files from ``out`` on in place of digests; whose pictures they are writes the files."""
    paths = {side: f"{out.stem}/{line['id']}_{side}.{ending}" for side in ("chosen", "rejected")}
    for side, path in paths.items():
        if (picture := pictures.get(line[side])) is not None:
            (write_png if ending == "png" else write_mp4)(out.parent / path, picture)
    return {**line, **paths}
