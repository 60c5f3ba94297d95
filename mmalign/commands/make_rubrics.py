"""Rubrics of prompts, written from what makes one answer better than another, and kept where a judge that goes by them agrees."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count, NotNegative, Seed
from mmalign.commands._answers import seeds_of
from mmalign.conversations import question
from mmalign.data.pairs import listed
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined
from mmalign.files import write_text
from mmalign.records import Pair, Record, Records
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, combined
from mmalign.types import Policy, UserError

__all__ = ["make_rubrics"]

PLACES = re.compile(r"\{(?:prompt|chosen|rejected)\}")
ORDER = """Here are a question and two answers to it. The first answer is the better one.

Question: {prompt}

Better answer: {chosen}

Worse answer: {rejected}

Write what a good answer to this question has to meet, as yes-or-no questions about an answer, one in a line, without naming these two."""
MARKS = "-*•0123456789.) \t"  # what lists begin their lines with


def make_rubrics(  # what a command may be told
    policy: Policy,
    records: Records | Sequence[Record],
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    count: Count,
    order: str = ORDER,
    column: str = "rubric",
    most: Count = 8,
    least_gap: NotNegative = 0.0,
    records_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, int]:
    """Writes prompts with a rubric each, those by which a judge finds the better answer of a pair; returns counts.

    Args:
        policy: what writes rubrics, a language model that is told ``order``.
        records: pairs of texts. count: of them.
        rewards: name -> judge that reads ``column``, such as ``{use: judge_rubric, server: ...}``; of several, their sum.
        out: the file, JSON lines of ``prompt, rubric, chosen, rejected, score_chosen, score_rejected, id``, prompts for a run whose reward
            reads rubrics and pairs too; it appears whole or not at all.
        order: what the policy is told, with ``{prompt}``, ``{chosen}`` and ``{rejected}`` in it. Every line that it writes is a criterion.
        column: of the rubric. most: criteria; those after them are left out.
        least_gap: by how much more than this the better answer has to be ahead under its rubric.
        records_at_once: records in one call. seed: of the sampling, and of the order of the records.

    Counts: ``rubrics`` (written), ``records``, ``disagree`` (the judge finds the other one better, or neither), ``missing`` (no score),
    ``empty`` (no criterion), ``ties`` (records that prefer nothing, or hold no texts).

    Paper: OpenRubrics, arXiv 2510.07743 (contrastive generation, and the filter by agreement; recalled).

    Deviations: criteria are of one kind, where the paper tells hard rules from principles.

    Errors: UserError for a file that is there already, an order without its places, and a policy that does not answer in words.
    """
    if Path(out).exists():
        raise UserError(f"out: {out} is there already; takes a new file")
    if absent := [place for place in ("{prompt}", "{chosen}", "{rejected}") if place not in order]:
        raise UserError(f"order: got words without {absent[0]}, takes words with {{prompt}}, {{chosen}} and {{rejected}} in them")
    if not rewards:
        raise UserError(f"rewards: got none, takes a judge that reads the column {column!r}")
    source: Records = listed(records) if isinstance(records, Sequence) else records
    taken = list(islice(source.stream(seed=seed), count))
    sides = [side for side in map(_sides, taken) if side is not None]
    counts = {"rubrics": 0, "records": len(taken), "disagree": 0, "missing": 0, "empty": 0, "ties": len(taken) - len(sides)}
    team, lines = joined(), list[dict[str, Any]]()

    def made(start: int) -> list[dict[str, Any]]:
        some = sides[start : start + records_at_once]
        seeds = seeds_of(seed, start, len(some))
        asked = [_told(order, *side[:3]) for side in some]
        answers = policy.generate(asked, seeds)
        if not isinstance(answers, list) or not all(isinstance(answer, str) for answer in answers):
            raise UserError("policy: does not answer in words, and rubrics are words; takes a language model")
        rubrics = ["\n".join([line for text in answer.splitlines() if (line := text.strip(MARKS))][:most]) for answer in answers]
        known = [(side, rubric) for side, rubric in zip(some, rubrics, strict=True) if rubric]
        prompts = [side[0] for side, _ in known for _ in range(2)]
        columns = {column: [rubric for _, rubric in known for _ in range(2)]}
        outputs = [answer for side, _ in known for answer in side[1:3]]
        named = ask(rewards, outputs, prompts, columns, drop=True) if known else {}
        scores = combined(named, torch.arange(len(prompts)) // 2, prompts, None).tolist() if known else []
        return [
            {
                "prompt": prompt,
                column: rubric,
                "chosen": chosen,
                "rejected": rejected,
                "score_chosen": up,
                "score_rejected": down,
                "id": name,
            }
            for ((prompt, chosen, rejected, name), rubric), up, down in zip(known, scores[0::2], scores[1::2], strict=True)
        ]

    with stopping_together(team):
        team.agree("make_rubrics", {"records": hashed(sides), "order": order, "column": column, "most": most, "seed": seed})
        for start, some in in_turn(team, range(0, len(sides), records_at_once), made):
            counts["empty"] += len(sides[start : start + records_at_once]) - len(some)
            for line in some:
                gap = line["score_chosen"] - line["score_rejected"]
                agrees = gap > least_gap
                counts["missing"] += math.isnan(gap)
                counts["rubrics" if agrees else "disagree"] += not math.isnan(gap)
                lines += [line] if agrees else []
        if team.main:
            write_text(Path(out), "".join(f"{json.dumps(line, ensure_ascii=False)}\n" for line in lines))
        team.tell("written")
    return counts


def _sides(record: Any) -> tuple[Any, str, str, str] | None:
    """Prompt, better answer, worse answer and id; None for what prefers nothing, or is no pair of texts."""
    if not isinstance(record, Pair) or not isinstance(record.first, str) or not isinstance(record.second, str):
        return None
    if record.strength == 0.5 or math.isnan(record.strength):
        return None
    better, worse = (record.first, record.second) if record.strength > 0.5 else (record.second, record.first)
    return record.prompt, better, worse, record.id


def _told(order: str, prompt: Any, chosen: str, rejected: str) -> str:
    """The order with its places filled; what stands in them is not looked at again."""
    filled = {"{prompt}": question(prompt), "{chosen}": chosen, "{rejected}": rejected}
    return PLACES.sub(lambda found: filled[found.group()], order)
