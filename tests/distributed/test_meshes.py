"""Meshes of processes."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import pytest
import torch._dynamo  # noqa: F401 (here, so that no forked process has to import it again)
from torch.distributed import device_mesh

from mmalign.distributed.meshes import mesh_of
from mmalign.distributed.team import joined
from tests.helpers.processes import together


def test_nobody_goes_on_before_all_have_it(tmp_path: Path) -> None:
    """Who ends first is the one that keeps what the others find each other by."""
    real = device_mesh.init_device_mesh

    def slow(*given: Any, **more: Any) -> Any:
        mesh = real(*given, **more)
        time.sleep(0.3)
        (tmp_path / "formed").touch()
        return mesh

    def act(rank: int) -> None:
        joined()
        with pytest.MonkeyPatch.context() as patch:
            if rank == 1:
                patch.setattr(device_mesh, "init_device_mesh", slow)
            mesh = mesh_of("cpu", (1, 2), ("rows", "tensor"))
        assert (tmp_path / "formed").exists()
        assert mesh["tensor"].get_local_rank() == rank

    ended = together(2, act, tmp_path / "processes")
    assert [code for code, _ in ended] == [0, 0], "\n".join(text for _, text in ended)
