"""The runs of a sweep: every combination of alternatives, as words that ``mmalign train`` takes."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

from mmalign.config import load, locate
from mmalign.types import UserError

OPEN, CLOSED, QUOTES = "[{(", "]})", "\"'"
MOST = 1000  # runs of a sweep


class Cell(NamedTuple):
    """One run. config: as it was named. words: changes to it, ``key=value``. values: axis -> what it has there, in the order of axes."""

    name: str
    config: str
    words: tuple[str, ...]
    values: Mapping[str, str]


class Grid(NamedTuple):
    """cells: the runs. axes: what differs between them -> its values. fixed: what is changed in all. digests: config -> of its file."""

    cells: list[Cell]
    axes: dict[str, list[str]]
    fixed: list[str]
    digests: dict[str, str]


def grid(configs: Sequence[str], words: Sequence[str]) -> Grid:
    """Every combination of configs and of the values of ``key=a,b,c``.

    A comma inside of brackets or quotes parts nothing. ``method=a,b`` are names; a key without a dot that the recipe does not have is
    one of the method's. Errors: UserError for a word that is none, a value that is empty or there twice, and where nothing differs.
    """
    asked = [(key, alternatives(key, text)) for key, text in map(_parted, words)]
    asked.sort(key=lambda pair: pair[0] != "method")  # what replaces a node stands before what changes it
    if twice := next((key for number, (key, _) in enumerate(asked) if key in [other for other, _ in asked[:number]]), None):
        raise UserError(f"{twice}: is given twice, takes all of its values in one word")
    axes = {key: values for key, values in asked if len(values) > 1}
    if len(configs) > 1:
        axes = {"config": list(dict.fromkeys(configs)), **axes}
    if not axes:
        raise UserError("sweep: nothing differs between its runs; takes key=a,b for one key at least, or several configs")
    cells = list[Cell]()
    for config in dict.fromkeys(configs):
        takes = _recipe_takes(load(config))
        for values in product(*(values for _, values in asked)):
            chosen = dict(zip((key for key, _ in asked), values, strict=True))
            shown = {axis: config if axis == "config" else chosen[axis] for axis in axes}
            changes = tuple(f"{_whole(key, takes)}={_node(key, value)}" for key, value in chosen.items())
            cells.append(Cell(_named(shown, [cell.name for cell in cells]), config, changes, shown))
            if len(cells) > MOST:
                raise UserError(f"sweep: has more than {MOST} runs, takes fewer values")
    fixed = [f"{key}={values[0]}" for key, values in asked if len(values) == 1]
    digests = {config: hashlib.sha256(locate(config).read_bytes()).hexdigest()[:16] for config in configs}
    return Grid(cells, axes, fixed, digests)


def _parted(word: str) -> tuple[str, str]:
    key, equals, text = word.partition("=")
    if not equals or not key:
        raise UserError(f"{word}: takes key=value, or key=a,b,c")
    if key in ("run.name", "run.folder"):
        raise UserError(f"{key}: a sweep names its runs itself; takes --out for the folder of all")
    return key, text


def alternatives(key: str, text: str) -> list[str]:
    """``a,b`` as ``a`` and ``b``; ``[a, b],[c]`` as two lists."""
    parts, depth, quote = [""], 0, ""
    for letter in text:
        if letter in QUOTES and quote in ("", letter):
            quote = "" if quote else letter
        depth += (letter in OPEN) - (letter in CLOSED) if not quote else 0
        if letter == "," and not depth and not quote:
            parts.append("")
        else:
            parts[-1] += letter
    parts = [part.strip() for part in parts]
    if len(parts) > 1 and not all(parts):
        raise UserError(f"{key}={text}: has an empty value, takes one between every two commas")
    if twice := next((part for part in parts if parts.count(part) > 1), None):
        raise UserError(f"{key}={text}: has {twice} twice, takes each value once")
    return parts


def _recipe_takes(node: Mapping[str, Any]) -> set[str]:
    """The keys of a config's recipe. Errors: UserError for a config that makes no run."""
    from mmalign.arguments.signatures import parameters
    from mmalign.rooms import find, index

    if node.get("use") not in index("mmalign.recipes"):
        raise UserError(f"use: got {node.get('use')!r}, and a sweep is of runs; takes {', '.join(index('mmalign.recipes'))}")
    return set(parameters(find("mmalign.recipes", node["use"]))[0])


def _whole(key: str, takes: set[str]) -> str:
    return key if re.split(r"[.\[]", key)[0] in {*takes, "use"} else f"method.{key}"


def _node(key: str, value: str) -> str:
    """A method by its name as a node, so that settings can be added to it."""
    return f"{{use: {value}}}" if key == "method" and re.fullmatch(r"[\w.]+", value) else value


def _named(values: Mapping[str, str], taken: Sequence[str]) -> str:
    """The folder of a run: ``dpo-beta0.05-seed1``; with a few letters of what it has where that is another one's too."""
    words = [value if axis in ("config", "method") else f"{axis.rpartition('.')[2]}{value}" for axis, value in values.items()]
    name = re.sub(r"[^\w.+-]+", "_", "-".join(words)).strip("._-")[:100] or "run"
    other = hashlib.sha256(json.dumps(dict(values)).encode()).hexdigest()[:6]
    return f"{name}-{other}" if name in taken or name in ("configs", "logs") else name
