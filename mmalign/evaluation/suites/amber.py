"""AMBER: describe the image, and is there, is it so, do they touch?"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mmalign.arguments.ranges import Count
from mmalign.evaluation.amber_scores import Vocabulary, amber_answers, amber_descriptions
from mmalign.evaluation.intervals import RESAMPLES, Scores
from mmalign.evaluation.objects import TOKEN, plurals, read_json
from mmalign.evaluation.suite import Item, Suite, filled, picture, read_rows
from mmalign.types import UserError

SELDOM_NOUNS = ("can", "hot", "leave")  # words of the relation file that are mostly something else
ALIKE = 0.8


def amber(
    annotations: Path, *, images: Path | None = None, questions: str = "all", ask: str = "{question}",
    nouns: Literal["words", "nltk"] = "words", alike: Literal["equal", "spacy"] = "equal", letters: bool = True,
    resamples: Count = RESAMPLES,
) -> Suite:  # fmt: skip
    """AMBER's two tasks, from its own files.

    Args:
        annotations: its ``data`` folder: ``annotations.json``, ``relation.json``, ``safe_words.txt``, ``query/query_*.json``.
        images: the folder of its images.
        questions: which of ``query/query_*.json``: ``all``, ``generative``, ``discriminative``, ``discriminative-existence``, ...
        ask: what is asked of the yes/no questions, such as ``{question} Answer yes or no.``
        nouns: how nouns are found. ``nltk``, as in the published script, needs nltk with its data. ``words`` takes every word that the
            relation file knows, in lower case and singular, a verb or not, but for "can", "hot" and "leave".
        alike: ``spacy``, as in the published script, needs spaCy and en_core_web_lg. ``equal`` forgives no synonyms.
        letters: whether a yes/no answer has to be ``Yes`` or ``No`` to the letter, as published; if not, its first word counts.

    Only ``nouns=nltk`` with ``alike=spacy`` gives numbers to compare with published ones. Intervals are by image.

    Errors: UserError for files that are not there or of another form, and where nltk or spaCy is asked for and not installed.
    """
    vocabulary = Vocabulary(_relation(annotations), _safe(annotations))
    truth = {int(row["id"]): row for row in read_rows(annotations / "annotations.json")}
    items = []
    for row in read_rows(annotations / "query" / f"query_{questions}.json"):
        known = truth.get(int(row["id"]))
        if known is None:
            raise UserError(f"annotations: annotations.json has no id {row['id']}, which query_{questions}.json asks about")
        words = row["query"] if known["type"] == "generative" else filled(ask, row["query"])
        items.append(Item(str(row["id"]), words, picture(images, row["image"]), {**known, "image": row["image"]}))
    find = _nltk() if nouns == "nltk" else _words(vocabulary)
    similar = _spacy() if alike == "spacy" else None

    def score(chosen: Sequence[Item], answers: Sequence[str | None]) -> Scores:
        return _scores(chosen, answers, find, vocabulary, similar, letters, resamples)

    notes = [] if (nouns, alike) == ("nltk", "spacy") else [f"nouns={nouns}, alike={alike}: not to be compared with published numbers"]
    return Suite("amber", items, score, headline=("chair", "cover", "hal", "cog", "accuracy", "f1"), notes=notes)


def _scores(
    chosen: Sequence[Item], answers: Sequence[str | None], find: Callable[[str], list[str]], vocabulary: Vocabulary,
    similar: Callable[[str, str], bool] | None, letters: bool, resamples: int,
) -> Scores:  # fmt: skip
    described = [place for place, item in enumerate(chosen) if item.known["type"] == "generative"]
    questions = [place for place in range(len(chosen)) if place not in set(described)]
    parts = []
    if described:
        nouns = [None if (text := answers[place]) is None else find(text) for place in described]
        parts.append((described, amber_descriptions(
            nouns, [chosen[place].known["truth"] for place in described], [chosen[place].known["hallu"] for place in described], vocabulary,
            alike=similar, clusters=[chosen[place].known["image"] for place in described], resamples=resamples,
        )))  # fmt: skip
    if questions:
        texts = [text if (text := answers[place]) is None or letters else _first_word(text) for place in questions]
        parts.append((questions, amber_answers(
            texts, [chosen[place].known["truth"] for place in questions], [chosen[place].known["type"] for place in questions],
            clusters=[chosen[place].known["image"] for place in questions], resamples=resamples,
        )))  # fmt: skip
    rows: list[Mapping[str, Any] | None] = [None] * len(chosen)
    counts: Counter[str] = Counter()
    for places, scores in parts:
        for place, row in zip(places, scores.rows, strict=True):
            rows[place] = row
        counts.update(scores.counts)
    values = {name: value for _, scores in parts for name, value in scores.values.items()}
    published = {name: value for _, scores in parts for name, value in scores.published.items()}
    return Scores(values, rows, dict(counts), published)


def _first_word(text: str) -> str:
    word = re.match(r"\W*(yes|no)\b", text, re.IGNORECASE)
    return word.group(1).capitalize() if word else text


def _relation(folder: Path) -> dict[str, list[str]]:
    stored = read_json(folder / "relation.json")
    if not isinstance(stored, dict) or not all(isinstance(words, list) for words in stored.values()):
        raise UserError(f"annotations: {folder / 'relation.json'} is no mapping of objects to lists of words")
    return stored


def _safe(folder: Path) -> set[str]:
    file = folder / "safe_words.txt"
    if not file.is_file():
        raise UserError(f"annotations: {file} is not there; takes AMBER's data folder")
    return set(file.read_text(encoding="utf-8").split("\n"))


def _words(vocabulary: Vocabulary) -> Callable[[str], list[str]]:
    known = vocabulary.words()
    singular = plurals(known)

    def find(text: str) -> list[str]:
        tokens = (match.group().lower() for match in TOKEN.finditer(text))
        return [singular.get(word, word) for word in tokens if word not in SELDOM_NOUNS and singular.get(word, word) in known]

    return find


def _nltk() -> Callable[[str], list[str]]:
    try:
        import nltk
        from nltk.stem import WordNetLemmatizer
    except ModuleNotFoundError as error:
        raise UserError("nouns: nltk is not installed; takes `words`, or pip install nltk and its data") from error
    lemmas = WordNetLemmatizer()

    def find(text: str) -> list[str]:
        try:
            tagged = nltk.pos_tag(nltk.word_tokenize(text))
            return [lemmas.lemmatize(word) for word, tag in tagged if tag.startswith("NN")]
        except LookupError as error:
            lines = [line.strip() for line in str(error).splitlines()]
            hint = next((line for line in lines if line.startswith("Resource") or "nltk.download" in line), "")
            raise UserError(f"nouns: nltk's data is not there ({hint}); takes `words`, or punkt, a tagger and wordnet") from error

    return find


def _spacy() -> Callable[[str, str], bool]:
    import functools

    try:
        import spacy

        model = spacy.load("en_core_web_lg")
    except (ModuleNotFoundError, OSError) as error:
        raise UserError("alike: spaCy with en_core_web_lg is not installed; takes `equal`, or both of them") from error
    parsed = functools.cache(model)
    return functools.cache(lambda one, other: bool(parsed(one).similarity(parsed(other)) > ALIKE))
