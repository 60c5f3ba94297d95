"""A YAML file is a call: the node ``{use: name, **arguments}`` under ``method:`` is ``mm.methods.name(**arguments)``.

A whole file is one node too: ``{use: online, policy: {...}, method: {...}, steps: 100}`` is ``mm.recipes.online(...)``. The key that a
node stands under says in which room its name is looked up (``ROOMS``); dotted import paths work everywhere. Everything is checked
against the signatures, all at once, before anything is built, and each mistake is one line that begins with its dotted key.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from mmalign import signatures
from mmalign.rooms import find, index
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
}
"""key -> where the names under it are looked up, in this order. Mappings and lists inside inherit their key's rooms."""

NAMED = ("rewards", "judges", "metrics", "transforms")
"""Keys that hold nodes by name; the other keys of `ROOMS` hold one node."""


@dataclass(frozen=True)
class Call:
    """A checked node: what will be called with what. Arguments may hold further calls inside mappings and lists."""

    path: str
    name: str
    function: Callable[..., Any]
    arguments: dict[str, Any]


def load(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config in a file, its ``${interpolations}`` resolved, after ``key.sub=value`` overrides.

    path: a YAML file, or the short name of one under configs/ (``digits/flow_grpo``). Raises UserError in one line.
    """
    import yaml
    from omegaconf import DictConfig, OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmalign.types import UserError

    file = locate(path)
    try:
        config = OmegaConf.load(file)
    except (yaml.YAMLError, OmegaConfBaseException, UnicodeDecodeError, OSError) as error:
        raise UserError(f"{file}: not readable as YAML: {_one_line(error)}") from error
    if not isinstance(config, DictConfig):
        raise UserError(f"{file}: takes a mapping {{use: ..., ...}} at the top")
    for override in overrides:
        _override(config, override)
    try:
        resolved = OmegaConf.to_container(config, resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{key}{_one_line(error)}") from error
    return {str(key): value for key, value in resolved.items()}  # type: ignore[union-attr]


def check(node: Mapping[str, Any]) -> list[str]:
    """Every mistake of a config, a line each; an empty list where there is none. Builds methods, which are cheap, and nothing else."""
    return plan(node)[1]


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Calls a config from the inside out and returns what its outermost function returns.

    extra: further keywords for the outermost function, beyond those of the file. Raises UserError, one line per mistake.
    """
    from mmalign.types import UserError

    call, errors = plan(node)
    if call is None or errors:
        raise UserError("\n".join(errors))
    return execute(call, **extra)


def build_part(config: Mapping[str, Any], key: str) -> Any:
    """What stands under one key of a config, built; the rest of it is left alone. None where the key is not there.

    Raises UserError, one line per mistake.
    """
    from mmalign.types import UserError

    errors: list[str] = []
    planned = _plan_value(config.get(key), key, ROOMS.get(key, ()), errors)
    if errors:
        raise UserError("\n".join(errors))
    return _execute(planned)


def execute(call: Call, **extra: Any) -> Any:
    """Carries out a plan without mistakes, from the inside out."""
    arguments = {key: _execute(value) for key, value in call.arguments.items()}
    return call.function(**{**arguments, **extra})


def plan(node: Mapping[str, Any]) -> tuple[Call | None, list[str]]:
    """The tree of calls of a config, and every mistake in it. The tree may be executed only where there is none."""
    errors: list[str] = []
    if "use" not in node:
        return None, [f"use: missing, takes the name of a recipe ({', '.join(index('mmalign.recipes'))}) or a command"]
    call = _plan_call(node, "", ("recipes", "commands"), errors)
    if call is not None and not any(line.startswith(("method.", "method:")) for line in errors):
        errors.extend(_incompatible(call))
    return call, errors


def resource(name: str) -> Path:
    """A file or folder of ``configs/`` or ``assets/``, in a checkout or inside the installed package; it may not exist."""
    package = Path(__file__).parent
    installed = package / name
    return installed if installed.exists() else package.parent / name


def locate(path: str | Path) -> Path:
    """The config file meant by a path or a short name. Raises UserError with the nearest short names."""
    from mmalign.types import UserError

    for candidate in (Path(path), Path(f"{path}.yaml"), resource(f"configs/{path}"), resource(f"configs/{path}.yaml")):
        if candidate.is_file():
            return candidate
    folder = resource("configs")
    known = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
    near = nearest(str(path), known) or f"; configs here: {', '.join(known)}"
    raise UserError(f"{path}: no such config; takes a YAML file or a short name{near}")


# ---- planning: look names up, check arguments against signatures


def _plan_value(value: Any, path: str, rooms: tuple[str, ...], errors: list[str]) -> Any:
    if isinstance(value, Mapping) and "use" in value:
        return _plan_call(value, path, rooms, errors)
    if isinstance(value, Mapping):
        return {key: _plan_value(item, f"{path}.{key}", ROOMS.get(str(key), rooms), errors) for key, item in value.items()}
    if isinstance(value, list):
        return [_plan_value(item, f"{path}[{number}]", rooms, errors) for number, item in enumerate(value)]
    return value


def _plan_call(node: Mapping[str, Any], path: str, rooms: tuple[str, ...], errors: list[str]) -> Call | None:
    dot = f"{path}." if path else ""
    function = _look_up(node["use"], f"{dot}use", rooms, errors)
    given = {str(key): value for key, value in node.items() if key != "use"}
    if rooms == ROOMS["method"] and "like" in given and function is not None:
        given = _as_others_do(function, given, f"{dot}like", errors)
    planned = {key: _plan_value(value, f"{dot}{key}", ROOMS.get(key, rooms), errors) for key, value in given.items()}
    if function is None:
        return None
    name = str(node["use"])
    parameters, any_key = signatures.parameters(function)
    for key in given:
        if key in parameters:
            planned[key] = _plan_argument(f"{dot}{key}", given[key], planned[key], parameters[key], errors)
        elif not any_key:
            known = ", ".join(parameters) or "nothing"
            errors.append(f"{dot}{key}: unknown key of {name}{nearest(key, parameters)}; takes {known}")
    for key, parameter in parameters.items():
        if parameter.required and key not in given:
            errors.append(f"{dot}{key}: missing, {name} needs it{_kind_of_value(parameter)}")
    return Call(path, name, function, planned)


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
    if "." not in name and not homes:
        known = [known for room in rooms for known in index(f"mmalign.{room}")]
        near = nearest(name, known) or (f"; it has: {', '.join(known)}" if len(known) <= 12 else "")
        errors.append(f"{path}: got {name!r}, there is none in {places}{near}; an import path works too")
        return None
    try:
        function = find(f"mmalign.{homes[0] if homes else rooms[0]}", name)
    except (UserError, ImportError) as error:
        errors.append(f"{path}: {_one_line(error)}")
        return None
    if not callable(function):
        errors.append(f"{path}: got {name!r}, which is a {type(function).__name__}; takes a function")
        return None
    return function


def _not_nodes(path: str, parameter: signatures.Parameter, value: Any) -> Iterator[str]:
    """What stands where a node has to stand, because an object has to be built."""
    key = path.rsplit(".", 1)[-1]
    if key not in ROOMS or (value is None and not parameter.required):
        return
    places = " or ".join(ROOMS[key])
    by_name = key in NAMED and isinstance(value, Mapping) and "use" not in value
    for where, item in {f"{path}.{name}": value[name] for name in value}.items() if by_name else {path: value}.items():
        if isinstance(item, Mapping):
            if "use" not in item:
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
    if Path(value).exists():
        return value
    shipped = resource(value)
    if shipped.exists():
        return str(shipped)
    errors.append(f"{path}: no such file: {value}")
    return value


# ---- what a method needs and what its policy gives


def _incompatible(call: Call) -> list[str]:
    policy, method = call.arguments.get("policy"), call.arguments.get("method")
    if not isinstance(policy, Call) or not isinstance(method, Call):
        return []
    from mmalign.needs import lacking

    adapter = sys.modules.get(policy.function.__module__)
    gives, kind = getattr(adapter, "GIVES", None), getattr(adapter, "KIND", None)
    for option, more in getattr(adapter, "GIVES_WITH", {}).items():
        gives = gives | (more & set(policy.arguments.get(option) or ()))
    try:
        built = _execute(method)
    except Exception as error:  # whatever a factory raises is the user's to know, as one line among the others
        return [_one_line(error) if str(error).startswith(method.path) else f"{method.path}: {_one_line(error)}"]
    wrong = []
    if gives is not None and (lacks := lacking(built, gives)):
        wrong.append(f"{method.path}: {method.name} needs {', '.join(lacks)}; the policy {policy.name} gives {', '.join(sorted(gives))}")
    if kind is not None and kind not in built.kinds:
        kinds = ", ".join(sorted(built.kinds))
        wrong.append(f"{method.path}: {method.name} takes steps of kind {kinds}; the policy {policy.name} gives {kind}")
    return wrong


# ---- walking and executing


def _holds_node(value: Any) -> bool:
    if isinstance(value, Mapping):
        return "use" in value or any(_holds_node(item) for item in value.values())
    return isinstance(value, list) and any(_holds_node(item) for item in value)


def _execute(value: Any) -> Any:
    from mmalign.types import UserError

    if isinstance(value, Call):
        arguments = {key: _execute(item) for key, item in value.arguments.items()}
        try:
            return value.function(**arguments)
        except UserError as error:
            known = str(error).startswith(value.path)
            raise error if known else UserError(f"{value.path}: {error}") from error
    if isinstance(value, Mapping):
        return {key: _execute(item) for key, item in value.items()}
    return [_execute(item) for item in value] if isinstance(value, list) else value


def _override(config: Any, override: str) -> None:
    import yaml
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmalign.types import UserError

    key, equals, value = override.partition("=")
    if not equals or not key:
        raise UserError(f"{override}: takes key.sub=value")
    try:
        parsed = OmegaConf.to_container(OmegaConf.from_dotlist([f"value={value}"]), resolve=False)
        parts = key.split(".")
        for length in range(1, len(parts)):
            held = OmegaConf.select(config, parent := ".".join(parts[:length]))
            if held is not None and not OmegaConf.is_config(held):
                raise UserError(f"{override}: {parent} holds {held!r}, so it has no {parts[length]!r}")
        OmegaConf.update(config, key, parsed["value"], force_add=True)  # type: ignore[index,call-overload]
    except (yaml.YAMLError, OmegaConfBaseException, AttributeError, TypeError, ValueError, IndexError) as error:
        raise UserError(f"{override}: takes key.sub=value: {_one_line(error)}") from error


def _one_line(error: BaseException) -> str:
    lines = [line.strip() for line in str(error).splitlines()]
    return " ".join(line for line in lines if line and not line.startswith(("full_key:", "object_type="))) or type(error).__name__
