"""What preferences did to a language model's likelihoods: its ranking accuracies on a benchmark's pairs, and what the best would be."""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count, Positive
from mmalign.commands._resumed import resumed
from mmalign.commands.evaluate import Evaluated, scored
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import joined, team_for
from mmalign.evaluation.comparisons import Comparison, RewardSuite
from mmalign.evaluation.intervals import Scores
from mmalign.evaluation.ranking import ranking_accuracies
from mmalign.rewards.trained import log_likelihoods
from mmalign.runs.folder import held
from mmalign.types import UserError


def evaluate_ranking(
    run: str | Path, suite: RewardSuite, *, out: str | Path, beta: Positive = 0.1, batch: Count = 8, trust: bool = False
) -> Evaluated:
    """Raw, implicit, reference and idealised ranking accuracy of a run's language model on a benchmark's pairs of texts.

    Args:
        run: its folder. suite: from ``mm.evaluation.suites``, of pairs of texts.
        out: a folder. ``log_likelihoods.jsonl`` there grows with every batch, and a call that was interrupted goes on behind it.
        beta: of the loss that the run was trained with. batch: pairs at once.
        trust: the run's config may name code outside of mmalign.

    `evaluation.ranking_accuracies` says what the numbers are. Pairs that people tie, or that the model cannot read, are left out and
    counted.

    Errors: UserError for a run without a language model, comparisons of more than two outputs, and no pair that could be read.
    """
    if odd := next((item for item in suite.items if len(item.outputs) != 2), None):
        raise UserError(f"evaluate_ranking: {suite.name} compares {len(odd.outputs)} outputs ({odd.id}), takes a benchmark of pairs")
    if suite.of != "texts":
        raise UserError(f"evaluate_ranking: {suite.name} compares {suite.of}, takes a benchmark of texts")
    team, folder, likelihoods = joined(), Path(out), log_likelihoods(str(run), trust=trust)
    head = {"suite": suite.name, "who": str(run)}

    def read(places: list[int]) -> list[list[list[float]]]:
        items = [suite.items[place] for place in places]
        outputs = [output for item in items for output in item.outputs]
        parts: Any = likelihoods(outputs, [item.prompt for item in items for _ in item.outputs])
        table = torch.stack([parts["policy"], parts["reference"]]).view(2, len(items), 2)
        return [table[:, place].tolist() for place in range(len(items))]

    def score(items: Sequence[Comparison], replies: Sequence[Any]) -> Scores:
        return _accuracies(items, replies, beta)

    with stopping_together(team), ExitStack() as stack:
        team_for(-(-len(suite.items) // batch), f"batches of {batch} pairs")
        team.agree("eval", head)
        if team.main:
            stack.enter_context(held(folder, "log-likelihoods"))
        ids = [item.id for item in suite.items]
        found = resumed(folder / "log_likelihoods.jsonl", ids, read, field="log_likelihood", head=head, batch=batch, team=team)
        ranked = replace(suite, score=score, headline=("raw", "implicit", "reference", "idealised", "flipped"))
        about = {"who": str(run), "beta": beta}
        return Evaluated(folder, ranked, scored(ranked, [found[name] for name in ids], folder, about, team, _shown))


def _shown(item: Comparison, reply: Any) -> dict[str, Any]:
    return {"id": item.id, "subset": item.subset, "policy": reply[0], "reference": reply[1]}


def _accuracies(items: Sequence[Comparison], replies: Sequence[Any], beta: float) -> Scores:
    better = [_better(item) for item in items]
    tables: list[list[list[float]]] = [[], []]
    for place, reply in zip(better, replies, strict=True):
        for table, own in zip(tables, reply, strict=True):
            values = [math.nan if value is None else value for value in own]
            table.append([math.nan, math.nan] if place is None else [values[place], values[1 - place]])
    scores = ranking_accuracies(tables[0], tables[1], beta=beta, prompts=[str(item.prompt) for item in items])
    if scores.counts["missing"] == scores.counts["pairs"]:
        raise UserError(f"evaluate_ranking: of {len(items)} pairs the model could read none")
    return scores


def _better(item: Comparison) -> int | None:
    """Which of two outputs people prefer, None for a tie and where nobody said."""
    liked = item.known.get("preferred", 1.0 - 2.0 * item.known.get("right", 0))
    return None if math.isnan(liked) or liked == 0 else int(liked < 0)
