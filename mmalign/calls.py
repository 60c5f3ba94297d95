"""Python and YAML are one: what a room's function is called with is checked as in a config, and remembered, so that a run can say it.

A function that a room answers with (``mm.methods.kto``) is the function itself with two things around it. A keyword that it does not
take, or a plain value that does not fit, is the one line that ``mmalign check`` would print. And what it returns remembers the call, for
as long as it lives: ``node_of`` gives ``{use: kto, beta: 0.1}`` back. So a run that was started from Python has a whole config, and can
be sampled, exported and resumed from the command line.
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import weakref
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from mmalign import signatures


class Made(NamedTuple):
    """What something was made by: the name of a room's function, and its arguments as they were given."""

    name: str
    arguments: dict[str, Any]


_MADE: dict[tuple[int, ...], tuple[tuple[weakref.ref[Any], ...], Made]] = {}
"""key of what was made -> (it, or its parts, weakly; what it was made by)."""


@functools.cache
def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which checks its plain arguments before it runs, and what it returned remembers them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments = bound(function, args, kwargs)
        found = function(*args, **kwargs)
        _remember(found, Made(function.__name__, arguments))
        return found

    return call


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> dict[str, Any]:
    """Arguments by name. Errors: UserError in one line for an unknown or a missing keyword, and for a plain value that does not fit."""
    from mmalign.types import UserError

    name, (parameters, any_key) = function.__name__, signatures.parameters(function)
    for key in kwargs:
        if key not in parameters and not any_key:
            raise UserError(
                f"{name}.{key}: unknown key of {name}{signatures.nearest(key, parameters)}; takes {', '.join(parameters) or 'nothing'}"
            )
    try:
        given = dict(inspect.signature(function).bind(*args, **kwargs).arguments)
    except TypeError as error:
        raise UserError(f"{name}: {error}; takes {', '.join(parameters)}") from error
    for key, value in given.items():
        if key in parameters and _is_plain(value) and signatures.plain(parameters[key].annotation):
            try:
                signatures.convert(value, parameters[key].annotation)
            except ValueError:
                raise UserError(f"{name}.{key}: got {value!r}, takes {signatures.show(parameters[key].annotation)}") from None
    return given


def node_of(value: Any) -> Any:
    """A value as a config says it: what made it as ``{use: name, ...}``, records as mappings, plain data as it is.

    What no config can say (a function of the user's, a tensor) becomes ``<its type>``; `sayable` tells.
    """
    made = made_by(value)
    if made is not None:
        return {"use": made.name, **{key: node_of(item) for key, item in made.arguments.items()}}
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: node_of(getattr(value, field.name)) for field in dataclasses.fields(value)}
    if isinstance(value, Mapping):
        return {str(key): node_of(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [node_of(item) for item in value]
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return str(value) if isinstance(value, Path) else _loaded_from(value) or f"<{type(value).__name__}>"


def sayable(node: Any) -> bool:
    """Whether a node of `node_of` says everything, so that it can be built again."""
    if isinstance(node, Mapping):
        return all(sayable(item) for item in node.values())
    if isinstance(node, list):
        return all(sayable(item) for item in node)
    return not (isinstance(node, str) and node.startswith("<") and node.endswith(">"))


def made_by(value: Any) -> Made | None:
    """The call that a room's function returned this very object from; None where it is not known."""
    key = _key(value)
    if key not in _MADE:
        return None
    parts, made = _MADE[key]
    return made if all(ref() is part for ref, part in zip(parts, _parts(value), strict=True)) else None


def _remember(value: Any, made: Made) -> None:
    parts = _parts(value)
    try:
        refs = tuple(weakref.ref(part) for part in parts)
    except TypeError:
        return  # plain data, which says itself
    if refs:
        key = _key(value)
        _MADE[key] = (refs, made)
        weakref.finalize(parts[0], _MADE.pop, key, None).atexit = False


def _parts(value: Any) -> tuple[Any, ...]:
    """What lives as long as a value does and can be watched: itself, or the members of a tuple (a model and its tokenizer)."""
    return tuple(value) if type(value) is tuple else (value,)


def _key(value: Any) -> tuple[int, ...]:
    return tuple(id(part) for part in _parts(value))


def _is_plain(value: Any) -> bool:
    """Numbers, words and lists and mappings of them: what a config would hold."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and _is_plain(item) for key, item in value.items())
    if isinstance(value, (list, tuple)):
        return all(_is_plain(item) for item in value)
    return isinstance(value, (bool, int, float, str, type(None), Path))


def _loaded_from(value: Any) -> str | None:
    """The folder or hub id that a model or a pipeline of a library was loaded from."""
    for name in ("name_or_path", "_name_or_path"):
        held = getattr(value, name, None) or getattr(getattr(value, "config", None), name, None)
        if isinstance(held, str) and held:
            return held
    return None
