"""Named parameter sets: what is kept, where it is kept, and that what is trained always comes back."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from mmalign.policies.adapters import write_adapter
from mmalign.policies.parameters import ParameterSets
from mmalign.policies.settings import Lora
from mmalign.runs.weights import Stored, read
from mmalign.types import UserError

HOMES = [None, torch.device("cpu")]
META = torch.device("meta")  # a device of its own, where there is no GPU


def layer(dtype: torch.dtype = torch.float32) -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(3, 2).to(dtype)


@pytest.mark.parametrize("home", HOMES)
def test_a_set_takes_the_place_of_what_is_trained_and_gives_it_back_after_an_exception(home: torch.device | None) -> None:
    module = layer()
    sets, started = ParameterSets(module, home=home), module.weight.detach().clone()
    with torch.no_grad():
        module.weight += 1
    with pytest.raises(ZeroDivisionError), sets.using("ref"):
        assert torch.equal(module.weight, started)
        raise ZeroDivisionError
    assert torch.equal(module.weight, started + 1)
    with sets.using("ref"):
        pass
    with torch.no_grad():
        module.weight += 1  # of what is trained, and of no copy
    assert torch.equal(sets.sets["ref"]["weight"], started)
    assert torch.equal(module.weight, started + 2) and module.weight is sets.trained["weight"]


def test_values_are_copied_into_the_parameters_themselves() -> None:
    module = layer()
    sets = ParameterSets(module)
    optimizer = torch.optim.AdamW(sets.trained.values())
    module(torch.ones(1, 3)).sum().backward()
    optimizer.step()
    before = [(p, p.data_ptr(), p.grad.clone(), {k: v.clone() for k, v in optimizer.state[p].items()}) for p in module.parameters()]
    held = module.weight.detach()
    with sets.using("ref"):
        assert torch.equal(held, sets.sets["ref"]["weight"])  # whoever holds the storage sees what is in use
    for p, (own, place, gradient, state) in zip(sets.trained.values(), before, strict=True):
        assert p is own and p.data_ptr() == place and p.requires_grad and torch.equal(p.grad, gradient)
        assert all(torch.equal(optimizer.state[p][key], value) for key, value in state.items())


def test_a_graph_is_whole_after_a_block_and_refused_inside() -> None:
    def twice(x: Tensor) -> Tensor:
        return module(module(x))  # whose backward pass needs the weight

    module, x = nn.Linear(3, 3), torch.ones(1, 3)
    sets = ParameterSets(module)
    with torch.no_grad():
        module.weight += 1
    (wanted,) = torch.autograd.grad(twice(x).sum(), module.weight)
    before, inside = twice(x).sum(), twice(x).sum()
    with sets.using("ref"):
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            inside.backward()
        with sets.using("ref"):
            pass
        recorded = twice(x).sum()
    assert torch.equal(torch.autograd.grad(before, module.weight)[0], wanted)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        recorded.backward()


def test_sets_nest_and_an_adapter_that_is_off_comes_on_for_a_copy_of_it() -> None:
    torch.manual_seed(0)
    module, x = nn.Sequential(OrderedDict(q_proj=nn.Linear(3, 3))), torch.ones(1, 3)
    base = module(x)
    sets = ParameterSets(module, lora=Lora(rank=2))
    seen = []
    for _ in range(2):
        with torch.no_grad():
            sets.trained["q_proj.lora_B.default.weight"].add_(1.0)
        sets.keep(f"copy{len(seen)}")
        seen.append(module(x))
    with sets.using("copy0"), sets.using("ref"):
        assert torch.equal(module(x), base)
        with pytest.raises(ZeroDivisionError), sets.using("copy0"), sets.using("copy1"):
            assert torch.equal(module(x), seen[1])
            raise ZeroDivisionError
        with sets.using("copy0"):
            assert torch.equal(module(x), seen[0])
        assert torch.equal(module(x), base)
    assert torch.equal(module(x), seen[1]) and all(p.requires_grad for p in sets.trained.values())


@pytest.mark.parametrize("home", HOMES)
def test_an_average_follows_in_float32_and_is_loaded_bit_for_bit(home: torch.device | None) -> None:
    module = layer(torch.bfloat16)
    sets, first = ParameterSets(module, home=home), module.weight.detach().float()
    sets.follow("ema", decay=0.0)
    with torch.no_grad():
        module.weight += 1
    second = module.weight.detach().float()
    sets.follow("ema", decay=0.75)
    average = sets.sets["ema"]["weight"]
    assert average.dtype == torch.float32
    torch.testing.assert_close(average, 0.75 * first + 0.25 * second)
    other = ParameterSets(layer(torch.bfloat16), home=home)
    other.load(sets.tables())
    assert torch.equal(other.sets["ema"]["weight"], average) and torch.equal(other.trained["weight"], module.weight)
    with sets.using("ema"):
        assert torch.equal(module.weight, average.to(torch.bfloat16))


def test_copies_are_kept_at_home() -> None:
    module = layer()
    sets = ParameterSets(module, home=META)
    sets.keep("previous")
    sets.follow("ema", decay=0.0)
    sets.load({"opponent": {name: p.detach().clone() for name, p in module.named_parameters()}})
    assert {value.device for table in sets.sets.values() for value in table.values()} == {META} and len(sets.sets) == 4
    assert module.weight.device.type == "cpu"


def test_an_unknown_set_is_refused_by_name() -> None:
    with pytest.raises(UserError, match="parameter set: got 'old', this policy has current, ref"), ParameterSets(layer()).using("old"):
        pass


def test_tables_of_another_policy_are_refused() -> None:
    sets = ParameterSets(layer())
    with pytest.raises(UserError, match="parameter set 'trained': got other parameters than this policy trains, such as bias"):
        sets.load({"trained": {"weight": torch.zeros(2, 3)}})
    with pytest.raises(UserError, match=r"parameter weight: got shape \[3, 2\], takes \[2, 3\]"):
        sets.load({"trained": {"weight": torch.zeros(3, 2), "bias": torch.zeros(2)}})


def test_a_stored_adapter_becomes_a_set_at_its_own_scale(tmp_path: Path) -> None:
    def made(alpha: float) -> tuple[nn.Module, ParameterSets]:
        torch.manual_seed(0)
        module = nn.Sequential(OrderedDict(q_proj=nn.Linear(4, 4)))
        return module, ParameterSets(module, lora=Lora(rank=2, alpha=alpha))

    (stored, theirs), (here, sets), x = made(8.0), made(2.0), torch.randn(3, 4)
    with torch.no_grad():
        for p in theirs.trained.values():
            p.normal_()
    write_adapter(stored, tmp_path)
    with pytest.raises(UserError, match=r"references\.dpo: got weights with no LoRA, and this policy trains one"):
        sets.adopt("dpo", Stored({"q_proj.weight": torch.zeros(4, 4)}, {}))
    sets.adopt("dpo", read(tmp_path, "references.dpo"))
    with sets.using("dpo"):
        torch.testing.assert_close(here(x), stored(x))
    assert not torch.allclose(here(x), stored(x))


def test_heads_beside_the_module_stay_what_they_are() -> None:
    sets, other, head = ParameterSets(layer()), layer(), nn.Linear(3, 1, bias=False)
    nn.init.ones_(head.weight)
    sets.add({"value": head})
    sets.adopt("dpo", Stored({f"transformer.{name}": p.detach() + 1 for name, p in other.named_parameters()}, {}))
    assert torch.equal(sets.sets["dpo"]["value.weight"], torch.ones(1, 3)) and torch.equal(sets.sets["dpo"]["bias"], other.bias + 1)
    with pytest.raises(UserError, match=r"references\.dpo: got weights with no bias; takes those of the same model"):
        sets.adopt("dpo", Stored({"weight": torch.zeros(2, 3)}, {}))
