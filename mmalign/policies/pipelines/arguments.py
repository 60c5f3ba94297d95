"""Which arguments the calls of pipelines take, read off their source: a misspelled one is found before anything is loaded."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

CALL = re.compile(r"\n    def __call__\(\n(        self,\n(?:        .*\n)*)    \)")
ARGUMENT = re.compile(r"^        (\w+)\s*[:=,]", re.MULTILINE)


def call_arguments_of(arguments: Mapping[str, Any]) -> Iterable[str] | None:
    """The keywords that some pipeline's call takes; None where the pipeline is made by a function from outside of mmalign.

    arguments: of the node of ``policies.diffusers``. Which of the pipelines it is, a hub id does not tell; a name that none of them
    takes is wrong with all.
    """
    made_by = getattr(arguments.get("pipeline"), "function", None)
    if made_by is not None and not made_by.__module__.startswith("mmalign."):
        return None
    return all_arguments()


@cache
def all_arguments() -> frozenset[str]:
    """Every argument of the calls of diffusers' pipelines, and of the small worlds'."""
    return frozenset(
        name for path in _sources() for call in CALL.findall(path.read_text(encoding="utf-8")) for name in ARGUMENT.findall(call)
    )


def _sources() -> Iterator[Path]:
    spec = find_spec("diffusers")
    if spec is not None and spec.submodule_search_locations:
        yield from Path(spec.submodule_search_locations[0], "pipelines").rglob("pipeline_*.py")
    yield from (Path(__file__).parents[2] / "worlds").rglob("pipeline.py")
