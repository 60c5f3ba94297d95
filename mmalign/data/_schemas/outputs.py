"""How the data sets people have say which of two images or videos is better: a row (a mapping) -> two outputs and a strength.

A schema yields ``Draft``s, media still undecoded: most rows hold one pair, HPDv2's and ImageReward's lists hold several, and rows with
one output are thumbs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from itertools import combinations
from typing import Any, NamedTuple

from mmalign.conversations import has_media
from mmalign.data._reading.parsing import number
from mmalign.data._reading.tables import FILE, KEY, placed
from mmalign.data._schemas import columns as names_of
from mmalign.data._schemas import dimensions
from mmalign.data._schemas.notices import Notice
from mmalign.data._schemas.turns import decoded, text_of
from mmalign.media import Broken
from mmalign.records import UNSAID
from mmalign.types import UserError

Row = Mapping[str, Any]
COLUMNS = ("prompt", "chosen", "rejected", "strength", "id", "image", "label", "labels", "annotator", "source")
PROMPTS = ("prompt", "caption", "text")
SIDES = (
    ("chosen", "rejected"), ("img_better", "img_worse"), ("image_chosen", "image_rejected"), ("chosen_image", "rejected_image"),
    ("image_better", "image_worse"), ("preferred_image", "dispreferred_image"), ("video_chosen", "video_rejected"),
    ("chosen_video", "rejected_video"), ("chosen_image_path", "rejected_image_path"), ("chosen_path", "rejected_path"),
)  # fmt: skip
LISTS = ("image", "image_path", "file_path", "images", "generations", "image_paths", "file_paths")
PLACES = ("human_preference", "rank", "ranking", "raw_annotations")
OUTPUTS = (*names_of.IMAGES, *names_of.VIDEOS, "output", "completion")


class Draft(NamedTuple):
    """A pair before its media are decoded; with one output, second is None and strength says how good it is. labels, annotator: as of
    ``Pair``. source: the picture that the prompt is about, where it is an edit's."""

    prompt: str
    first: Any
    second: Any
    strength: float
    id: str
    labels: Mapping[str, float] = UNSAID
    annotator: str = ""
    source: Any = None


Schema = Callable[[Row, str], Iterator[Draft]]


def pickapic(row: Row, name: str) -> Iterator[Draft]:
    """Pick-a-Pic v1 and v2: ``caption, jpg_0, jpg_1, label_0, label_1, has_label``; 0.5 in both labels is a tie."""
    yield Draft(_prompt(row, "caption"), _output(row, "jpg_0"), _output(row, "jpg_1"), _labels(row), _name(row, "ranking_id", name))


def _labels(row: Row) -> float:
    """``label_0`` as a share of both labels, NaN where ``has_label`` is false or a label is missing."""
    first, second = number(row.get("label_0")), number(row.get("label_1"))
    if row.get("has_label") is False or math.isnan(first + second) or first + second == 0:
        return math.nan
    return _strength(first / (first + second), "label_0 of both labels")


def hpdv2(row: Row, name: str) -> Iterator[Draft]:
    """HPDv2 and ImageReward: ``prompt``, a list of images, and what people said of them.

    The list is ``image``, ``image_path``, ``file_path``, ``images`` or ``generations``. ``human_preference``: 1 for the better of two
    images (training set); or ``rank`` or ``ranking``, the place of each image, the least the best (test set, and ImageReward), which gives
    every pair of them; or ``raw_annotations``, one ranking for each person (a list, or a mapping with one under ``rank``), of which the
    share that puts the first image before the second is the strength.
    """
    images = next((row[key] for key in LISTS if names_of.has(row, key)), None)
    if not isinstance(images, (list, tuple)) or len(images) < 2:
        raise Broken("takes a list of two or more images under image, image_path, file_path or generations")
    if any(image is None or image == "" for image in images):
        raise Broken("an image of the list is missing")
    prompt, name = _prompt(row, "prompt"), _name(row, "id", _name(row, "prompt_id", name))
    people, ranks = row.get("raw_annotations"), None
    if isinstance(people, list):
        ranks = [person.get("rank") if isinstance(person, Mapping) else person for person in people]
    for a, b in combinations(range(len(images)), 2):
        if ranks:
            wins = [_win(person[b], person[a]) for person in _full(ranks, len(images))]
            strength = sum(wins) / len(wins)
        else:
            strength = _listed_preference(row, a, b, len(images))
        own = f"{name}:{a}-{b}" if len(images) > 2 else name
        yield Draft(prompt, _placed(row, images[a]), _placed(row, images[b]), strength, own)


def _listed_preference(row: Row, a: int, b: int, count: int) -> float:
    liked, rank = row.get("human_preference"), row.get("rank", row.get("ranking"))
    values = liked if liked is not None else rank
    if values is None:
        return math.nan
    (numbers,) = _full([values], count)
    better, worse = (numbers[a], numbers[b]) if liked is not None else (numbers[b], numbers[a])
    return _win(better, worse)


def _win(first: float, second: float) -> float:
    """Whether the first number is larger: 1, 0, or 0.5 for equal ones."""
    return ((first > second) + (first >= second)) / 2


def _full(rankings: list[Any], count: int) -> list[list[float]]:
    lists = [ranking if isinstance(ranking, (list, tuple)) else [] for ranking in rankings]
    numbers = [[number(value) for value in ranking] for ranking in lists]
    if any(len(ranking) != count or any(math.isnan(value) for value in ranking) for ranking in numbers):
        raise Broken(f"takes one number for each of {count} images in every ranking")
    return numbers


def hpdv3(row: Row, name: str) -> Iterator[Draft]:
    """HPDv3: ``prompt``, ``path1``, the better image, and ``path2``.

    strength: the share of people who chose the first (``choice_dist``); without their votes, ``confidence``, or 1.
    """
    votes = row.get("choice_dist")
    if isinstance(votes, (list, tuple)) and len(votes) == 2 and sum(counts := [number(vote) for vote in votes]) > 0 and min(counts) >= 0:
        strength = counts[0] / sum(counts)
    else:
        strength = number(row.get("confidence"))
        strength = 1.0 if math.isnan(strength) else _strength(strength, "confidence")
    yield Draft(_prompt(row, "prompt"), _output(row, "path1"), _output(row, "path2"), strength, _name(row, "id", name))


def videoreward(row: Row, name: str) -> Iterator[Draft]:
    """VideoReward's rows: ``path_A, path_B, prompt``, and ``Overall, VQ, MQ, TA``, each A, B or same; empty where nobody said."""
    said = {key: str(row.get(key) or "").strip() for key in ("Overall", "VQ", "MQ", "TA")}
    for key, word in said.items():
        if word not in ("", "A", "B", "same"):
            raise Broken(f"{key}: got {word[:40]!r}, takes A, B or same")
    labels = dimensions.labels({key: word for key, word in said.items() if word})
    overall = labels.pop("Overall", math.nan)
    yield Draft(_prompt(row, "prompt"), _output(row, "path_A"), _output(row, "path_B"), overall, _name(row, "id", name), labels)


def columns(names: Mapping[str, str]) -> Schema:
    """One pair to a row, in columns of any name: ``prompt``, ``chosen``, ``rejected`` and, optional, ``strength``, ``id`` and
    ``annotator``.

    names: what those are called in the data, where it is otherwise. strength: the probability that ``chosen`` is the better one,
    1 where there is no such column; empty and null mean that it is not known. labels: an object, dimension -> strength in it (0..1, or A, B
    or same), for reward models of several scores. source: of edits, the path of the picture that was changed; read where it is named.
    Errors: UserError for a name that is none of these.
    """
    if strange := sorted(set(names) - set(COLUMNS)):
        raise UserError(f"records.columns.{strange[0]}: unknown; takes {', '.join(COLUMNS)}")
    called = {key: names.get(key, key) for key in COLUMNS}

    def schema(row: Row, name: str) -> Iterator[Draft]:
        better, worse = (called["chosen"], called["rejected"]) if names else _sides(row)
        prompt = names["prompt"] if "prompt" in names else _key(row, PROMPTS, "prompt")
        strength = _strength(number(row[called["strength"]]), called["strength"]) if called["strength"] in row else 1.0
        labels, said_by = dimensions.labels(row.get(called["labels"])), row.get(called["annotator"])
        name, who = _name(row, called["id"], name), "" if said_by is None else str(said_by)
        name = f"{name}@{who}" if who else name
        source = _output(row, names["source"]) if "source" in names else None
        yield Draft(_prompt(row, prompt), _output(row, better), _output(row, worse), strength, name, labels, who, source)

    return schema


def instructed(source: str, prompt: str) -> list[dict[str, Any]]:
    """What is asked of an edit, as a conversation that shows the picture that is changed. source: its path."""
    return [{"role": "user", "content": [{"type": "image", "path": source}, {"type": "text", "text": prompt}]}]


def _sides(row: Row) -> tuple[str, str]:
    return next((sides for sides in SIDES if set(sides) <= row.keys()), ("chosen", "rejected"))


def thumbs(names: Mapping[str, str], *, labelled: bool) -> Schema:
    """One output to a row, ``image`` or ``video``, its prompt (``prompt``, ``caption``, ``text``), and ``label``: how good it is, 0..1.

    names: what those columns are called in the data, where it is otherwise. labelled: False for demonstrations, all of them good.
    """
    own = [names[key] for key in ("image",) if key in names]

    def schema(row: Row, name: str) -> Iterator[Draft]:
        prompt, output = _key(row, [names.get("prompt", "prompt"), *PROMPTS], "prompt"), _key(row, [*own, *OUTPUTS], "image")
        key = next((key for key in (names.get("label", "label"), *names_of.LABELS) if key in row), None)
        if key is not None and not labelled:
            raise Broken("a label, and the first rows have none (schema: thumbs reads rows with labels)")
        if not labelled and (judged := next((key for key in names_of.JUDGED if names_of.has(row, key)), None)):
            raise Broken(f"column {judged!r} says how good the image is; takes label, 0..1 or true or false (columns: {{label: {judged}}})")
        label = math.nan if labelled else 1.0
        if key is not None:
            label = _strength(number(names_of.TRUTHS.get(str(row[key]).strip().lower(), row[key])), key)
        if isinstance(row[output], (list, tuple)) and len(row[output]) != 1:
            raise Broken(f"{output}: {len(row[output])} images, takes one")
        source = row[output][0] if isinstance(row[output], (list, tuple)) else row[output]
        yield Draft(_prompt(row, prompt), _placed(row, source), None, label, _name(row, names.get("id", "id"), name))

    return schema


def guess(row: Row, names: Mapping[str, str] | None) -> Schema:
    """The schema that a row looks like. Errors: Broken with its columns, where it looks like none."""
    if names is not None:
        return _labelled(row, names) if "chosen" not in names and not {"chosen", "rejected"} <= row.keys() else columns(names)
    if {"jpg_0", "jpg_1"} <= row.keys():
        return pickapic
    if any(set(sides) <= row.keys() for sides in SIDES):
        return columns({})
    if {"path1", "path2"} <= row.keys():
        return hpdv3
    if {"path_A", "path_B"} <= row.keys():
        return videoreward
    if row.keys() & {*PLACES}:
        return hpdv2
    if row.keys() & {*PROMPTS} and row.keys() & {*OUTPUTS}:
        return _labelled(row, {})
    raise Broken(
        f"columns {names_of.listed(row)} look like no known schema (Pick-a-Pic, HPDv2, HPDv3, ImageReward, VideoReward, "
        "prompt/chosen/rejected, prompt/image/label); takes columns: {prompt: ..., chosen: ..., rejected: ..., strength: ...}"
    )


def loader(row: Row) -> str:
    """Which loader of ``mm.data`` reads rows like this one: ``pairs`` (of images or videos), ``picture_texts`` (about them), ``texts``."""
    known = ({"jpg_0", "jpg_1"}, {"path1", "path2"}, {"path_A", "path_B"})
    if any(sides <= row.keys() for sides in known) or any(names_of.holds_media(row.get(key)) for key in LISTS[2:]):
        return "pairs"
    if any(set(sides) <= row.keys() and names_of.holds_media(row[sides[0]]) for sides in SIDES):
        return "pairs"
    media = [value for key, value in row.items() if names_of.low(key) in (*names_of.IMAGES, *names_of.VIDEOS)]
    turns = (row[key] for key in ("prompt", "messages", "conversations") if isinstance(row.get(key), list))
    return "picture_texts" if any(map(names_of.holds_media, media)) or any(map(has_media, turns)) else "texts"


def _labelled(row: Row, names: Mapping[str, str]) -> Schema:
    return thumbs(names, labelled=bool(row.keys() & {*names_of.LABELS, names.get("label", "label")}))


def with_notice(schema: Schema, names: Mapping[str, str], notice: Notice) -> Schema:
    """A schema that says which columns it does not read; a row with media in such a column is broken where it is read as one output."""
    of_schema: dict[Schema, tuple[str, ...]] = {
        pickapic: ("caption", "jpg_0", "jpg_1", "label_0", "label_1", "has_label", "ranking_id"),
        hpdv2: ("prompt", *LISTS, *PLACES, "id", "prompt_id"),
        hpdv3: ("prompt", "path1", "path2", "choice_dist", "confidence", "id"),
        videoreward: ("prompt", "path_A", "path_B", "Overall", "VQ", "MQ", "TA", "id"),
    }
    known = of_schema.get(schema, (*COLUMNS, *names.values(), *names_of.LABELS))

    def read(row: Row, name: str) -> Iterator[Draft]:
        drafts = list(schema(row, name))
        yield from drafts
        also = () if schema in of_schema else (*_sides(row), _key(row, PROMPTS, "prompt"))
        one = (_key(row, OUTPUTS, "image"),) if drafts and drafts[0].second is None else ()
        columns_read = {*known, *also, *one, *names_of.IDS, FILE, KEY}
        notice({key: value for key, value in row.items() if key not in columns_read and names_of.has(row, key)})

    return read


def _key(row: Row, keys: Any, otherwise: str) -> str:
    """The first of the columns that a row has."""
    return next((key for key in keys if names_of.has(row, key)), otherwise)


def _name(row: Row, key: str, name: str) -> str:
    return name if row.get(key) in (None, "") else str(row[key])[:120]


def _prompt(row: Row, key: str) -> str:
    return text_of(row, key).strip()


def _output(row: Row, key: str) -> Any:
    if not names_of.has(row, key):
        raise Broken(f"nothing under {key!r}")
    return _placed(row, row[key])


def _placed(row: Row, source: Any) -> Any:
    return placed(row, decoded(source, "image"))


def _strength(value: float, name: str) -> float:
    if not math.isnan(value) and not 0 <= value <= 1:
        raise Broken(f"{name} is {value:g}, takes 0..1")
    return value
