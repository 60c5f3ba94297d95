"""How the text data sets people have say which completion is better: a row (a mapping) -> pairs, thumbs or rankings.

A prompt is a string or a conversation, a list of ``{role, content}``; a completion is a string (one turn of the assistant's) or the
turns that follow. Texts are kept as they are, spaces included. Columns may have the names that ``columns.py`` knows, and turns the forms
that ``turns.py`` does. Ids are ``id``, ``prompt_id``, ``message_id``, ``idx``, ..., or else the file and line; an ``annotator`` column
joins them as ``id@annotator``.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Literal

from mmalign.data._reading.parsing import number
from mmalign.data._reading.stored import Schema
from mmalign.data._reading.tables import Row
from mmalign.data._schemas import columns, dimensions, marks
from mmalign.data._schemas.columns import Layout
from mmalign.data._schemas.notices import Notice
from mmalign.data._schemas.turns import (
    Text,
    Turns,
    asks,
    conversation,
    put_together,
    shared_turns,
    shared_words,
    text_of,
    transcript,
    turns_of,
)
from mmalign.media import Broken
from mmalign.records import Pair, Ranking, Thumb

ASPECTS = ("helpfulness", "honesty", "instruction_following", "truthfulness")
CRITIQUE = (
    "<request>\n{asked}\n</request>\n<response>\n{response}\n</response>\n"
    'Write a critique of the response: what is good, and what is wrong. Then score it in a last line of the form "Score: n".'
)
ASKS = "\n\nAssistant:"  # of HH-RLHF

Score = Literal["ratings", "overall"]
Form = Literal["turns", "text"]


def preference(row: Row, name: str) -> Iterator[Pair]:
    """``prompt, chosen, rejected``; or ``chosen`` and ``rejected`` alone, which begin with the prompt they share.

    Conversations that begin before the assistant's turn are whole ones: the turns that both share up to the first that differs are the
    prompt, also where ``prompt`` repeats some of it (UltraFeedback, binarized). Of strings it is the words that both share.
    ``strength``: the probability that ``chosen`` is the better one, 1 where there is no such column. ``score_chosen`` and
    ``score_rejected`` are kept as the pair's scores; the row's own word which is chosen stands, whatever they are. ``wrong_chosen`` and
    ``wrong_rejected`` are spans of characters that people marked as wrong.
    """
    chosen, rejected = conversation(row, "chosen"), conversation(row, "rejected")
    if isinstance(chosen, str) != isinstance(rejected, str):
        raise Broken("chosen and rejected are a text and a conversation, takes two of a kind")
    if chosen == rejected:
        raise Broken("chosen and rejected are the same")
    prompt: Text
    if not isinstance(chosen, str) and not isinstance(rejected, str) and chosen[0]["role"] not in ("assistant", "tool"):
        prompt, chosen, rejected = shared_turns(chosen, rejected)
        if isinstance(row.get("prompt"), str) and not any(row["prompt"].strip() in _words(turn) for turn in prompt):
            raise Broken("prompt is none of what chosen and rejected share")
    elif row.get("prompt") is not None:
        prompt = conversation(row, "prompt")
    elif isinstance(chosen, str) and isinstance(rejected, str):
        prompt, chosen, rejected = shared_words(chosen, rejected)
    else:
        raise Broken("no prompt: chosen and rejected begin with the assistant's turn")
    strength = number(row["strength"]) if "strength" in row else 1.0
    if not math.isnan(strength) and not 0 <= strength <= 1:
        raise Broken(f"strength is {strength:g}, takes 0..1")
    scores = (number(row.get("score_chosen")), number(row.get("score_rejected")))
    prompt, (first, second) = put_together(prompt, (chosen, rejected))
    record = Pair(prompt, first, second, strength, id_of(row, name), scores=scores, annotator=annotator(row))
    ratings, wrong = dimensions.of_sides(row), marks.of_sides(row, (first, second))
    yield record._replace(labels=dimensions.labels(row.get("labels")), ratings=ratings, wrong=wrong)


def _words(turn: Mapping[str, Any]) -> str:
    content = turn["content"]
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)


def transcripts(form: Form) -> Schema:
    """HH-RLHF: ``chosen`` and ``rejected`` are transcripts, "\\n\\nHuman: ...\\n\\nAssistant: ...", which share all but their last turns.

    form: ``turns`` makes conversations of them; ``text`` leaves them as they are, the prompt up to the last "\\n\\nAssistant:".
    """

    def schema(row: Row, name: str) -> Iterator[Pair]:
        whole = [text_of(row, "chosen"), text_of(row, "rejected")]
        chosen, rejected = (transcript(text) for text in whole)
        if chosen == rejected:
            raise Broken("chosen and rejected are the same")
        prompt, first, second = shared_turns(chosen, rejected)
        if form == "turns":
            together, (better, worse) = put_together(prompt, (first, second))
            yield Pair(together, better, worse, 1.0, id_of(row, name))
            return
        split = whole[0].rindex(ASKS) + len(ASKS)
        if whole[1][:split] != whole[0][:split]:
            raise Broken("no shared prefix up to the last turn")
        yield Pair(whole[0][:split], whole[0][split:], whole[1][split:], 1.0, id_of(row, name))

    return schema


def thumbs(row: Row, name: str) -> Iterator[Thumb]:
    """``prompt, completion, label``: true or false, or a number in 0..1, the probability that the completion is good.

    Demonstrations, plain supervised data, have no such column: their answers are all good.
    """
    prompt, (output,) = put_together(conversation(row, "prompt"), (conversation(row, "completion"),))
    label = _label(row["label"]) if "label" in row else 1.0
    yield Thumb(prompt, output, label, id_of(row, name), annotator=annotator(row))


def rated(row: Row, name: str) -> Iterator[Thumb]:
    """``prompt, completion, ratings``: what people rated one answer, dimension -> number (HelpSteer2: in columns); whether it is good is
    not said."""
    prompt, (output,) = put_together(conversation(row, "prompt"), (conversation(row, "completion"),))
    ratings = dimensions.ratings(row.get("ratings"), "ratings")
    yield Thumb(prompt, output, math.nan, id_of(row, name), annotator=annotator(row), ratings=(ratings,))


def stepwise(separator: str) -> Schema:
    """``prompt, completions, labels``: the steps of one answer and a label for each. Every step is a thumb of its own.

    Its prompt is the row's, a string, with the steps before it, put together by ``separator``; its id is ``id:step``, from 1.
    """

    def schema(row: Row, name: str) -> Iterator[Thumb]:
        prompt, steps, labels = text_of(row, "prompt"), _several(row, "completions"), _several(row, "labels")
        if len(steps) != len(labels):
            raise Broken(f"{len(steps)} completions and {len(labels)} labels, takes one for each")
        for place, (step, label) in enumerate(zip(steps, labels, strict=True), start=1):
            if not isinstance(step, str) or not step.strip():
                raise Broken(f"completions: step {place} has no text")
            yield Thumb(prompt, step, _label(label), f"{id_of(row, name)}:{place}", annotator=annotator(row))
            prompt += separator + step

    return schema


def ranked(row: Row, name: str) -> Iterator[Ranking]:
    """``prompt, completions`` and for each of those one of ``scores`` (the higher the better; by dimension
    their mean) or ``ranks`` (the lower the better)."""
    outputs, ratings = _several(row, "completions"), list[dict[str, float]]()
    sign, key = (1.0, "scores") if row.get("scores") is not None else (-1.0, "ranks")
    values = _several(row, key)
    if len(outputs) != len(values):
        raise Broken(f"{len(outputs)} completions and {len(values)} {key}, takes one for each")
    if all(isinstance(value, Mapping) for value in values):
        ratings = [dimensions.ratings(value, key) for value in values]
        values = [dimensions.mean(rating) for rating in ratings]
    scores = [sign * number(score) for score in values]
    texts = [conversation({"completions": output}, "completions") for output in outputs]
    yield _ranking(conversation(row, "prompt"), texts, scores, id_of(row, name), ratings)


def ultrafeedback(score: Score) -> Schema:
    """UltraFeedback: ``instruction`` and ``completions``, each with ``response``, ``annotations`` and ``overall_score``.

    score: ``ratings``, the mean of the four aspects' ratings (those that are numbers), or ``overall``, the critic's score. Argilla found
    hundreds of rows where the overall score is 10 and its rationale is bad, and takes the mean of the ratings
    (https://huggingface.co/datasets/argilla/ultrafeedback-binarized-preferences).
    """

    def schema(row: Row, name: str) -> Iterator[Ranking]:
        completions = _objects({"completions": _several(row, "completions")}, "completions")
        outputs = [conversation(completion, "response") for completion in completions]
        ratings = [_aspects(completion) for completion in completions]
        means = [dimensions.mean(aspects) for aspects in ratings]
        scores = [number(completion.get("overall_score")) for completion in completions] if score == "overall" else means
        yield _ranking(conversation(row, "prompt"), outputs, scores, id_of(row, name), ratings)

    return schema


def critiques(row: Row, name: str) -> Iterator[Thumb]:
    """UltraFeedback's critiques as what a critic says: of each completion with a ``critique`` a demonstration.

    Its prompt holds instruction and response, its output is the critique, and behind it ``Score: n`` (``overall_score``) in a line of its
    own where there is one, as ``rewards.critic`` reads it.
    """
    asked = text_of(row, "prompt")
    for place, completion in enumerate(_objects({"completions": _several(row, "completions")}, "completions"), start=1):
        if isinstance(completion.get("critique"), str) and completion["critique"].strip():
            response, score = text_of(completion, "response"), number(completion.get("overall_score"))
            said = completion["critique"].strip() + ("" if math.isnan(score) else f"\nScore: {score:g}")
            yield Thumb(CRITIQUE.format(asked=asked, response=response), said, 1.0, f"{id_of(row, name)}:{place}")


def _aspects(completion: Mapping[str, Any]) -> dict[str, float]:
    annotations = completion.get("annotations")
    aspects = {name: annotations.get(name) for name in ASPECTS} if isinstance(annotations, Mapping) else {}
    said = {name: aspect.get("Rating") for name, aspect in aspects.items() if isinstance(aspect, Mapping)}
    return {name: number(rating) for name, rating in said.items() if rating not in (None, "", "N/A")}


def oasst(row: Row, name: str) -> Iterator[Ranking]:
    """OpenAssistant: a tree of messages under ``prompt``. The replies to one of the prompter's messages are ranked by ``rank``, 0 the best.

    The conversation up to that message is the prompt, its ``message_id`` the id. Deleted messages, and what hangs on them, are left out.
    """
    root = row["prompt"] if isinstance(row.get("prompt"), Mapping) else row
    waiting: list[tuple[Mapping[str, Any], Turns]] = [(root, [])]
    while waiting:
        message, before = waiting.pop()
        turn = {"role": message.get("role"), "content": message.get("text")}
        turns = [*before, *turns_of([turn], str(message.get("message_id", name))[:60])]
        replies = [reply for reply in _objects(message, "replies") if not reply.get("deleted")]
        waiting += [(reply, turns) for reply in reversed(replies)]
        if turns[-1]["role"] == "user" and len(replies) > 1:
            outputs = [text_of(reply, "text") for reply in replies]
            yield _ranking(turns, outputs, [-number(reply.get("rank")) for reply in replies], id_of(message, name))


def reader(
    kind: str, names: columns.Names, *, score: Score, form: Form, separator: str, notice: Notice,
    placed: Callable[[Pair | Thumb | Ranking, Row, Layout], Any] | None = None,
) -> Schema:  # fmt: skip
    """The schema of a kind, for rows whose columns go by anybody's names.

    placed: puts a row's media into a record's prompt; None: rows are of texts, and one that holds media is broken. notice: is told of
    columns that nobody reads.
    """
    schema: Schema = {
        "preference": preference, "hh": transcripts(form), "thumbs": thumbs, "demonstrations": thumbs,
        "stepwise": stepwise(separator), "ranked": ranked, "rated": rated,
        "ultrafeedback": ultrafeedback(score), "critiques": critiques, "oasst": oasst,
    }[kind]  # fmt: skip

    def read(row: Row, name: str) -> Iterator[Pair | Thumb | Ranking]:
        layout = columns.laid_out(row, kind, names)
        for record in schema(layout.row if form == "text" else _as_turns(layout.row), name):
            record = record._replace(prompt=with_system(record.prompt, layout.row.get("system")))
            yield _of_texts(record, layout) if placed is None else placed(record, row, layout)
        notice(layout.unread)

    return read


def _as_turns(row: Row) -> Row:
    """A row whose prompt is a transcript up to the assistant's turn (HH-RLHF with a column for it), as a conversation."""
    if not asks(row.get("prompt", "")):
        return row
    prompt = row["prompt"].rstrip().removesuffix("Assistant:").rstrip()
    answers = {key: row[key].strip() for key in ("chosen", "rejected", "completion") if isinstance(row.get(key), str)}
    return {**row, "prompt": transcript(prompt), **answers}


def _of_texts(record: Any, layout: Layout) -> Any:
    for key, value in layout.unread.items():
        if columns.holds_media(value) and (not isinstance(value, (str, list, tuple)) or key in (*columns.IMAGES, *columns.VIDEOS)):
            raise Broken(f"holds an image or a video under {key!r} (picture_texts reads them)")
    if not isinstance(record.prompt, str) and any(not isinstance(turn["content"], str) for turn in record.prompt):
        raise Broken("the prompt holds an image or a video (picture_texts reads them)")
    return record


def with_system(prompt: Text, system: Any) -> Text:
    """A prompt with what a column says for the system. Errors: Broken for a conversation with another system turn."""
    if system is None:
        return prompt
    turns: Turns = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
    if turns[0]["role"] != "system":
        return [{"role": "system", "content": system}, *turns]
    if turns[0]["content"] != system:
        raise Broken("two system turns: one of the conversation's own, and another in a column")
    return turns


def _ranking(
    prompt: Text, outputs: Sequence[Text], scores: Sequence[float], name: str, ratings: Sequence[Mapping[str, float]] = ()
) -> Ranking:  # fmt: skip
    if len(outputs) < 2:
        raise Broken(f"a list of {len(outputs)}, takes two or more completions")
    prompt, together = put_together(prompt, outputs)
    return Ranking(prompt, together, tuple(scores), name, ratings=tuple(ratings))


def _several(row: Row, key: str) -> list[Any]:
    """A list; a mapping of lists, as the ``datasets`` library gives sequences of objects, as a list of mappings."""
    value = row.get(key)
    if isinstance(value, Mapping) and value and all(isinstance(part, (list, tuple)) for part in value.values()):
        if len(set(map(len, value.values()))) > 1:
            raise Broken(f"{key}: lists of different lengths")
        value = [dict(zip(value, parts, strict=True)) for parts in zip(*value.values(), strict=True)]
    if not isinstance(value, (list, tuple)) or not value:
        raise Broken(f"takes a list under {key!r}")
    return list(value)


def _objects(row: Mapping[str, Any], key: str) -> list[Mapping[str, Any]]:
    value = row.get(key) or []
    if not isinstance(value, (list, tuple)) or not all(isinstance(part, Mapping) for part in value):
        raise Broken(f"{key}: takes a list of objects")
    return list(value)


def _label(value: Any) -> float:
    label = columns.TRUTHS.get(str(value).strip().lower())
    label = number(value) if label is None else label
    if not math.isnan(label) and not 0 <= label <= 1:
        raise Broken(f"label is {label:g}, takes true, false or 0..1")
    return label


def id_of(row: Mapping[str, Any], name: str) -> str:
    """What to call a row: its own id, or ``name``, and whoever said it."""
    own = next((str(row[key])[:120] for key in columns.IDS if row.get(key) not in (None, "")), name)
    return f"{own}@{annotator(row)}" if annotator(row) else own


def annotator(row: Mapping[str, Any]) -> str:
    """Who said it; '' where the row does not tell."""
    return "" if row.get("annotator") is None else str(row["annotator"])
