"""Tables of the rows of all processes, made of what each has of its own."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.distributed.team import Team
from mmalign.stacking import pooled, stacked
from mmalign.types import TABLES, Kind, Rollout, Steps

Path = tuple[str, ...]


class Whole(NamedTuple):
    """Of a rollout that several processes made together: mask ``[B, T]`` and group ``[B]`` of all rows, and ``owner [B]``, the rank of the
    process that holds each of them, in whose order they stand; rank: of this process."""

    mask: Tensor
    group: Tensor
    owner: Tensor
    rank: int = 0


def whole(team: Team, rollout: Rollout) -> Whole:
    """Mask and group of the rows of all processes; the rollout's ``metrics`` become those of all of its rows."""
    parts = team.gather({"mask": rollout.mask, "group": rollout.group})
    counts = [len(part["group"]) for part in parts]
    rollout.metrics = pooled(team.tell(rollout.metrics), counts)
    mask, group = stacked([part["mask"] for part in parts]), torch.cat([part["group"] for part in parts])
    return Whole(mask, group, torch.arange(team.size).repeat_interleave(torch.tensor(counts)), team.rank)


def outputs(team: Team, own: Any) -> Any:
    """Outputs of all processes: tensors ``[B, ...]``, or lists of what JSON holds; own: None where a process has none."""
    if team.size == 1:
        return own
    tensors = [part["outputs"] for part in team.gather({"outputs": own} if isinstance(own, Tensor) else {}) if part]
    lists = [part for part in team.tell(None if isinstance(own, Tensor) else own) if part is not None]
    return torch.cat([part.to(tensors[0].device) for part in tensors]) if tensors else [output for part in lists for output in part]


def scores(team: Team, own: Mapping[str, Tensor], rows: int) -> dict[str, Tensor]:
    """Named scores ``[b]`` of each process's own ``rows`` as those of all; NaN where a process has no such name."""
    counts, parts = team.tell(rows), team.gather(own)
    names = dict.fromkeys(name for rank in team.tell(list(own)) for name in rank)  # safetensors sort theirs
    nothing = [torch.full((count,), torch.nan, dtype=torch.float64) for count in counts]
    return {name: torch.cat([part.get(name, none) for part, none in zip(parts, nothing, strict=True)]) for name in names}


def steps(team: Team, own: Steps | None, place: Tensor, *, kind: Kind) -> Steps:
    """The rows ``[R, T]`` of all processes, those of this one with their graph and those of others without.

    own: this process's, None where it has none. place: ``[r]`` which of the R rows they are. kind: of the policy's steps.
    """
    sizes = [size for size in team.tell(None if own is None else own.event_size) if size is not None]
    parts = team.gather({**({} if own is None else {json.dumps(path): table for path, table in _flat(own).items()}), "place": place})
    order = torch.cat([part.pop("place") for part in parts]).argsort()
    held = [part for part in parts if part]
    tables = {tuple(json.loads(name)): stacked([part[name] for part in held])[order] for name in held[0]}
    return _steps(tables, event_size=sizes[0], kind=kind)


def _flat(one: Steps) -> dict[Path, Tensor]:
    """Every table of some steps by its path."""
    tables: dict[Path, Tensor] = {("log_probs",): one.log_probs, ("mask",): one.mask}
    if one.old is not None:
        tables[("old",)] = one.old
    tables |= {(field, name): table for field in TABLES for name, table in getattr(one, field).items()}
    for name, contrast in one.contrasts.items():
        tables |= {("contrasts", name, *path): table for path, table in _flat(contrast).items()}
    return tables


def _steps(tables: Mapping[Path, Tensor], *, event_size: int, kind: Kind) -> Steps:
    """What ``_flat`` took apart."""

    def under(field: str) -> dict[str, Tensor]:
        return {path[1]: table for path, table in tables.items() if path[0] == field}

    inside: dict[str, dict[Path, Tensor]] = {}
    for path, table in tables.items():
        if path[0] == "contrasts":
            inside.setdefault(path[1], {})[path[2:]] = table
    contrasts = {name: _steps(held, event_size=event_size, kind=kind) for name, held in inside.items()}
    named: dict[str, Any] = {field: under(field) for field in TABLES}
    own = {name: tables.get((name,)) for name in ("log_probs", "mask", "old")}
    return Steps(**own, event_size=event_size, kind=kind, contrasts=contrasts, **named)  # type: ignore[arg-type]


def blocks(parts: Sequence[Mapping[str, Tensor]], name: str) -> Tensor:
    """Square tables ``[b, b]`` of that name as blocks on the diagonal of one, NaN elsewhere."""
    inside = torch.block_diag(*[torch.ones_like(part[name]) for part in parts]) > 0
    return torch.where(inside, torch.block_diag(*[part[name] for part in parts]), torch.nan)
