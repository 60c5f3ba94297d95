"""A model on a server as a judge by a list of questions: the part of them that an output meets, each asked by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Annotated, Any

from mmalign.arguments.columns import OfPrompts
from mmalign.arguments.ranges import Finite
from mmalign.rewards._shared.completions import answers
from mmalign.rewards._shared.scorer import Scorer
from mmalign.rewards.judges._judging import as_table, asked_of, preferred, shown
from mmalign.rewards.judges.judge import conversation
from mmalign.serving.chat import Answer, ServerSettings, connect
from mmalign.types import UserError

DIFFERENTIABLE = False


def judge_rubric(
    *, server: ServerSettings, criteria: Mapping[str, str] | None = None,
    weights: Mapping[str, Finite] | None = None, required: Sequence[str] = (), apart: bool = False,
    column: Annotated[str, OfPrompts(unless="criteria")] = "rubric",
) -> Scorer:  # fmt: skip
    """Reward in 0..1: the weighted mean over criteria of the probability that a judge says yes to each.

    ``r = sum_k w_k p_k / sum_k |w_k|``, and with a negative weight (something an output must not do) ``1 - p_k`` stands for ``p_k``. A row
    whose answer to any criterion is missing is NaN: a mean over the others would be another scale. A ``required`` criterion that
    is not met (p below one half) makes it 0.

    Args:
        column: of the prompts, that holds each one's own rubric, a criterion in every line that is not empty; read where there are no
            ``criteria``.
        criteria: name -> question, the same for all prompts, such as ``{units: Does it give units?}``.
        weights: name -> weight of ``criteria``, 1 where there is none. required: names of ``criteria``.
        apart: answer with every criterion by name too, as parts of the reward, in place of the mean.
        server: as of ``judge``.

    Source: p_k is P(yes) over P(yes) + P(no) at the first token, as VQAScore has it, https://arxiv.org/abs/2404.01291; a weighted
    list of criteria for each prompt as in Rubrics as Rewards, https://arxiv.org/abs/2507.17746.

    Errors: UserError for settings out of range, and for a server that refuses the key or the model, and a prompt without criteria.
    """
    names = list(criteria or {})
    if unknown := sorted((set(weights or {}) | set(required)) - set(names)):
        raise UserError(f"judge_rubric: {unknown[0]!r} is no criterion; takes {', '.join(names) or 'none, as they come from the prompts'}")
    if apart and criteria is None:
        raise UserError("judge_rubric.apart: got true, and criteria that differ from prompt to prompt have no names; takes false")
    if any(weight == 0 or not math.isfinite(weight) for weight in (weights or {}).values()):
        raise UserError(f"judge_rubric.weights: got {dict(weights or {})}, takes numbers other than 0")
    client = connect("judge_rubric", server)
    find = answers("judge_rubric", column) if criteria is None else None
    signs = [(weights or {}).get(name, 1.0) for name in names]

    def value(answer: Answer) -> float:
        return preferred(answer.tokens[0].likely, "Yes", "No")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        lists = [list((criteria or {}).values())] * len(prompts) if find is None else [_lines(text) for text in find(prompts, columns)]
        places = [(row, question) for row, questions in enumerate(lists) for question in questions]
        probabilities = client.ask(
            [conversation("judge_rubric", prompts[row], outputs[row], _asks(question)) for row, question in places], value,
            max_tokens=1, likely=20,
            say=lambda place: {
                "prompt": asked_of(prompts[places[place][0]]), "output": shown(outputs[places[place][0]]), "criterion": places[place][1]
            },
        )  # fmt: skip
        rows: list[list[float | None]] = [[] for _ in prompts]
        for (row, _), met in zip(places, probabilities, strict=True):
            rows[row].append(met)
        if apart:
            return {name: as_table([row[place] for row in rows]) for place, name in enumerate(names)}
        musts = [place for place, name in enumerate(names) if name in required]
        return as_table([_mean(row, signs or [1.0] * len(row), musts) for row in rows])

    return Scorer("judge_rubric", score, low=0.0, high=1.0, reads=frozenset({column} if criteria is None else ()))


def _mean(met: Sequence[float | None], weights: Sequence[float], musts: Sequence[int]) -> float | None:
    known = [value for value in met if value is not None]
    if not met or len(known) < len(met):
        return None
    good = [value if weight > 0 else 1 - value for value, weight in zip(known, weights, strict=True)]
    if any(good[place] < 0.5 for place in musts):
        return 0.0
    return sum(abs(weight) * value for value, weight in zip(good, weights, strict=True)) / sum(abs(weight) for weight in weights)


def _lines(text: str) -> list[str]:
    return [line.strip() for line in text.splitlines() if line.strip()]


def _asks(question: str) -> str:
    return f"{question}\nAnswer with Yes or No alone."
