"""From nodes to calls: names are looked up, and arguments checked against signatures and records.

Nothing is built here but optimisers, kernels and windows, which are cheap; every mistake is one line that begins with its dotted key.
What is outside of mmalign is imported where the caller trusts the config, and otherwise listed and read as text (`lookup.external_code`).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.arguments import signatures
from mmalign.arguments.renamed import renamed
from mmalign.arguments.signatures import nearest
from mmalign.config.nodes import FITS, KIND_OF, LATER, MODELS, NAMED, OWN_ARGUMENTS, ROOMS, USUAL, Product, expanded, maker, unfit
from mmalign.config.parsing import one_line
from mmalign.lookup import catalogue
from mmalign.lookup.external_code import IMPORT_PATH, ExternalCode, is_importable, is_offered, lacking, source_file, source_signature
from mmalign.rooms import find, index, no_module, resource

CHEAP = ("mmalign.training.optimizers", "mmalign.samplers.")
"""Where functions are that are called already when a config is checked: what they refuse is a mistake of the config."""

METHODS = "mmalign.methods."
"""Where methods are, which are called then too, to be compared with their policy."""

CALLED, CALLED_BY_NAME = ("combine", "oracle", "mark", "real"), ("rewards", "judges", "metrics")
"""Keys whose nodes, and whose nodes by name, give what is called in a run."""


@dataclass(frozen=True)
class Maker:
    """What a planned record is called with its arguments by."""

    record: type

    def __call__(self, **arguments: Any) -> Any:
        return signatures.make(self.record, arguments)


@dataclass(frozen=True)
class Unread:
    """In place of a function outside of mmalign, which was not imported."""

    name: str

    def __call__(self, **arguments: Any) -> Any:
        raise ImportError(f"{self.name}: was not imported")


@dataclass(frozen=True)
class Call:
    """A checked node: what will be called with what. Arguments may hold further calls inside mappings and lists."""

    path: str
    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


@dataclass
class Review:
    """What is found while a config is planned. trust: import what it names outside of mmalign, and call that where it is a method.

    errors: a line each. external: what it names there, in the order of the config.
    """

    trust: bool
    errors: list[str] = field(default_factory=list)
    external: list[ExternalCode] = field(default_factory=list)


def plan(node: Mapping[str, Any], review: Review) -> Call | None:
    """The tree of calls of a config, which may be executed only where the review has no errors then."""
    if "use" not in node:
        known = ", ".join(index("mmalign.recipes"))
        review.errors.append(f"use: missing, takes the name of a recipe ({known}) or a command")
        return None
    return _plan_call(node, "", ("recipes", "commands"), review)


def as_node(planned: Any) -> Any:
    """A plan as a config says it, with the paths that were found: what a run keeps."""
    if isinstance(planned, Call):
        arguments = {key: as_node(value) for key, value in planned.arguments.items()}
        return arguments if isinstance(planned.function, Maker) else {"use": planned.name, **arguments}
    if isinstance(planned, Mapping):
        return {str(key): as_node(value) for key, value in planned.items()}
    return [as_node(value) for value in planned] if isinstance(planned, (list, tuple)) else planned


def plan_value(value: Any, path: str, rooms: tuple[str, ...], review: Review) -> Any:
    """A value with every node in it, at any depth, as a Call."""
    usual = USUAL.get(path.rpartition(".")[2])
    if isinstance(value, Mapping) and usual is not None:
        value = {"use": usual, **value}
    if isinstance(value, Mapping) and "use" in value:
        return _plan_call(value, path, rooms, review)
    if isinstance(value, Mapping):
        return {key: plan_value(item, f"{path}.{key}", ROOMS.get(str(key), rooms), review) for key, item in value.items()}
    if isinstance(value, list):
        return [plan_value(item, f"{path}[{number}]", rooms, review) for number, item in enumerate(value)]
    return value


def plan_part(config: Mapping[str, Any], key: str, review: Review) -> Any:
    """What stands under one key of a config, planned by itself."""
    value = expanded(config.get(key), signatures.Parameter(key, Any, False))
    return plan_value(value, key, ROOMS.get(key, ()), review)


def _plan_call(node: Mapping[str, Any], path: str, rooms: tuple[str, ...], review: Review) -> Call:
    dot = f"{path}." if path else ""
    function = _look_up(node["use"], f"{dot}use", rooms, review)
    arguments = {str(key): value for key, value in node.items() if key != "use"}
    if arguments.get("trust_remote_code"):
        review.external.append(ExternalCode(f"{dot}trust_remote_code", "code that comes with the model"))
    if isinstance(function, Unread):
        review.errors.extend(_keys_as_written(function.name, arguments, path, rooms))
        return Call(
            path,
            function.name,
            function,
            {key: plan_value(arguments[key], f"{dot}{key}", ROOMS.get(key, rooms), review) for key in arguments},
        )
    function = maker(function, rooms)
    if rooms == ROOMS["method"] and "like" in arguments:
        arguments = _as_others_do(function, arguments, f"{dot}like", review.errors)
    name, before = str(node["use"]), len(review.errors)
    parameters, any_key = signatures.parameters(function)
    reader = signatures.Reader(leaf=partial(_leaf, rooms=rooms, review=review), build=_record_call, errors=review.errors)
    planned = {}
    for key, value in arguments.items():
        if key in parameters:
            planned[key] = signatures.read(value, parameters[key], f"{dot}{key}", reader)
            continue
        planned[key] = plan_value(value, f"{dot}{key}", ROOMS.get(key, rooms), review)
        if not any_key:
            review.errors.append(f"{dot}{key}: {_unknown_key(key, path, name, parameters)}")
    missing = {key: _kind_of_value(parameter) for key, parameter in parameters.items() if parameter.required and key not in arguments}
    review.errors.extend(_missing(missing, name, path, () if home(function).startswith("mmalign.") else rooms))
    call = Call(path, name, function, planned)
    if home(function).startswith(CHEAP) and len(review.errors) == before and harmless(call, review):
        review.errors.extend(_refusal(call))
    return call


def _unknown_key(key: str, path: str, name: str, known: Mapping[str, Any]) -> str:
    return renamed(key, path) or f"unknown key of {name}{nearest(key, known)}; takes {', '.join(known) or 'nothing'}"


def _keys_as_written(name: str, arguments: Mapping[str, Any], path: str, rooms: tuple[str, ...]) -> Iterator[str]:
    """Unknown and missing keywords of a function that was not imported, as its source says."""
    source, dot = source_signature(name), f"{path}." if path else ""
    if source is None:
        return
    if "rewards" in rooms and tuple(source.keywords)[:2] == OWN_ARGUMENTS:  # a reward itself, see ``nodes.maker``
        source = source._replace(keywords={key: False for key, required in source.keywords.items() if not required})
    for key in arguments:
        if key not in source.keywords and not source.any_key:
            yield f"{dot}{key}: {_unknown_key(key, path, name, source.keywords)}"
    yield from _missing({key: "" for key, required in source.keywords.items() if required and key not in arguments}, name, path, rooms)


def _missing(kinds: Mapping[str, str], name: str, path: str, rooms: tuple[str, ...]) -> Iterator[str]:
    """A line for each missing key, of which ``kinds`` says what it takes. rooms: of what is not mmalign's own; where rewards stand, a
    function may be one itself, whose first arguments have other names than ours, so the first line says which ours are."""
    own = f"; a function that scores by itself begins with ({', '.join(OWN_ARGUMENTS)}), by these names" if "rewards" in rooms else ""
    for key, kind in kinds.items():
        yield f"{path}.{key}".lstrip(".") + f": missing, {name} needs it{kind}{own}"
        own = ""


def home(function: Callable[..., Any]) -> str:
    """The module of a function; an empty string where it does not say."""
    return getattr(function, "__module__", None) or ""


def harmless(planned: Any, review: Review) -> bool:
    """Whether a plan may be carried out to see what it refuses: whatever it calls is cheap, or a method, or trusted and outside."""
    if isinstance(planned, Call):
        where = home(planned.function)
        trusted = review.trust and not where.startswith("mmalign.")
        cheap = isinstance(planned.function, Maker) or where.startswith((*CHEAP, METHODS)) or trusted
        return cheap and harmless(planned.arguments, review)
    if isinstance(planned, Mapping):
        return all(harmless(value, review) for value in planned.values())
    return all(harmless(value, review) for value in planned) if isinstance(planned, (list, tuple)) else True


def _refusal(call: Call) -> list[str]:
    """What a function says against its arguments, as a line that begins with its key."""
    from mmalign.types import UserError

    try:
        carry_out(call)
    except UserError as error:
        line = one_line(error).removeprefix(f"{call.path}: ")
        return [f"{call.path}.{line}" if line.partition(":")[0] in call.arguments else f"{call.path}: {line}"]
    return []


def _leaf(path: str, value: Any, parameter: signatures.Parameter, *, rooms: tuple[str, ...], review: Review) -> Any:
    """What is no record: a node, or plain data, or several of these; nodes that are built later stay as they are written."""
    if parameter.name in LATER:
        mistake = signatures.fit(value, parameter).mistake
        review.errors.extend([f"{path}: {mistake}"] if mistake else [])
        return value
    value = expanded(value, parameter)
    planned = plan_value(value, path, ROOMS.get(parameter.name, rooms), review)
    return _plan_argument(path, value, planned, parameter, review.errors)


def _record_call(record: type, arguments: dict[str, Any], path: str) -> Call:
    return Call(path, record.__name__, Maker(record), arguments)


def _as_others_do(function: Callable[..., Any], arguments: dict[str, Any], path: str, errors: list[str]) -> dict[str, Any]:
    """A method's keywords with those of the dialect under ``like`` filled in, where the node does not set them."""
    from mmalign.lookup.dialects import settings
    from mmalign.types import UserError

    who = arguments.pop("like")
    try:
        return {**settings(who, function), **arguments}
    except UserError as error:
        errors.append(f"{path.removesuffix('like')}{error}")
        return arguments


def _plan_argument(path: str, value: Any, planned: Any, parameter: signatures.Parameter, errors: list[str]) -> Any:
    """The argument as the function will get it, of the annotated type where that is plain data."""
    if parameter.annotation in (Any, object) or not signatures.plain(parameter.annotation):
        mistake = signatures.fit(value, parameter).mistake
        errors.extend(list(_not_nodes(path, parameter, value)) or ([f"{path}: {mistake}"] if mistake else []))
        return planned
    if _holds_node(value):
        if signatures.scalar(parameter.annotation) or (parameter.name not in ROOMS and signatures.data_alone(parameter.annotation)):
            errors.append(f"{path}: got a node, takes {signatures.show(parameter.annotation)}")
        elif isinstance(value, Mapping) and "use" not in value and parameter.name in ROOMS and parameter.name not in NAMED:
            errors.extend(_not_nodes(path, parameter, value))  # nodes by name where there is one node
        return planned
    if signatures.is_file(parameter) and isinstance(value, str) and not isinstance(value, Product):
        value = _existing(path, value, errors)
    fitted, mistake, _ = signatures.fit(value, parameter)
    errors.extend([f"{path}: {mistake}"] if mistake else [])
    return fitted


def _look_up(name: Any, path: str, rooms: tuple[str, ...], review: Review) -> Callable[..., Any]:
    """What a name leads to; `Unread` where it leads nowhere, or out of mmalign with a config that is not trusted."""
    from mmalign.types import UserError

    places = " or ".join(rooms)
    if not isinstance(name, str):
        review.errors.append(f"{path}: got {name!r}, takes a name of {places}, or an import path")
        return Unread(str(name))
    homes = [room for room in rooms if name in index(f"mmalign.{room}")]
    if homes and (why := _of_another_kind(name, path, homes[0])):
        review.errors.append(f"{path}: {why}")
        return Unread(name)
    if not homes and not IMPORT_PATH.fullmatch(name):
        known = [known for room in rooms for known in index(f"mmalign.{room}")]
        near = nearest(name, known) or (f"; it has: {', '.join(known)}" if len(known) <= 12 else "")
        review.errors.append(f"{path}: got {name!r}, there is none in {places}{_elsewhere(name) or near}; an import path works too")
        return Unread(name)
    if not homes and not is_offered(name, whole=path == "use"):
        review.external.append(ExternalCode(path, name, source_file(name)[0]))
        if not review.trust:
            if not is_importable(name):
                review.errors.append(f"{path}: {no_module(name)}")
            elif mistake := lacking(name):
                review.errors.append(f"{path}: {mistake}")
            return Unread(name)
    try:
        function = find(f"mmalign.{homes[0] if homes else 'recipes'}", name)
    except (UserError, ImportError, SyntaxError) as error:
        review.errors.append(f"{path}: {one_line(error)}")
        return Unread(name)
    if not callable(function):
        review.errors.append(f"{path}: got {name!r}, which is of type {type(function).__name__}; takes a function")
        return Unread(name)
    return function  # type: ignore[no-any-return]


def _elsewhere(name: str) -> str:
    """Under which keys a name stands that is none where it is; "" where it is none at all, or may stand under many (what worlds have)."""
    keys = [key for key, rooms in ROOMS.items() if any(name in index(f"mmalign.{room}") for room in rooms)]
    return f"; it is one that stands under {' or '.join(keys)}" if 0 < len(keys) <= 3 else ""


def _of_another_kind(name: str, path: str, room: str) -> str:
    """Why a name of a room may not stand here: a room may hold rewards, oracles and metrics beside each other."""
    keys = path.split(".")[:-1]
    key = next((key for key in reversed(keys) if key.partition("[")[0] in ROOMS), "")
    kind = catalogue.KINDS.get(KIND_OF.get(key, ""))
    entry = index(f"mmalign.{room}")[name][0]
    if keys[-1:] == [key] and unfit(key, entry.returns):
        others = [other for other in (*FITS, "records") if not unfit(other, entry.returns)]
        return f"got {name!r}, which gives no {key} but {entry.returns}{f'; it stands under {others[0]}' if others else ''}"
    if kind is None or (key == "judges" and room == "evaluation") or entry.returns in kind.returns or not entry.returns:
        return ""
    known = [listing.name for listing in catalogue.everything(KIND_OF[key])]
    return f"got {name!r}, which is none of the {KIND_OF[key]} (it gives {entry.returns}){nearest(name, known)}"


def _not_nodes(path: str, parameter: signatures.Parameter, value: Any) -> Iterator[str]:
    """What stands where a node has to stand, because an object has to be built."""
    key = path.rsplit(".", 1)[-1]
    if value is None and not parameter.required:
        if not signatures.may_be_null(parameter.annotation):
            yield f"{path}: got null, takes a node {{use: NAME, ...}}, or no such key"
        return
    if key not in ROOMS:
        said_in_words = isinstance(value, (str, bool, int, float, Mapping, list))  # Python may hand over what it has built
        if not said_in_words or parameter.annotation in (Any, object):
            return
        for place, item in signatures.not_plain(value, parameter.annotation):
            missing = f"{path}{place}.use: missing, takes a node {{use: NAME, ...}}"
            yield missing if isinstance(item, Mapping) else f"{path}{place}: got {item!r}, takes a node"
        return
    places, words = " or ".join(ROOMS[key]), signatures.words(parameter.annotation)
    if isinstance(value, str) and words:
        if value not in words:
            yield f"{path}: got {value!r}, takes {', '.join(words)}, or a node {{use: NAME, ...}} with a name of {places}"
        return
    by_name = key in NAMED and isinstance(value, Mapping) and "use" not in value
    for where, item in {f"{path}.{name}": value[name] for name in value}.items() if by_name else {path: value}.items():
        if isinstance(item, Mapping):
            if "use" not in item and key not in USUAL:
                yield f"{where}.use: missing, takes a name of {places}, or an import path"
        elif not (
            key == "prompts" or (key in MODELS and isinstance(item, str)) or (isinstance(item, list) and (by_name or key == "records"))
        ):
            # prompts may stand for themselves, and so may the hub id or folder of a pipeline or a model
            yield f"{where}: got {item!r}, takes a node {{use: NAME, ...}} with a name of {places}"


def _kind_of_value(parameter: signatures.Parameter) -> str:
    if parameter.name in ROOMS:
        node = f"{{use: NAME of {' or '.join(ROOMS[parameter.name])}, ...}}"
        return f": {{name: {node}}}" if parameter.name in NAMED else f": {node}"
    says = signatures.show(parameter.annotation) if signatures.plain(parameter.annotation) else "anything"
    return "" if says == "anything" else f": {says}"


def _existing(path: str, value: str, errors: list[str]) -> str:
    """A file as the user named it, or else the file of that name that comes with mmalign."""
    for place in (Path(value), resource(value)):
        if os.path.exists(place):  # False, too, for what is too long to be a name
            return str(place.resolve())
    errors.append(f"{path}: no such file: {value[:240]}")
    return value


def _holds_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "use" in value or any(_holds_node(item) for item in value.values())
    return isinstance(value, list) and any(_holds_node(item) for item in value)


def carry_out(value: Any) -> Any:
    """A planned value with its calls carried out, the innermost first."""
    from mmalign.config.own_methods import watched
    from mmalign.types import Method, UserError

    if isinstance(value, Call):
        arguments = {key: carry_out(item) for key, item in value.arguments.items()}
        try:
            made = value.function(**arguments)
        except UserError as error:
            known = str(error).startswith(value.path)
            raise error if known else UserError(f"{value.path}: {error}") from error
        above, key = ["", *value.path.split(".")][-2:]
        if key == "method" and not home(value.function).startswith("mmalign.") and isinstance(made, Method):
            return watched(made, f"{value.path}: {value.name}")
        if (key in CALLED or above in CALLED_BY_NAME) and not callable(made):
            what = f"got {value.name!r}, which gives a {type(made).__name__}"
            raise UserError(f"{value.path}.use: {what}; takes what gives a function of outputs or prompts")
        return made
    if isinstance(value, Mapping):
        return {key: carry_out(item) for key, item in value.items()}
    return [carry_out(item) for item in value] if isinstance(value, list) else value


def execute(call: Call, before_policy: Callable[[Mapping[str, Any]], None], **extra: Any) -> Any:
    """Carries out a plan without mistakes, from the inside out: the policy last, so that data which cannot be used are told before its
    weights are loaded. before_policy: is given all other arguments then."""
    arguments = {key: carry_out(value) for key, value in call.arguments.items() if key != "policy"}
    before_policy(arguments)
    if "policy" in call.arguments:
        arguments["policy"] = carry_out(call.arguments["policy"])
    return call.function(**{**arguments, **extra})
