"""Meshes of processes, that of each dimension a group."""

from __future__ import annotations

from typing import Any


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
