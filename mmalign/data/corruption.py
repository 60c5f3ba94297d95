"""Worse answers made of good ones by rule: objects swapped and put in, attributes and numbers changed, sentences left out.

Pure functions from a text, a vocabulary that the user gives, and a generator, to a text that says less of the truth, or None where
there is nothing to change. A word is found whole, in any case and with a plural ``s``, and its replacement is written the same way.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import permutations

Table = Mapping[str, Sequence[str]]
"""A word or phrase -> what may stand in its place (attributes), or what is often seen beside it (objects)."""

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven", "twelve")
COUNT = re.compile(rf"(?<![\w.,])(?:\d{{1,6}}|{'|'.join(NUMBERS)})(?![\w]|[.,]\d)", re.IGNORECASE)
SENTENCE = re.compile(r"\S.*?(?:[.!?]+(?=\s|$)|$)\s*", re.DOTALL)


def cooccurrence(texts: Iterable[str], objects: Sequence[str], *, most: int = 5, least: int = 2) -> dict[str, list[str]]:
    """object -> the others that stand in the same texts most often; an object without others is left out.

    texts: captions, answers. objects: words to look for. most: others of one object. least: texts that two have to share.
    """
    pairs: Counter[tuple[str, str]] = Counter()
    for text in texts:
        pairs.update(permutations(sorted({name for name in objects if _pattern([name]).search(text)}), 2))
    beside: dict[str, list[str]] = {}
    for (name, other), count in sorted(pairs.items(), key=lambda item: (-item[1], item[0])):
        if count >= least and len(beside.setdefault(name, [])) < most:
            beside[name].append(other)
    return {name: others for name, others in beside.items() if others}


def swapped(text: str, table: Table, rng: random.Random, *, count: int = 1) -> str | None:
    """Words of the table replaced by one of theirs that the text does not hold.

    text: an answer. table: a word -> what may stand in its place. rng: draws which. count: words that change, or fewer.

    Every place of a chosen word changes, so that the text stays at one with itself.
    """
    words = _words_in(text, table)
    rng.shuffle(words)
    done = 0
    for word in words:
        others = [other for other in table[word] if not _pattern([other]).search(text)]
        if others and done < count:
            other, done = rng.choice(others), done + 1
            text = _pattern([word]).sub(lambda match, other=other: _as(match, other), text)  # type: ignore[misc]
    return text if done else None


def added(text: str, table: Table, rng: random.Random, *, template: str = "There is also a {object} nearby.") -> str | None:
    """A sentence put behind, about something that is often seen beside what the text names, and that it does not name (POVID's way).

    text: an answer. table: an object -> what is often seen beside it. rng: draws one. template: the sentence, with ``{object}`` in it.
    """
    beside = sorted({other for word in _words_in(text, table) for other in table[word] if not _pattern([other]).search(text)})
    if not beside:
        return None
    chosen = rng.choice(beside)
    sentence = template.format(object=chosen)
    if chosen[0].lower() in "aeiou":
        sentence = re.sub(rf"\b([Aa]) (?={re.escape(chosen)})", r"\1n ", sentence)
    return f"{text.rstrip()} {sentence}"


def renumbered(text: str, rng: random.Random) -> str | None:
    """One number, in figures or in words up to twelve, moved by 1 or 2; from 1 on never below 1. ("One of them" is a number, too.)

    text: an answer. rng: draws which number, and how far it moves.
    """
    places = list(COUNT.finditer(text))
    if not places:
        return None
    match = rng.choice(places)
    number = match.group()
    value = int(number) if number.isdigit() else NUMBERS.index(number.lower())
    choices = [value + step for step in (-2, -1, 1, 2) if value + step >= min(value, 1)]
    if not number.isdigit():
        choices = [choice for choice in choices if choice < len(NUMBERS)]
    changed = rng.choice(choices)
    return text[: match.start()] + (str(changed) if number.isdigit() else _cased(number, NUMBERS[changed])) + text[match.end() :]


def shortened(text: str, rng: random.Random) -> str | None:
    """One sentence left out; None for a text of one.

    text: an answer. rng: draws the sentence.
    """
    parts = SENTENCE.findall(text)
    if len(parts) < 2:
        return None
    parts.pop(rng.randrange(len(parts)))
    return "".join(parts).rstrip()


def corrupt(
    text: str, ways: Mapping[str, Callable[[str, random.Random], str | None]], rng: random.Random, *, changes: int = 1
) -> str | None:
    """A text made worse in several ways, each at most once; None where none of them finds anything to change.

    text: an answer. ways: name -> (text, rng) -> a worse text, or None. rng: draws their order. changes: how many of the ways.
    """
    done, names = 0, sorted(ways)
    rng.shuffle(names)
    changed = text
    for name in names:
        worse = ways[name](changed, rng) if done < changes else None
        if worse is not None and worse != changed:
            changed, done = worse, done + 1
    return changed if changed != text else None


def _words_in(text: str, table: Table) -> list[str]:
    return sorted(word for word in table if _pattern([word]).search(text))


def _pattern(words: Sequence[str]) -> re.Pattern[str]:
    return re.compile(rf"(?<!\w)(?:{'|'.join(re.escape(word) for word in words)})(s|es)?(?!\w)", re.IGNORECASE)


def _as(match: re.Match[str], word: str) -> str:
    """A word in the case and the number of what it replaces."""
    plural = "es" if re.search(r"(s|x|z|ch|sh)$", word) else "s"
    return _cased(match.group(), word) + (plural if match.group(1) else "")


def _cased(like: str, word: str) -> str:
    if like.isupper() and len(like) > 1:
        return word.upper()
    return word[:1].upper() + word[1:] if like[:1].isupper() else word
