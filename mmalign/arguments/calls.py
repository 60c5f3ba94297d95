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
import os
import typing
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NamedTuple

from mmalign.arguments import environment, signatures
from mmalign.arguments.places import absolute, by_name
from mmalign.arguments.renamed import renamed


class Made(NamedTuple):
    """What something was made by: the name of a room's function, and its arguments as they were given."""

    name: str
    arguments: dict[str, Any]


_MADE: dict[tuple[int, ...], tuple[tuple[weakref.ref[Any], ...], Made]] = {}
"""key of what was made -> (it, or its parts, weakly; what it was made by)."""

_NOW: ContextVar[Made | Mapping[str, Any] | None] = ContextVar("now", default=None)


@functools.cache
def remembering(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which checks its plain arguments before it runs, and what it returned remembers them."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        arguments, converted = bound(function, args, kwargs)
        made = Made(function.__name__, arguments)
        with saying(made):
            result = function(**converted)
        _remember(result, made)
        return result

    return call


@functools.cache
def checking(function: Callable[..., Any]) -> Callable[..., Any]:
    """The function, which checks its plain arguments before it runs; what it returns is remembered as what made it inside."""

    @functools.wraps(function)
    def call(*args: Any, **kwargs: Any) -> Any:
        return function(**bound(function, args, kwargs)[1])

    return call


@contextmanager
def saying(what: Made | Mapping[str, Any]) -> Iterator[None]:
    """What `described` answers inside of the block: a call, or the node of a config that is carried out."""
    token = _NOW.set(what)
    try:
        yield
    finally:
        _NOW.reset(token)


def described() -> dict[str, Any]:
    """The call that is going on as a config says it, without ``resume``; empty for a function that no room answered with.

    What was read of the environment is as it was written; places on disk have their whole names, and those that come with mmalign the names
    by which it finds them.
    """
    now = _NOW.get()
    if now is None:
        return {}
    if isinstance(now, Made):
        now = {"use": now.name, **{key: node_of(item) for key, item in now.arguments.items()}}
    written = {key: environment.as_written(value) for key, value in now.items() if key != "resume"}
    return {str(key): value for key, value in by_name(absolute(written, Path.cwd())).items()}


def bound(function: Callable[..., Any], args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """Arguments by name, as they were given and as the function takes them: mappings become records where it takes those.

    Errors: UserError in one line for an unknown or a missing keyword, at any depth, and for a plain value that does not fit.
    """
    from mmalign.types import UserError

    name, (parameters, any_key) = function.__name__, signatures.parameters(function)
    known = ", ".join(key for key in parameters if key != "self") or "nothing"
    for key in kwargs:
        if key not in parameters and not any_key:
            near = signatures.nearest(key, parameters)
            raise UserError(f"{name}.{key}: " + (renamed(key, name) or f"unknown key of {name}{near}; takes {known}"))
    signature = inspect.signature(function)
    try:
        bound_arguments = signature.bind(*args, **kwargs).arguments
    except TypeError as error:
        raise UserError(f"{name}: {error}; takes {known}") from error
    more = next((key for key, item in signature.parameters.items() if item.kind is item.VAR_KEYWORD), "")
    arguments = {**{key: value for key, value in bound_arguments.items() if key != more}, **bound_arguments.get(more, {})}
    reader = signatures.Reader(leaf=_leaf, build=lambda record, values, path: signatures.make(record, values), errors=[])
    converted = dict(arguments)
    for key in (key for key in arguments if key in parameters):
        converted[key] = signatures.read(arguments[key], parameters[key], f"{name}.{key}", reader)
    if reader.errors:
        raise UserError(reader.errors[0])
    return arguments, converted


def _leaf(path: str, value: Any, parameter: signatures.Parameter) -> Any:
    """A plain value as it was given, if it fits."""
    from mmalign.types import UserError

    if _is_plain(value) and (mistake := signatures.fit(value, parameter).mistake):
        raise UserError(f"{path}: {mistake}")
    wanted = parameter.annotation
    if not _is_plain(value) and not isinstance(value, os.PathLike) and _is_path(wanted):
        raise UserError(f"{path}: got a {type(value).__name__}, takes {signatures.show(wanted)}")
    if _is_plain(value) and isinstance(wanted, type) and wanted is not object and not signatures.plain(wanted) and _is_made(wanted):
        raise UserError(f"{path}: got {value!r}, takes what a function that gives {wanted.__name__} made (`mmalign list`)")
    return value


def _is_path(annotation: Any) -> bool:
    """Whether only a path, or words, fit: ``str | Path``."""
    parts = typing.get_args(annotation) or (annotation,)
    return Path in parts and all(part in (str, Path, type(None)) for part in parts)


def _is_made(kind: type) -> bool:
    """Whether a class is one of mmalign's own things, of which plain data is none; a protocol may be met by anything."""
    return kind.__module__.startswith("mmalign.") and not getattr(kind, "_is_protocol", False)


def node_of(value: Any) -> Any:
    """A value as a config says it: what made it as ``{use: name, ...}``, records as mappings, plain data as it is.

    What no config can say (a function of the user's, a tensor) becomes ``<its type>``; `sayable` tells.
    """
    made = made_by(value)
    if made is not None:
        return {"use": made.name, **{key: node_of(item) for key, item in made.arguments.items()}}
    if isinstance(value, signatures.Record):
        return {field.name.rstrip("_"): node_of(item) for field, item in _changed(value)}
    if isinstance(value, Mapping):
        return {str(key): node_of(item) for key, item in value.items()}
    if type(value) in (list, tuple):  # and no record of a data set
        items = [node_of(item) for item in value]
        return items if sayable(items) else f"<{len(items)} of {type(value[0]).__name__}>"
    if isinstance(value, (bool, int, float, str, type(None))):
        return value
    return str(value) if isinstance(value, Path) else _loaded_from(value) or f"<{type(value).__name__}>"


def _changed(record: Any) -> Iterator[tuple[dataclasses.Field[Any], Any]]:
    """The fields of a record that are not what they are by default."""
    for field in dataclasses.fields(record):
        default = field.default if field.default_factory is dataclasses.MISSING else field.default_factory()
        if (item := getattr(record, field.name)) is not default and not (_is_plain(item) and item == default):
            yield field, item


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
        place = getattr(value, name, None) or getattr(getattr(value, "config", None), name, None)
        if isinstance(place, str) and place:
            return place
    return None
