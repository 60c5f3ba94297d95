"""Preference pairs made with a policy, as a file that ``data.texts`` and ``data.picture_texts`` read.

``make_pairs``: its own answers, ranked by rewards (RLAIF-V's way with ``rewards.claims``). ``make_rejected``: answers that it gives under a
handicap, such as hidden pictures, against the better ones of a data set (BDHS).
"""

from __future__ import annotations

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
from mmalign.data.pairs import listed
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.files import plain
from mmalign.policies.language.completions import Completions
from mmalign.policies.transformers import TransformersPolicy
from mmalign.records import Pair, Record, Records, Thumb
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
        policy: what answers. prompts: each is asked once. rewards: name -> reward, what ranks its answers.
        out: the file, JSON lines of ``prompt, chosen, rejected, score_chosen, score_rejected, id``; it appears whole or not at all.
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

    Of several processes each does some of the rollouts, and the main one writes.

    Errors: UserError for a file that is there already, numbers out of range, prompts that are not JSON, a policy that does not answer in
    words, and more processes than rollouts.
    """
    _refuse(out, prompts=len(prompts), group=group - 1, most=most, prompts_at_once=prompts_at_once)
    refuse_columns(rewards, columns_of(prompts), kind="reward")
    counts = {"pairs": 0, "prompts": 0, "tied": 0, "missing": 0, "cut": 0, "empty": 0}
    starts, team = range(0, len(prompts), prompts_at_once), joined()
    who = {"pairs": policy, **{f"pairs/{name}": one for name, one in (samplers or {}).items()}}
    rows_of = group * len(who)

    def answered(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        drawn = [_drawn(one, contents(some), group, stream(seed, start, 0, name)) for name, one in who.items()]
        rows = [row for of_prompt in zip(*drawn, strict=True) for of_one in of_prompt for row in of_one]
        answers, endless = [answer for answer, _ in rows], [cut_short for _, cut_short in rows]
        scores = ask(
            rewards, answers, [prompt for prompt in contents(some) for _ in range(rows_of)], beside(some, rows=len(rows)), drop=True
        )
        return {"answers": answers, "scores": {name: values.tolist() for name, values in scores.items()}, "cut": endless}

    def lines() -> Iterator[Line]:
        for start, made in in_turn(team, starts, answered):
            some = contents(list(prompts[start : start + prompts_at_once]))
            scores = {name: torch.tensor(values, dtype=torch.float64) for name, values in made["scores"].items()}
            numbers = torch.arange(len(some)).repeat_interleave(rows_of)
            rewarded = combined(scores, numbers, [some[number] for number in numbers.tolist()], combine)
            counts["missing"] += int(rewarded.isnan().sum())
            left_out = {"cut": made["cut"] if cut == "drop" else [], "empty": [not answer.strip() for answer in made["answers"]]}
            for name, rows_out in left_out.items():
                counts[name] += sum(rows_out)
                rewarded = rewarded.masked_fill(torch.tensor(rows_out), math.nan) if rows_out else rewarded
            for number, prompt in enumerate(some):
                rows = slice(number * rows_of, (number + 1) * rows_of)
                ranked = list(_ranked(prompt, made["answers"][rows], rewarded[rows].tolist(), most, least_gap))
                counts["prompts"] += 1
                counts["tied"] += not ranked
                for place, line in enumerate(ranked):
                    counts["pairs"] += 1
                    yield {**line, "id": f"{start + number}" if most == 1 else f"{start + number}-{place}"}

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
        alike: answers whose words are more alike than this are left out (0: no word in common, 1: the same).
        cut: as of ``make_pairs``.
        records_at_once: records that are answered at once. seed: of the sampling, and of the order of the records.

    Counts: ``pairs``, ``records``, ``alike`` and ``cut`` (left out).

    Paper: BDHS, in Understanding Alignment in Multimodal LLMs: A Comprehensive Study,
    https://arxiv.org/abs/2407.02477; answers are drawn from their beginning here. Errors: UserError, as of ``make_pairs``.
    """
    _refuse(out, count=count, records_at_once=records_at_once)
    if not 0 <= alike <= 1:
        raise UserError(f"alike: got {alike}, takes 0..1")
    source: Records = listed(records) if isinstance(records, Sequence) else records
    counts, team = {"pairs": 0, "records": 0, "alike": 0, "cut": 0}, joined()

    def batches() -> Iterator[tuple[int, list[tuple[Any, str, str]]]]:
        coming, first = islice(filter(None, map(_better, source.stream(seed=seed))), count), 0
        while some := list(islice(coming, records_at_once)):
            yield first, some
            first += len(some)

    def answered(batch: tuple[int, list[tuple[Any, str, str]]]) -> dict[str, Any]:
        first, some = batch
        seeds = [(seed * 1_000_003 + first + place) % SEED for place in range(len(some))]
        answers, endless = _answered(policy, [prompt for prompt, _, _ in some], seeds, call or {})
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
        settings = {"count": count, "call": call, "alike": alike, "cut": cut, "records_at_once": records_at_once, "seed": seed}
        team.agree("make_rejected", plain(settings))
        written(Path(out), lines(), team)
    return counts


def _drawn(policy: Policy, prompts: list[Any], group: int, rng: torch.Generator) -> list[list[tuple[str, bool]]]:
    """Answers to each prompt, and whether each of them came to no end, where the policy can tell."""
    rollout = policy.sample(prompts, group, rng)
    answers = texts_of_outputs(rollout.outputs)
    endless = rollout.held.cut.tolist() if isinstance(rollout.held, Completions) else [False] * len(answers)
    rows = list(zip(answers, endless, strict=True))
    return [rows[start : start + group] for start in range(0, len(rows), group)]


def _answered(policy: Policy, prompts: list[Any], seeds: list[int], call: Mapping[str, Any]) -> tuple[list[str], list[bool]]:
    """Answers, and which of them came to no end, where the policy can tell."""
    if isinstance(policy, TransformersPolicy):
        rollout = policy.traced(prompts, seeds, **call)
        return rollout.outputs, rollout.held.cut.tolist()
    return list(policy.generate(prompts, seeds, **call)), [False] * len(prompts)


def texts_of_outputs(answers: Any) -> list[str]:
    """Errors: UserError for outputs that are no texts."""
    if isinstance(answers, Tensor) or not all(isinstance(answer, str) for answer in answers):
        raise UserError("policy: does not answer in words, and pairs in a file are words; takes a language model")
    return list(answers)


def _ranked(prompt: Any, answers: Sequence[str], rewards: Sequence[float], most: int, least_gap: float) -> Iterator[Line]:
    """Pairs of one prompt's answers, the clearest first."""
    known = sorted((row for row, reward in enumerate(rewards) if not math.isnan(reward)), key=lambda row: rewards[row])
    for place in range(min(most, len(known) // 2)):
        worse, better = known[place], known[-1 - place]
        if rewards[better] - rewards[worse] > least_gap and answers[better] != answers[worse]:
            yield {
                "prompt": prompt, "chosen": answers[better], "rejected": answers[worse],
                "score_chosen": rewards[better], "score_rejected": rewards[worse],
            }  # fmt: skip


def _better(record: Any) -> tuple[Any, str, str] | None:
    """Prompt, the answer that is taken to be good, and id; None for a record that has none that is a text."""
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
