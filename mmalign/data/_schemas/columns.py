"""What data sets call their columns -> what we call them, and which columns nobody reads.

A row has one kind (``preference``, ``thumbs``, ...), which its columns tell, and the columns of that kind are brought under our names:
``prompt, chosen, rejected, completion, label, ...``. Names count in any case. A column that is of no use is named to whoever asks, so
that a question, an instruction's input or a picture under a name that nobody knows is never left out without a word.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any, NamedTuple

from mmalign.data._reading.parsing import parsed
from mmalign.data._reading.tables import FILE, KEY, Row
from mmalign.data._schemas import dimensions, marks
from mmalign.data._schemas.turns import Text, Turns, before_the_answer, conversation, text_of, turns_of
from mmalign.media import Broken
from mmalign.types import UserError

OURS = (
    "prompt", "chosen", "rejected", "strength", "score_chosen", "score_rejected", "completion", "label", "completions", "labels", "scores",
    "ranks", "id", "annotator", "system", "image", "images", "video", "videos", "ratings", "ratings_chosen", "ratings_rejected",
    "wrong_chosen", "wrong_rejected",
)  # fmt: skip
NEEDED = ("prompt", "chosen", "rejected", "completion", "label", "completions", "labels", "scores", "ranks")  # once they are named
PROMPTS = ("prompt", "question", "instruction", "query", "problem", "input")  # the first that a row has
TALKS = ("messages", "conversations", "conversation", "dialogue", "dialog")
SYSTEMS = ("system", "system_prompt", "system_message")
PAIRS = (  # better, worse
    ("chosen", "rejected"), ("chosen", "reject"), ("chosen_response", "rejected_response"), ("preferred_output", "non_preferred_output"),
    ("preferred", "dispreferred"), ("response_j", "response_k"), ("conversations", "rejected_conversations"),
    ("messages", "rejected_messages"), ("messages", "rejected_response"), ("conversations", "rejected_response"),
    ("response", "rejected_response"), ("output", "rejected_output"), ("answer", "rejected_answer"),
)  # fmt: skip
CHOICES = (  # one, other, who says which, and what it says for the one and for the other
    ("response_0", "response_1", "better_response_id", ("0",), ("1",)),  # PKU-SafeRLHF
    ("human_ref_a", "human_ref_b", "labels", ("1",), ("0",)),  # SHP
    ("conversation_a", "conversation_b", "winner", ("model_a", "a"), ("model_b", "b")),  # the arenas of LMSYS
    ("response_a", "response_b", "winner", ("model_a", "response_a", "a"), ("model_b", "response_b", "b")),
)
TIES = ("tie", "both_bad", "tie (bothbad)", "both", "equal")
ANSWERS = ("completion", "response", "output", "answer", "target")
LABELS = ("label", "kto_tag", "desirable", "is_desirable", "thumbs_up")
TRUTHS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
LISTS = {
    "completions": ("completions", "responses", "candidates"),
    "scores": ("scores", "ratings", "rewards"),
    "ranks": ("ranks", "ranking"),
}
SCORES = {
    "score_chosen": ("score_chosen", "chosen_score", "chosen_rating", "rating_chosen"),
    "score_rejected": ("score_rejected", "rejected_score", "rejected_rating", "rating_rejected"),
}
JUDGED = (  # say that an answer may be a bad one
    "score", "rating", "reward", "quality", "correct", "is_correct", "correctness", "helpfulness", "overall_score", "is_safe",
    "is_response_safe", "toxicity", "upvotes", "votes", "thumbs", "feedback",
)  # fmt: skip
TURNS = (*TALKS, "chosen", "rejected", "prompt", "completion")  # that CSV can only hold as JSON
ITEMS = ("history", "images", "videos")
IDS = ("id", "prompt_id", "message_id", "idx", "question_id", "uid", "_id")
ABOUT = (  # texts about a row that are no part of it
    "source", "dataset", "dataset_name", "category", "subcategory", "language", "lang", "model", "model_chosen", "model_rejected", "split",
    "origin", "license", "domain", "task", "type", "subset", "url", "created_at", "timestamp", "version", "uncertainty",
)  # fmt: skip
IMAGES = (
    "images", "image", "image_paths", "image_path", "imgs", "img", "img_paths", "img_path", "image_urls", "image_url", "image_files",
    "image_file", "pictures", "picture", "photos", "photo", "file_name", "filename", "jpg", "jpeg", "png", "webp", "image_bytes",
)  # fmt: skip
VIDEOS = ("videos", "video", "video_paths", "video_path", "video_urls", "video_url", "video_files", "video_file", "mp4", "webm", "mov")
SUFFIXES = (
    ".jpg", ".jpeg", ".png", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".avif", ".mp4", ".webm", ".mov", ".avi", ".mkv", ".mp3", ".wav",
    ".flac", ".m4a", ".ogg", ".opus", ".npy",
)  # fmt: skip

TURN = re.compile(r"""\s*\[\s*\{\s*"(role|from|content|value)"\s*:""")
ITEM = re.compile(r"""\s*\[\s*["[]""")

Names = Mapping[str, str]
"""Our name of a column -> what it is called in the data, where somebody said so."""


class Layout(NamedTuple):
    """A row under our names. unread: the columns that nobody reads, as they are called in the data, and what they hold."""

    row: Row
    unread: dict[str, Any]


def checked(names: Names) -> None:
    """Errors: UserError for a name that we do not have."""
    if strange := sorted(set(names) - set(OURS)):
        raise UserError(f"records.columns.{strange[0]}: unknown; takes {', '.join(OURS)}")


def has(row: Mapping[str, Any], key: str) -> bool:
    """Whether a row holds something under a name."""
    value = row.get(key)
    return not (value is None or (isinstance(value, (str, list, tuple, dict, bytes)) and len(value) == 0))


@lru_cache(maxsize=4096)
def low(key: str) -> str:
    """The name of a column in small letters, words joined by ``_``."""
    return key if key in (FILE, KEY) else key.strip().lower().replace(" ", "_").replace("-", "_")


def plain(row: Mapping[str, Any], names: Names) -> Row:
    """A row with its columns in small letters, and those that were named under our names."""
    columns: Row = {}
    for key, value in row.items():
        name = low(key)
        if key == name or not has(columns, name):
            columns[name] = _unpacked(name, value)
    return {**columns, **{ours: row[theirs] for ours, theirs in names.items() if theirs in row}}


def _unpacked(name: str, value: Any) -> Any:
    """A list of turns, or of paths, that stands in a cell as JSON; anything else as it is."""
    pattern = next((pattern for names, pattern in ((TURNS, TURN), (ITEMS, ITEM)) if name in names), None)
    if pattern is None or not isinstance(value, str) or not pattern.match(value):
        return value
    try:
        return parsed(value)
    except Broken:
        return value


def kind_of(row: Row, names: Names) -> str:
    """The kind that a row's columns tell. Errors: Broken with its columns, where they tell none."""
    low = plain(row, names)
    several = next((low[key] for key in LISTS["completions"] if has(low, key)), None)
    if any(set(sides) <= low.keys() for sides in PAIRS):
        return "hh" if _is_transcripts(low) else "preference"
    if {"prompt", "completions", "labels"} <= low.keys():
        return "stepwise"
    if several is not None and any(has(low, key) for name in ("scores", "ranks") for key in LISTS[name]):
        return "ranked"
    if several is not None and low.keys() & {"instruction", "prompt"} and _holds_objects(several):
        return "ultrafeedback"
    root = low.get("prompt")
    if "replies" in low or (isinstance(root, Mapping) and root.keys() & {"replies", "message_id"}):
        return "oasst"
    if any({one, other, who} <= low.keys() for one, other, who, *_ in CHOICES):
        return "preference"
    labelled = "thumbs" if low.keys() & {*LABELS} else "demonstrations"
    if labelled == "demonstrations" and dimensions.of_answer(low)[0]:
        labelled = "rated"
    if low.keys() & {*ANSWERS} and (low.keys() & {*PROMPTS, "history"} or any(isinstance(low.get(key), (list, tuple)) for key in TALKS)):
        return labelled
    if any(isinstance(low.get(key), (list, tuple)) and has(low, key) for key in TALKS):
        return labelled
    raise Broken(
        f"columns {listed(row)} look like no known schema (chosen/rejected, prompt/completion/label, instruction/input/output, messages, "
        "prompt/completions/scores or labels, UltraFeedback, HH-RLHF, OpenAssistant); takes columns: {prompt: ..., chosen: ..., ...}"
    )


def listed(row: Iterable[str]) -> str:
    """The columns of a row, as messages list them: on one line."""
    return ", ".join(sorted(" ".join(str(key).split())[:60] for key in row if key not in (FILE, KEY))[:40])


def laid_out(row: Row, kind: str, names: Names) -> Layout:
    """A row of a kind under our names. Errors: Broken where its prompt or its answers cannot be told."""
    low = plain(row, names)
    _refuse_gone(row, low, names)
    ours: Row = {key: low[key] for key in (FILE, KEY, "annotator", "strength") if key in low}
    read = {*ours, *IDS, *names.values(), *names}
    ours |= {key: low[key] for key in IDS if has(low, key)}
    if kind in ("oasst", "hh"):
        return Layout(low, {})
    if kind == "preference":
        read |= _put(ours, _pair(low, names))
        for name, theirs in SCORES.items():
            read |= _first(low, ours, name, theirs)
        read |= _put(ours, dimensions.of_pair(low)) | _put(ours, marks.of_pair(low))
    elif kind == "rated":
        read |= _put(ours, _answer(low, names)) | _put(ours, dimensions.of_answer(low))
    elif kind in ("thumbs", "demonstrations"):
        read |= _put(ours, _answer(low, names))
        read |= _first(low, ours, "label", LABELS)
        if kind == "thumbs":
            ours.setdefault("label", None)
        elif has(ours, "label"):
            raise Broken("a label, and the first rows have none (schema: thumbs reads rows with labels)")
    else:
        read |= _put(ours, _prompt(low, names))
        for name, several in LISTS.items():
            read |= _first(low, ours, name, several)
        ours |= {"labels": low["labels"]} if "labels" in low else {}
        read.add("labels")
    system = next((key for key in SYSTEMS if has(low, key)), None)
    if system is not None:
        ours["system"] = _system(low, system)
        read.add(system)
    unread = {key: value for key, value in low.items() if key not in read and has(low, key)}
    for key in (key for key in JUDGED if kind == "demonstrations" and key in unread):
        raise Broken(f"column {key!r} says how good the answer is; takes label, 0..1 or true or false (columns: {{label: {key}}})")
    if kind == "preference" and "prompt" not in ours and isinstance(ours["chosen"], str):
        strange = sorted(key for key, value in unread.items() if key not in ABOUT and not isinstance(value, (bool, int, float)))
        if strange:
            raise Broken(f"no prompt: nobody reads {listed(strange[:8])} (columns: {{prompt: {listed(strange[:1])}}}, if that is it)")
    return Layout(ours, unread)


def _refuse_gone(row: Row, low: Row, names: Names) -> None:
    """Errors: Broken for a column that was named and is not there, where it is needed, or where another one would be taken for it."""
    for ours, theirs in names.items():
        alike = {"image": IMAGES, "images": IMAGES, "video": VIDEOS, "videos": VIDEOS}.get(ours, (ours,))
        if theirs not in row and (ours in NEEDED or any(has(low, other) for other in alike)):
            raise Broken(f"no column {theirs!r} (columns: {{{ours}: {theirs}}}); has {listed(row)}")


def prompt_alone(row: Row, names: Names) -> Layout:
    """What is asked in a row of prompts alone. Errors: Broken where it cannot be told."""
    low = plain(row, names)
    _refuse_gone(row, low, {ours: theirs for ours, theirs in names.items() if ours not in NEEDED or ours == "prompt"})
    ours, read = _prompt(low, names)
    system = next((key for key in SYSTEMS if has(low, key)), None)
    if system is not None:
        ours["system"] = _system(low, system)
    known = {*read, *names.values(), *names, FILE, KEY, system}
    return Layout(ours, {key: value for key, value in low.items() if key not in known})


# ---- media


def media(row: Row, names: Names) -> tuple[list[tuple[str, Any]], set[str]]:
    """Images and videos that stand in a row's columns, (kind, source), and the columns that hold them. Errors: Broken."""
    sources: list[tuple[str, Any]] = []
    read: set[str] = set()
    low = plain(row, names)
    for kind, columns in (("image", IMAGES), ("video", VIDEOS)):
        own = [key for key in (f"{kind}s", kind) if key in names]
        key = next((key for key in (*own, *columns) if has(low, key)), None)
        if key is not None:
            sources += [(kind, source) for source in _several(low[key], key)]
            read |= {key, names.get(key, key)}
    return sources, read


def _several(value: Any, key: str) -> list[Any]:
    if key in ("images", "videos") and not isinstance(value, (list, tuple)):
        raise Broken(f"{key}: got {type(value).__name__}, takes a list")
    return [source for source in value if source is not None and source != ""] if isinstance(value, (list, tuple)) else [value]


def holds_media(value: Any) -> bool:
    """Whether a column looks as if it held pictures, videos or sounds: bytes, ``{bytes, path}``, PIL's images, names of such files."""
    if isinstance(value, (list, tuple)):
        return any(holds_media(item) for item in value)
    if isinstance(value, Mapping):
        return "bytes" in value and holds_media(value.get("bytes") or value.get("path"))
    if isinstance(value, str):
        return value.startswith("data:") or (len(value) < 1024 and "\n" not in value and value.lower().endswith(SUFFIXES))
    return isinstance(value, (bytes, bytearray, memoryview)) or type(value).__module__.startswith("PIL.")


# ---- prompts and answers


def _system(low: Row, key: str) -> str:
    """What a column says for the system; Anthropic's may be parts."""
    turns = [{"role": "system", "content": low[key]}]
    return text_of(turns_of(turns, key)[0], "content") if isinstance(low[key], (list, tuple)) else text_of(low, key)


def _put(ours: Row, part: tuple[Row, set[str]]) -> set[str]:
    """Takes columns over, and says which those of the row were."""
    columns, read = part
    ours |= columns
    return read


def _first(low: Row, ours: Row, name: str, theirs: tuple[str, ...]) -> set[str]:
    """Takes a column over under the first of its names that a row has."""
    key = next((key for key in (name, *theirs) if key in low), None)
    if key is not None:
        ours[name] = low[key]
    return set() if key is None else {key}


def _prompt(low: Row, names: Names) -> tuple[Row, set[str]]:
    """What is asked: one column, with what belongs to it (``input``, ``history``); a conversation; nothing, where there is none."""
    key = "prompt" if "prompt" in names else next((key for key in PROMPTS if has(low, key)), None)
    instruction = key == "instruction" or names.get("prompt") == "instruction"
    prompt = low.get(key) if key else None
    read = {key, names.get("prompt", key)} - {None}
    if isinstance(prompt, str) and (instruction or (key == "input" and "instruction" in low)):  # Alpaca's, and Dolly's
        parts = [prompt if instruction else "", low.get("input"), low.get("context")]
        prompt = "\n".join(part for part in parts if isinstance(part, str) and part.strip())
        read |= {"instruction", "input", "context"}
    past = low.get("history")
    if isinstance(past, str) and prompt is None and past.strip():  # SHP
        return {"prompt": past}, {"history"}
    if isinstance(past, (list, tuple)):
        read.add("history")
        prompt = [*_past(past), {"role": "user", "content": prompt}] if past else prompt
    talk = next((key for key in TALKS if isinstance(low.get(key), (list, tuple)) and has(low, key)), None)
    if prompt is None and talk is not None:
        return {"prompt": low[talk]}, {talk}
    return ({} if prompt is None else {"prompt": prompt}), {str(name) for name in read}


def _past(turns: Any) -> Iterator[dict[str, Any]]:
    """LLaMA-Factory's and ms-swift's history: questions and answers."""
    for number, turn in enumerate(turns):
        if isinstance(turn, Mapping):
            yield dict(turn)
        elif isinstance(turn, (list, tuple)) and len(turn) == 2:
            yield from ({"role": "user", "content": turn[0]}, {"role": "assistant", "content": turn[1]})
        else:
            raise Broken(f"history[{number}]: takes [question, answer]")


def _pair(low: Row, names: Names) -> tuple[Row, set[str]]:
    """``chosen``, ``rejected`` and what was asked, by whichever names a row has them."""
    low = _opened(low)
    better, worse = next(((better, worse) for better, worse in PAIRS if {better, worse} <= low.keys()), ("", ""))
    if not better:
        return _choice(low, names)
    ours: Row = {"chosen": low[better], "rejected": low[worse]}
    if better not in TALKS:
        prompt, read = _prompt({key: value for key, value in low.items() if key not in (better, worse)}, names)
        ours |= _without_the_answer(prompt, ours)
        return ours, {*read, better, worse}
    talk = turns_of(low[better], better) if isinstance(low[better], (list, tuple)) else []
    if not talk:
        raise Broken(f"takes a conversation under {better!r}")
    rejected = conversation({worse: low[worse]}, worse)
    if isinstance(rejected, str) or rejected[0]["role"] in ("assistant", "tool"):
        before, chosen = before_the_answer(talk, better)
        ours = {"prompt": before, "chosen": chosen, "rejected": _as_turns(rejected, worse)}
    return ours, {better, worse}


def _opened(low: Row) -> Row:
    """OpenAI's rows have what was asked in an object under ``input``."""
    request = low.get("input")
    return {**low, "input": request["messages"]} if isinstance(request, Mapping) and "messages" in request else low


def _without_the_answer(question: Row, ours: Row) -> Row:
    """A prompt whose last turn is one of the two answers, without it."""
    prompt = question.get("prompt")
    if not isinstance(prompt, (list, tuple)) or len(prompt) < 2 or not all(isinstance(turn, Mapping) for turn in prompt):
        return question
    turns = turns_of(prompt, "prompt")
    answers = [turn["content"] for key in ("chosen", "rejected") for turn in _as_turns(ours[key], key)[-1:]]
    return {"prompt": turns[:-1]} if turns[-1]["role"] == "assistant" and turns[-1]["content"] in answers else question


def _as_turns(value: Any, key: str) -> Turns:
    answer: Text = conversation({key: value}, key)
    return [{"role": "assistant", "content": answer}] if isinstance(answer, str) else answer


def _choice(low: Row, names: Names) -> tuple[Row, set[str]]:
    """Two answers, and a column that says which is the better one."""
    row = next((row for row in CHOICES if set(row[:3]) <= low.keys()), None)
    if row is None:
        raise Broken("takes chosen and rejected (columns: {chosen: ..., rejected: ...})")
    one, other, who, ones, others = row
    choice = str(low[who]).strip().lower()
    if choice not in (*ones, *others, *TIES):
        raise Broken(f"{who}: got {choice[:60]!r}, takes {', '.join((*ones, *others))}")
    question, read = _prompt(low, names)
    first, second = (other, one) if choice in others else (one, other)
    strength = {"strength": 0.5} if choice in TIES else {}
    harm, seen = dimensions.of_harm(low, first, second, strength.get("strength", 1.0))
    return {**question, "chosen": low[first], "rejected": low[second], **strength, **harm}, {*read, one, other, who, *seen}


def _answer(low: Row, names: Names) -> tuple[Row, set[str]]:
    """``completion`` and what was asked; of a conversation, its last turns are the answer."""
    key = next((key for key in ANSWERS if has(low, key)), None)
    question, read = _prompt({name: value for name, value in low.items() if name != key}, names)
    if key is not None or not isinstance(question.get("prompt"), (list, tuple)):
        return {**question, "completion": low.get(key or "completion")}, {*read, key or "completion"}
    turns, answer = before_the_answer(turns_of(question["prompt"], "prompt"), next(iter(read)))
    return {"prompt": turns, "completion": answer}, read


def _is_transcripts(low: Row) -> bool:
    both, prompt = (low.get("chosen"), low.get("rejected")), low.get("prompt")
    return all(isinstance(text, str) and text.lstrip().startswith("Human:") for text in both) and (
        prompt is None or (isinstance(prompt, str) and all(str(text).startswith(prompt) for text in both))
    )


def _holds_objects(value: Any) -> bool:
    return isinstance(value, Mapping) or (isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping))
