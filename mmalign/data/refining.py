"""Prompts of a second turn: an answer that a policy has given, to be given better."""

from __future__ import annotations

import json
from typing import Any, Literal

from mmalign.data._reading.parsing import is_file
from mmalign.types import Prompt, UserError

KEEPS = ("chosen", "rejected", "score_chosen", "score_rejected", "uncertainty", "id")


def refining(path: str, *, order: str = "Please improve this answer.", of: Literal["rejected", "chosen", "both"] = "rejected") -> list[Any]:
    """Of each pair of a file the prompt to refine an answer y: the conversation ``x, y, order``, whose answer is z of ``pi(z | x, y)``.

    path: JSON lines as ``make_pairs`` writes them. order: what the user says behind the answer; or, with ``{prompt}`` and ``{answer}`` in
    it, a whole prompt as one text, for models without turns. of: which answer of a pair is refined.

    With pairs of such prompts' answers beside pairs of first answers (``{use: mixture, weights: {direct: 0.5, refine: 0.5}}``) any method
    for pairs learns ``(1 - a) L(y | x) + a L(z | x, y)``, and ``policy.turns`` with ``environment: {use: says, words: ...}`` refines while
    it samples. Columns are the row's own.

    Paper: Evolving LLMs' Self-Refinement Capability via Iterative Preference Optimization (EVOLVE), arXiv 2502.05605 (*recalled*).

    Errors: UserError for no file, a row without texts under ``chosen`` and ``rejected``, and an order with one of its two places.

    Examples:
        >>> import tempfile
        >>> from pathlib import Path
        >>> from mmalign.types import contents
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "pairs.jsonl"
        ...     _ = file.write_text('{"prompt": "2 + 2?", "chosen": "4", "rejected": "5"}')
        ...     contents(refining(str(file), order="{prompt} {answer}? No:"))
        ['2 + 2? 5? No:']
    """
    if ("{prompt}" in order) != ("{answer}" in order):
        raise UserError(f"prompts.order: got {order!r}, takes words, or a whole prompt with {{prompt}} and {{answer}} in it")
    if not is_file(path):
        raise UserError(f"prompts.path: no such file: {path[:240]}")
    prompts = list[Any]()
    with open(path, encoding="utf-8") as lines:
        for number, line in enumerate(lines, start=1):
            for side in ("chosen", "rejected") if of == "both" else (of,):
                prompts.append(_asked(line, side, order, f"{path}, line {number}"))
    if not prompts:
        raise UserError(f"prompts.path: {path} holds no pair")
    return prompts


def _asked(line: str, side: str, order: str, where: str) -> Any:
    try:
        row = json.loads(line)
        prompt, answer = row["prompt"], row[side]
    except (ValueError, TypeError, KeyError, RecursionError) as error:
        raise UserError(f"{where}: takes an object with prompt, chosen and rejected") from error
    if not isinstance(answer, str) or not isinstance(prompt, (str, list)):
        raise UserError(f"{where}: got a {type(answer).__name__} under {side}, takes a text")
    columns = {key: value for key, value in row.items() if key not in ("prompt", *KEEPS)}
    if "{answer}" not in order:
        turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        content: Any = [*turns, {"role": "assistant", "content": answer}, {"role": "user", "content": order}]
    elif isinstance(prompt, str):
        content = order.replace("{prompt}", prompt).replace("{answer}", answer)
    else:
        raise UserError(f"{where}: the prompt is a conversation, takes an order without {{prompt}}, which follows it as a turn")
    return Prompt(content, columns) if columns else content
