"""Preference pairs made with a policy, as a file that ``data.texts`` and ``data.picture_texts`` read.

``make_pairs``: its own answers, ranked by rewards (RLAIF-V's way with ``rewards.claims``); those of a generator too, images and videos that
``data.pairs`` reads. ``make_rejected``: answers that it gives under a handicap, such as hidden pictures, against the better ones of a data
set (BDHS).
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from difflib import SequenceMatcher
from itertools import islice
from pathlib import Path
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Proportion, Seed
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.conversations import has_media, said_after
from mmalign.data._reading.around import refuse_two_prompts
from mmalign.data.pairs import listed
from mmalign.data.transforms.two_prompts import altered
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import plain
from mmalign.media.altering import Alteration
from mmalign.policies.language.completions import Completions
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import Pair, Record, Records, Thumb
from mmalign.runs.pictures import write_mp4, write_png
from mmalign.training.feedback import ask, beside, combined, refuse_columns
from mmalign.training.journal import hashed
from mmalign.training.seeds import stream
from mmalign.types import Policy, UserError, columns_of, contents

__all__ = ["make_pairs", "make_rejected"]

Cut = Literal["drop", "keep"]
SEED = 2**31


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
    _refuse(out, prompts=len(prompts), group=group - 1, most=most, prompts_at_once=prompts_at_once)
    refuse_columns(rewards, columns_of(prompts), kind="reward")
    counts = {"pairs": 0, "prompts": 0, "tied": 0, "missing": 0, "cut": 0, "empty": 0}
    starts, team = range(0, len(prompts), prompts_at_once), joined()
    who = {"pairs": policy, **{f"pairs/{name}": one for name, one in (samplers or {}).items()}}
    rows_of = group * len(who)

    pictures = dict[str, Tensor]()  # of the rollout that this process made last, by their digests

    def answered(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        drawn = [_drawn(one, contents(some), group, stream(seed, start, 0, name)) for name, one in who.items()]
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


def make_rejected(  # what a command may be told
    policy: Policy,
    records: Records | Sequence[Record],
    *,
    out: str,
    count: Count,
    call: dict[str, Any] | None = None,
    guide: str | None = None,
    pictures: dict[str, Any] | None = None,
    alike: Proportion = 1.0,
    cut: Cut = "drop",
    records_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes the better answers of ``count`` records, each against what the policy answers when called with ``call``; returns counts.

    Args:
        policy: what answers. count: records that are answered.
        records: pairs, of which the better answer is taken, or thumbs that are up. out: as of ``make_pairs``.
        call: of ``policy.generate``: the temperature, and what hides the pictures from it.
        guide: words behind what the prompt's user says last, which may show the better answer, ``{answer}``, so that what is drawn stays
            near it; the pair has the prompt without them. None: the prompt as it is.
        pictures: what is done to the pictures that it is shown, ``{transform: GaussianBlur, settings: {radius: 8}}``, with ``seed`` and
            ``cache``, as of the records ``two_pictures``; the pair has the prompt with its own. None: nothing.
        alike: answers whose words are more alike than this are left out (0: no word in common, 1: the same).
        cut: as of ``make_pairs``.
        records_at_once: records that are answered at once. seed: of the sampling, and of the order of the records.

    Counts: ``pairs``, ``records``, ``alike`` and ``cut`` (left out).

    Paper: BDHS, in Understanding Alignment in Multimodal LLMs: A Comprehensive Study,
    https://arxiv.org/abs/2407.02477; answers are drawn from their beginning here, and how a reference guides them is as recalled. Batches
    in which the policy's own pairs stand beside these: ``{use: mixture, ...}`` of this file and one of ``make_pairs``.

    Errors: UserError, as of ``make_pairs``.
    """
    _refuse(out, count=count, records_at_once=records_at_once)
    if not 0 <= alike <= 1:
        raise UserError(f"alike: got {alike}, takes 0..1")
    source: Records = listed(records) if isinstance(records, Sequence) else records
    counts, team = {"pairs": 0, "records": 0, "alike": 0, "cut": 0}, joined()
    alter = None if pictures is None else _alteration(pictures)

    def batches() -> Iterator[tuple[int, list[tuple[Any, str, str]]]]:
        coming, first = islice(filter(None, map(_better, source.stream(seed=seed))), count), 0
        while some := list(islice(coming, records_at_once)):
            yield first, some
            first += len(some)

    def answered(batch: tuple[int, list[tuple[Any, str, str]]]) -> dict[str, Any]:
        first, some = batch
        seeds = [(seed * 1_000_003 + first + place) % SEED for place in range(len(some))]
        asked = [prompt if guide is None else said_after(prompt, guide.replace("{answer}", better)) for prompt, better, _ in some]
        if alter is not None:
            asked = [altered(prompt, alter) if has_media(prompt) else prompt for prompt in asked]
        answers, endless = _answered(policy, asked, seeds, call or {})
        return {"answers": texts_of_outputs(answers), "cut": endless, "records": hashed(some)}

    def lines() -> Iterator[Line]:
        for (_, some), made in in_turn(team, batches(), answered):
            if made["records"] != hashed(some):
                raise UserError(f"records: processes read others at {some[0][2] or 'the same place'}; takes the same files in all of them")
            for (prompt, better, name), answer, goes_on in zip(some, made["answers"], made["cut"], strict=True):
                counts["records"] += 1
                if goes_on and cut == "drop":
                    counts["cut"] += 1
                    continue
                same = SequenceMatcher(None, better.split(), answer.split(), autojunk=False).ratio()
                if same > alike or answer == better or not answer.strip():
                    counts["alike"] += 1
                    continue
                counts["pairs"] += 1
                yield {"prompt": prompt, "chosen": better, "rejected": answer, "id": name}

    with stopping_together(team):
        team_for(-(-count // records_at_once), f"batches of {records_at_once} records")
        settings = {
            "count": count,
            "call": call,
            "guide": guide,
            "pictures": pictures,
            "alike": alike,
            "cut": cut,
            "records_at_once": records_at_once,
            "seed": seed,
        }
        team.agree("make_rejected", plain(settings))
        written(Path(out), lines(), team)
    return counts


def _alteration(pictures: Mapping[str, Any]) -> Alteration:
    """Errors: UserError for other keys than it has, and as of ``Alteration``."""
    if odd := set(pictures) - {"transform", "settings", "seed", "cache"} or {"transform"} - set(pictures):
        raise UserError(
            f"make_rejected.pictures: got {', '.join(pictures) or 'nothing'} ({sorted(odd)[0]}), takes transform, and settings, seed, cache"
        )
    return Alteration(pictures["transform"], **{key: value for key, value in pictures.items() if key != "transform"})


def _drawn(policy: Policy, prompts: list[Any], group: int, rng: torch.Generator) -> list[list[tuple[Any, bool]]]:
    """Answers to each prompt, and whether each of them came to no end, where the policy can tell."""
    rollout = policy.sample(prompts, group, rng)
    pictures = isinstance(rollout.outputs, Tensor) and rollout.outputs.ndim in (4, 5)
    answers = list(rollout.outputs.detach().cpu()) if pictures else texts_of_outputs(rollout.outputs)
    endless = rollout.held.cut.tolist() if isinstance(rollout.held, Completions) else [False] * len(answers)
    rows = list(zip(answers, endless, strict=True))
    return [rows[start : start + group] for start in range(0, len(rows), group)]


def _bytes(outputs: Tensor) -> Tensor:
    """What 0 to 1 is in a file: 0 to 255."""
    return (outputs.float().nan_to_num(0.0).clamp(0, 1) * 255).round().byte()


def _answered(policy: Policy, prompts: list[Any], seeds: list[int], call: Mapping[str, Any]) -> tuple[list[str], list[bool]]:
    """Answers, and which of them came to no end, where the policy can tell."""
    if isinstance(policy, TransformersPolicy):
        rollout = policy.traced(prompts, seeds, **call)
        return rollout.outputs, rollout.held.cut.tolist()
    return list(policy.generate(prompts, seeds, **call)), [False] * len(prompts)


def texts_of_outputs(answers: Any) -> list[str]:
    """Errors: UserError for outputs that are no texts."""
    if isinstance(answers, Tensor) or not all(isinstance(answer, str) for answer in answers):
        raise UserError("policy: does not answer in words; takes a language model")
    return list(answers)


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


def _better(record: Any) -> tuple[Any, str, str] | None:
    """Prompt, the answer that is taken to be good, and id; None for a record that has none that is a text."""
    refuse_two_prompts(record)
    answer = None
    if isinstance(record, Pair) and record.strength != 0.5:
        answer = record.first if record.strength > 0.5 else record.second
    elif isinstance(record, Thumb) and record.label > 0.5:
        answer = record.output
    return (record.prompt, answer, record.id) if isinstance(answer, str) else None


def _refuse(out: str, **sizes: int) -> None:
    refuse_there(out)
    for name, size in sizes.items():
        if size < 1:
            raise UserError(f"{name}: got {size + (name == 'group')}, takes {1 + (name == 'group')} or more")
