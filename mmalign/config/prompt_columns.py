"""Columns that rewards, judges, oracles and metrics of a config read, held against those that its prompts have."""

from __future__ import annotations

import inspect
import os
from collections.abc import Iterator, Mapping
from typing import Any

from mmalign.arguments.reads import OWN, columns_named, lacks, needed
from mmalign.config.instantiate import Call, Unread, carry_out, home
from mmalign.lookup.external_code import source_signature

READERS = ("rewards", "oracle")
EVALUATED = ("judges", "metrics")
FILES = {
    "mmalign.data.prompts": (".txt", ".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow"),
    "mmalign.data.pictures": (".jsonl", ".json", ".csv", ".tsv"),
}
"""Where functions are that read prompts of a file, and of which kinds of files that writes nothing."""

MOST_BYTES = 64 * 2**20
"""Of a file of prompts that is read to know its columns; what a larger one lacks is said when the run begins."""


def missing_columns(call: Call) -> Iterator[str]:
    """A line for each column that is read and that the prompts have not, where both can be known."""
    evaluation = call.arguments.get("evaluation")
    settings: Mapping[str, Any] = evaluation.arguments if isinstance(evaluation, Call) else {}
    own, evaluated = call.arguments.get("prompts"), settings.get("prompts")
    training = [reading for key in READERS for reading in _reading(call.arguments.get(key))]
    judging = [reading for key in EVALUATED for reading in _reading(settings.get(key))]
    lines: dict[str, str] = {}
    for readings, prompts in ((training, own), (judging + training, own if evaluated is None else evaluated)):
        there = columns_there(prompts) if readings else None
        for path, column in readings if there is not None else ():
            if why := lacks([column], there or ()):
                lines.setdefault(path, f"{path}: {why}")
    yield from lines.values()


def _reading(value: Any) -> Iterator[tuple[str, str]]:
    """(path, column) of everything inside of a part of a plan that reads a column."""
    if isinstance(value, Call):
        yield from ((value.path, column) for column in _columns(value))
        for inner in value.arguments.values():
            yield from _reading(inner)
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _reading(inner)
    elif isinstance(value, (list, tuple)):
        for inner in value:
            yield from _reading(inner)


def _columns(call: Call) -> list[str]:
    """Columns that one call's result reads: those that a factory names, or those that a function takes that is a reward itself."""
    if isinstance(call.function, Unread):
        source = source_signature(call.function.name)
        keywords = {} if source is None else source.keywords
        itself = tuple(keywords)[:2] == OWN[:2]
        return [name for name, required in keywords.items() if required and name not in OWN] if itself else []
    own = inspect.unwrap(call.function)
    if tuple(inspect.signature(own).parameters)[:2] == OWN[:2]:
        return needed(own)
    return columns_named(call.function, call.arguments)


def columns_there(prompts: Any) -> list[str] | None:
    """The columns of prompts in a plan; None where that is not known before they are made."""
    from mmalign.types import UserError, columns_of

    if isinstance(prompts, list):
        return [] if all(isinstance(prompt, str) for prompt in prompts) else None
    if not isinstance(prompts, Call) or isinstance(prompts.function, Unread):
        return None
    if inspect.unwrap(prompts.function).__annotations__.get("return") == "list[str]" and home(prompts.function).startswith("mmalign."):
        return []
    path, kinds = prompts.arguments.get("path"), FILES.get(home(prompts.function), ())
    if not isinstance(path, str) or not path.endswith(kinds) or not os.path.isfile(path) or os.path.getsize(path) > MOST_BYTES:
        return None
    try:
        return list(columns_of(carry_out(prompts)))
    except UserError:
        return None  # said when the run begins
