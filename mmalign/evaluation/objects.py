"""Objects that a text mentions: COCO's synonyms, double words and plurals, as CHAIR reads captions.

A caption is lower-cased and cut into words, each word is brought to its singular, two words that belong together become one (``fire
hydrant``, ``baby elephant``), and what the synonym table then knows is a mention of its class. The ``seat`` of a caption with a
``toilet`` is no chair.

Differences from the published scripts, which cut with nltk's tokenizer and bring *every* word to a singular (pattern's rules in
Rohrbach et al., WordNet's in RLHF-V):

1. Words are cut by one expression (letters and digits, inner hyphens and slashes; anything else stands alone).
2. Only words of the table are brought to a singular, by listing the plurals that English makes of them (``plurals``). What neither
   list holds is in no table, so that nothing is lost but mistakes such as ``glas``.
3. Names in the table are stripped of spaces, as RLHF-V's script does; in the first script `` motor bike`` never matches.

Names with capitals (``iPhone``) never match a lower-cased caption, as published.
"""

from __future__ import annotations

import json
import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

from mmalign.types import UserError

__all__ = ["Mention", "Synonyms", "coco_truth", "marked", "mentions", "plurals", "synonyms"]

Pieces = Literal["rohrbach", "rlhf_v"]

TOKEN = re.compile(r"[^\W_]+(?:[-/][^\W_]+)*|['’][^\W_]+|[^\w\s]|_")
DOUBLE = (
    "motor bike", "motor cycle", "air plane", "traffic light", "street light", "traffic signal", "stop light", "fire hydrant", "stop sign",
    "parking meter", "suit case", "sports ball", "baseball bat", "baseball glove", "tennis racket", "wine glass", "hot dog", "cell phone",
    "mobile phone", "teddy bear", "hair drier", "potted plant", "bow tie", "laptop computer", "home plate",
)  # fmt: skip
ANIMALS = ("bird", "cat", "dog", "horse", "sheep", "cow", "elephant", "bear", "zebra", "giraffe", "animal", "cub")
VEHICLES = ("jet", "train")
NO_OBJECT = ("home plate", "train track")  # RLHF-V: neither a plate nor a train
UNLIKE = {
    "man": "men", "woman": "women", "child": "children", "person": "persons", "mouse": "mice", "goose": "geese", "ox": "oxen",
    "foot": "feet", "tooth": "teeth",
}  # fmt: skip
ALIKE = ("sheep", "cattle", "aircraft", "watercraft", "scissors", "skis", "bison", "people", "luggage", "oxen", "children")


class Mention(NamedTuple):
    """An object that a text names.

    start, end: its place, ``text[start:end]``. word: what the table knows it by. object: its class.
    """

    start: int
    end: int
    word: str
    object: str


class Synonyms(NamedTuple):
    """A table of names.

    classes: word -> class. double: two words -> what they stand for. singular: plural -> singular of each word in it.
    """

    classes: Mapping[str, str]
    double: Mapping[str, str]
    singular: Mapping[str, str]


def synonyms(path: str | Path, *, pieces: Pieces = "rohrbach") -> Synonyms:
    """Reads a table in the published format: a line for each class, its name first, names of the same apart by commas.

    path: ``synonyms.txt`` of LisaAnne/Hallucination, or ``synonyms_refine.txt`` of RLHF-V. pieces: which two words belong together:
    ``rohrbach``'s list, or every name of two words in the table (``rlhf_v``). A word under two classes belongs to the last.

    Errors: UserError for a file that is not there or names nothing.
    """
    file = Path(path)
    if not file.is_file():
        raise UserError(f"synonyms: got {file}, takes a file with a line for each class: name, synonym, synonym")
    classes: dict[str, str] = {}
    for line in file.read_text(encoding="utf-8").splitlines():
        names = [name.strip() for name in line.split(",") if name.strip()]
        for name in names:
            classes[name] = names[0]
    if not classes:
        raise UserError(f"synonyms: {file} names no class; takes a line for each: name, synonym, synonym")
    return table(classes, pieces=pieces)


def table(classes: Mapping[str, str], *, pieces: Pieces = "rohrbach") -> Synonyms:
    """A table from what stands in it.

    classes: class by word. pieces: as in ``synonyms``.

    Errors: UserError for other pieces.
    """
    if pieces not in ("rohrbach", "rlhf_v"):
        raise UserError(f"synonyms.pieces: got {pieces!r}, takes rohrbach or rlhf_v")
    pairs = DOUBLE if pieces == "rohrbach" else (*(name for name in classes if " " in name), *NO_OBJECT)
    double = {pair: pair for pair in pairs}
    double.update({f"{age} {animal}": animal for animal in ANIMALS for age in ("baby", "adult")})
    double.update({f"passenger {vehicle}": vehicle for vehicle in VEHICLES})
    double.update({"bow tie": "tie", "toilet seat": "toilet", "wine glas": "wine glass"})
    words = {part for name in (*classes, *double) for part in name.split()}
    return Synonyms(dict(classes), double, plurals(words))


def plurals(words: Iterable[str]) -> dict[str, str]:
    """Plural -> singular: what English adds (s, es, ies, ves), and what it does not (men, mice).

    words: singular ones.
    """
    singular = set(words)
    singular_of: dict[str, str] = {}
    for word in sorted(singular):
        for plural in _plurals_of(word):
            if plural not in singular:
                singular_of.setdefault(plural, word)
    return singular_of


def _plurals_of(word: str) -> tuple[str, ...]:
    if word in ALIKE:
        return ()
    for singular, plural in UNLIKE.items():
        if word == singular or (singular in ("man", "woman") and word.endswith(singular)):
            return (word[: -len(singular)] + plural,)
    if re.search(r"(s|x|z|ch|sh)$", word):
        return (f"{word}es", f"{word}ses") if word == "bus" else (f"{word}es",)
    if re.search(r"[^aeiou]y$", word):
        return (f"{word[:-1]}ies",)
    if re.search(r"(?<![fo])fe?$", word):
        stem = re.sub(r"fe?$", "", word)
        return (f"{stem}ves", f"{word}s")
    return (f"{word}s", f"{word}es") if word.endswith("o") else (f"{word}s",)


def mentions(text: str, known: Synonyms) -> list[Mention]:
    """Every mention of an object, in order, repeats included.

    text: a caption. known: the table that says what an object is.
    """
    tokens = [(match.group().lower(), match.start(), match.end()) for match in TOKEN.finditer(text)]
    words = [(known.singular.get(word, word), start, end) for word, start, end in tokens]
    joined: list[tuple[str, int, int]] = []
    place = 0
    while place < len(words):
        pair = " ".join(word for word, _, _ in words[place : place + 2])
        both = pair in known.double and place + 1 < len(words)
        joined.append((known.double[pair], words[place][1], words[place + 1][2]) if both else words[place])
        place += 2 if both else 1
    seatless = {"toilet", "seat"} <= {word for word, _, _ in joined}
    return [
        Mention(start, end, word, known.classes[word])
        for word, start, end in joined
        if word in known.classes and not (seatless and word == "seat")
    ]


def marked(mentioned: Sequence[Mention], truth: Collection[str]) -> list[tuple[int, int, bool]]:
    """(start, end, whether it is there) of each mention: what a report strikes through, and what it does not.

    mentioned: the mentions of one text. truth: the objects that are there.
    """
    return [(mention.start, mention.end, mention.object in truth) for mention in mentioned]


def coco_truth(folder: str | Path, known: Synonyms, *, images: Collection[int] | None = None) -> dict[int, set[str]]:
    """The objects of COCO's images: those of every ``instances*.json`` of a folder, and what every ``captions*.json`` mentions.

    folder: COCO's annotations. known: the table of names. images: the ids that are wanted; all by default.

    Errors: UserError where there are no instances, and for a category that the synonym table does not know.
    """
    place = Path(folder)
    instances, captions = sorted(place.glob("instances*.json")), sorted(place.glob("captions*.json"))
    if not instances:
        raise UserError(f"annotations: no instances*.json in {place}; takes COCO's annotation folder")
    truth: dict[int, set[str]] = {}
    for file in instances:
        stored = read_json(file)
        names = {category["id"]: str(category["name"]) for category in stored["categories"]}
        if odd := next((name for name in names.values() if name not in known.classes), None):
            raise UserError(f"synonyms: no line for {odd!r}, a category of {file.name}; takes a table with every category")
        for image in stored.get("images", []):
            if images is None or image["id"] in images:
                truth.setdefault(int(image["id"]), set())
        for box in stored["annotations"]:
            if images is None or box["image_id"] in images:
                truth.setdefault(int(box["image_id"]), set()).add(known.classes[names[box["category_id"]]])
    for file in captions:
        for caption in read_json(file)["annotations"]:
            if caption["image_id"] in truth:
                truth[caption["image_id"]].update(mention.object for mention in mentions(caption["caption"], known))
    return truth


def read_json(file: Path) -> dict[str, Any]:
    """A JSON file. Errors: UserError for one that cannot be read."""
    try:
        stored = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise UserError(f"annotations: {file} is not readable as JSON: {' '.join(str(error).split())}") from error
    return stored
