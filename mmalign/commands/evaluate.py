"""A benchmark: its questions are put to a policy, its scorer reads the answers, and both are kept in files."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from mmalign.arguments.ranges import Count, Seed
from mmalign.commands._resumed import resumed
from mmalign.distributed.jobs import stopping_together
from mmalign.distributed.team import Team, joined, team_for
from mmalign.evaluation.comparisons import RewardSuite
from mmalign.evaluation.intervals import Interval, Scores
from mmalign.evaluation.suite import Item, Suite, read_answers
from mmalign.files import finite, write_json, write_text
from mmalign.report.evaluation import page
from mmalign.runs.folder import held
from mmalign.training.journal import hashed
from mmalign.types import Policy, UserError

SEED = 2**41  # far from every seed of training and of its evaluations


@dataclass(frozen=True)
class Evaluated:
    """What came of it. ``path``: the folder with what was answered, ``rows.jsonl``, ``results.json`` and the page ``report.html``."""

    path: Path
    suite: Suite | RewardSuite
    scores: Scores


def evaluate(  # what a command may be told
    policy: Policy | None, suite: Suite, *, out: str | Path, answers: str | Path | None = None, batch: Count = 8,
    call: Mapping[str, Any] | None = None, seed: Seed = 0, using: str = "current",
    who: str = "",
) -> Evaluated:  # fmt: skip
    """Evaluates a policy on a benchmark: asks it the suite's questions, or reads its answers from a file, and scores them.

    Args:
        policy: whatever answers in words; None where ``answers`` is given.
        suite: from ``mm.evaluation.suites``: ``mm.evaluation.pope(annotations=..., images=...)``.
        out: a folder. ``answers.jsonl`` there grows with every batch, and a call that was interrupted goes on behind it; it refuses
            answers to other questions, of another policy (``who``) or another call.
        answers: a file of answers in one of the benchmarks' forms, see ``evaluation.suite.read_answers``; nothing is generated.
        batch: questions at once. call: arguments of the policy's sampler, over those of the suite; ``{temperature: 0}`` by default.
        seed: of sampling; each question has its own stream, whatever the batch.
        using: which of the policy's parameter sets answers. who: what answers, for the files.

    ``results.json`` holds every number with its 95 % interval, the counts, and the numbers as the benchmark's own script prints them;
    ``rows.jsonl`` what was found in each answer. An answer that is missing is left out of the numbers and counted.
    Of several processes each answers some of the batches, as large as those of one; the main one scores and writes.

    Errors: UserError for images that are not there, a policy that does not answer in words, answers to none of the questions, a folder that
    another process answers in, more processes than batches, and what the suite finds wrong. Ctrl-C keeps what there is.
    """
    team, folder = joined(), Path(out)
    settings = {"temperature": 0, **suite.call, **(call or {})}
    with stopping_together(team):
        if answers is not None:
            replies = _by_item(suite, read_answers(answers), answers)
        elif policy is None:
            raise UserError("evaluate: got no policy and no answers, takes one of them")
        else:
            if batch < 1:
                raise UserError(f"batch: got {batch}, takes 1 or more")
            suite.refuse_missing_images()
            head = {"suite": suite.name, "who": f"{who} ({using})", "call": settings, "seed": seed}
            with policy.using(using), ExitStack() as stack:
                if team.main:
                    stack.enter_context(held(folder, "answers"))
                replies = _replies(policy, suite, folder / "answers.jsonl", batch=batch, head=head, team=team)
        about = {"who": who, "using": using, "answers": None if answers is None else str(answers), "call": settings, "seed": seed}
        in_order = [replies.get(item.id) for item in suite.items]
        return Evaluated(folder, suite, scored(suite, in_order, folder, about, team, _shown))


def _shown(item: Item, answer: str | None) -> dict[str, Any]:
    return {"id": item.id, "question": item.question, "answer": answer}


def scored(
    suite: Suite | RewardSuite, replies: Sequence[Any], folder: Path, about: Mapping[str, Any], team: Team,
    shown: Callable[[Any, Any], Mapping[str, Any]],
) -> Scores:  # fmt: skip
    """What the main process finds in all replies, one for each item, and writes; the others hear it. shown: (item, reply) as a row."""
    own = None
    if team.main:
        own = suite.score(suite.items, replies)  # type: ignore[arg-type]  # a suite scores its own items
        _write(folder, suite, [shown(item, reply) for item, reply in zip(suite.items, replies, strict=True)], own, about)
    heard = team.tell(None if own is None else _plain({**vars(own), "values": dict(own.values)}))[0]
    return own or Scores(**{**heard, "values": {name: Interval(*value) for name, value in heard["values"].items()}})


def _by_item(suite: Suite, answers: Mapping[str, str | None], path: str | Path) -> dict[str, str | None]:
    ids = [item.id for item in suite.items]
    if next(iter(answers), "").startswith("#"):  # no ids: by their order, and only where there is one for each question
        if len(answers) != (suite.whole or len(ids)):
            raise UserError(
                f"answers: {path} has {len(answers)} rows without an id, takes ids, or one row for each of {len(ids)} questions"
            )
        return {name: answers[f"#{number}"] for number, name in enumerate(ids, start=1)}
    if not answers.keys() & set(ids):
        example, theirs = ids[0], next(iter(answers), "nothing")
        raise UserError(f"answers: {path} answers none of the questions (ids like {example}; it has ids like {theirs})")
    return {name: answers[name] for name in ids if name in answers}


def _replies(policy: Policy, suite: Suite, file: Path, *, batch: int, head: Mapping[str, Any], team: Team) -> dict[str, str | None]:
    """Answers to every question, from the file and then from the policy, batch by batch. head: of the file."""
    team_for(-(-len(suite.items) // batch), f"batches of {batch} questions")
    team.agree("eval", head)
    team.agree("questions", hashed([[item.id, item.question, item.image and item.image.name] for item in suite.items]))

    def answered(places: list[int]) -> list[str]:
        seeds = [SEED + head["seed"] * 2**20 + place for place in places]
        return _generated(policy, [suite.items[place] for place in places], seeds, head["call"])

    return resumed(file, [item.id for item in suite.items], answered, field="answer", head=head, batch=batch, team=team)


@torch.no_grad()
def _generated(policy: Policy, items: Sequence[Item], seeds: list[int], settings: Mapping[str, Any]) -> list[str]:
    prompts: list[Any] = [item.prompt for item in items]
    try:
        texts = policy.generate(prompts, seeds, **settings)
    except (TypeError, ValueError, AttributeError) as error:  # what pipelines and tokenizers raise at what they cannot read
        why = " ".join(str(error).split())
        raise UserError(
            f"evaluate: {type(policy).__name__} takes no questions about images ({why}); takes a vision-language policy"
        ) from error
    if not isinstance(texts, (list, tuple)) or not all(isinstance(text, str) for text in texts):
        what = "images" if isinstance(texts, torch.Tensor) else type(texts).__name__
        raise UserError(f"evaluate: the policy answers with {what}, and this benchmark reads words; takes a vision-language policy")
    return list(texts)


def _write(folder: Path, suite: Suite | RewardSuite, items: Sequence[Mapping[str, Any]], scores: Scores, about: Mapping[str, Any]) -> None:
    rows = [{**item, **(row or {"missing": True})} for item, row in zip(items, scores.rows, strict=True)]
    write_text(folder / "rows.jsonl", "".join(json.dumps(finite(_plain(row)), ensure_ascii=False) + "\n" for row in rows))
    values = {name: value._asdict() for name, value in scores.values.items()}
    results = {
        "suite": suite.name, **about, "questions": len(suite.items), "of": suite.whole or len(suite.items), "counts": dict(scores.counts),
        "values": values, "published": dict(scores.published), "notes": list(suite.notes), "headline": list(suite.headline),
    }  # fmt: skip
    write_json(folder / "results.json", results)
    write_text(folder / "report.html", page(results))


def _plain(value: Any) -> Any:
    """Tuples and sets as lists, so that a row is JSON."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, (list, tuple, set, frozenset)):
        return [_plain(item) for item in value]
    return value
