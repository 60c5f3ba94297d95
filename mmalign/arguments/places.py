"""Files and folders that a config names: whole paths, so that a run can be used from another folder than the one it was started in.

What comes with mmalign is kept by its name there, so that a run can be used with another copy of mmalign than the one that made it.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

KEYS = ("path", "prompts", "from", "start", "config", "requirements")
"""Whose values may be places on disk, at any depth; and every ``*_file``."""
MODELS = {"transformers": ("model", "tokenizer"), "diffusers": ("pipeline",)}
"""``use`` -> keys beside it that may be: a folder comes before a hub id of the same name, as it does for these libraries."""

OURS = ("assets", "configs")
"""Folders of mmalign's own, in a checkout or inside the installed package."""


def resource(name: str) -> Path:
    """A file or folder of ``configs/`` or ``assets/``, in a checkout or inside the installed package; it may not exist."""
    package = Path(__file__).parents[1]
    installed = package / name
    return installed if os.path.exists(installed) else package.parent / name


def absolute(value: Any, folder: Path, key: str = "", keys: tuple[str, ...] = ()) -> Any:
    """A config's node with every place in it that there is in ``folder`` by its whole name; names of anything else stay."""
    if isinstance(value, Mapping):
        models = MODELS.get(str(value.get("use")), ())
        return {name: absolute(item, folder, str(name), models) for name, item in value.items()}
    if isinstance(value, list):
        return [absolute(item, folder, key, keys) for item in value]
    if not isinstance(value, str) or not (key in KEYS or key in keys or key.endswith("_file")):
        return value
    try:
        there = bool(value) and (folder / value).exists()
    except (OSError, ValueError):  # too long, or with a zero in it: it is refused where it is read
        there = False
    return str((folder / value).resolve()) if there else value


def by_name(value: Any) -> Any:
    """A config's node with every place that comes with mmalign by its name there (``assets/text/small``), wherever mmalign is."""
    return _each(value, _name_of)


def found(value: Any) -> Any:
    """The inverse of `by_name`: such names as whole paths in the mmalign that runs. A file or folder of that name here comes first."""
    return _each(value, _found)


def is_same(was: Any, now: Any) -> bool:
    """Whether a run's earlier place, a whole path, may be what is now called by its name: its folder has gone, or is this very one."""
    if not (isinstance(was, str) and isinstance(now, str) and _is_ours(now) and was.endswith(f"/{now}") and os.path.isabs(was)):
        return False
    return not os.path.exists(was) or os.path.samefile(was, resource(now))


def _each(value: Any, change: Callable[[str], str], key: str = "") -> Any:
    """Every string of a node changed, but the prompts of a list, which are what a model reads."""
    if isinstance(value, Mapping):
        return {name: _each(item, change, str(name)) for name, item in value.items()}
    if isinstance(value, list):
        return [item if key == "prompts" and isinstance(item, str) else _each(item, change, key) for item in value]
    return change(value) if isinstance(value, str) else value


def _name_of(value: str) -> str:
    for folder in OURS:
        start = f"{resource(folder).resolve()}{os.sep}"
        if value.startswith(start) and _is_ours(name := f"{folder}/{value.removeprefix(start)}"):
            return name
    return value


def _found(value: str) -> str:
    return str(resource(value).resolve()) if _is_ours(value) and not os.path.exists(value) else value


def _is_ours(name: str) -> bool:
    """Whether mmalign has a file or folder of that name; False for what leads out of its folders."""
    parts = Path(name).parts
    return len(parts) > 1 and parts[0] in OURS and ".." not in parts and os.path.exists(resource(name))
