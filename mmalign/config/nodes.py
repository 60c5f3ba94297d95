"""Which keys of a config hold nodes, where the names under them are looked up, and which words stand for a node."""

from __future__ import annotations

import functools
import inspect
import os
from collections.abc import Callable, Mapping
from typing import Any

from mmalign.arguments import signatures
from mmalign.lookup.catalogue import KINDS, PROMPTS
from mmalign.lookup.external_code import IMPORT_PATH
from mmalign.rooms import index, resource

ROOMS: dict[str, tuple[str, ...]] = {
    "policy": ("policies", "worlds"),
    "samplers": ("policies",),
    "head": ("policies.scorers.heads",),
    "pipeline": ("worlds",),
    "model": ("worlds",),
    "world": ("worlds",),
    "method": ("methods",),
    "kernel": ("samplers.kernels",),
    "window": ("samplers.windows",),
    "random": ("samplers.windows",),
    "branches": ("samplers.branches",),
    "guidance": ("guidance",),
    "prompts": ("data", "worlds"),
    "records": ("data", "worlds"),
    "edits": ("data",),
    "mask": ("data",),
    "rewards": ("rewards", "worlds"),
    "combine": ("combinations.algebra", "combinations.balancing", "combinations.by_gradient", "combinations.eligible"),
    "transforms": ("combinations.transforms",),
    "oracle": ("rewards", "worlds"),
    "judges": ("rewards", "evaluation", "worlds"),
    "real": ("worlds",),
    "metrics": ("evaluation", "rewards", "worlds"),
    "suite": ("evaluation.suites",),
    "mark": ("worlds",),
    "optimizer": ("training.optimizers",),
    "rule": ("merges",),
    "kept": ("rewards", "worlds"),
    "agree": ("rewards", "worlds"),
    "critics": ("rewards", "worlds"),
    "environment": ("environments",),
    "tools": ("environments",),
    "simulator": ("environments",),
    "segments": ("policies.language.prompts.segments",),
    "parser": ("policies.language.prompts.segments",),
}
"""key -> where the names under it are looked up, in this order. Mappings and lists inside inherit their key's rooms."""

LATER = ("stages",)
"""Keys that hold nodes by name which are built later than what they stand in (`config.stages`)."""

NAMED = ("rewards", "judges", "metrics", "transforms", "kept", "agree", "critics", "tools", "samplers")
"""Keys that hold nodes by name; the other keys of `ROOMS` hold one node."""

MODELS = ("pipeline", "model")
"""Keys whose hub id or folder may stand in place of a node."""

USUAL = {"optimizer": "adamw"}
"""key -> what a node under it uses where it does not say."""

PROMPT_FILES = (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow")
"""How a word under ``prompts`` ends that is a file."""

OWN_ARGUMENTS = ("outputs", "prompts")
"""What a reward, a judge or a metric is asked about, first of all."""

KIND_OF = {
    "rewards": "rewards",
    "judges": "rewards",
    "kept": "rewards",
    "agree": "rewards",
    "critics": "rewards",
    "oracle": "oracles",
    "metrics": "metrics",
}
"""key -> the kind of what stands under it (`catalogue.KINDS`), where its rooms hold other things too."""


FITS = {
    "policy": KINDS["policies"].returns,
    "prompts": PROMPTS,
    "pipeline": frozenset({"Any"}),
    "model": frozenset({"tuple[Any, Any]"}),
}
"""key -> what a function of ours gives whose node stands there; its rooms hold other things too."""


def unfit(key: str, gives: str) -> bool:
    """Whether a function of ours that gives this is none for the node under a key."""
    if key == "records":
        return gives.startswith(("Callable", "Mask")) or any(gives in fits for fits in FITS.values())
    return key in FITS and gives not in FITS[key]


class Product(str):
    """The path of a file or a folder that is not there yet, since a stage before makes it: nobody looks for it."""

    __slots__ = ()


def expanded(value: Any, parameter: signatures.Parameter) -> Any:
    """Words in place of nodes: ``method: grpo``, ``rewards: {red: my_rewards.redness}``, and the file of ``prompts: FILE``."""
    key = parameter.name
    if key not in ROOMS or signatures.scalar(parameter.annotation):
        return value
    if isinstance(value, str) and signatures.words(parameter.annotation) and value.isidentifier() and not _named(value, key):
        return value  # one of its words, or none
    if key in NAMED and isinstance(value, Mapping) and "use" not in value:
        return {name: _node(item, key) for name, item in value.items()}
    return _node(value, key)


def _node(word: Any, key: str) -> Any:
    """The node that a word stands for under a key; anything else, and the id or folder of a model, as it is."""
    if not isinstance(word, str) or key in MODELS:
        return word
    is_name = _named(word, key)
    if key == "prompts" and not is_name:
        is_file = word.endswith(PROMPT_FILES) or any(os.path.isfile(place) for place in (word, resource(word)))
        return {"use": "prompts", "path": word} if is_file else word
    return {"use": word} if is_name or word.isidentifier() or IMPORT_PATH.fullmatch(word) else word


def _named(word: str, key: str) -> bool:
    """Whether a word is a name of a key's rooms."""
    return any(word in index(f"mmalign.{room}") for room in ROOMS[key])


def maker(function: Callable[..., Any], rooms: tuple[str, ...]) -> Callable[..., Any]:
    """A function that is a reward, judge or metric itself, as one that makes it; any other function as it is.

    What takes ``outputs`` and ``prompts`` first is no maker. A node may set those keywords of it that have a default; the rest are
    columns of the prompts.
    """
    if "rewards" not in rooms or not inspect.isfunction(function):
        return function
    parameters = inspect.signature(function).parameters
    if tuple(parameters)[:2] != OWN_ARGUMENTS:
        return function

    @functools.wraps(function)
    def make(**keywords: Any) -> Callable[..., Any]:
        return functools.partial(function, **keywords) if keywords else function

    settable = [one for one in parameters.values() if one.default is not one.empty]
    make.__signature__ = inspect.Signature([one.replace(kind=one.KEYWORD_ONLY) for one in settable])  # type: ignore[attr-defined]
    return make
