"""Alignment of generative models: image, video, text and vision-language, with one currency for all of them.

``import mmalign as mm`` loads nothing heavy: the rooms (``mm.methods``, ``mm.rewards``, ``mm.policies``, ...) and the recipes
(``mm.online``, ...) are read from the folders, and imported when they are asked for.
"""

from __future__ import annotations

import importlib
from functools import cache
from types import FunctionType
from typing import Any

from mmalign.arguments.signatures import nearest
from mmalign.rooms import Room, index, offered

__version__ = "0.2.0"

ROOMS = (
    "policies",
    "methods",
    "rewards",
    "worlds",
    "data",
    "recipes",
    "commands",
    "combinations",
    "guidance",
    "evaluation",
    "environments",
    "merges",
)
"""The packages whose functions are flat to the user: ``mm.rewards.jpeg``."""

FILES = {
    **{name: f"mmalign.samplers.{name}" for name in ("kernels", "windows", "branches")},
    "heads": "mmalign.policies.scorers.heads",
    "segments": "mmalign.policies.language.prompts.segments",
}
"""Single files, and a folder, that have a name of their own: ``mm.kernels.flow_sde``."""

SETTINGS = {
    "Batch": "training", "RecordBatch": "training", "Evaluation": "training", "Reference": "training", "RunSettings": "training",
    "Stop": "training", "Mix": "training", "Lora": "policies", "Train": "policies", "Schedule": "policies", "Memory": "policies",
    "TextMemory": "policies", "EngineSettings": "policies", "Turns": "policies", "Part": "merges", "Search": "merges",
}  # fmt: skip
"""Records of settings: ``mm.Batch(prompts=10)``; a mapping of the same keys does as well."""

FLAT = {
    "prompts": "mmalign.data", "like": "mmalign.lookup.dialects", "guide": "mmalign.guidance", "Prompt": "mmalign.types",
    **{name: f"mmalign.{room}.settings" for name, room in SETTINGS.items()},
}  # fmt: skip
"""Functions that are flat themselves, besides every recipe, command and optimiser: ``mm.prompts``."""

CALLED = ("mmalign.recipes", "mmalign.commands", "mmalign.training.optimizers")


def _home(name: str) -> str | None:
    if name in FLAT:
        return FLAT[name]
    return next((home for home in CALLED if name in index(home)), None)


@cache
def _view(module: str) -> Room:
    """A single file as a room."""
    return Room(module, importlib.import_module(module).__doc__)


def __getattr__(name: str) -> Any:
    if name.startswith("_"):
        raise AttributeError(f"module 'mmalign' has no attribute {name!r}")
    if name in ROOMS:
        return importlib.import_module(f"mmalign.{name}")
    if name in FILES:
        return _view(FILES[name])
    home = _home(name)
    if home is None:
        raise AttributeError(f"mmalign has no {name!r}{nearest(name, __dir__())}")
    if name in index(home):
        return offered(home, name)
    value = getattr(importlib.import_module(home), name)
    if isinstance(value, FunctionType):
        from mmalign.arguments.calls import checking

        return checking(value)
    return value


def __dir__() -> list[str]:
    return sorted({"__version__", *ROOMS, *FILES, *FLAT, *(name for home in CALLED for name in index(home))})
