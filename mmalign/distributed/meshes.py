"""Meshes of processes, that of each dimension a group, and tensors of which each process holds a part."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor


def mesh_of(kind: str, shape: tuple[int, ...], names: tuple[str, ...] | None = None) -> Any:
    """torch's device mesh ``[*shape]`` of all processes, on devices of a kind; names: of its dimensions.

    Its groups are formed in every process when it returns: one that ended before (because it was refused what it wanted the mesh for) would
    take along the store by which others still form theirs.
    """
    from torch.distributed import barrier
    from torch.distributed.device_mesh import init_device_mesh

    mesh = init_device_mesh(kind, shape, mesh_dim_names=names)
    barrier()
    return mesh


# Tensors


def in_processes() -> bool:
    """Whether this is one of several processes, whose parameters may be in shards."""
    return torch.distributed.is_available() and torch.distributed.is_initialized()


def is_cut(value: Tensor) -> bool:
    """Whether this is a part of a tensor, of which other processes hold the others."""
    if not in_processes():
        return False
    from torch.distributed.tensor import DTensor

    return isinstance(value, DTensor)


def like(value: Tensor, p: Tensor) -> Tensor:
    """A whole tensor as the shards of a parameter that ``fully_shard`` has cut; others as they are."""
    own = None if is_cut(value) or value.shape != p.shape else own_rows(p)
    return value if own is None else of_rows(value[own.first : own.first + len(own.value)], p)


class Rows(NamedTuple):
    """What a process holds of a tensor in shards: its rows from ``first`` on."""

    first: int
    value: Tensor


def own_rows(value: Tensor) -> Rows | None:
    """This process's rows of a tensor that ``fully_shard`` has cut, or None for others. They are those of ``torch.chunk``."""
    if not is_cut(value):
        return None
    cut: Any = value
    each = -(-value.shape[0] // cut.device_mesh.size())
    return Rows(min(each * cut.device_mesh.get_local_rank(), value.shape[0]), cut.to_local().detach())


def held_of(value: Tensor) -> Tensor:
    """What this process holds of a tensor."""
    rows = own_rows(value)
    return value if rows is None else rows.value


def of_rows(rows: Tensor, p: Tensor) -> Tensor:
    """A tensor in shards, as ``fully_shard`` has cut ``p`` and where it keeps it, of the rows that each process has of it."""
    made: Any = torch.empty_like(p, dtype=rows.dtype, requires_grad=False)
    with torch.no_grad():
        made.to_local().copy_(rows)
    return made  # type: ignore[no-any-return]


def whole(value: Tensor) -> Tensor:
    """Shards of ``fully_shard`` put together; others as they are. Takes all processes."""
    cut: Any = value
    return cut.full_tensor() if is_cut(value) else value
