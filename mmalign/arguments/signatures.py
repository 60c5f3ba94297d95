"""What a function's signature says of its arguments, and whether a value from a YAML file fits.

Only plain data is checked (numbers, strings, booleans, null, paths, Literal, lists, tuples, sets, mappings and unions of these), with the
range that an annotation gives to numbers (`ranges`), and records: an argument that is annotated with one (`Record`) takes a mapping of its
fields, which are checked in the same way down to the last leaf. Everything else is an object, which a config builds with a node.
"""

from __future__ import annotations

import collections.abc
import dataclasses
import difflib
import functools
import inspect
import json
import types
import typing
from collections.abc import Callable, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, Literal, NamedTuple, Union

from mmalign.arguments.parameters import Parameter, parameters
from mmalign.arguments.ranges import outside_of

LEAVES = (int, float, str, bool, type(None), Path, Any, object)
CONTAINERS = (list, dict, tuple, set, frozenset, collections.abc.Sequence, collections.abc.Mapping, collections.abc.Collection)
OUTPUTS = ("out", "output", "runs", "root", "folder")
"""Parameters annotated ``Path`` that name what will be written, and need not exist."""


class Checked(type):
    """A class whose keywords are checked when it is called, so that a wrong one is the line that a config would get."""

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        from mmalign.types import UserError

        known, _ = parameters(cls)
        for key in kwargs:
            if key.rstrip("_") not in known:
                raise UserError(f"{cls.__name__}.{key}: unknown key of {cls.__name__}{nearest(key, known)}; takes {', '.join(known)}")
        return super().__call__(*args, **kwargs)

    @property
    def __signature__(cls) -> inspect.Signature:
        """That of ``__init__``, which `inspect` would not look for behind the call above."""
        own = inspect.signature(cls.__init__)  # type: ignore[misc]
        return own.replace(parameters=list(own.parameters.values())[1:])


class Record(metaclass=Checked):
    """Marks a frozen dataclass of settings: a mapping of its fields, in YAML or in Python, stands for it.

    What it inherits refuses numbers outside of the ranges of its annotations when it is made.
    """

    def __post_init__(self) -> None:
        from mmalign.types import UserError

        for name, parameter in parameters(type(self))[0].items():
            value = getattr(self, name if name in self.__dict__ else f"{name}_")
            if parameter.within is not None and outside_of(value, parameter.within):
                raise UserError(f"{name}: got {value}, takes {parameter.within.takes(value)}")


class Fit(NamedTuple):
    """A value as a parameter has it. mistake: what is wrong with it, ``got 'x', takes int``; empty where it fits. in_kind: whether it is of
    the right kind, and wrong by its number alone (``got 0, takes 1 or more``)."""

    value: Any
    mistake: str = ""
    in_kind: bool = True


class Reader(NamedTuple):
    """How arguments are read: ``leaf(path, value, parameter)`` for what is no record, ``build(record, arguments, path)`` for one that is
    right. Mistakes, a line each, go into ``errors``."""

    leaf: Callable[[str, Any, Parameter], Any]
    build: Callable[[type, dict[str, Any], str], Any]
    errors: list[str]


def read(value: Any, parameter: Parameter, path: str, reader: Reader) -> Any:
    """A value for a parameter: mappings where it takes records become those, whatever their depth."""
    record, inside = record_of(parameter.annotation), _records_inside(parameter.annotation)
    node = isinstance(value, Mapping) and "use" in value
    if record is not None and isinstance(value, Mapping) and not node:
        return _read_record(value, record, path, reader)
    if inside is not None and isinstance(value, Mapping) and not node:
        return {key: read(item, Parameter(str(key), inside, True), f"{path}.{key}", reader) for key, item in value.items()}
    if record is not None and not isinstance(value, record) and not node:
        return _read_otherwise(value, parameter, record, path, reader)
    return reader.leaf(path, value, parameter)


def _read_otherwise(value: Any, parameter: Parameter, record: type, path: str, reader: Reader) -> Any:
    """What is no mapping where a record may stand: one of the other types that the parameter takes."""
    other = _without_records(parameter.annotation)
    if other is None:
        reader.errors.append(f"{path}: got {value!r}, takes a mapping of {', '.join(parameters(record)[0])}")
        return value
    if value is None or not plain(other):
        return value
    fitted, mistake, in_kind = fit(value, parameter._replace(annotation=other))
    if not in_kind:
        takes = show(other).replace("null or ", "").replace(" or null", "")
        near = f"{takes}, or a mapping" if takes != "null" else "a mapping"
        mistake = f"got {value!r}, takes {near} of {', '.join(parameters(record)[0])}"
    reader.errors.extend([f"{path}: {mistake}"] if mistake else [])
    return fitted


def _read_record(value: Mapping[str, Any], record: type, path: str, reader: Reader) -> Any:
    from mmalign.arguments.renamed import renamed
    from mmalign.types import UserError

    before, (known, _), word = len(reader.errors), parameters(record), path.rpartition(".")[2]
    arguments = {}
    for key, item in value.items():
        if key in known:
            arguments[str(key)] = read(item, known[key], f"{path}.{key}", reader)
        else:
            why = renamed(str(key), path) or f"unknown key of {word}{nearest(str(key), known)}; takes {', '.join(known)}"
            reader.errors.append(f"{path}.{key}: {why}")
    for key, parameter in known.items():
        if parameter.required and key not in value:
            reader.errors.append(f"{path}.{key}: missing, {word} needs it")
    if len(reader.errors) > before:
        return value
    try:
        make(record, arguments)
    except UserError as error:
        reader.errors.append(f"{path}.{error}")
        return value
    return reader.build(record, arguments, path)


def record(kind: type, value: Any, path: str) -> Any:
    """A record of that kind from a mapping, or as it is. Errors: UserError with the first mistake, whose key begins with ``path``."""
    from mmalign.types import UserError

    def leaf(place: str, item: Any, parameter: Parameter) -> Any:
        fitted, mistake, _ = fit(item, parameter)
        reader.errors.extend([f"{place}: {mistake}"] if mistake else [])
        return fitted

    reader = Reader(leaf, lambda made, arguments, place: make(made, arguments), [])
    settings = read(value, Parameter(path, kind, True), path, reader)
    if reader.errors:
        raise UserError(reader.errors[0])
    return settings


def make(record: Any, arguments: Mapping[str, Any]) -> Any:
    """A record from its arguments by name, those included that are words of Python's (``from``)."""
    names = {field.name.rstrip("_"): field.name for field in dataclasses.fields(record)}
    return record(**{names[key]: value for key, value in arguments.items()})


def may_be_null(annotation: Any) -> bool:
    """Whether None is among what an annotation takes."""
    return annotation in (Any, object, None, type(None)) or type(None) in typing.get_args(annotation)


def record_of(annotation: Any) -> type | None:
    """The record that a mapping stands for under this annotation; None where there is none."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return next((part for part in parts if isinstance(part, type) and issubclass(part, Record)), None)


def _records_inside(annotation: Any) -> Any:
    """What the values of a mapping are, where they may be records: ``dict[str, Reference]``."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for part in parts:
        if typing.get_origin(part) in (dict, collections.abc.Mapping):
            inside = typing.get_args(part)[1]
            if record_of(inside) is not None:
                return inside
    return None


def _without_records(annotation: Any) -> Any:
    """What else a parameter takes than its record; None where that is all."""
    if typing.get_origin(annotation) not in (Union, types.UnionType):
        return None
    rest = [part for part in typing.get_args(annotation) if record_of(part) is None]
    return Union[tuple(rest)] if rest else None  # noqa: UP007 (types known at run time alone)


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


def scalar(annotation: Any) -> bool:
    """Whether only numbers, words, booleans, paths and null fit: then no node may stand there."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    scalars = (int, float, str, bool, type(None), Path)
    return all(any(part is leaf for leaf in scalars) or typing.get_origin(part) is Literal for part in parts)


def words(annotation: Any) -> tuple[Any, ...]:
    """The values that it names by themselves, as of ``Literal["sentence", "turn"] | Callable``."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    return tuple(word for part in parts if typing.get_origin(part) is Literal for word in typing.get_args(part))


def data_alone(annotation: Any) -> bool:
    """Whether only scalars, and lists and mappings of them, fit: then no node may stand there, nor inside."""
    if scalar(annotation):
        return True
    inside = [part for part in typing.get_args(annotation) if part is not ...]
    kept = typing.get_origin(annotation) in (Union, types.UnionType, *CONTAINERS)
    return kept and bool(inside) and all(data_alone(part) for part in inside)


def may_be_plain(value: Any, annotation: Any) -> bool:
    """Whether a value that holds no node may stand for an object: one of a union's plain types, or a list or mapping of nodes."""
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    for part in parts:
        origin = typing.get_origin(part)
        fits = origin in CONTAINERS and isinstance(value, (list, Mapping)) and isinstance(value, Mapping) == issubclass(origin, Mapping)
        if part in (Any, object) or fits:
            return True
        if isinstance(value, Mapping) and "use" in value:
            return True
        if plain(part) and fit(value, Parameter("", part, True)).in_kind:
            return True
    return False


def not_plain(value: Any, annotation: Any, place: str = "") -> Iterator[tuple[str, Any]]:
    """(place, what stands there) of what holds no node where an object has to be built: the value itself, or a mapping inside of it."""
    if not may_be_plain(value, annotation):
        yield place, value
        return
    parts = typing.get_args(annotation) if typing.get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    mappings = [part for part in parts if typing.get_origin(part) in CONTAINERS and issubclass(typing.get_origin(part), Mapping)]
    if isinstance(value, Mapping) and "use" not in value and len(mappings) == 1 and typing.get_args(mappings[0]):
        for name, item in value.items():
            if isinstance(item, Mapping):
                yield from not_plain(item, typing.get_args(mappings[0])[-1], f"{place}.{name}")


def fit(value: Any, parameter: Parameter) -> Fit:
    """A value as a parameter's annotation has it, where that is plain data, and in its range; or as it was, and what is wrong with it.

    Wrong are text for a number, a float for an int, a boolean for either; numbers that are not taken, NaN, and what no machine's number
    holds.
    """
    fitted = value
    if plain(parameter.annotation):
        try:
            fitted = convert(value, parameter.annotation)
        except ValueError:
            return Fit(value, f"got {shown(value)}, takes {show(parameter.annotation)}", in_kind=False)
    if _of_numbers(parameter.annotation) and outside_of(value, parameter.within):
        allowed = "a number of 64 bits" if parameter.within is None else parameter.within.takes(value)
        return Fit(value, f"got {shown(list(value) if isinstance(value, tuple) else value)}, takes {allowed}")
    if parameter.name == "device" and isinstance(value, str):
        import torch

        try:
            torch.device(value)
        except RuntimeError:
            return Fit(value, f"got {shown(value)}, takes a device of torch: cpu, cuda, cuda:1, mps, ...")
    return Fit(fitted)


def _of_numbers(annotation: Any) -> bool:
    """Whether a number may stand somewhere under an annotation that says so; what takes anything has no range."""
    if annotation in (int, float):
        return True
    return typing.get_origin(annotation) is not Literal and any(map(_of_numbers, typing.get_args(annotation)))


def convert(value: Any, annotation: Any) -> Any:
    """The value as the annotated type: an int for a float, a list for a tuple, a string for a path, and no other liberties.

    Errors: ValueError (pydantic's) where it does not fit: text is no number, a float is no int, and a boolean is neither.
    """
    # strict mode of JSON, not of Python, because YAML has no tuples, sets and paths either
    return _adapter(annotation).validate_json(json.dumps(value, default=str), strict=True)


@functools.cache
def _adapter(annotation: Any) -> Any:
    from pydantic import TypeAdapter

    return TypeAdapter(annotation)


def shown(value: Any) -> str:
    """A value in a message, the beginning of it where it is long."""
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:200]}..."


def takes(parameter: Parameter) -> str:
    """What a parameter takes, in the words of a config file; empty where that is an object."""
    if (inside := _records_inside(parameter.annotation)) is not None:
        return f"mapping of names to {takes(parameter._replace(annotation=inside))}"
    record, other = record_of(parameter.annotation), _without_records(parameter.annotation)
    if record is not None:
        words = [] if other in (None, type(None)) or not plain(other) else [takes(parameter._replace(annotation=other))]
        return " or ".join([*words, f"mapping of {', '.join(parameters(record)[0])}"])
    if not plain(parameter.annotation):
        return ""
    return show(parameter.annotation) + ("" if parameter.within is None else f", {parameter.within}")


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
    if record_of(annotation) is not None:
        return f"mapping of {', '.join(parameters(annotation)[0])}"
    return "path" if annotation is Path else getattr(annotation, "__name__", str(annotation))


def is_file(parameter: Parameter) -> bool:
    """Whether a parameter names a file that has to exist: called ``path`` or ``*_file``, or annotated ``Path`` and no output."""
    parts, name = (parameter.annotation, *typing.get_args(parameter.annotation)), parameter.name
    return name == "path" or name.endswith("_file") or (Path in parts and name not in OUTPUTS and not name.endswith(("_folder", "_dir")))


def nearest(name: str, known: Iterable[str]) -> str:
    """``"; nearest: a, b"`` for a mistyped name, or an empty string where nothing is near.

    Examples:
        >>> nearest("flow_grop", ["flow_grpo", "kto", "dpo"])
        '; nearest: flow_grpo'
    """
    close = difflib.get_close_matches(name, list(known), n=3, cutoff=0.6)
    return f"; nearest: {', '.join(close)}" if close else ""
