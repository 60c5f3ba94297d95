"""Calls of tools in the form that a model's own chat template writes them, found in what the template does with one that is made up.

Three forms cover the families: an object of JSON with a name and arguments (Qwen, Hermes, Llama 3, Mistral), a name before an object of
arguments (DeepSeek), and tags around a name and each argument (Qwen3-Coder, GLM). A template that writes none has no form.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from mmalign.conversations import Turn
from mmalign.policies.language.prompts.templates import PROBE

Calls = list[dict[str, Any]]
Reader = Callable[[str], Calls]
NAME, KEY, VALUE = "name-of-a-tool", "key-of-it", "value-of-it"
CALL: Turn = {
    "role": "assistant", "content": "",
    "tool_calls": [{"type": "function", "id": "abcdefgh0", "function": {"name": NAME, "arguments": {KEY: VALUE}}}],
}  # fmt: skip


def reader(render: Callable[[Sequence[Turn], bool], str | None]) -> Reader | None:
    """What reads calls in a turn's words: ``name`` and ``arguments`` of each, or ``error``, why it is none. None without a form.

    render: (a conversation, whether the assistant is asked to go on) -> as the template writes it; None where it refuses.
    """
    text, asked = render([*PROBE, CALL], False), render(PROBE, True)
    if text is None or NAME not in text or VALUE not in text:
        return None
    text = text.removeprefix(asked or "")
    before, _, behind = text.partition(NAME)
    whole = next((start for start in _braces(before) if _object(text, start).get("name") == NAME), None)
    if whole is not None:
        keys = [key for key, value in _object(text, whole).items() if value in ({KEY: VALUE}, json.dumps({KEY: VALUE}))]
        return (lambda words: _objects(words, _marker(text[:whole]), keys[0])) if keys else None
    start = next((place for place in _braces(behind) if _object(behind, place) == {KEY: VALUE}), None)
    if start is not None:
        return lambda words: _named(words, _marker(before), behind[:start])
    name_end, _, rest = behind.partition(KEY)
    key_end, _, rest = rest.partition(VALUE)
    marks = (_marker(name_end), key_end.strip(), f"{rest.split('>')[0].strip()}>")
    return (lambda words: _tagged(words, _marker(before), marks)) if all(marks) and _marker(before) else None


def _braces(text: str) -> Iterator[int]:
    return (place for place, letter in enumerate(text) if letter == "{")


def _object(text: str, start: int) -> Mapping[str, Any]:
    """The object of JSON at a place; an empty one where there is none."""
    return _decoded(text, start)[0] or {}


def _decoded(text: str, start: int) -> tuple[dict[str, Any] | None, int]:
    try:
        value, end = json.JSONDecoder().raw_decode(text, start)
    except ValueError:
        return None, start
    return (value, end) if isinstance(value, dict) else (None, start)


def _marker(text: str) -> str:
    """What a call begins behind: the last word before it, the bracket of a list aside, from its last tag on. Empty for none."""
    word = next(iter(text.rstrip(" \n\t[").split()[-1:]), "")
    return word[word.rfind("<") :] if "<" in word else word


def _starts(words: str, marker: str) -> list[int]:
    """Where calls begin: behind each marker; without one a text that is nothing else begins with its call, or a special token before it."""
    if marker:
        return [match.end() for match in re.finditer(re.escape(marker), words)]
    alone = re.match(r"\s*(<\|\w+\|>\s*)?(?=\{)", words)
    return [] if alone is None else [alone.end()]


def _objects(words: str, marker: str, arguments: str) -> Calls:
    calls: Calls = []
    for start in _starts(words, marker):
        found, place = 0, _skipped(words, start, " \n\t[")
        while (read := _decoded(words, place))[0] is not None:
            if marker or "name" in read[0]:  # an answer may be an object too
                calls.append(_call(read[0].get("name"), read[0].get(arguments, {})))
            found, place = found + 1, _skipped(words, read[1], " \n\t,;")
        if not found:
            calls.append({"name": "", "error": f"is no object of JSON: {words[start : start + 80]!r}"})
    return calls


def _skipped(text: str, start: int, letters: str) -> int:
    return len(text) - len(text[start:].lstrip(letters))


def _named(words: str, marker: str, between: str) -> Calls:
    calls: Calls = []
    for start in _starts(words, marker):
        name, found, rest = words[start:].partition(between)
        value, _ = _decoded(rest.lstrip(), 0)
        wrong = {"name": name.strip() if found else "", "error": f"has no object of arguments: {words[start : start + 80]!r}"}
        calls.append(wrong if value is None else _call(name.strip(), value))
    return calls


def _tagged(words: str, marker: str, marks: tuple[str, str, str]) -> Calls:
    opening, key_end, value_end = map(re.escape, marks)
    pieces, calls = words.split(marker)[1:], Calls()
    for piece in pieces:
        name = re.match(r"\s*([\w.-]+)", piece)
        pairs = re.findall(rf"{opening}\s*(.*?)\s*{key_end}\s?(.*?)\s?{value_end}", piece, re.DOTALL)
        wrong = {"name": "", "error": f"has no name: {piece[:80]!r}"}
        calls.append(wrong if name is None else _call(name[1], {key: _value(value) for key, value in pairs}))
    return calls


def _call(name: Any, arguments: Any) -> dict[str, Any]:
    arguments = _value(arguments) if isinstance(arguments, str) else arguments
    if not isinstance(name, str) or not name:
        return {"name": "", "error": "has no name"}
    return {"name": name, "arguments": arguments}


def _value(text: str) -> Any:
    """A value as JSON has it, or as it stands."""
    try:
        return json.loads(text)
    except ValueError:
        return text
