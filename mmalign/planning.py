"""From nodes to calls: names are looked up, arguments checked against signatures and records, and what a method needs against its policy.

Nothing is built here but methods, which are cheap; every mistake is one line that begins with its dotted key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from mmalign import catalogue, signatures
from mmalign.renamed import renamed
from mmalign.rooms import find, index, resource
from mmalign.signatures import nearest

ROOMS: dict[str, tuple[str, ...]] = {
    "policy": ("policies",),
    "pipeline": ("worlds",),
    "model": ("worlds",),
    "world": ("worlds",),
    "method": ("methods",),
    "kernel": ("samplers.kernels",),
    "window": ("samplers.windows",),
    "guidance": ("guidance",),
    "prompts": ("data", "worlds"),
    "records": ("data", "worlds"),
    "rewards": ("rewards", "worlds"),
    "combine": ("combinations.algebra", "combinations.balancing"),
    "transforms": ("combinations.transforms",),
    "oracle": ("rewards", "worlds"),
    "judges": ("rewards", "evaluation", "worlds"),
    "real": ("worlds",),
    "metrics": ("evaluation", "rewards", "worlds"),
    "suite": ("evaluation.suites",),
    "mark": ("worlds",),
    "optimizer": ("training.optimizers",),
}
"""key -> where the names under it are looked up, in this order. Mappings and lists inside inherit their key's rooms."""

NAMED = ("rewards", "judges", "metrics", "transforms")
"""Keys that hold nodes by name; the other keys of `ROOMS` hold one node."""

CHEAP = ("mmalign.training.optimizers", "mmalign.samplers.")
"""Where functions are that are called already when a config is checked: what they refuse is a mistake of the config."""

USUAL = {"optimizer": "adamw"}
"""key -> what a node under it uses where it does not say."""

KIND_OF = {"rewards": "rewards", "judges": "rewards", "oracle": "oracles", "metrics": "metrics"}
"""key -> the kind of what stands under it (`catalogue.KINDS`), where its rooms hold other things too."""


@dataclass(frozen=True)
class Maker:
    """What a planned record is called with its arguments by."""

    record: type

    def __call__(self, **arguments: Any) -> Any:
        return signatures.make(self.record, arguments)


@dataclass(frozen=True)
class Call:
    """A checked node: what will be called with what. Arguments may hold further calls inside mappings and lists."""

    path: str
    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


def plan(node: Mapping[str, Any]) -> tuple[Call | None, list[str]]:
    """The tree of calls of a config, and every mistake in it. The tree may be executed only where there is none."""
    errors: list[str] = []
    if "use" not in node:
        return None, [f"use: missing, takes the name of a recipe ({', '.join(index('mmalign.recipes'))}) or a command"]
    call = _plan_call(node, "", ("recipes", "commands"), errors)
    if call is not None:
        errors.extend(_calls(call))
    if call is not None and not any(line.startswith(("method.", "method:")) for line in errors):
        errors.extend(_incompatible(call))
    return call, errors


def said(planned: Any) -> Any:
    """A plan as a config says it, with the paths that were found: what a run keeps."""
    if isinstance(planned, Call):
        arguments = {key: said(value) for key, value in planned.arguments.items()}
        return arguments if isinstance(planned.function, Maker) else {"use": planned.name, **arguments}
    if isinstance(planned, Mapping):
        return {str(key): said(value) for key, value in planned.items()}
    return [said(value) for value in planned] if isinstance(planned, (list, tuple)) else planned


def plan_value(value: Any, path: str, rooms: tuple[str, ...], errors: list[str]) -> Any:
    """A value with every node in it, at any depth, as a Call. Mistakes go into ``errors``."""
    usual = USUAL.get(path.rpartition(".")[2])
    if isinstance(value, Mapping) and usual is not None:
        value = {"use": usual, **value}
    if isinstance(value, Mapping) and "use" in value:
        return _plan_call(value, path, rooms, errors)
    if isinstance(value, Mapping):
        return {key: plan_value(item, f"{path}.{key}", ROOMS.get(str(key), rooms), errors) for key, item in value.items()}
    if isinstance(value, list):
        return [plan_value(item, f"{path}[{number}]", rooms, errors) for number, item in enumerate(value)]
    return value


def _plan_call(node: Mapping[str, Any], path: str, rooms: tuple[str, ...], errors: list[str]) -> Call | None:
    dot = f"{path}." if path else ""
    function = _look_up(node["use"], f"{dot}use", rooms, errors)
    given = {str(key): value for key, value in node.items() if key != "use"}
    if rooms == ROOMS["method"] and "like" in given and function is not None:
        given = _as_others_do(function, given, f"{dot}like", errors)
    if function is None:
        for key, value in given.items():
            plan_value(value, f"{dot}{key}", ROOMS.get(key, rooms), errors)
        return None
    name, before = str(node["use"]), len(errors)
    parameters, any_key = signatures.parameters(function)
    reader = signatures.Reader(leaf=partial(_leaf, rooms=rooms, errors=errors), build=_record_call, errors=errors)
    planned = {}
    for key, value in given.items():
        if key in parameters:
            planned[key] = signatures.read(value, parameters[key], f"{dot}{key}", reader)
            continue
        planned[key] = plan_value(value, f"{dot}{key}", ROOMS.get(key, rooms), errors)
        if not any_key:
            known = ", ".join(parameters) or "nothing"
            why = renamed(key, path) or f"unknown key of {name}{nearest(key, parameters)}; takes {known}"
            errors.append(f"{dot}{key}: {why}")
    for key, parameter in parameters.items():
        if parameter.required and key not in given:
            errors.append(f"{dot}{key}: missing, {name} needs it{_kind_of_value(parameter)}")
    call = Call(path, name, function, planned)
    if function.__module__.startswith(CHEAP) and len(errors) == before:
        errors.extend(_refusal(call))
    return call


def _refusal(call: Call) -> list[str]:
    """What a function says against its arguments, as a line that begins with its key."""
    from mmalign.types import UserError

    try:
        carry_out(call)
    except UserError as error:
        line = one_line(error).removeprefix(f"{call.path}: ")
        return [f"{call.path}.{line}" if line.partition(":")[0] in call.arguments else f"{call.path}: {line}"]
    return []


def _leaf(path: str, value: Any, parameter: signatures.Parameter, *, rooms: tuple[str, ...], errors: list[str]) -> Any:
    """What is no record: a node, or plain data, or several of these."""
    planned = plan_value(value, path, ROOMS.get(parameter.name, rooms), errors)
    return _plan_argument(path, value, planned, parameter, errors)


def _record_call(record: type, arguments: dict[str, Any], path: str) -> Call:
    return Call(path, record.__name__, Maker(record), arguments)


def _as_others_do(function: Callable[..., Any], given: dict[str, Any], path: str, errors: list[str]) -> dict[str, Any]:
    """A method's keywords with those of the dialect under ``like`` filled in, where the node does not set them."""
    from mmalign.dialects import settings
    from mmalign.types import UserError

    who = given.pop("like")
    try:
        return {**settings(who, function), **given}
    except UserError as error:
        errors.append(f"{path.removesuffix('like')}{error}")
        return given


def _plan_argument(path: str, value: Any, planned: Any, parameter: signatures.Parameter, errors: list[str]) -> Any:
    """The argument as the function will get it, of the annotated type where that is plain data."""
    if parameter.annotation in (Any, object) or not signatures.plain(parameter.annotation):
        errors.extend(_not_nodes(path, parameter, value))
        return planned
    if _holds_node(value):
        if signatures.scalar(parameter.annotation):
            errors.append(f"{path}: got a node, takes {signatures.show(parameter.annotation)}")
        return planned
    if signatures.is_file(parameter) and isinstance(value, str):
        value = _existing(path, value, errors)
    try:
        return signatures.convert(value, parameter.annotation)
    except ValueError:
        errors.append(f"{path}: got {value!r}, takes {signatures.show(parameter.annotation)}")
        return value


def _look_up(name: Any, path: str, rooms: tuple[str, ...], errors: list[str]) -> Callable[..., Any] | None:
    from mmalign.types import UserError

    places = " or ".join(rooms)
    if not isinstance(name, str):
        errors.append(f"{path}: got {name!r}, takes a name of {places}, or an import path")
        return None
    homes = [room for room in rooms if name in index(f"mmalign.{room}")]
    if homes and (why := _of_another_kind(name, path, homes[0])):
        errors.append(f"{path}: {why}")
        return None
    if "." not in name and not homes:
        known = [known for room in rooms for known in index(f"mmalign.{room}")]
        near = nearest(name, known) or (f"; it has: {', '.join(known)}" if len(known) <= 12 else "")
        errors.append(f"{path}: got {name!r}, there is none in {places}{near}; an import path works too")
        return None
    try:
        function = find(f"mmalign.{homes[0] if homes else rooms[0]}", name)
    except (UserError, ImportError) as error:
        errors.append(f"{path}: {one_line(error)}")
        return None
    if not callable(function):
        errors.append(f"{path}: got {name!r}, which is a {type(function).__name__}; takes a function")
        return None
    return function


def _of_another_kind(name: str, path: str, room: str) -> str:
    """Why a name of a room may not stand here: a room may hold rewards, oracles and metrics beside each other."""
    keys = path.split(".")[:-1]
    key = next((key for key in reversed(keys) if key.partition("[")[0] in ROOMS), "")
    kind = catalogue.KINDS.get(KIND_OF.get(key, ""))
    entry = index(f"mmalign.{room}")[name][0]
    if kind is None or (key == "judges" and room == "evaluation") or entry.returns in kind.returns or not entry.returns:
        return ""
    known = [named.name for named in catalogue.everything(KIND_OF[key])]
    return f"got {name!r}, which is none of the {KIND_OF[key]} (it gives {entry.returns}){nearest(name, known)}"


def _not_nodes(path: str, parameter: signatures.Parameter, value: Any) -> Iterator[str]:
    """What stands where a node has to stand, because an object has to be built."""
    key = path.rsplit(".", 1)[-1]
    if value is None and not parameter.required:
        return
    if key not in ROOMS:
        said_in_words = isinstance(value, (str, bool, int, float, Mapping, list))  # Python may hand over what it has built
        if said_in_words and parameter.annotation not in (Any, object) and not signatures.may_be_plain(value, parameter.annotation):
            yield (
                f"{path}.use: missing, takes a node {{use: NAME, ...}}"
                if isinstance(value, Mapping)
                else f"{path}: got {value!r}, takes a node"
            )
        return
    places = " or ".join(ROOMS[key])
    by_name = key in NAMED and isinstance(value, Mapping) and "use" not in value
    for where, item in {f"{path}.{name}": value[name] for name in value}.items() if by_name else {path: value}.items():
        if isinstance(item, Mapping):
            if "use" not in item and key not in USUAL:
                yield f"{where}.use: missing, takes a name of {places}, or an import path"
        elif key != "prompts" and not isinstance(item, list) and not (key in ("pipeline", "model") and isinstance(item, str)):
            # a list of prompts may stand for itself, and so may the hub id or folder of a pipeline or a model
            yield f"{where}: got {item!r}, takes a node {{use: NAME, ...}} with a name of {places}"


def _kind_of_value(parameter: signatures.Parameter) -> str:
    if parameter.name in ROOMS:
        node = f"{{use: NAME of {' or '.join(ROOMS[parameter.name])}, ...}}"
        return f": {{name: {node}}}" if parameter.name in NAMED else f": {node}"
    return f": {signatures.show(parameter.annotation)}" if signatures.plain(parameter.annotation) else ""


def _existing(path: str, value: str, errors: list[str]) -> str:
    """A file as the user named it, or else the file of that name that comes with mmalign."""
    for place in (Path(value), resource(value)):
        if place.exists():
            return str(place.resolve())
    errors.append(f"{path}: no such file: {value}")
    return value


def _incompatible(call: Call) -> list[str]:
    policy, method = call.arguments.get("policy"), call.arguments.get("method")
    if not isinstance(policy, Call) or not isinstance(method, Call):
        return []
    adapter = _adapter(policy)
    if adapter is None:
        return []
    from mmalign.needs import lacking  # imports torch, so only here

    gives = adapter.gives
    for option, more in adapter.gives_with.items():
        gives = gives | (more & set(policy.arguments.get(option) or ()))
    try:
        built = carry_out(method)
    except Exception as error:  # whatever a factory raises is the user's to know, as one line among the others
        return [one_line(error) if str(error).startswith(method.path) else f"{method.path}: {one_line(error)}"]
    wrong = []
    if lacks := lacking(built, gives):
        wrong.append(f"{method.path}: {method.name} needs {', '.join(lacks)}; the policy {policy.name} gives {', '.join(sorted(gives))}")
    if adapter.kind not in built.kinds:
        kinds = ", ".join(sorted(built.kinds))
        wrong.append(f"{method.path}: {method.name} takes steps of kind {kinds}; the policy {policy.name} gives {adapter.kind}")
    return wrong


def _adapter(policy: Call) -> Any:
    """What the module of a policy says of those it makes (``types.Adapter``); None where it says nothing."""
    return vars(sys.modules[policy.function.__module__]).get("ADAPTER")


def _calls(call: Call) -> Iterator[str]:
    """Keywords of a policy's calls that no such call takes: under ``call`` of the policy, and of the evaluation."""
    evaluation = call.arguments.get("evaluation")
    policy, asked = call.arguments.get("policy"), evaluation.arguments if isinstance(evaluation, Call) else {}
    if not isinstance(policy, Call):
        return
    inner = [policy, *(value for value in policy.arguments.values() if isinstance(value, Call))]
    own = [(f"{node.path}.call", node.arguments.get("call"), node) for node in inner if node is policy or node.path == f"{policy.path}.of"]
    for path, given, node in [*own, ("evaluation.call", asked.get("call"), policy), ("call", call.arguments.get("call"), policy)]:
        adapter = _adapter(node)
        known = adapter.call(node.arguments) if given and adapter is not None else None
        for key in given or {}:
            if known is not None and key not in known:
                yield f"{path}.{key}: no argument of this policy's calls{nearest(str(key), known)}"


def _holds_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "use" in value or any(_holds_node(item) for item in value.values())
    return isinstance(value, list) and any(_holds_node(item) for item in value)


def carry_out(value: Any) -> Any:
    """A planned value with its calls carried out, the innermost first."""
    from mmalign.types import UserError

    if isinstance(value, Call):
        arguments = {key: carry_out(item) for key, item in value.arguments.items()}
        try:
            return value.function(**arguments)
        except UserError as error:
            known = str(error).startswith(value.path)
            raise error if known else UserError(f"{value.path}: {error}") from error
    if isinstance(value, Mapping):
        return {key: carry_out(item) for key, item in value.items()}
    return [carry_out(item) for item in value] if isinstance(value, list) else value


def one_line(error: BaseException) -> str:
    """What an error says, without the lines that OmegaConf adds."""
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type="))) or type(error).__name__


def execute(call: Call, **extra: Any) -> Any:
    """Carries out a plan without mistakes, from the inside out."""
    arguments = {key: carry_out(value) for key, value in call.arguments.items()}
    return call.function(**{**arguments, **extra})
