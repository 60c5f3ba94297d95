"""The keywords of functions and classes, as their signatures say them: annotation, range, whether a column of the prompts is named."""

from __future__ import annotations

import dataclasses
import inspect
import types
import typing
import weakref
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

from mmalign.arguments.columns import OfPrompts
from mmalign.arguments.ranges import Range


class Parameter(NamedTuple):
    """A keyword that a function takes. annotation: Any where none can be resolved. within: of numbers. of_prompts: of a column's name."""

    name: str
    annotation: Any
    required: bool
    within: Range | None = None
    of_prompts: OfPrompts | None = None


_PARAMETERS: weakref.WeakKeyDictionary[Any, tuple[dict[str, Parameter], bool]] = weakref.WeakKeyDictionary()
"""function or class -> what ``parameters`` says of it, where all of its annotations could be resolved."""


def parameters(function: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    """The keywords of a function or a class by name, and whether it takes any other too."""
    lasting = isinstance(function, (types.FunctionType, type))
    known = _PARAMETERS.get(function) if lasting else None
    if known is None:
        known = _parameters(function)
        owner = _annotated(function)
        if lasting and isinstance(owner, types.FunctionType) and len(_HINTS.get(owner, {})) == 2:
            _PARAMETERS[function] = known
    return dict(known[0]), known[1]


def _parameters(function: Callable[..., Any]) -> tuple[dict[str, Parameter], bool]:
    try:
        signature = inspect.signature(function)
    except (ValueError, TypeError):
        return {}, True  # a builtin that does not say
    annotations, ranges = _resolved(function), _resolved(function, extras=True)
    known, any_key = {}, False
    for name, parameter in signature.parameters.items():
        if parameter.kind in (parameter.POSITIONAL_OR_KEYWORD, parameter.KEYWORD_ONLY):
            key = name.rstrip("_")  # a field that would be a word of Python's: `from_`
            required = parameter.default is parameter.empty
            marks = [_mark(ranges.get(name), kind) for kind in (Range, OfPrompts)]
            known[key] = Parameter(key, annotations.get(name, Any), required, *marks)
        any_key = any_key or parameter.kind == parameter.VAR_KEYWORD
    return known, any_key


def accepted(function: Callable[..., Any], values: Mapping[str, Any]) -> dict[str, Any]:
    """Those keywords that a function takes: all of them where it takes any."""
    keywords, any_key = parameters(function)
    return {name: value for name, value in values.items() if any_key or name in keywords}


def _mark(annotation: Any, kind: type) -> Any:
    """The range, or another mark of that kind, inside of an annotation, whatever stands around it; None where there is none."""
    parts = (part if isinstance(part, kind) else _mark(part, kind) for part in typing.get_args(annotation))
    return next((part for part in parts if part is not None), None)


_HINTS: weakref.WeakKeyDictionary[types.FunctionType, dict[bool, dict[str, Any]]] = weakref.WeakKeyDictionary()
"""function -> with extras or without -> its annotations, where all of them could be resolved: later more may be imported."""


def _annotated(function: Callable[..., Any]) -> Any:
    """Where the annotations of a function or a class are."""
    return function.__init__ if isinstance(function, type) else inspect.unwrap(function)  # type: ignore[misc]


def _resolved(function: Callable[..., Any], *, extras: bool = False) -> dict[str, Any]:
    """Annotations as types, even where they are strings and some of them name what only a type checker imports."""
    owner = _annotated(function)
    kept = _HINTS.setdefault(owner, {}) if isinstance(owner, types.FunctionType) else {}
    if extras not in kept:
        # the fields of a record may be inherited from another file, whose names their annotations are
        hinted = function if isinstance(function, type) and dataclasses.is_dataclass(function) else owner
        try:
            kept[extras] = typing.get_type_hints(hinted, include_extras=extras)
        except (NameError, TypeError, AttributeError, SyntaxError):
            return {name: _resolved_one(owner, name, text, extras) for name, text in getattr(owner, "__annotations__", {}).items()}
    return kept[extras]


def _resolved_one(owner: Any, name: str, annotation: Any, extras: bool) -> Any:
    def alone() -> None: ...

    alone.__annotations__ = {name: annotation}
    try:
        return typing.get_type_hints(alone, globalns=getattr(owner, "__globals__", {}), include_extras=extras)[name]
    except (NameError, TypeError, AttributeError, SyntaxError):
        return Any
