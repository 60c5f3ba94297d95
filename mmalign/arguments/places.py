"""Files and folders that a config names: whole paths, so that a run can be used from another folder than the one it was started in."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

KEYS = ("path", "prompts", "from", "start", "config", "requirements")
"""Whose values may be places on disk, at any depth; and every ``*_file``."""
MODELS = {"transformers": ("model", "tokenizer"), "diffusers": ("pipeline",)}
"""``use`` -> keys beside it that may be: a folder comes before a hub id of the same name, as it does for these libraries."""


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
