"""What a shell may complete of changes to a config: ``batch.gr`` is ``batch.group=``."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import typer


def completed_changes(context: typer.Context, incomplete: str) -> list[str]:
    """Keys of a config, as far as the next dot or up to their ``=``: those in its file, and those that its settings and nodes take."""
    from mmalign.config import load
    from mmalign.types import UserError

    home, _, begun = incomplete.rpartition(".")
    if "=" in incomplete:
        return []
    try:
        node = _at(load(str(context.params.get("config") or "")), home)
    except UserError:
        return []  # no such file, or one that cannot be read: `train` says so
    names = {**dict.fromkeys(_taken(node, home), False), **{name: isinstance(item, Mapping) for name, item in node.items()}}
    words = (f"{home}.{name}" if home else name for name in names if name.startswith(begun) and name != "use")
    return sorted(word + ("." if _has_keys(word) or names[word.rpartition(".")[2]] else "=") for word in words)


def _at(config: Mapping[str, Any], home: str) -> Mapping[str, Any]:
    """The mapping under a dotted key, empty where there is none."""
    node: Any = config
    for name in home.split(".") if home else ():
        node = node.get(name) if isinstance(node, Mapping) else None
    return node if isinstance(node, Mapping) else {}


def _taken(node: Mapping[str, Any], home: str) -> Iterable[str]:
    """What a node's function takes by name, or the records that stand under its key."""
    from mmalign.arguments.signatures import parameters
    from mmalign.lookup.catalogue import function, lookup
    from mmalign.lookup.settings import keys, matching

    if "use" in node:
        return [name for listing in lookup(str(node["use"])) for name in parameters(function(listing))[0]]
    return [name for setting in matching(home) for name in keys(setting)] if home else []


def _has_keys(word: str) -> bool:
    """Whether records stand under a key, so that more of it may follow."""
    from mmalign.lookup.settings import SETTINGS

    home, _, last = word.rpartition(".")
    return any((setting.home, setting.key) == (home, last) for setting in SETTINGS)
