"""A YAML file is a call: the node ``{use: name, **arguments}`` under ``method:`` is ``mm.methods.name(**arguments)``.

A whole file is one node too: ``{use: online, policy: {...}, method: {...}, steps: 100}`` is ``mm.recipes.online(...)``. The key that a
node stands under says in which room its name is looked up (``ROOMS``); dotted import paths work everywhere. Everything is checked
against the signatures, all at once, before anything is built, and each mistake is one line that begins with its dotted key.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from mmalign.arguments import calls, environment
from mmalign.arguments.places import absolute, found
from mmalign.arguments.signatures import nearest, parameters
from mmalign.config import stages
from mmalign.config.crosschecks import crosschecked, foreseen
from mmalign.config.instantiate import Call, Review, as_node, carry_out, execute, plan, plan_part
from mmalign.config.overrides import override
from mmalign.config.parsing import one_line, read
from mmalign.lookup.external_code import ExternalCode
from mmalign.rooms import resource


def load(path: str | Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """The config in a file, its ``${interpolations}`` resolved, after ``key.sub=value`` overrides.

    path: a YAML file, or the short name of one under configs/ (``digits/demo``). Files that it names by ``path`` or ``*_file`` are
    looked for beside it first. See ``overrides`` for those.

    Errors: UserError in one line.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    from mmalign.types import UserError

    environment.watch()
    file = locate(path)
    config: Any = OmegaConf.to_container(read(file), resolve=False)
    for word in overrides:
        override(config, word)
    try:
        resolved = OmegaConf.to_container(OmegaConf.create(config), resolve=True, throw_on_missing=True)
    except OmegaConfBaseException as error:
        key = f"{error.full_key}: " if error.full_key else ""
        raise UserError(f"{key}{one_line(error)}") from error
    except RecursionError as error:
        raise UserError(f"{file}: its interpolations lead to themselves") from error
    return {str(key): value for key, value in found(absolute(resolved, file.parent)).items()}


def check(node: Mapping[str, Any], *, trust: bool = False) -> list[str]:
    """Every mistake of a config, a line each; an empty list where there is none. Builds methods, which are cheap, and nothing else.

    trust: import what the config names outside of mmalign, and check it as well; otherwise its keywords are read from its source.
    """
    return _reviewed(node, trust)[1].errors


def external_code(node: Mapping[str, Any]) -> list[ExternalCode]:
    """What a config, or the config of a run, names outside of mmalign, whatever else is wrong with it. Imports and reads none of it."""
    review = Review(trust=False)
    _reviewed(node, False, review)
    for prefix, part in (("", node), ("evaluation.", node.get("evaluation"))):  # parts are built by themselves too
        alone = Review(trust=False)
        for key, value in part.items() if isinstance(part, Mapping) else ():
            plan_part({str(key): value}, str(key), alone)
        review.external.extend(name._replace(key=f"{prefix}{name.key}") for name in alone.external)
    read = [ExternalCode(key, f"{text} of the environment") for key, text in environment.reads(node)]
    return list(dict.fromkeys([*review.external, *read]))


def build(node: Mapping[str, Any], **extra: Any) -> Any:
    """Calls a config from the inside out and returns what its outermost function returns. Imports whatever the config names.

    extra: further keywords for the outermost function, beyond those of the file. Errors: UserError, one line per mistake.
    """
    from mmalign.types import UserError

    call, review = _reviewed(node, True)
    if call is None or review.errors:
        raise UserError("\n".join(review.errors))
    takes, any_key = parameters(call.function)
    if odd := [key for key in extra if key not in takes and not any_key]:
        raise UserError(f"--{odd[0]}: the recipe {call.name} takes no such thing")
    with calls.saying(as_node(call)):
        return execute(call, partial(foreseen, call), **extra)


def build_part(config: Mapping[str, Any], key: str) -> Any:
    """What stands under one key of a config, built; the rest of it is left alone. None where the key is not there.

    Imports whatever it names: ask `external_code` first where the config is somebody else's. Errors: UserError, one line per mistake.
    """
    from mmalign.types import UserError

    review = Review(trust=True)
    planned = plan_part({key: environment.resolved(config.get(key), key)}, key, review)
    if review.errors:
        raise UserError("\n".join(review.errors))
    return carry_out(planned)


def _reviewed(node: Mapping[str, Any], trust: bool, review: Review | None = None) -> tuple[Call | None, Review]:
    review = Review(trust) if review is None else review
    call = plan(node, review)
    if call is not None:
        crosschecked(call, review)
        if call.name == stages.RECIPE:
            stages.reviewed(call, review)
    return call, review


def locate(path: str | Path) -> Path:
    """The config file meant by a path or a short name. Errors: UserError with the nearest short names."""
    from mmalign.types import UserError

    for candidate in (Path(path), Path(f"{path}.yaml"), resource(f"configs/{path}"), resource(f"configs/{path}.yaml")):
        if candidate.is_file():
            return candidate
    folder = resource("configs")
    known = sorted(str(file.relative_to(folder).with_suffix("")) for file in folder.rglob("*.yaml"))
    if inside := [name for name in known if name.startswith(f"{str(path).strip('/')}/")]:
        raise UserError(f"{path}: is a folder of configs; takes one of {', '.join(inside)}")
    if Path(path).is_dir():
        raise UserError(f"{path}: is a folder, takes a YAML file or a short name")
    if Path(path).suffix in (".yaml", ".yml"):
        here = [file.stem for file in Path().glob("*.yaml")]
        raise UserError(f"{path}: no such file in {Path.cwd()}{nearest(str(path).rpartition('.')[0], [*here, *known])}")
    near = nearest(str(path), known) or "; `mmalign list configs` has them all"
    raise UserError(f"{path}: no such config; takes a YAML file or a short name, such as digits/demo{near}")
