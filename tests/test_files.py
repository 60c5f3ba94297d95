"""Folders that appear whole, whose files whoever may read the folder can read."""

import os

import pytest
import torch
from safetensors.torch import save_file

from mmalign.files import appearing


@pytest.fixture
def umask():
    """Sets the process's mask, and puts it back."""
    before = os.umask(0o022)
    yield os.umask
    os.umask(before)


@pytest.mark.parametrize("mask, mode", [(0o022, 0o644), (0o077, 0o600)])
def test_weights_are_read_by_whom_the_mask_lets(tmp_path, umask, mask, mode):
    umask(mask)
    with appearing(tmp_path / "export") as place:
        (place / "part").mkdir()
        save_file({"a": torch.zeros(2)}, str(place / "part" / "weights.safetensors"))
    assert (tmp_path / "export" / "part" / "weights.safetensors").stat().st_mode & 0o777 == mode
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["export", "part", "weights.safetensors"]


def test_of_a_block_that_fails_nothing_stays(tmp_path):
    with pytest.raises(OSError, match="full"), appearing(tmp_path / "export") as place:
        (place / "half").touch()
        raise OSError("full")
    assert not list(tmp_path.iterdir())
