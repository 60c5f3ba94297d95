"""Rows that belong together, though a data set writes them apart: messages of a tree, and pictures of one prompt."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import lru_cache
from itertools import islice
from typing import Any

from mmalign.data._reading.parsing import excerpt
from mmalign.data._reading.stored import Hub
from mmalign.data._reading.tables import Block, Row, in_order
from mmalign.media import Broken
from mmalign.types import UserError

FLAT = {"message_id", "parent_id", "text"}  # OpenAssistant's messages, one to a row
RATED = {"prompt_id", "prompt", "rank"}  # ImageRewardDB's pictures, one to a row
PICTURES = ("image", "image_path")
LOOK = 4  # rows that are looked at
OPEN = 2  # blocks of rows that are held at a time


def in_trees(source: list[Block] | Hub) -> list[Block] | Hub:
    """The source, or, where its rows are single messages of trees, one block whose rows are those trees."""
    if not any(row.keys() >= FLAT for row in _first(source)):
        return source
    return [Block(_name(source), lambda: _forest([(number, row) for _, number, row in _rows(source)]))]


def in_groups(source: list[Block] | Hub) -> list[Block] | Hub:
    """The source, or, where its rows are single pictures with their place among those of a prompt, one block with a row for each prompt.

    Errors: UserError for a data set that is streamed: the pictures of a prompt are not known before all of it was read.
    """
    if not any(row.keys() >= RATED and row.keys() & {*PICTURES} and isinstance(row["rank"], (int, float)) for row in _first(source)):
        return source
    if isinstance(source, Hub) and source.streaming:
        raise UserError(f"records: {source.name} has one picture to a row, and its pairs are within a prompt; takes streaming: false")
    parts = source.blocks() if isinstance(source, Hub) else source
    return [Block(_name(source), lambda: _groups(parts), next((part.file for part in parts), ""))]


def _name(source: list[Block] | Hub) -> str:
    return source.name if isinstance(source, Hub) else source[0].name


def _first(source: list[Block] | Hub) -> list[Row]:
    return [row for _, _, row in islice(_rows(source), LOOK) if not isinstance(row, Broken)]


def _rows(source: list[Block] | Hub) -> Iterator[tuple[int, str, Row | Broken]]:
    return source.rows(seed=None, start=0) if isinstance(source, Hub) else in_order(source, seed=None)


def _forest(rows: list[tuple[str, Row | Broken]]) -> tuple[int, Callable[[int], Row]]:
    """Trees of messages by their first one; a message that cannot be read, or whose parent is not there, is a broken row of its own."""
    nodes: dict[str, dict[str, Any]] = {}
    trees: list[Row | Broken] = []
    for name, row in rows:
        if isinstance(row, Broken) or not row.get("message_id"):
            trees.append(row if isinstance(row, Broken) else Broken(f"{name}: a message without message_id"))
        else:
            nodes[str(row["message_id"])] = {**row, "replies": []}
    for node in nodes.values():
        if node.get("parent_id") in (None, ""):
            trees.append(node)
        elif str(node["parent_id"]) in nodes:
            nodes[str(node["parent_id"])]["replies"].append(node)
    for key in sorted(nodes.keys() - _hanging([tree for tree in trees if not isinstance(tree, Broken)])):
        above = nodes[key]["parent_id"]
        trees.append(Broken(f"message {key} answers {above}, which {'begins no tree' if str(above) in nodes else 'is not there'}"))

    def read(number: int) -> Row:
        tree = trees[number]
        if isinstance(tree, Broken):
            raise tree
        return {"prompt": tree}

    return len(trees), read


def _hanging(trees: list[Row]) -> set[str]:
    """The messages of trees."""
    keys, waiting = set[str](), list(trees)
    while waiting:
        message = waiting.pop()
        keys.add(str(message["message_id"]))
        waiting += message["replies"]
    return keys


def _groups(parts: list[Block]) -> tuple[int, Callable[[int], Row]]:
    """Pictures by their prompt, in the order in which prompts come; each is read again when it is wanted."""
    opened = lru_cache(maxsize=OPEN)(lambda part: parts[part].open())
    places: dict[str, list[tuple[int, int]]] = {}
    broken: list[Broken] = []
    for part in range(len(parts)):
        count, read = opened(part)
        for number in range(count):
            try:
                places.setdefault(_prompt_id(read(number)), []).append((part, number))
            except Broken as error:
                broken.append(error)
    prompts = list(places)

    def group(number: int) -> Row:
        if number >= len(prompts):
            raise broken[number - len(prompts)]
        rows = [opened(part)[1](place) for part, place in places[prompts[number]]]
        pictures = [next((row[key] for key in PICTURES if row.get(key) is not None), None) for row in rows]
        shared = {key: value for key, value in rows[0].items() if key not in (*PICTURES, "rank")}
        return {**shared, "generations": pictures, "ranking": [row["rank"] for row in rows]}

    return len(prompts) + len(broken), group


def _prompt_id(row: Row) -> str:
    if row.get("prompt_id") in (None, ""):
        raise Broken(f"prompt_id: got {excerpt(row.get('prompt_id'))}, takes what pictures of a prompt share")
    return str(row["prompt_id"])
