"""How something that has a name is used: what its keywords take, what a method asks of a policy, a line of YAML and one of Python."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

from mmalign.lookup.catalogue import KINDS, STANDS_UNDER, Listing, python_name
from mmalign.lookup.docstrings import Explanation


class Keyword(NamedTuple):
    """A keyword, or several of one meaning, in words: their names as YAML writes them, what they take, their defaults, what they mean."""

    names: str
    takes: str
    default: str
    meaning: str


def keywords(docstring: Explanation, made_by: Callable[..., Any]) -> Iterator[Keyword]:
    """The keywords of a function or record, those that its docstring explains first."""
    from mmalign.arguments import signatures

    parameters, _ = signatures.parameters(made_by)
    for names, meaning in [*docstring.keywords, *((name, "") for name in docstring.unexplained)]:
        own = [name.strip() for name in names.split(",") if name.strip() in docstring.defaults]
        takes = dict.fromkeys(_takes(parameters[name.rstrip("_")]) for name in own)
        defaults = [docstring.defaults[name] for name in own]
        shown = ", ".join("required" if default is inspect.Parameter.empty else _default(default) for default in defaults)
        keys = ", ".join(name.strip().rstrip("_") for name in names.split(","))  # `from_` is `from` in YAML
        yield Keyword(keys, ", ".join(filter(None, takes)), shown, meaning)


def needs(listing: Listing, made_by: Callable[..., Any]) -> str:
    """What a method asks of a policy, where it can be made without a keyword; empty for what is no method."""
    from mmalign.arguments import signatures
    from mmalign.needs import lacking

    if listing.kind != "methods" or any(parameter.required for parameter in signatures.parameters(made_by)[0].values()):
        return ""
    method = made_by()
    asked = ", ".join(lacking(method, frozenset())) or "log-probabilities alone"
    return f"{asked}; steps of kind {' or '.join(sorted(method.kinds))}; sees a {method.unit} at once"


def written(listing: Listing, docstring: Explanation) -> dict[str, str]:
    """``YAML`` and ``Python`` -> a line of it, with what is required and the first plain defaults."""
    if not listing.kind:
        return {}
    required = [name for name, default in docstring.defaults.items() if default is inspect.Parameter.empty]
    plain = [name for name, default in docstring.defaults.items() if isinstance(default, (bool, int, float, str)) and name not in required]
    shown = {**dict.fromkeys(required, "..."), **{name: docstring.defaults[name] for name in plain[:2]}}
    if listing.setting is not None and not shown:
        shown = dict.fromkeys([*docstring.defaults][:1], "...")
    keys = ", ".join(f"{name.rstrip('_')}: {_yaml(value)}" for name, value in shown.items())
    lines = {}
    if listing.setting is not None:
        home = [*filter(None, listing.setting.home.split(".")), listing.setting.key, *(["ref"] if listing.setting.by_name else [])]
        lines["YAML"] = ": {".join(home) + ": {" + keys + "}" * len(home)
    elif node := KINDS[listing.kind].node:
        use = f"use: {listing.name}" + (f", {keys}" if shown else "")
        lines["YAML"] = node.format(use="{" + use + "}", name=listing.name)
    if path := python_name(listing):
        arguments = ", ".join(f"{name}={value if value == '...' else repr(value)}" for name, value in shown.items())
        lines["Python"] = f"mm.{path}({arguments})"
    return lines


def _takes(parameter: Any) -> str:
    """What a keyword takes: plain data, a record, or something that has a name."""
    from mmalign.arguments import signatures

    kind = STANDS_UNDER.get(parameter.name)
    if words := signatures.takes(parameter):
        return words
    return f"of `mmalign list {kind}`" if kind and not signatures.plain(parameter.annotation) else ""


def _default(value: Any) -> str:
    """A default as it is written; of a record, the mapping that makes it."""
    from dataclasses import fields

    from mmalign.arguments.signatures import Record

    if not isinstance(value, Record):
        return repr(value)
    usual = {field.name: field.default for field in fields(value)}  # type: ignore[arg-type]
    other = {name: getattr(value, name) for name, default in usual.items() if getattr(value, name) not in (default, {}, [])}
    return "{" + ", ".join(f"{name}: {_yaml(setting)}" for name, setting in other.items()) + "}"


def _yaml(value: Any) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)
