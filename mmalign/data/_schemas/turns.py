"""Texts and conversations as data sets write them: turns as ``{role, content}``, in an order that a chat can have.

Roles go by the names that people give them, in any case. A content is a string, or parts where it holds media: ``{type: text, text}`` and
``{type: image, source}``, source None for a medium that the row holds elsewhere. A turn that calls tools keeps ``tool_calls``.
"""

from __future__ import annotations

import base64
import binascii
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from mmalign.data._reading.parsing import excerpt, parsed, words
from mmalign.media import Broken

ROLES = {
    "human": "user", "prompter": "user", "question": "user", "instruction": "user", "gpt": "assistant", "bot": "assistant",
    "model": "assistant", "chatgpt": "assistant", "chatbot": "assistant", "ai": "assistant", "claude": "assistant", "answer": "assistant",
    "developer": "system", "observation": "tool", "function": "tool", "ipython": "tool", "tool_response": "tool", "tool_result": "tool",
}  # fmt: skip
CALLS = ("function_call", "tool_call", "tool_calls")  # roles of LLaMA-Factory's and ms-swift's turns that hold nothing but a call
FOLLOWS = {
    None: {"system", "user"},
    "system": {"user"},
    "user": {"assistant"},
    "assistant": {"user", "tool"},
    "tool": {"tool", "assistant", "user"},
}
TEXTS = ("text", "input_text", "output_text")  # types of parts
MEDIA = {"image": "image", "image_url": "image", "input_image": "image", "video": "video", "video_url": "video", "input_video": "video"}
KEPT = ("name", "tool_call_id", "reasoning_content")  # of a turn, besides its role and content

Turns = list[dict[str, Any]]
Text = str | Turns


def text_of(row: Mapping[str, Any], key: str) -> str:
    """A text. Errors: Broken for nothing, for what is no text, and for bytes that are no UTF-8."""
    value = row.get(key)
    if isinstance(value, bytes):
        value = words(value, key)
    if not isinstance(value, str) or not value.strip():
        raise Broken(f"no text under {key!r}")
    return value


def conversation(row: Mapping[str, Any], key: str) -> Text:
    """A text, or the turns of a conversation, one turn included. Errors: Broken for nothing, for turns without a known role or text."""
    value = row.get(key)
    if isinstance(value, Mapping) and "messages" in value:
        value = value["messages"]
    if isinstance(value, Mapping) and _role(value) is not None:
        value = [value]
    if isinstance(value, (list, tuple)):
        if not value:
            raise Broken(f"no text under {key!r}")
        return turns_of(value, key)
    return text_of(row, key)


def turns_of(turns: Sequence[Any], key: str) -> Turns:
    """Turns as ``{role, content}``. Errors: Broken for a role that nobody knows, and for a turn that says nothing."""
    known = []
    for number, turn in enumerate(turns):
        if not isinstance(turn, Mapping):
            raise Broken(f"{key}[{number}]: got {type(turn).__name__}, takes a turn {{role, content}}")
        known += _turn(turn, f"{key}[{number}]")
    return known


def _role(turn: Mapping[str, Any]) -> Any:
    return next((turn[name] for name in ("role", "from", "speaker") if turn.get(name) is not None), None)


def _turn(turn: Mapping[str, Any], where: str) -> Turns:
    """One turn of theirs as turns: Anthropic's results of tools stand in the user's turn, and are turns of their own."""
    theirs = _role(turn)
    name = str(theirs).strip().lower()
    role = "assistant" if name in CALLS else ROLES.get(name, name)
    if role not in ("system", "user", "assistant", "tool"):
        raise Broken(f"{where}: got role {excerpt(theirs)}, takes system, user, assistant or tool")
    content = next((turn[name] for name in ("content", "value", "text") if turn.get(name) is not None), None)
    parts = list(_parts(content, where)) if isinstance(content, (list, tuple)) else []
    calls = [*_calls(turn.get("tool_calls") or turn.get("function_call"), where), *(part["call"] for part in parts if "call" in part)]
    if name in CALLS:
        calls, content = _calls(parsed(content) if isinstance(content, str) else content, where), ""
    results: Turns = [part["result"] for part in parts if "result" in part]
    if isinstance(content, (list, tuple)):
        content = _joined([part for part in parts if "type" in part])
    if calls and content is None:
        content = ""
    empty = not content.strip() if isinstance(content, str) else not content
    if not isinstance(content, (str, list)) or (empty and not calls and not results):
        raise Broken(f"{where}: the {role} turn has no text")
    own = {"role": role, "content": content, **{key: turn[key] for key in KEPT if isinstance(turn.get(key), str)}}
    if calls:
        own["tool_calls"] = calls
    return [*results, *([] if empty and not calls else [own])]


def _parts(content: Sequence[Any], where: str) -> Iterator[dict[str, Any]]:
    """Parts of OpenAI's, Anthropic's and Hugging Face's as ours: text, a medium, a call of a tool, the result of one."""
    for part in content:
        if isinstance(part, str):
            yield {"type": "text", "text": part}
            continue
        if not isinstance(part, Mapping):
            raise Broken(f"{where}: got a part that is {type(part).__name__}, takes an object with a type")
        kind = part.get("type") or next((name for name in ("text", *MEDIA) if part.get(name) is not None), None)
        if kind in TEXTS:
            yield {"type": "text", "text": str(part.get("text") or "")}
        elif kind in MEDIA:
            yield {"type": MEDIA[kind], "source": _source(part, str(kind), where)}
        elif kind == "tool_use":
            yield {"call": _call({"id": part.get("id"), "function": {"name": part.get("name"), "arguments": part.get("input")}}, where)}
        elif kind == "tool_result":
            output = part.get("content")
            text = _joined(list(_parts(output, where))) if isinstance(output, (list, tuple)) else str(output or "")
            yield {"result": {"role": "tool", "content": text, "tool_call_id": str(part.get("tool_use_id") or "")}}
        else:
            raise Broken(f"{where}: got a part of type {excerpt(kind)}, takes text, image or video")


def _source(part: Mapping[str, Any], kind: str, where: str) -> Any:
    """What a part names as its medium: a path, an address, bytes; None where it names nothing."""
    known = MEDIA[kind]
    values = (part.get(name) for name in dict.fromkeys((kind, known, f"{known}_url", "path", "url", "source", "bytes")))
    value = next((value for value in values if value is not None and value != ""), None)
    if isinstance(value, Mapping) and "url" in value:
        value = value["url"]
    if isinstance(value, Mapping) and value.get("type") == "base64":
        return _from_base64(str(value.get("data")), where)
    return decoded(value, where)


def decoded(source: Any, where: str) -> Any:
    """A medium that stands in the text itself as its bytes: a ``data:`` address, or base64 of a picture. Errors: Broken."""
    if isinstance(source, str) and source.startswith("data:"):
        kind, comma, data = source.partition(",")
        if not comma:
            raise Broken(f"{where}: a data: address without data")
        if not data.isascii():
            raise Broken(f"{where}: a data: address with letters that are none of its own")
        content = unquote_to_bytes(data)
        return _from_base64(content.decode("ascii", "replace"), where) if kind.endswith(";base64") else content
    if isinstance(source, str) and len(source) > 64 and source.startswith(("iVBORw0KGgo", "/9j/", "R0lGOD", "UklGR")):
        return _from_base64(source, where)
    return source


def _from_base64(text: str, where: str) -> bytes:
    try:
        return base64.b64decode("".join(text.split()), validate=True)
    except (binascii.Error, ValueError) as error:
        raise Broken(f"{where}: not base64: {error}") from error


def _joined(parts: Sequence[Mapping[str, Any]]) -> Any:
    """Parts of nothing but text as one string."""
    if any(part["type"] != "text" for part in parts):
        return [dict(part) for part in parts if part["type"] != "text" or part["text"]]
    return "".join(part["text"] for part in parts)


def _calls(calls: Any, where: str) -> Turns:
    if calls is None:
        return []
    return [_call(call, where) for call in (calls if isinstance(calls, (list, tuple)) else [calls])]


def _call(call: Any, where: str) -> dict[str, Any]:
    """A call of a tool as chat templates take it: arguments are an object, not a string of JSON."""
    function = call.get("function", call) if isinstance(call, Mapping) else None
    if not isinstance(function, Mapping) or not isinstance(function.get("name"), str):
        raise Broken(f"{where}: takes calls of tools as {{function: {{name, arguments}}}}")
    arguments = function.get("arguments", function.get("parameters"))
    arguments = parsed(arguments) if isinstance(arguments, str) and arguments.strip() else arguments or {}
    own = {"type": "function", "function": {"name": function["name"], "arguments": arguments}}
    return {**own, "id": call["id"]} if isinstance(call.get("id"), str) else own


# ---- prompts and what follows them


def put_together(prompt: Text, outputs: Sequence[Text]) -> tuple[Text, tuple[Text, ...]]:
    """A prompt and what follows it, its turns in their order; one turn of the assistant's becomes its text. Errors: Broken."""
    if isinstance(prompt, str) and any(not isinstance(output, str) for output in outputs):
        prompt = [{"role": "user", "content": prompt}]
    for output in outputs:
        if isinstance(prompt, str):
            break
        after = [{"role": "assistant", "content": output}] if isinstance(output, str) else output
        _in_order([*prompt, *after], len(prompt))
    return prompt, tuple(output if isinstance(output, str) else _single(output) for output in outputs)


def _single(turns: Turns) -> Text:
    if any(not isinstance(turn["content"], str) for turn in turns):
        raise Broken("an answer holds an image or a video, takes them in the prompt alone")
    text: str = turns[0]["content"]
    return text if len(turns) == 1 and not turns[0].keys() & {"tool_calls", "reasoning_content"} else turns


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


def before_the_answer(turns: Turns, key: str) -> tuple[Turns, Turns]:
    """A conversation as what is asked and the answer: the assistant's last turn, and the calls of tools that led to it. Errors: Broken."""
    if turns[-1]["role"] != "assistant":
        raise Broken(f"{key}: ends with the {turns[-1]['role']}'s turn, takes the assistant's")
    last = max((number for number, turn in enumerate(turns) if turn["role"] == "user"), default=-1)
    if last < 0:
        raise Broken(f"{key}: no turn of the user's")
    return turns[: last + 1], turns[last + 1 :]


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


def asks(text: Text) -> bool:
    """Whether a prompt is a transcript, "\\n\\nHuman: ...\\n\\nAssistant:", that ends where the assistant is to speak."""
    return isinstance(text, str) and text.lstrip().startswith("Human:") and text.rstrip().endswith("\n\nAssistant:")


def transcript(text: str) -> Turns:
    """A transcript of HH-RLHF's, "\\n\\nHuman: ...\\n\\nAssistant: ...", as turns. Errors: Broken for one that begins otherwise."""
    first, *parts = re.split(r"(?:^|\n\n)(Human|Assistant):", text if text.startswith("\n\n") else "\n\n" + text.lstrip())
    if first.strip():
        raise Broken('takes a transcript that begins with "Human:"')
    spoken = zip(parts[::2], parts[1::2], strict=True)
    return turns_of([{"role": who, "content": text.strip()} for who, text in spoken], "transcript")
