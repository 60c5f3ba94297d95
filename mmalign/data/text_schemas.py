"""How the text data sets people have say which completion is better: a row (a mapping) -> pairs, thumbs or rankings.

A prompt is a string or a conversation, a list of ``{role, content}``; a completion is a string (one turn of the assistant's) or the
turns that follow. Texts are kept as they are, spaces included. Ids are ``id``, ``prompt_id`` or ``message_id``, or else the file and
line; an ``annotator`` column joins them as ``id@annotator``.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Literal

from mmalign.data.schemas import _name, _number
from mmalign.data.stored import Schema
from mmalign.data.tables import Row
from mmalign.media import Broken
from mmalign.records import Pair, Ranking, Thumb
from mmalign.types import UserError

COLUMNS = (
    "prompt", "chosen", "rejected", "strength", "score_chosen", "score_rejected", "completion", "label", "completions", "labels", "scores",
    "ranks", "id", "annotator",
)  # fmt: skip
ROLES = {"human": "user", "prompter": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant", "developer": "system"}
FOLLOWS = {
    None: {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant"},
}
TRUTHS = {"true": 1.0, "false": 0.0, "yes": 1.0, "no": 0.0}
ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
ASKS = "\n\nAssistant:"  # of HH-RLHF

Turns = list[dict[str, Any]]
Said = str | Turns


def preference(row: Row, name: str) -> Iterator[Pair]:
    """``prompt, chosen, rejected``; or ``chosen`` and ``rejected`` alone, which begin with the prompt they share.

    Conversations that begin before the assistant's turn are whole ones: the turns that both share up to the first that differs are the
    prompt, also where ``prompt`` repeats some of it (UltraFeedback, binarized). Of strings it is the words that both share.
    ``strength``: the probability that ``chosen`` is the better one, 1 where there is no such column. ``score_chosen`` and
    ``score_rejected`` are kept as the pair's scores; the row's own word which is chosen stands, whatever they are.
    """
    chosen, rejected = said(row, "chosen"), said(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Broken("chosen and rejected are a text and a conversation, takes two of a kind")
    if chosen == rejected:
        raise Broken("chosen and rejected are the same")
    prompt: Said
    if not isinstance(chosen, str) and not isinstance(rejected, str) and chosen[0]["role"] not in ("assistant", "tool"):
        prompt, chosen, rejected = shared_turns(chosen, rejected)
    elif row.get("prompt") is not None:
        prompt = said(row, "prompt")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = shared_words(chosen, rejected)
    else:
        raise Broken("no prompt: chosen and rejected begin with the assistant's turn")
    strength = _number(row["strength"]) if "strength" in row else 1.0
    if not math.isnan(strength) and not 0 <= strength <= 1:
        raise Broken(f"strength is {strength}, takes 0..1")
    scores = (_number(row.get("score_chosen")), _number(row.get("score_rejected")))
    prompt, (first, second) = put_together(prompt, (chosen, rejected))
    yield Pair(prompt, first, second, strength, named(row, name), scores=scores, annotator=annotator(row))


def transcripts(form: Literal["turns", "text"]) -> Schema:
    """HH-RLHF: ``chosen`` and ``rejected`` are transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", which share all but their last turns.

    form: ``turns`` makes conversations of them; ``text`` leaves them as they are, the prompt up to the last "\\n\\nAssistant:".
    """

    def schema(row: Row, name: str) -> Iterator[Pair]:
        whole = [_text(row, "chosen"), _text(row, "rejected")]
        chosen, rejected = (_transcript(text) for text in whole)
        if chosen == rejected:
            raise Broken("chosen and rejected are the same")
        prompt, first, second = shared_turns(chosen, rejected)
        if form == "turns":
            asked, (one, other) = put_together(prompt, (first, second))
            yield Pair(asked, one, other, 1.0, named(row, name))
            return
        split = whole[0].rindex(ASKS) + len(ASKS)
        if whole[1][:split] != whole[0][:split]:
            raise Broken("no shared prefix up to the last turn")
        yield Pair(whole[0][:split], whole[0][split:], whole[1][split:], 1.0, named(row, name))

    return schema


def thumbs(row: Row, name: str) -> Iterator[Thumb]:
    """``prompt, completion, label``: true or false, or a number in 0..1, the probability that the completion is good."""
    prompt, (output,) = put_together(said(row, "prompt"), (said(row, "completion"),))
    yield Thumb(prompt, output, _label(row.get("label")), named(row, name), annotator=annotator(row))


def stepwise(separator: str) -> Schema:
    """``prompt, completions, labels``: the steps of one answer and a label for each. Every step is a thumb of its own.

    Its prompt is the row's, a string, with the steps before it, put together by ``separator``; its id is ``id:step``, from 1.
    """

    def schema(row: Row, name: str) -> Iterator[Thumb]:
        prompt, steps, labels = _text(row, "prompt"), _several(row, "completions"), _several(row, "labels")
        if len(steps) != len(labels):
            raise Broken(f"{len(steps)} completions and {len(labels)} labels, takes one for each")
        for number, (step, label) in enumerate(zip(steps, labels, strict=True), start=1):
            if not isinstance(step, str) or not step.strip():
                raise Broken(f"completions: step {number} has no text")
            yield Thumb(prompt, step, _label(label), f"{named(row, name)}:{number}", annotator=annotator(row))
            prompt += separator + step

    return schema


def ranked(row: Row, name: str) -> Iterator[Ranking]:
    """``prompt, completions`` and for each of those one of ``scores`` (the higher the better) or ``ranks`` (the lower the better)."""
    outputs = _several(row, "completions")
    sign, key = (1.0, "scores") if row.get("scores") is not None else (-1.0, "ranks")
    scores = [sign * _number(score) for score in _several(row, key)]
    if len(outputs) != len(scores):
        raise Broken(f"{len(outputs)} completions and {len(scores)} {key}, takes one for each")
    yield _ranking(said(row, "prompt"), [said({"completions": output}, "completions") for output in outputs], scores, named(row, name))


def ultrafeedback(score: Literal["ratings", "overall"]) -> Schema:
    """UltraFeedback: ``instruction`` and ``completions``, each with ``response``, ``annotations`` and ``overall_score``.

    score: ``ratings``, the mean of the four aspects' ratings (those that are numbers), or ``overall``, the critic's score. Argilla found
    hundreds of rows where the overall score is 10 and its rationale is bad, and takes the mean of the ratings
    (https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences).
    """

    def schema(row: Row, name: str) -> Iterator[Ranking]:
        found = _objects({"completions": _several(row, "completions")}, "completions")
        outputs = [said(completion, "response") for completion in found]
        scores = [_number(completion.get("overall_score")) if score == "overall" else _ratings(completion) for completion in found]
        yield _ranking(said(row, "instruction" if "instruction" in row else "prompt"), outputs, scores, named(row, name))

    return schema


def _ratings(completion: Mapping[str, Any]) -> float:
    told = completion.get("annotations")
    found = [told.get(aspect) for aspect in ASPECTS] if isinstance(told, Mapping) else []
    ratings = [aspect.get("Rating") for aspect in found if isinstance(aspect, Mapping)]
    known = [_number(rating) for rating in ratings if rating not in (None, "", "N/A")]
    return sum(known) / len(known) if known else math.nan


def oasst(row: Row, name: str) -> Iterator[Ranking]:
    """OpenAssistant: a tree of messages under ``prompt``. The replies to one of the prompter's messages are ranked by ``rank``, 0 the best.

    The conversation up to that message is the prompt, its ``message_id`` the id. Deleted messages, and what hangs on them, are left out.
    """
    root = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
    waiting: list[tuple[Mapping[str, Any], Turns]] = [(root, [])]
    while waiting:
        message, before = waiting.pop()
        turns = [*before, *checked([{**message, "content": message.get("text")}], str(message.get("message_id", name)))]
        replies = [reply for reply in _objects(message, "replies") if not reply.get("deleted")]
        waiting += [(reply, turns) for reply in reversed(replies)]
        if turns[-1]["role"] == "user" and len(replies) > 1:
            outputs = [said(reply, "text") for reply in replies]
            yield _ranking(turns, outputs, [-_number(reply.get("rank")) for reply in replies], named(message, name))


def guess(row: Row, *, score: Literal["ratings", "overall"], form: Literal["turns", "text"], separator: str) -> Schema:
    """The schema that a row looks like. Raises Broken with its columns, where it looks like none."""
    has, several = row.keys(), row.get("completions")
    if {"chosen", "rejected"} <= has:
        both = (row["chosen"], row["rejected"])
        hh = row.get("prompt") is None and all(isinstance(text, str) and text.lstrip().startswith("Human:") for text in both)
        return transcripts(form) if hh else preference
    if {"prompt", "completions", "labels"} <= has:
        return stepwise(separator)
    if {"prompt", "completion", "label"} <= has:
        return thumbs
    if "completions" in has and has & {"scores", "ranks"}:
        return ranked
    if "completions" in has and has & {"instruction", "prompt"} and (isinstance(several, Mapping) or _first_is_object(several)):
        return ultrafeedback(score)
    if "replies" in has or isinstance(row.get("prompt"), Mapping):
        return oasst
    raise Broken(
        f"columns {', '.join(sorted(map(str, row)))} look like no known schema (chosen/rejected, prompt/completion/label, "
        "prompt/completions/scores or labels, UltraFeedback, HH-RLHF, OpenAssistant); takes columns: {prompt: ..., chosen: ..., ...}"
    )


def renamed(names: Mapping[str, str], schema: Schema) -> Schema:
    """A schema for rows whose columns are called otherwise. names: what we call them -> what they are called."""
    return lambda row, name: schema(with_names(row, names), name)


def with_names(row: Row, names: Mapping[str, str]) -> Row:
    """A row under our names. Errors: UserError for a name that no schema has."""
    if strange := sorted(set(names) - set(COLUMNS)):
        raise UserError(f"records.columns.{strange[0]}: unknown; takes {', '.join(COLUMNS)}")
    return {**row, **{own: row[theirs] for own, theirs in names.items() if theirs in row}}


# ---- texts and conversations


def said(row: Mapping[str, Any], key: str) -> Said:
    """A text, or the turns of a conversation. Raises Broken for nothing, for turns without a known role or text."""
    value = row.get(key)
    if isinstance(value, (list, tuple)):
        if not value:
            raise Broken(f"no text under {key!r}")
        return checked(value, key)
    return _text(row, key)


def checked(turns: Sequence[Any], key: str) -> Turns:
    """Turns as ``{role, content}``; ShareGPT's ``{from, value}`` and OpenAssistant's roles are translated."""
    found = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise Broken(f"{key}[{number}]: got {type(turn).__name__}, takes a turn {{role, content}}")
        role = turn.get("role", turn.get("from"))
        role = ROLES.get(str(role), role)
        if role not in ("system", "user", "assistant", "tool"):
            raise Broken(f"{key}[{number}]: got role {role!r}, takes system, user, assistant or tool")
        content = turn.get("content", turn.get("value"))
        if not isinstance(content, str) or not content.strip():
            raise Broken(f"{key}[{number}]: the {role} turn has no text")
        found.append({"role": role, "content": content})
    return found


def put_together(prompt: Said, outputs: Sequence[Said]) -> tuple[Said, tuple[Said, ...]]:
    """A prompt and what follows it, its turns in their order; one turn of the assistant's becomes its text. Raises Broken."""
    if isinstance(prompt, str) and any(not isinstance(output, str) for output in outputs):
        prompt = [{"role": "user", "content": prompt}]
    for output in outputs:
        if isinstance(prompt, str):
            break
        after = [{"role": "assistant", "content": output}] if isinstance(output, str) else output
        _in_order([*prompt, *after], len(prompt))
    return prompt, tuple(output[0]["content"] if not isinstance(output, str) and len(output) == 1 else output for output in outputs)


def _in_order(turns: Turns, split: int) -> None:
    before = None
    for number, turn in enumerate(turns):
        if turn["role"] not in FOLLOWS[before]:
            raise Broken(f"wrong role order: turn {number + 1} is the {turn['role']}'s, after {before or 'nothing'}")
        before = turn["role"]
    if before != "assistant":
        raise Broken(f"wrong role order: ends with the {before}'s turn, takes the assistant's")
    if split < 1 or turns[split]["role"] not in ("assistant", "tool"):
        raise Broken("wrong role order: a completion begins with the user's turn")


def shared_turns(chosen: Turns, rejected: Turns) -> tuple[Turns, Turns, Turns]:
    """Two conversations as the turns they share, up to the first that differs, and what follows in each."""
    count = _same(chosen, rejected)
    if count == 0:
        raise Broken("no shared prefix: chosen and rejected differ in their first turn")
    if count in (len(chosen), len(rejected)):
        raise Broken("one of chosen and rejected has no completion after what they share")
    if chosen[count]["role"] != "assistant" or rejected[count]["role"] != "assistant":
        raise Broken(f"wrong role order: chosen and rejected differ in turn {count + 1} already, which is not the assistant's in both")
    return chosen[:count], chosen[count:], rejected[count:]


def shared_words(chosen: str, rejected: str) -> tuple[str, str, str]:
    """Two texts as the words they share at their beginning, and what follows in each, from a space on. TRL cuts within words, too."""
    count = _same(chosen, rejected)
    prefix = re.match(r".*\S(?=\s)", chosen[:count], re.DOTALL)
    if prefix is None:
        raise Broken("no shared prefix, and no prompt (columns: {prompt: ...} names it)")
    split = prefix.end()
    if not chosen[split:].strip() or not rejected[split:].strip():
        raise Broken("one of chosen and rejected has no completion after what they share")
    return chosen[:split], chosen[split:], rejected[split:]


def _same(one: Sequence[Any], other: Sequence[Any]) -> int:
    """How many items two sequences share at their beginning."""
    return next((place for place, (a, b) in enumerate(zip(one, other, strict=False)) if a != b), min(len(one), len(other)))


def _transcript(text: str) -> Turns:
    first, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text if text.startswith("\n\n") else "\n\n" + text.lstrip())
    if first.strip():
        raise Broken('takes a transcript that begins with "Human:"')
    spoken = zip(parts[::2], parts[1::2], strict=True)
    turns = [{"role": "user" if who == "Human" else "assistant", "content": words.strip()} for who, words in spoken]
    return checked(turns, "transcript")


def _ranking(prompt: Said, outputs: Sequence[Said], scores: Sequence[float], name: str) -> Ranking:
    if len(outputs) < 2:
        raise Broken(f"a list of {len(outputs)}, takes two or more completions")
    prompt, together = put_together(prompt, outputs)
    return Ranking(prompt, together, tuple(scores), name)


def _several(row: Row, key: str) -> list[Any]:
    """A list; a mapping of lists, as the ``datasets`` library gives sequences of objects, as a list of mappings."""
    value = row.get(key)
    if isinstance(value, Mapping) and value and all(isinstance(part, (list, tuple)) for part in value.values()):
        count = min(map(len, value.values()))
        value = [{name: part[number] for name, part in value.items()} for number in range(count)]
    if not isinstance(value, (list, tuple)) or not value:
        raise Broken(f"takes a list under {key!r}")
    return list(value)


def _objects(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = row.get(key) or []
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Mapping) for part in value):
        raise Broken(f"{key}: takes a list of objects")
    return list(value)


def _first_is_object(value: Any) -> bool:
    return isinstance(value, (list, tuple)) and bool(value) and isinstance(value[0], Mapping)


def _label(value: Any) -> float:
    label = TRUTHS.get(str(value).strip().lower())
    label = _number(value) if label is None else label
    if not math.isnan(label) and not 0 <= label <= 1:
        raise Broken(f"label is {label:g}, takes true, false or 0..1")
    return label


def _text(row: Mapping[str, Any], key: str) -> str:
    value = row.get(key)
    if isinstance(value, bytes):
        value = value.decode("utf-8", errors="replace")
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"no text under {key!r}")
    return value


def named(row: Mapping[str, Any], name: str) -> str:
    """What to call a row: its own id, or ``name``, and whoever said it."""
    own = next((_name(row, key, name) for key in ("id", "prompt_id", "message_id") if row.get(key) not in (None, "")), name)
    return f"{own}@{annotator(row)}" if annotator(row) else own


def annotator(row: Mapping[str, Any]) -> str:
    """Who said it; '' where the row does not tell."""
    return "" if row.get("annotator") is None else str(row["annotator"])
