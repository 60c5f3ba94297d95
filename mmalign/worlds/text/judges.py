"""Who judges plain words: a proxy that gives the reward, and a gold judge that also asks whether it is still English."""

from __future__ import annotations

import functools
import itertools
import math
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Proportion
from mmalign.types import UserError
from mmalign.worlds.text.data import frequencies, sentences

__all__ = ["text_fluency", "text_gold", "text_plain", "text_readability"]

PLAIN = 200  # words that count as plain, the most frequent ones


@functools.cache
def plain_words(count: int = PLAIN) -> frozenset[str]:
    """The ``count`` most frequent words of the documentation."""
    return frozenset(word for word, _ in frequencies().most_common(count + 1) if word != ".")


def text_plain(*, words: Count = PLAIN) -> Callable[..., Tensor]:
    """Reward in 0..1: the part of a completion's words that are among the ``words`` most frequent ones; 0 for no word at all.

    It says nothing of order, length or sense: "the the the" is as plain as can be.

    words: how many of the most frequent words are plain.

    Errors: UserError for fewer than 1.
    """
    if words < 1:
        raise UserError(f"words: got {words}, takes 1 or more")
    known = plain_words(words)

    def reward(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        parts = [[word in known for word in _words(output)] for output in outputs]
        return torch.tensor([sum(part) / max(1, len(part)) for part in parts], dtype=torch.float64)

    return reward


def text_gold(*, words: Count = PLAIN, least: Proportion = 0.8) -> Callable[..., Tensor]:
    """1 where a completion is plain (at least ``least`` of its words), comes to its full stop, and reads like a real sentence; else 0.

    It reads so where no word follows itself, at most one word in three is there twice, and its words in this order surprise a trigram
    model so much less than the words alone, any order, as those of four in five sentences which the base has not seen. The model has
    counted the base's sentences: another kind of model than the base, which training never asks. Shuffled real sentences pass it one
    time in thirty, and strings of frequent words fail it, however low their perplexity is.

    words: as in ``text_plain``. least: share of plain words, 0 to 1.
    """
    plain, limit = text_plain(words=words), _limit()

    def judge(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        share = plain(outputs, prompts)
        ended = torch.tensor([output.rstrip().endswith(".") for output in outputs])
        fluent = [disorder(f"{prompt} {output}") <= limit for prompt, output in zip(prompts, outputs, strict=True)]
        read = torch.tensor(fluent) & torch.tensor([_varied(_words(output)) for output in outputs])
        return ((share >= least) & ended & read).double()

    return judge


def text_fluency() -> Callable[..., Tensor]:
    """Reward: minus the log of the ``perplexity`` of prompt and completion, nats of a word; what aligning to another reward takes away.

    Examples:
        >>> more, less = mm.worlds.text_fluency()(["the value of the object .", "the the the the ."], ["returns", "returns"]).tolist()
        >>> more > less
        True
    """

    def reward(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        texts = [f"{prompt} {output}" for prompt, output in zip(prompts, outputs, strict=True)]
        return torch.tensor([-math.log(perplexity(text)) for text in texts], dtype=torch.float64)

    return reward


def text_readability() -> Callable[..., dict[str, float]]:
    """Numbers of a set of completions: ``perplexity`` (median, by the trigram model), ``words`` (mean), ``distinct`` and ``ended``.

    distinct: the part of all pairs of neighbouring words that are different pairs. ended: completions with a full stop.
    """

    def metric(outputs: Any, prompts: list[str], **_: Any) -> dict[str, float]:
        perplexities = torch.tensor([perplexity(f"{prompt} {output}") for prompt, output in zip(prompts, outputs, strict=True)])
        pairs = [pair for output in outputs for pair in zip(_words(output), _words(output)[1:], strict=False)]
        return {
            "perplexity": float(perplexities.median()),
            "words": sum(len(_words(output)) for output in outputs) / len(outputs),
            "distinct": len(set(pairs)) / max(1, len(pairs)),
            "ended": sum(output.rstrip().endswith(".") for output in outputs) / len(outputs),
        }

    return metric


def perplexity(text: str) -> float:
    """``exp(-mean log p)`` of the words of a text, its full stop included, by the interpolated trigram model of the base's sentences."""
    one, two, three, after = _counts()
    words, total, surprise = ["<s>", "<s>", *text.split()], sum(one.values()), 0.0
    for first, second, third in zip(words, words[1:], words[2:], strict=False):
        p = (one[third] + 1) / (total + len(one) + 1)
        for context, count in (((second,), two), ((first, second), three)):
            kinds, seen = after[context], sum_of(context)
            if seen:  # Witten and Bell: trust a context the more, the fewer kinds of words follow it
                whole = (*context, third)
                p = (count[whole] + kinds * p) / (seen + kinds)
        surprise -= math.log(p)
    return math.exp(surprise / max(1, len(words) - 2))


def disorder(text: str) -> float:
    """Perplexity in this order over that of the words alone: about .3 for real sentences, about 1 and more where order tells nothing."""
    words, one = text.split(), _counts()[0]
    total = sum(one.values()) + len(one) + 1
    alone = -sum(math.log((one[word] + 1) / total) for word in words) / max(1, len(words))
    return perplexity(text) / math.exp(alone)


def sum_of(context: tuple[str, ...]) -> int:
    """How often a context of one or two words was followed by anything."""
    return _contexts()[context]


@functools.cache
def _counts() -> tuple[Counter[str], Counter[tuple[str, ...]], Counter[tuple[str, ...]], Counter[tuple[str, ...]]]:
    """Counts of words, pairs and triples, and how many different words follow each context."""
    one, two, three = Counter[str](), Counter[tuple[str, ...]](), Counter[tuple[str, ...]]()
    for line in sentences("base"):
        words = ["<s>", "<s>", *line.split()]
        one.update(words[2:])
        two.update(itertools.pairwise(words[1:]))
        three.update(zip(words, words[1:], words[2:], strict=False))
    return one, two, three, Counter(key[:-1] for table in (two, three) for key in table)


@functools.cache
def _contexts() -> Counter[tuple[str, ...]]:
    _, two, three, _ = _counts()
    contexts = Counter[tuple[str, ...]]()
    for table in (two, three):
        for key, count in table.items():
            contexts[key[:-1]] += count
    return contexts


@functools.cache
def _limit() -> float:
    """The disorder that four in five of the judge's own sentences stay under."""
    disorders = sorted(disorder(line) for line in sentences("judge"))
    return disorders[int(0.8 * len(disorders))]


def _varied(words: list[str]) -> bool:
    return 3 * len(set(words)) >= 2 * len(words) and all(word != after for word, after in itertools.pairwise(words))


def _words(output: Any) -> list[str]:
    if not isinstance(output, str):
        raise UserError(f"text judge: got {type(output).__name__}, takes completions as strings")
    return [word for word in output.split() if word.isalpha() or "'" in word]
