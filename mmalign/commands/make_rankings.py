"""Rankings of a policy's own answers, as a file that ``data.texts`` reads: beside a teacher's answer, or as far as two judges agree."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Seed
from mmalign.commands._answers import seeds_of, texts_of_outputs
from mmalign.commands._lines import Line, refuse_there, written
from mmalign.distributed.jobs import in_turn, stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.training.journal import hashed
from mmalign.training.rollouts.feedback import ask, beside, combined, refuse_columns
from mmalign.types import Policy, UserError, columns_of, contents

__all__ = ["make_rankings"]


def make_rankings(  # what a command may be told
    policy: Policy,
    prompts: Sequence[Any],
    rewards: Mapping[str, Callable[..., Any]],
    *,
    out: str,
    combine: Callable[..., Any] | None = None,
    agree: Mapping[str, Callable[..., Any]] | None = None,
    anchor: str | None = None,
    group: Count = 4,
    prompts_at_once: Count = 8,
    seed: Seed = 0,
) -> dict[str, float]:
    """Writes rankings of the policy's answers by rewards, the best first; returns counts.

    Args:
        policy: what answers. group: how often, to each prompt. prompts: each is asked once. rewards: name -> reward, what ranks.
        combine: how several become one number, their sum by default.
        out: the file, JSON lines of ``prompt, completions, ranks, id``; it appears whole or not at all.
        agree: name -> reward of another judge, such as the policy itself (``self_log_prob``): kept is the longest list of answers that
            both put in the same order (CycleAlign's agreement), where it has two or more.
        anchor: a column of the prompts with a teacher's answer to each, which stands before all answers: it is known to be good, and of the
            others nobody knows. Rewards may read the column, so that a judge ranks answers beside it (``judge`` with ``reference``).
        prompts_at_once: prompts in one rollout. seed: of the sampling.

    Answers without a score, without a word, and second ones of the same words are left out; of equal scores the earlier answer is ahead.
    Counts: ``rankings``, ``prompts``, ``missing`` (answers without a score), ``agreed`` (with ``agree``: the mean share of answers on which
    both judges do).

    A method for lists learns from whole rankings (``rrhf``, ``pro``, ``list_mle``), one for pairs from the first and the last of each.

    Papers: CycleAlign, arXiv 2310.16271 (*recalled*: the judge is a black box with demonstrations, which are the last round's agreements);
    Positive-Unlabeled Reinforcement Learning Distillation (*its abstract*: a teacher's answer as an anchor, answers ranked beside it).

    Of several processes each does some of the rollouts, and the main one writes. Errors: UserError for a file that is there already, a
    policy that does not answer in words, a prompt without an anchor, and where no ranking is left.
    """
    refuse_there(out)
    there = columns_of(prompts)
    for kind, some in (("reward", rewards), ("reward", agree or {})):
        refuse_columns(some, there, kind=kind)
    if group < 2 and anchor is None:
        raise UserError("group: got 1, takes 2 or more, or an anchor")
    anchors = [None] * len(prompts) if anchor is None else _anchors(anchor, there)
    counts, agreements = {"rankings": 0, "prompts": 0, "missing": 0}, list[float]()
    starts, team = range(0, len(prompts), prompts_at_once), joined()

    def answered(start: int) -> dict[str, Any]:
        some = list(prompts[start : start + prompts_at_once])
        rollout = policy.sample(contents(some), group, torch.Generator().manual_seed(seeds_of(seed, start, 1)[0]))
        answers = texts_of_outputs(rollout.outputs)
        asked, numbers = [prompt for prompt in contents(some) for _ in range(group)], torch.arange(len(some)).repeat_interleave(group)
        columns = beside(some, rows=len(answers))
        known = [ask(judges, answers, asked, columns, drop=True) for judges in (rewards, agree or {}) if judges]
        ranked = [combined(scores, numbers, asked, combine if place == 0 else None) for place, scores in enumerate(known)]
        return {"answers": answers, "scores": [_listed(scores) for scores in ranked]}

    def lines() -> Iterator[Line]:
        for start, made in in_turn(team, starts, answered):
            for number, prompt in enumerate(contents(list(prompts[start : start + prompts_at_once]))):
                rows = slice(number * group, (number + 1) * group)
                orders = [_order(made["answers"][rows], scores[rows]) for scores in made["scores"]]
                counts["prompts"] += 1
                counts["missing"] += sum(score is None for score in made["scores"][0][rows])
                best = agreed(*orders) if len(orders) > 1 else orders[0]
                agreements.append(len(best) / max(1, len(orders[0])))
                teacher = anchors[start + number]
                ranking = ([] if teacher is None else [teacher]) + [answer for answer in best if answer != teacher]
                if len(ranking) > 1:
                    counts["rankings"] += 1
                    yield {"prompt": prompt, "completions": ranking, "ranks": [*range(len(ranking))], "id": f"{start + number}"}
        if not counts["rankings"]:
            raise UserError(f"make_rankings: none of {counts['prompts']} prompts has two answers in an order; takes more of them (group)")

    with stopping_together(team):
        team_for(len(starts), f"rollouts of {prompts_at_once} prompts")
        settings = {"agree": sorted(agree or {}), "anchor": anchor, "group": group, "prompts_at_once": prompts_at_once, "seed": seed}
        team.agree("make_rankings", {"prompts": hashed(prompts), "rewards": sorted(rewards), **settings})
        written(Path(out), lines(), team)
    shared = {} if agree is None else {"agreed": sum(agreements) / len(agreements)}
    return {**counts, **shared}


def agreed(one: Sequence[Any], other: Sequence[Any]) -> list[Any]:
    """The longest list of items that two orders have in the same order; of several the one that is the furthest in front of the first.

    one, other: items, each once, the best first.

    Examples:
        >>> agreed("abcd", "bdac")
        ['a', 'c']
    """
    place = {item: number for number, item in enumerate(other)}
    best = list[list[Any]]()  # for each item of the first order that both have, the longest list that begins with it
    for item in reversed([item for item in one if item in place]):
        behind = [chain for chain in reversed(best) if place[chain[0]] > place[item]]
        best.append([item, *max(behind, key=len, default=[])])
    return max(reversed(best), key=len, default=[])


def _order(answers: Sequence[str], scores: Sequence[float | None]) -> list[str]:
    """Answers with a word and a score, the best first, each once."""
    known = [(-score, row) for row, score in enumerate(scores) if score is not None and answers[row].strip()]
    return list(dict.fromkeys(answers[row] for _, row in sorted(known)))


def _listed(scores: Tensor) -> list[float | None]:
    return [None if math.isnan(score) else score for score in scores.tolist()]


def _anchors(column: str, columns: Mapping[str, Any]) -> list[str]:
    """A teacher's answer to each prompt. Errors: UserError where there is none."""
    if column not in columns:
        raise UserError(f"anchor: no prompt has a column {column!r}; takes one of {', '.join(columns) or 'none: they have no columns'}")
    if odd := next((row for row, answer in enumerate(columns[column], 1) if not isinstance(answer, str) or not answer.strip()), 0):
        raise UserError(f"anchor: prompt {odd} has no text under {column!r}; takes a teacher's answer to each")
    return list(columns[column])
