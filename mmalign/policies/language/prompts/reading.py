"""What tokens say: the words they are part of, where two answers read differently, sentences and turns.

Everything goes by words of the text and not by tokens: a tokenizer may cut one and the same word in two ways.
"""

from __future__ import annotations

import operator
import re
from bisect import bisect_right
from collections.abc import Callable, Collection, Sequence
from difflib import SequenceMatcher
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.types import Rollout, UserError

Decode = Callable[[Sequence[int]], str]
Span = tuple[int, int]
Segments = Literal["sentence", "clause", "turn"] | Callable[[str], Sequence[Span]]

WORD = re.compile(r"\S+")
ENDS = {
    "sentence": re.compile(r"[.!?]+(?=\s|$)|\n+|[。！？]+"),
    "clause": re.compile(r"[.!?,;:–—]+(?=\s|$)|\n+|[。！？，；：、]+"),
}
"""What ends a sentence, or a clause: a number such as 1,000 or 3.5 goes on."""


def spans(ids: Sequence[int], decode: Decode) -> tuple[str, list[Span]]:
    """The text of some tokens, and of each token the characters that it adds; none for special tokens and halves of a character."""
    ends, text = [0], ""
    for count in range(1, len(ids) + 1):
        text = decode(ids[:count])
        whole = len(text.rstrip("\ufffd"))
        ends.append(max(whole, ends[-1]))
    return text, list(pairwise(ends))


def written(tokens: Tensor, lengths: Tensor, decode: Decode) -> list[list[Span]]:
    """Of each row, the characters of its text that each token adds. tokens: ``[B, T]``, lengths: ``[B]``."""
    return [spans(line[:length], decode)[1] for line, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]


def phrases(first: Sequence[int], second: Sequence[int], decode: Decode) -> tuple[list[int], list[int]]:
    """For each token of two answers, the number (from 1) of the differing phrase that it is part of, 0 for none.

    A phrase is a run of words that were replaced, added or left out, and has one number in both answers.
    """
    answers = [spans(ids, decode) for ids in (first, second)]
    words = [[match.span() for match in WORD.finditer(text)] for text, _ in answers]
    word_texts = [[text[start:end] for start, end in word_spans] for (text, _), word_spans in zip(answers, words, strict=True)]
    numbers = [[0] * len(word_spans) for word_spans in words]
    changes = [
        change for change in SequenceMatcher(None, word_texts[0], word_texts[1], autojunk=False).get_opcodes() if change[0] != "equal"
    ]
    for number, (_, start, end, other_start, other_end) in enumerate(changes, start=1):
        numbers[0][start:end] = [number] * (end - start)
        numbers[1][other_start:other_end] = [number] * (other_end - other_start)
    per_token = [_of_tokens(tokens, word_spans, values) for (_, tokens), word_spans, values in zip(answers, words, numbers, strict=True)]
    return per_token[0], per_token[1]


def ended(ids: Sequence[int], decode: Decode, unit: Literal["sentence", "clause"]) -> list[int]:
    """The number (from 1) of each token's sentence, or clause; what ends one belongs to it."""
    text, tokens = spans(ids, decode)
    ends = [match.end() for match in ENDS[unit].finditer(text)]
    return [1 + sum(end <= start for end in ends if end < len(text)) for start, _ in tokens]


def within(ids: Sequence[int], decode: Decode, cut: Callable[[str], Sequence[Span]]) -> list[int]:
    """The number (from 1) of the segment in which each token ends; one between two, or behind the text, belongs to that before it.

    cut: text -> its segments, ``(start, end)`` in characters. Errors: UserError for others.
    """
    text, tokens = spans(ids, decode)
    starts = sorted(start for start, _ in refuse_spans("policy.segments", cut(text), text))
    return [max(1, bisect_right(starts, end - 1)) for _, end in tokens]


def refuse_spans(key: str, found: Any, text: str) -> list[Span]:
    """Spans, as they came. Errors: UserError for what are none of that text."""
    try:
        several = [(operator.index(start), operator.index(end)) for start, end in found]
    except (TypeError, ValueError) as error:
        raise UserError(f"{key}: returned {found!r:.80}, takes a list of (start, end) in characters") from error
    odd = next(((start, end) for start, end in several if not 0 <= start <= end <= len(text)), None)
    if odd is not None:
        raise UserError(f"{key}: returned {odd} of a text of {len(text)} characters, takes 0 <= start <= end <= {len(text)}")
    return several


def turns(trained: Sequence[bool]) -> list[int]:
    """The number (from 1) of the run of trained tokens that each is in, 0 outside of them."""
    number, numbers = 0, []
    for place, counts in enumerate(trained):
        number += counts and (place == 0 or not trained[place - 1])
        numbers.append(number if counts else 0)
    return numbers


def compared(rows: Tensor, group: Tensor, tokens: Tensor, lengths: Tensor, decode: Decode) -> Tensor:
    """Phrase numbers ``[R, T]`` int64 of rows that stand in pairs. group: ``[R]``, tokens ``[R, T]`` and lengths ``[R]`` of those rows."""
    if len(rows) % 2 or not torch.equal(group[::2], group[1::2]):
        raise UserError("facts changed, phrase: got rows that do not stand in pairs of one prompt, takes the two of a pair side by side")
    table = torch.zeros(tokens.shape, dtype=torch.int64)
    ids = [line[:length] for line, length in zip(tokens.tolist(), lengths.tolist(), strict=True)]
    for row in range(0, len(ids), 2):
        for place, numbers in enumerate(phrases(ids[row], ids[row + 1], decode)):
            table[row + place, : len(numbers)] = torch.tensor(numbers)
    return table


def facts(rollout: Rollout, rows: Tensor, wanted: Collection[str], segments: Segments, decode: Decode) -> dict[str, Tensor]:
    """Those that are ``wanted`` of ``changed``, ``phrase`` and ``segment``, ``[R, T]`` of some rows; it holds ``completions.Completions``.

    What is marked in a row (``Rollout.facts``, NaN: nothing is known) is what is ``changed`` there, wherever it reads differently.
    """
    held: Any = rollout.held
    tables, tokens, lengths = dict[str, Tensor](), held.tokens[rows], held.lengths[rows]
    if {"changed", "phrase"} & {*wanted}:
        key = tuple(rows.tolist())
        if key not in held.phrases:
            held.phrases[key] = compared(rows, rollout.group[rows], tokens, lengths, decode)
        differs = (held.phrases[key] > 0).double()
        marked = rollout.facts["changed"][rows] if "changed" in rollout.facts else torch.full_like(differs, torch.nan)
        tables = {"phrase": held.phrases[key], "changed": torch.where(marked.isnan(), differs, marked)}
    if "segment" in wanted:
        tables["segment"] = segmented(segments, tokens, lengths, rollout.mask[rows], decode)
    return {name: table for name, table in tables.items() if name in wanted}


def segmented(segments: Segments, tokens: Tensor, lengths: Tensor, mask: Tensor, decode: Decode) -> Tensor:
    """Segment numbers ``[R, T]`` int64 of some rows, 0 outside of their ``mask``."""
    table = torch.zeros(tokens.shape, dtype=torch.int64)
    for row, (line, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
        if segments == "turn":
            numbers = turns(mask[row, :length].tolist())
        elif callable(segments):
            numbers = within(line[:length], decode, segments)
        else:
            numbers = ended(line[:length], decode, segments)
        table[row, :length] = torch.tensor(numbers)
    return table * mask


def pair_of_marks(marks: Sequence[str] | None) -> tuple[str, str] | None:
    """Two texts between which thoughts stand. Errors: UserError for others."""
    if marks is None:
        return None
    if isinstance(marks, str) or len(marks) != 2 or not all(isinstance(mark, str) and mark for mark in marks) or marks[0] == marks[1]:
        raise UserError(f"policy.thoughts: got {marks!r}, takes two texts, [<think>, </think>]")
    return marks[0], marks[1]


def said(mask: Tensor, tokens: Tensor, lengths: Tensor, marks: tuple[str, str] | None, decode: Decode) -> Tensor:
    """``mask`` without tokens that hold something from the one mark to the other, both included; a row's last token stays as it is.

    A thought that does not end goes to the end of its row. marks: None: nothing is a thought.
    """
    if marks is None:
        return mask
    table = mask.clone()
    for row, (line, length) in enumerate(zip(tokens.tolist(), lengths.tolist(), strict=True)):
        text, places = spans(line[:length], decode)
        inside, start = list[Span](), text.find(marks[0])
        while start >= 0:
            end = text.find(marks[1], start + len(marks[0]))
            inside.append((start, len(text) if end < 0 else end + len(marks[1])))
            start = -1 if end < 0 else text.find(marks[0], end + len(marks[1]))
        for place, (first, last) in enumerate(places[: length - 1]):
            table[row, place] &= not any(first < after and before < last for before, after in inside)
    return table


def _of_tokens(tokens: Sequence[Span], words: Sequence[Span], numbers: Sequence[int]) -> list[int]:
    """For each token, the number of the first numbered word that it shares a character with."""
    per_token = []
    for start, end in tokens:
        shared = (number for (first, last), number in zip(words, numbers, strict=True) if number and first < end and start < last)
        per_token.append(next(shared, 0))
    return per_token
