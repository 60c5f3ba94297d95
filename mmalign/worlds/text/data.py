"""Sentences of Python's documentation: its own words, in lower case, split from their punctuation."""

from __future__ import annotations

import ast
import functools
import re
import sysconfig
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from mmalign.arguments.ranges import Count, Natural
from mmalign.records import Thumb
from mmalign.rooms import resource
from mmalign.types import UserError

__all__ = ["text_prompts", "text_sentences"]

Part = Literal["base", "judge"]
START, WORDS = 3, 20  # words of a prompt; tokens of a completion at most, its full stop and its end included


@functools.cache
def sentences(part: Part | None = None) -> list[str]:
    """Sentences of 5 to 24 words; the ``base`` learned from nine of ten, the ``judge`` has the tenth, which it alone has seen."""
    lines = resource("assets/text/sentences.txt").read_text(encoding="utf-8").splitlines()
    if part is None:
        return lines
    return [line for number, line in enumerate(lines) if (number % 10 == 9) == (part == "judge")]


@functools.cache
def frequencies() -> Counter[str]:
    """How often each word occurs in all sentences."""
    return Counter(word for line in sentences() for word in line.split())


def text_prompts(*, count: Count = 64, offset: Natural = 0) -> list[str]:
    """The first three words of ``count`` sentences that the base has not seen, from number ``offset`` on; each once.

    count: how many. offset: number of the first, from 0.

    Errors: UserError where there are not so many.
    """
    known = list(dict.fromkeys(" ".join(line.split()[:START]) for line in sentences("judge")))
    if count < 1 or offset < 0 or offset + count > len(known):
        raise UserError(f"text_prompts: got count={count}, offset={offset}, takes 1 or more, 0 or more, together at most {len(known)}")
    return known[offset : offset + count]


def text_sentences(*, count: Count = 1024, offset: Natural = 0) -> list[Thumb]:
    """Sentences that the base has learned from, from number ``offset`` on: what it was pretrained on, to be mixed into a run (``mix``).

    The prompt is a sentence's first three words, the output the rest of it, as far as an answer may be long.

    count: how many. offset: number of the first, from 0.

    Errors: UserError where there are not so many.
    """
    known = [line.split() for line in sentences("base")]
    known = [words for words in known if len(words) - START < WORDS]
    if count < 1 or offset < 0 or offset + count > len(known):
        raise UserError(f"text_sentences: got count={count}, offset={offset}, takes 1 or more, 0 or more, together at most {len(known)}")
    several = enumerate(known[offset : offset + count], offset)
    return [Thumb(" ".join(words[:START]), " ".join(words[START:]), 1.0, f"sentence {number}") for number, words in several]


def collect(*, vocabulary: int = 2000) -> list[str]:
    """The sentences of this Python's documentation whose words are all among its ``vocabulary`` most frequent ones.

    From the help topics and the docstrings of the standard library: what ``scripts/make_assets.py`` wrote to assets/text.

    vocabulary: how many words.
    """
    lines: dict[str, None] = {}
    for text in _documents():
        for paragraph in re.split(r"\n\s*\n", text):
            for sentence in re.split(r"(?<=[.!?])\s+", " ".join(paragraph.split())):
                words = re.findall(r"[a-z]+(?:'[a-z]+)?|[,;.]", sentence.lower())
                if re.fullmatch(r"[A-Z][A-Za-z',; -]+\.", sentence) and 5 <= len(words) <= 24:
                    lines[" ".join(words)] = None
    counts = Counter(word for line in lines for word in line.split())
    frequent = {word for word, _ in counts.most_common(vocabulary)}
    return [line for line in lines if frequent.issuperset(line.split())]


def _documents() -> Iterator[str]:
    from pydoc_data import topics

    yield from topics.topics.values()
    library = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(library.rglob("*.py")):
        if {"site-packages", "test", "tests", "idlelib", "lib2to3"} & set(path.parts):
            continue
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
                yield ast.get_docstring(node) or ""
