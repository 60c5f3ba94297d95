"""A benchmark of rewards: a reward, or a judge of pairs, scores its outputs, and both scores and numbers are kept in files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.commands._resumed import resumed
from mmalign.commands.evaluate import Evaluated, scored
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import Team, joined, team_for
from mmalign.evaluation.comparisons import Comparison, RewardSuite
from mmalign.evaluation.suite import read_rows
from mmalign.media import Broken
from mmalign.runs.folder import held
from mmalign.training.journal import hashed
from mmalign.types import Oracle, UserError


def evaluate_reward(  # what a command may be told
    suite: RewardSuite, *, reward: Callable[..., Any] | None = None, oracle: Oracle | None = None, scores: str | Path | None = None,
    out: str | Path, part: str | None = None, batch: Count = 8, who: str = "",
) -> Evaluated:  # fmt: skip
    """Scores a benchmark's outputs by a reward, by a judge of pairs, or reads their scores from a file, and says how good they are.

    Args:
        suite: from ``mm.evaluation.suites``: ``mm.evaluation.reward_bench_2(data=...)``.
        reward: scores outputs by themselves: any reward of ``mm.rewards``, ``trained`` among them, which is a reward model's scores, or
            a language model's implicit reward ``log pi - log ref``.
        oracle: compares outputs, such as ``judge_pairs``; an output's score is the mean probability that it is better than the others.
        scores: a file of scores, rows of ``id`` and ``scores``, as ``scores.jsonl`` has them.
        out: a folder. ``scores.jsonl`` there grows with every batch, and a call that was interrupted goes on behind it; it refuses scores
            of other comparisons and of another reward (``who``).
        part: of several scores of a reward the one that counts.
        batch: comparisons at once. who: what scores, for the files.

    Besides ``scores.jsonl`` it writes ``results.json`` (every number with its 95 % interval, and counts), ``rows.jsonl`` and the page
    ``report.html``. An output that cannot be read or scored is missing: its comparison is left out of the numbers, and counted.
    Of several processes each scores some of the batches; the main one writes.

    Errors: UserError for none or several of reward, oracle and scores; a reward that scores nothing, or several things without ``part``;
    scores of none of the comparisons; a folder that another process scores in; what the reward does not take.
    """
    given = [name for name, value in (("reward", reward), ("oracle", oracle), ("scores", scores)) if value is not None]
    if len(given) != 1:
        raise UserError(f"evaluate_reward: got {' and '.join(given) or 'nothing that scores'}, takes one of reward, oracle and scores")
    if part is not None and reward is None:
        raise UserError(f"part: got {part!r}, and {given[0]} gives one number for each output; takes none")
    team, folder = joined(), Path(out)
    with stopping_together(team):
        if scores is not None:
            table = _stored(suite, scores)
        else:
            with ExitStack() as stack:
                if team.main:
                    stack.enter_context(held(folder, "scores"))
                score = _by_reward(reward, part) if reward is not None else _by_oracle(oracle)
                table = _scores(suite, score, folder / "scores.jsonl", batch, {"suite": suite.name, "who": who, "part": part}, team)
        in_order = [table.get(item.id) or [math.nan] * len(item.outputs) for item in suite.items]
        if all(math.isnan(value) for values in in_order for value in values):
            raise UserError(f"evaluate_reward: {who or given[0]} scored none of the outputs of {len(in_order)} comparisons of {suite.name}")
        about = {"who": who, "part": part, "scores": None if scores is None else str(scores)}
        return Evaluated(folder, suite, scored(suite, in_order, folder, about, team, _shown))


def _shown(item: Comparison, scores: Sequence[float]) -> dict[str, Any]:
    return {"id": item.id, "subset": item.subset, "scores": list(scores)}


def _scores(
    suite: RewardSuite, score: Callable[[list[Comparison]], list[list[float]]], file: Path, batch: int, head: Mapping[str, Any], team: Team
) -> dict[str, list[float]]:
    """id -> scores of its outputs."""
    team_for(-(-len(suite.items) // batch), f"batches of {batch} comparisons")
    team.agree("eval", head)
    ids = [item.id for item in suite.items]
    team.agree("comparisons", hashed([[item.id, len(item.outputs)] for item in suite.items]))
    found = resumed(
        file, ids, lambda places: score([suite.items[place] for place in places]), field="score", head=head, batch=batch, team=team
    )
    return {name: [math.nan if value is None else float(value) for value in values] for name, values in found.items()}


def _by_reward(reward: Callable[..., Any], part: str | None) -> Callable[[list[Comparison]], list[list[float]]]:
    def score(items: list[Comparison]) -> list[list[float]]:
        table = [[math.nan] * len(item.outputs) for item in items]
        for places, outputs in _alike(items):
            prompts = [items[number].prompt for number, _ in places]
            with torch.no_grad():
                values = _one_of(reward(outputs, prompts), part)
            if values.shape != (len(places),):
                raise UserError(f"reward: got scores of shape {list(values.shape)} for {len(places)} outputs, takes one for each")
            for (number, place), value in zip(places, values.tolist(), strict=True):
                table[number][place] = value
        return table

    return score


def _alike(items: Sequence[Comparison]) -> list[tuple[list[tuple[int, int]], Any]]:
    """(which outputs of which items, those outputs as rewards take them): texts together, and media of one size each."""
    groups: dict[Any, list[tuple[tuple[int, int], Any]]] = {}
    for number, item in enumerate(items):
        for place, output in enumerate(_read(item) or ()):
            size = tuple(output.shape) if isinstance(output, Tensor) else ()
            groups.setdefault(size, []).append(((number, place), output))
    return [
        ([place for place, _ in group], torch.stack([output for _, output in group]) if size else [output for _, output in group])
        for size, group in groups.items()
    ]


def _read(item: Comparison) -> tuple[Any, ...] | None:
    """The outputs of an item, decoded; None where one cannot be used: what it is compared with is no use without it."""
    try:
        return item.read()
    except Broken:
        return None


def _one_of(answer: Any, part: str | None) -> Tensor:
    """One number for each output, float64."""
    if isinstance(answer, Mapping):
        if part not in answer and not (part is None and len(answer) == 1):
            raise UserError(f"part: got {part!r}, the reward scores {', '.join(map(str, answer))}; takes one of them")
        answer = answer[part] if part is not None else next(iter(answer.values()))
    elif part is not None:
        raise UserError(f"part: got {part!r}, and the reward has one score without a name; takes none")
    return torch.as_tensor(answer).detach().double().cpu()


def _by_oracle(oracle: Any) -> Callable[[list[Comparison]], list[list[float]]]:
    def score(items: list[Comparison]) -> list[list[float]]:
        table = [[math.nan] * len(item.outputs) for item in items]
        read = {number: own for number, item in enumerate(items) if (own := _read(item)) is not None}
        places = [(number, place) for number, own in read.items() for place in range(len(own))]
        if not places:
            return table
        outputs = [read[number][place] for number, place in places]
        group = torch.tensor([number for number, _ in places])
        with torch.no_grad():
            wins = torch.as_tensor(oracle(outputs, [items[number].prompt for number, _ in places], group)).double().cpu()
        others = (group[:, None] == group[None, :]) & ~torch.eye(len(places), dtype=torch.bool)
        for (number, place), row, mask in zip(places, wins, others, strict=True):
            table[number][place] = float(row[mask].mean())
        return table

    return score


def _stored(suite: RewardSuite, path: str | Path) -> dict[str, list[float]]:
    """id -> scores, of a file. Errors: UserError for a row of another form, and scores of none of the comparisons."""
    wanted = {item.id: len(item.outputs) for item in suite.items}
    table: dict[str, list[float]] = {}
    for number, row in enumerate(read_rows(path), start=1):
        values = row.get("scores", row.get("score"))
        if "id" not in row and "suite" in row:
            continue  # the head of a scores.jsonl
        if "id" not in row or not isinstance(values, list) or not all(value is None or isinstance(value, (int, float)) for value in values):
            raise UserError(f"scores: row {number} of {path} has {', '.join(row) or 'nothing'}; takes id, and scores: a list of numbers")
        name = str(row["id"])
        if name in wanted and len(values) != wanted[name]:
            raise UserError(f"scores: {path} has {len(values)} scores of {name}, which has {wanted[name]} outputs")
        table[name] = [math.nan if value is None else float(value) for value in values]
    if not table.keys() & wanted.keys():
        example, theirs = next(iter(wanted)), next(iter(table), "nothing")
        raise UserError(f"scores: {path} has none of the comparisons (ids like {example}; it has ids like {theirs})")
    return table
