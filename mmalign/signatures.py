"""What a function's signature says of its arguments, and whether a value from a YAML file fits.

Only plain data is checked (numbers, strings, booleans, null, paths, Literal, and lists, tuples, sets, mappings and unions of these).
Everything else is an object, which a config builds with a node.
"""

from __future__ import annotations

import collections.abc
import difflib
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

LEAVES = (int, float, str, bool, type(None), Path, Any, object)
CONTAINERS = (list, dict, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Mapping, collections.abc.Collection)
OUTPUTS = ("out", "output", "runs", "root", "folder")
"""Parameters annotated ``Path`` that name what will be written, and need not exist."""


class Parameter(NamedTuple):
    """A keyword that a function takes. ``annotation`` is Any where there is none, or none that can be resolved."""

    name: str
    annotation: Any
    required: bool


def parameters(function: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """The keywords of a function or a class by name, and whether it takes any other too."""
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return {}, True  # a builtin that does not say
    annotations = _resolved(function)
    found, any_key = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            found[name] = Parameter(name, annotations.get(name, Any), parameter.default is parameter.empty)
        any_key = any_key or parameter.kind == parameter.VAR_KEYWORD
    return found, any_key


def _resolved(function: Callable[..., Any]) -> dict[str, Any]:
    """Annotations as types, even where they are strings and some of them name what only a type checker imports."""
    owner: Any = function.__init__ if isinstance(function, type) else inspect.unwrap(function)  # type: ignore[misc]
    try:
        return typing.get_type_hints(owner)
    except (NameError, TypeError, AttributeError, SyntaxError):
        return {name: _resolved_one(owner, name, text) for name, text in getattr(owner, "__annotations__", {}).items()}


def _resolved_one(owner: Any, name: str, annotation: Any) -> Any:
    def alone() -> None: ...

    alone.__annotations__ = {name: annotation}
    try:
        return typing.get_type_hints(alone, globalns=getattr(owner, "__globals__", {}))[name]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any


def plain(annotation: Any) -> bool:
    """Whether a YAML value can be checked against an annotation."""
    if any(annotation is leaf for leaf in (*LEAVES, *CONTAINERS)):
        return True
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return True
    if origin in (Union, types.UnionType, *CONTAINERS):
        return all(plain(part) for part in inside if part is not ...)
    return False


def convert(value: Any, annotation: Any) -> Any:
    """The value as the annotated type: an int for a float, a list for a tuple, a string for a path, and no other liberties.

    Raises ValueError (pydantic's) where it does not fit: text is no number, a float is no int, and a boolean is neither.
    """
    from pydantic import TypeAdapter

    # strict mode of JSON, not of Python, because YAML has no tuples, sets and paths either
    return TypeAdapter(annotation).validate_json(json.dumps(value, default=str), strict=True)


def show(annotation: Any) -> str:
    """An annotation in the words of a config file."""
    names = {type(None): "null", Any: "anything", object: "anything", dict: "mapping", collections.abc.Mapping: "mapping"}
    if any(annotation is known for known in names):
        return names[annotation]
    origin, inside = typing.get_origin(annotation), typing.get_args(annotation)
    if origin is Literal:
        return " or ".join(repr(choice) for choice in inside)
    if origin in (Union, types.UnionType):
        return " or ".join(show(part) for part in inside)
    if origin in (dict, collections.abc.Mapping):
        return f"mapping of {show(inside[0])} to {show(inside[1])}"
    if origin in CONTAINERS:
        return f"list of {' and '.join(show(part) for part in inside if part is not ...)}"
    return "path" if annotation is Path else getattr(annotation, "__name__", str(annotation))


def is_file(parameter: Parameter) -> bool:
    """Whether a parameter names a file that has to exist: called ``path`` or ``*_file``, or annotated ``Path`` and no output."""
    if parameter.name == "path" or parameter.name.endswith("_file"):
        return True
    parts = (parameter.annotation, *typing.get_args(parameter.annotation))
    return Path in parts and parameter.name not in OUTPUTS and not parameter.name.endswith(("_folder", "_dir"))


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; nearest: a, b"`` for a mistyped name, or an empty string where nothing is near."""
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(close)}" if close else ""
