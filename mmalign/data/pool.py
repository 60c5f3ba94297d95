"""A pool of prompts that changes from round to round: which are drawn, and what is added to those that a policy fails at."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Literal

import torch

from mmalign.arguments.ranges import Count, Finite, Seed
from mmalign.conversations import known_by
from mmalign.reference_scores import read_reference
from mmalign.types import Prompt, UserError, columns_of, contents

__all__ = ["hinted", "informative"]


def informative(
    of: Sequence[str | Prompt], *, reference: str, count: Count, reward: str | None = None, info: Literal["range", "over_mean"] = "range",
    seed: Seed = 0,
) -> list[str | Prompt]:  # fmt: skip
    """Prompts drawn by how much a policy's own answers to them differ, ``P(x) ~ info(x) = max_k r(x, y_k) - min_k r(x, y_k)``.

    of: the pool. reference, reward: a file that ``calibrate`` has written with the policy as it is now, and which of its rewards (the only
    one, where it has one). count: how many are drawn, one after the other and none twice; of those whose answers all score the same none
    is drawn. info: ``range``, or ``over_mean``, the best over the mean. seed: of the drawing; the order of the pool is kept.

    Paper: Scalable Reinforcement Post-Training Beyond Static Human Prompts (eva), arXiv 2411.00062, whose informativeness is the range (its
    ablation has the mean in place of the worst). Deviations: none is evolved here (``make_prompts`` does that).

    Errors: UserError for prompts that the file has no score of, and a pool of which fewer than ``count`` may be drawn.

    Examples:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = f"{folder}/scores.jsonl"
        ...     with open(file, "w") as lines:
        ...         _ = lines.write('{"prompt": "a", "rewards": {"r": [1, 1]}}\\n{"prompt": "b", "rewards": {"r": [0, 1]}}\\n')
        ...     informative(["a", "b"], reference=file, count=1)
        ['b']
    """
    if info not in ("range", "over_mean"):
        raise UserError(f"informative.info: got {info!r}, takes range or over_mean")
    if count < 1:
        raise UserError(f"informative.count: got {count}, takes 1 or more")
    weights = []
    for scores in _scores("informative", of, reference, reward):
        below = min(scores) if info == "range" else sum(scores) / len(scores)
        weights.append(max(scores) - below)
    if (left := sum(weight > 0 for weight in weights)) < count:
        raise UserError(
            f"informative.count: got {count}, and the answers to {left} of {len(weights)} prompts differ; takes {left} or fewer"
        )
    rng = torch.Generator().manual_seed(seed)
    drawn = torch.multinomial(torch.tensor(weights, dtype=torch.float64), count, replacement=False, generator=rng)
    return [of[row] for row in sorted(drawn.tolist())]


def hinted(
    of: Sequence[str | Prompt], *, reference: str, least: Finite, column: str = "hint", level: Count = 1, reward: str | None = None,
    separator: str = "\n",
) -> list[str | Prompt]:  # fmt: skip
    """The prompts, with a hint after those of which no answer of the policy scored ``least``; others stay as they are.

    of: prompts with a column of hints, a text or a list of them, from the slightest to the whole solution; they need be texts.
    reference, reward: a file that ``calibrate`` has written with the policy as it is now, and which of its rewards. least: the score
    that is enough. column: of the hints. level: which of a list; beyond its end the last one. separator: between prompt and hint. A prompt
    that fails and has no hint stays as it is.

    Paper: Kwai Keye-VL 1.5, arXiv 2509.01563 (progressive hint sampling): hints of several levels, the least that helps. Deviations: a hint
    is chosen by the round (``level: {by_round: [1, 2, 3]}``), and not by sampling again within a step.

    Errors: UserError for prompts that the file has no score of, hints that are neither texts nor lists of them, prompts that are no texts.
    """
    hints = columns_of(of).get(column)
    if hints is None:
        raise UserError(
            f"hinted.column: no prompt has a column {column!r}; takes one of {', '.join(columns_of(of)) or 'none: they have no columns'}"
        )
    kept = list(of)
    for row, scores in enumerate(_scores("hinted", of, reference, reward)):
        if max(scores) >= least or hints[row] is None:
            continue
        own = [hints[row]] if isinstance(hints[row], str) else hints[row]
        prompt = contents([of[row]])[0]
        if not isinstance(own, list) or not own or not all(isinstance(hint, str) for hint in own) or not isinstance(prompt, str):
            raise UserError(f"hinted.column: got {hints[row]!r} beside {prompt!r}, takes a text, or a list of texts, beside a text")
        asked = of[row]
        columns = asked.columns if isinstance(asked, Prompt) else {}
        kept[row] = Prompt(f"{prompt}{separator}{own[min(level, len(own)) - 1]}", columns)
    return kept


def _scores(owner: str, of: Sequence[str | Prompt], reference: str, reward: str | None) -> list[list[float]]:
    """The known scores of each prompt. Errors: UserError where one has none."""
    scores = read_reference(owner, reference, reward)
    rows = [[score for score in scores.get(known_by(prompt), []) if not math.isnan(score)] for prompt in contents(of)]
    if unknown := sum(not row for row in rows):
        raise UserError(
            f"{owner}.reference: {reference} has no score of {unknown} of {len(rows)} prompts; takes one that calibrate wrote of them"
        )
    return rows
