"""What rewards on texts share: completions as strings, and answers looked up by prompt."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mmalign.conversations import known_by, last_words, question
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError

Find = Callable[[list[Any], Mapping[str, Any]], list[str]]


def on_texts(name: str, score: Callable[[str], float], *, low: float | None = None, high: float | None = None) -> Scorer:
    """A scorer of single completions; prompts are not read. Errors: UserError for outputs that are no texts."""
    return Scorer(
        name, lambda outputs, prompts, **columns: _scores(score(text) for text in texts(name, outputs, prompts)), low=low, high=high
    )


def against_answers(name: str, score: Callable[[str, str], float], find: Find) -> Scorer:
    """A scorer of completions against each prompt's answer, in 0..1 (NaN where the answer cannot be judged)."""

    def reward(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        pairs = zip(texts(name, outputs, prompts), find(prompts, columns), strict=True)
        return _scores(score(text, answer) for text, answer in pairs)

    return Scorer(name, reward, low=0.0, high=1.0)


def _scores(values: Any) -> Tensor:
    return torch.tensor(list(values), dtype=torch.float64)


def texts(name: str, outputs: Any, prompts: Sequence[Any]) -> list[str]:
    """Completions as strings; of turns, what the assistant said last."""
    found = [output if isinstance(output, str) else last_words(output, "assistant") for output in outputs]
    if any(text is None for text in found):
        odd = next(output for output, text in zip(outputs, found, strict=True) if text is None)
        raise UserError(f"{name}: got an output that is a {type(odd).__name__}, takes completions: strings, or turns of the assistant's")
    if len(found) != len(prompts):
        raise UserError(f"{name}: got {len(found)} completions for {len(prompts)} prompts, takes one for each")
    return [text for text in found if text is not None]


def as_text(answer: Any) -> str:
    """An answer of a data set as a string: lists and objects as JSON."""
    return json.dumps(answer, ensure_ascii=False) if isinstance(answer, (list, tuple, dict)) else str(answer)


def answers(name: str, path: str | None, *, key: str, column: str) -> Find:
    """(prompts, columns) -> answers: the column of that name where a caller gives one, or what JSON lines say for each prompt.

    A conversation is found by the words and the pictures that the user sent last, or else by the words alone. An answer may be a
    string, a number, or a list or an object, which comes back as JSON.
    Errors: UserError with the line's number, before anything is sampled; and for a prompt without an answer when it is asked for.
    """
    known: dict[str, str] = {}
    if path is not None:
        known = _read(name, Path(path), key, column)

    def find(prompts: list[Any], columns: Mapping[str, Any]) -> list[str]:
        if column in columns:
            return [as_text(answer) for answer in columns[column]]
        asked = [known_by(prompt) for prompt in prompts]
        asked = [name if name in known else question(prompt).strip() for name, prompt in zip(asked, prompts, strict=True)]
        if missing := [prompt for prompt in asked if prompt not in known]:
            raise UserError(f"{name}.path: {path or 'no file'} has no {column} for {missing[0][:80]!r}")
        return [known[prompt] for prompt in asked]

    return find


def _read(name: str, file: Path, key: str, column: str) -> dict[str, str]:
    if not file.is_file():
        raise UserError(f"{name}.path: no such file: {file}")
    known: dict[str, str] = {}
    for number, line in enumerate(file.read_text(encoding="utf-8-sig").split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{file}, line {number}: not JSON: {error.msg}") from error
        if not isinstance(row, dict) or not isinstance(row.get(key), (str, list)) or row.get(column) is None:
            raise UserError(f"{file}, line {number}: takes an object with {key!r} (a string, or a conversation) and {column!r}")
        prompt, answer = known_by(row[key]), as_text(row[column])
        if known.setdefault(prompt, answer) != answer:
            raise UserError(f"{file}, line {number}: {prompt[:80]!r} has another {column} already")
    return known
