"""Named parameter sets under ``torch.distributed.fsdp.fully_shard``, which puts shards in the place of a module's parameters."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.distributed.tensor import DTensor

from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora

X = torch.linspace(-1, 1, 12).view(3, 4)


@pytest.fixture
def alone(tmp_path: Path) -> Iterator[None]:
    """A group of one process."""
    torch.distributed.init_process_group("gloo", init_method=f"file://{tmp_path / 'store'}", rank=0, world_size=1)
    yield
    torch.distributed.destroy_process_group()


def sharded(*, lora: bool) -> tuple[nn.Module, ParameterSets, Tensor]:
    """Blocks and the module around them cut, as trainers do it, every trained weight changed since; and the base's output."""
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(q_proj=nn.Linear(4, 8), act=nn.Tanh(), k_proj=nn.Linear(8, 2)))
    base = module(X).detach()
    sets = ParameterSets(module, lora=Lora(rank=2) if lora else None)
    mesh = init_device_mesh("cpu", (1,))
    for part in (module.q_proj, module):
        fully_shard(part, mesh=mesh)
    with torch.no_grad():
        for p in sets.trained.values():
            p.add_(1.0)
    return module, sets, base


@pytest.mark.parametrize("lora", [False, True])
def test_the_reference_is_the_base_whatever_was_trained(alone: None, lora: bool) -> None:
    module, sets, base = sharded(lora=lora)
    now = module(X).detach()
    assert (now - base).abs().max() > 0.1
    with torch.no_grad(), sets.using("ref"):
        assert torch.equal(module(X), base)
    assert torch.equal(module(X), now)


@pytest.mark.parametrize("lora", [False, True])
def test_sets_follow_nest_and_are_loaded_in_shards(alone: None, lora: bool) -> None:
    module, sets, base = sharded(lora=lora)
    with torch.no_grad():
        now = module(X)  # the outermost module's parameters stay gathered
        sets.keep("previous")
        sets.follow("ema", decay=0.0)
        for p in sets.trained.values():
            p.add_(1.0)
        later = module(X)
        sets.follow("ema", decay=0.5)
        with sets.using("previous"):
            assert torch.equal(module(X), now)
            with sets.using("ref"):
                assert torch.equal(module(X), base)
                with sets.using("previous"):
                    assert torch.equal(module(X), now)
            assert torch.equal(module(X), now)
        assert torch.equal(module(X), later)
        for key, average in sets.sets["ema"].items():
            torch.testing.assert_close(average.full_tensor(), sets.trained[key].full_tensor() - 0.5)
        sets.load({"trained": {key: kept.full_tensor() for key, kept in sets.sets["previous"].items()}})
        assert torch.equal(module(X), now)


@pytest.mark.parametrize("lora", [False, True])
def test_a_soup_in_shards_is_that_of_whole_tensors(alone: None, lora: bool) -> None:
    module, sets, base = sharded(lora=lora)
    with torch.no_grad():
        now = module.q_proj(X)
        sets.mix("soup", {"ref": 0.5, "current": 0.5})
        assert {type(value) for value in sets.sets["soup"].values()} == {Tensor if lora else DTensor}  # a wide pair has no shards
        with sets.using("ref"):
            base = module.q_proj(X)
        with sets.using("soup"):
            torch.testing.assert_close(module.q_proj(X), (base + now) / 2)  # a linear layer's outputs mix as its weights do
        assert torch.equal(module.q_proj(X), now)


@pytest.mark.parametrize("lora", [False, True])
def test_a_gradient_does_not_notice_a_set_between_forward_and_backward(alone: None, lora: bool) -> None:
    module, sets, _ = sharded(lora=lora)
    sets.keep("previous")
    gradients = []
    for between in (False, True):
        loss = module(X).square().sum()
        if between:
            for name in ("ref", "previous"):
                with torch.no_grad(), sets.using(name):
                    module(X)
        loss.backward()
        gradients.append({key: p.grad.full_tensor() for key, p in sets.trained.items()})
        module.zero_grad()
    assert all(gradient.abs().max() > 0 for gradient in gradients[0].values())
    assert all(torch.equal(gradients[0][key], gradients[1][key]) for key in gradients[0])
    assert all(p.requires_grad for p in sets.trained.values())
