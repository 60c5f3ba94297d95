"""What environments and tools are, and what tools are called with."""

from __future__ import annotations

import inspect
import json
import typing
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from mmalign.conversations import Turn, texts_of
from mmalign.media import address

Environment = Callable[..., list[Any]]
"""``(conversations) -> replies``: of each conversation a text, a turn, several turns, or None, which ends it (``policy.turns``)."""
Tool = Callable[..., Any]
"""What a model may call: its arguments are what the model wrote, its answer becomes the reply, and so does what it raises."""

PICTURES = "pictures"
"""A tool with a parameter of this name is given the pictures of the conversation so far, as PIL has them; a model does not write it."""
KINDS: dict[Any, str] = {str: "string", int: "integer", float: "number", bool: "boolean", list: "array", dict: "object"}


def calls_of(turn: Turn, names: Sequence[str]) -> list[Mapping[str, Any]]:
    """The calls of a turn in their order, as ``name`` and ``arguments``: those that its template wrote (``calls``), or else its tags.

    A tag is ``<name>...</name>`` of a tool. What stands in it is an object of JSON, argument by argument, or the tool's first argument.
    """
    if "calls" in turn:
        return list(turn["calls"])
    text, place, calls = "".join(texts_of(turn)), 0, list[Mapping[str, Any]]()
    while True:
        starts = {name: at for name in names if (at := text.find(f"<{name}>", place)) >= 0}
        if not starts:
            return calls
        name = min(starts, key=lambda name: starts[name])
        start = starts[name] + len(name) + 2
        end = text.find(f"</{name}>", start)
        if end < 0:
            return [*calls, {"name": name, "error": f"<{name}> has no </{name}>"}]
        calls.append({"name": name, "arguments": _arguments(text[start:end].strip())})
        place = end + len(name) + 3


def _arguments(text: str) -> Any:
    if not text.startswith("{"):
        return text
    try:
        return json.loads(text)
    except ValueError:
        return text


def schema(name: str, tool: Tool) -> dict[str, Any]:
    """A tool as chat templates take it: its name, the first line of its docstring, its parameters by their annotations."""
    parameters = {key: parameter for key, parameter in inspect.signature(tool).parameters.items() if key != PICTURES}
    types = typing.get_type_hints(tool) if inspect.isfunction(tool) else {}
    properties = {key: {"type": KINDS.get(types.get(key, str), "string")} for key in parameters}
    required = [key for key, parameter in parameters.items() if parameter.default is parameter.empty]
    what = (inspect.getdoc(tool) or name).splitlines()[0]
    shape = {"type": "object", "properties": properties, "required": required}
    return {"type": "function", "function": {"name": name, "description": what, "parameters": shape}}


def looks(tool: Tool) -> bool:
    """Whether a tool is given the conversation's pictures."""
    return PICTURES in inspect.signature(tool).parameters


def shown(result: Any) -> list[dict[str, Any]] | None:
    """What a tool returned as parts of a turn, where it is a picture, or several things of which one is; None where it is words alone.

    Errors: Broken for a picture that cannot be read.
    """
    some = list(result) if isinstance(result, (list, tuple)) else [result]
    if not any(map(_is_picture, some)):
        return None
    return [{"type": "image", "url": address(one)} if _is_picture(one) else {"type": "text", "text": str(one)} for one in some]


def _is_picture(value: Any) -> bool:
    from PIL import Image

    return isinstance(value, (Image.Image, Tensor))
