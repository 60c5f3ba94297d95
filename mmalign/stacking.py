"""Tables of several rollouts as those of one: rows of the first part first."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, TypeVar

import torch
from torch import Tensor

Record = TypeVar("Record")


def stacked(tables: Sequence[Tensor]) -> Tensor:
    """Tables ``[B, T, ...]`` as one, narrower ones filled up with zeros (False) on the right."""
    width = max(table.shape[1] for table in tables)
    return torch.cat([torch.cat([t, t.new_zeros(len(t), width - t.shape[1], *t.shape[2:])], dim=1) for t in tables])


def stacked_by_name(tables: Sequence[Mapping[str, Tensor]]) -> dict[str, Tensor]:
    """Named tables ``[B, T, ...]`` as one each, those that every part has."""
    return {name: stacked([part[name] for part in tables]) for name in tables[0] if all(name in part for part in tables)}


def joined(parts: Sequence[Record]) -> Record:
    """Records of tables of the same columns as one: ``Steps``, and those inside of them. What is no table is the first one's."""

    def one(values: Sequence[Any]) -> Any:
        first = values[0]
        if isinstance(first, Tensor):
            return torch.cat(list(values))
        if isinstance(first, Mapping):
            return {name: one([value[name] for value in values]) for name in first}
        return joined(values) if is_dataclass(first) else first

    first: Any = parts[0]
    joint: Record = replace(first, **{field.name: one([getattr(part, field.name) for part in parts]) for field in fields(first)})
    return joint


def entries_by_name(lists: Sequence[Mapping[str, Sequence[Any]]], counts: Sequence[int], default: Any) -> dict[str, list[Any]]:
    """Named lists, an entry for each row, as one each; a part of ``counts`` rows that has no such list holds the default."""
    names = dict.fromkeys(name for part in lists for name in part)
    filled = {name: [part.get(name, [default] * count) for part, count in zip(lists, counts, strict=True)] for name in names}
    return {name: [entry for part in parts for entry in part] for name, parts in filled.items()}


def offset(places: Sequence[Tensor], counts: Sequence[int]) -> Tensor:
    """Places ``[B]`` in lists as places in those lists put behind each other; counts: how long each is."""
    starts = [sum(counts[:part]) for part in range(len(counts))]
    return torch.cat([some + start for some, start in zip(places, starts, strict=True)])


def numbered(parts: Sequence[Tensor | None]) -> Tensor | None:
    """Numbers ``[B]`` of several parts with those of no two parts alike; None where a part has none."""
    known = [part for part in parts if part is not None]
    if len(known) < len(parts):
        return None
    return offset(known, [int(part.max()) + 1 if len(part) else 0 for part in known])


def pooled(metrics: Sequence[Mapping[str, float]], counts: Sequence[int]) -> dict[str, float]:
    """Metrics that every part has: means over rows, the largest of ``*_max``."""

    def one(name: str) -> float:
        values = [part[name] for part in metrics]
        mean = sum(count * value for count, value in zip(counts, values, strict=True)) / max(sum(counts), 1)
        return max(values) if name.endswith("_max") else mean

    return {name: one(name) for name in metrics[0] if all(name in part for part in metrics)}
