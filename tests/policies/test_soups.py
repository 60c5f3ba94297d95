"""Mixtures of parameter sets: of LoRA those of the products B A, in layers of whatever rank that takes."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

import mmalign as mm
from mmalign.policies.adapters import fitted
from mmalign.policies.parameters import WIDEST, ParameterSets
from mmalign.policies.settings import Lora
from mmalign.runs import checkpoint
from mmalign.training import references
from mmalign.training.settings import Reference
from mmalign.types import UserError

RANK, ALPHA = 3, 6.0
A, B = "q_proj.lora_A.default.weight", "q_proj.lora_B.default.weight"


def made(*, home: torch.device | None = None) -> tuple[nn.Module, ParameterSets]:
    torch.manual_seed(0)
    module = nn.Sequential(OrderedDict(q_proj=nn.Linear(40, 50)))
    return module, ParameterSets(module, lora=Lora(rank=RANK, alpha=ALPHA), home=home)


def shaken(sets: ParameterSets, seed: int) -> Tensor:
    """Other values of what is trained; their effective weights ``[50, 40]`` in float64."""
    with torch.no_grad():
        for p in sets.trained.values():
            p.copy_(0.2 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return product(sets)


def product(sets: ParameterSets, name: str = "current") -> Tensor:
    table = dict(sets.trained) if name == "current" else sets.sets[name]
    return (ALPHA / RANK) * table[B].detach().double() @ table[A].detach().double()


def answered(module: nn.Module, sets: ParameterSets, name: str) -> Tensor:
    """What a set adds to the layer's weights, as its outputs say."""
    with torch.no_grad(), sets.using(name):
        mine = module(torch.eye(40))
    with torch.no_grad(), sets.using("ref"):
        return (mine - module.q_proj.get_base_layer()(torch.eye(40))).T.double()


def distance(a: Tensor, b: Tensor) -> float:
    return float((a - b).norm() / b.norm())


@pytest.mark.parametrize("home", [None, torch.device("cpu")])
@pytest.mark.parametrize("shares", [(0.5, 0.5), (1.5, -0.5), (0.25, 0.75)])
def test_a_soup_of_two_adapters_has_the_mean_of_their_effective_weights(shares: tuple[float, float], home: torch.device | None) -> None:
    module, sets = made(home=home)
    one = shaken(sets, 1)
    sets.keep("one")
    two = shaken(sets, 2)
    before = {key: (p, p.detach().clone()) for key, p in sets.trained.items()}
    assert sets.mix("soup", {"one": shares[0], "current": shares[1]}) == 0.0
    assert distance(product(sets, "soup"), shares[0] * one + shares[1] * two) < 1e-6
    assert distance(answered(module, sets, "soup"), shares[0] * one + shares[1] * two) < 1e-5  # the layer adds it to its weights in float32
    mean = {key: shares[0] * sets.sets["one"][key].double() + shares[1] * p.detach().double() for key, p in sets.trained.items()}
    assert distance(ALPHA / RANK * mean[B] @ mean[A], shares[0] * one + shares[1] * two) > 0.1  # of A and B apart it is another
    for key, p in sets.trained.items():
        assert p is before[key][0] and torch.equal(p, before[key][1]) and p.requires_grad


def test_a_reference_that_follows_softly_has_the_weights_of_the_recursion() -> None:
    module, sets = made()
    wanted, error = torch.zeros(50, 40, dtype=torch.float64), []
    for step in range(20):
        wanted = 0.4 * wanted + 0.6 * shaken(sets, step)
        assert sets.mix("ref", {"ref": 0.4, "current": 0.6}) == 0.0
        error.append(distance(product(sets, "ref"), wanted))
        assert len(sets.sets["ref"][A]) <= max(WIDEST * RANK, 40)
    assert max(error) < 2e-6
    with torch.no_grad(), sets.using("ref"):
        mine = module(torch.eye(40)) - module.q_proj.get_base_layer()(torch.eye(40))
    assert distance(mine.T.double(), wanted) < 1e-5


def test_sets_of_other_ranks_nest() -> None:
    module, sets = made()
    one = shaken(sets, 1)
    sets.keep("one")
    two = shaken(sets, 2)
    sets.mix("soup", {"one": 0.5, "current": 0.5})
    base, now = module.q_proj.get_base_layer()(torch.eye(40)), module(torch.eye(40))

    def said() -> Tensor:
        return (module(torch.eye(40)) - base).T.detach().double()

    with sets.using("ref"):
        with sets.using("soup"):
            assert distance(said(), (one + two) / 2) < 1e-5
            with sets.using("one"):
                assert distance(said(), one) < 1e-5
            with pytest.raises(ZeroDivisionError), sets.using("ref"):
                assert torch.equal(module(torch.eye(40)), base)
                raise ZeroDivisionError
            assert distance(said(), (one + two) / 2) < 1e-5
        assert torch.equal(module(torch.eye(40)), base)
    assert torch.equal(module(torch.eye(40)), now)


def test_a_mixture_is_stored_loaded_and_mixed_on(tmp_path: Path) -> None:
    _, sets = made()
    one = shaken(sets, 1)
    sets.mix("soup", {"ref": 0.75, "current": 0.25})
    sets.mix("broth", {"soup": 1.0})
    two = shaken(sets, 2)
    sets.mix("soup", {"soup": 0.5, "current": 0.5})
    tensors, _ = checkpoint.load(checkpoint.save(tmp_path, 1, tensors=sets.tables(), state={}))
    module, other = made()
    other.load({name: tensors[name] for name in tensors})
    assert distance(product(other, "soup"), one / 8 + two / 2) < 1e-6
    assert distance(answered(module, other, "broth"), one / 4) < 1e-5
    with pytest.raises(UserError, match=r"parameter q_proj.lora_B.default.weight: got shape \[50, 6\], takes \[50, 7\]"):
        other.load({"soup": {A: torch.zeros(7, 40), B: torch.zeros(50, 6)}})
    with pytest.raises(UserError, match=r"parameter q_proj.lora_A.default.weight: got shape \[7, 40\], takes \[3, 40\]"):
        other.load({"trained": {A: torch.zeros(7, 40), B: torch.zeros(50, 7)}})


def test_what_is_trained_becomes_the_nearest_that_its_rank_can_hold() -> None:
    _, sets = made()
    one = shaken(sets, 1)
    sets.keep("one")
    two = shaken(sets, 2)
    off = sets.mix("current", {"one": 0.5, "current": 0.5})
    values = torch.linalg.svdvals((one + two) / 2)
    assert off == pytest.approx(float(values[RANK:].norm() / values.norm()), rel=1e-6)
    assert distance(product(sets), (one + two) / 2) == pytest.approx(off, rel=1e-5)
    assert sets.mix("current", {"one": 1.0}) == 0.0 and torch.equal(product(sets), one)  # a copy, to the last bit


def test_what_fits_is_kept_and_a_stays_where_it_can() -> None:
    _, sets = made()
    down = sets.trained[A].detach().clone()
    sets.keep("start")  # B is 0
    assert sets.mix("current", {"start": 0.5, "current": 0.5}) == 0.0
    torch.testing.assert_close(sets.trained[A].detach(), down)
    assert not sets.trained[B].any()
    with torch.no_grad():
        sets.trained[B].normal_()
    whole = product(sets)
    assert sets.mix("current", {"start": 0.5, "current": 0.5}) < 1e-6  # of one A, and so of its rank
    assert distance(product(sets), whole / 2) < 1e-6
    torch.testing.assert_close(sets.trained[A].detach(), down, rtol=1e-4, atol=1e-5)
    with pytest.raises(UserError, match="parameter set: got 'stranger', this policy has current, ref, start"):
        sets.mix("current", {"stranger": 1.0})


def test_rows_that_are_far_from_the_product_s_need_no_huge_columns() -> None:
    down, up, near = torch.zeros(2, 6), torch.randn(4, 2), torch.zeros(2, 6)
    down[0, 0] = down[1, 1] = near[0, 2] = near[1, 0] = 1.0  # one row of near lies across
    a, b, off = fitted(down, up, near)
    assert off < 1e-6 and distance(b @ a, (up @ down).double()) < 1e-6 and float(b.norm()) < 1e4


def test_heads_beside_an_adapter_are_mixed_by_their_values() -> None:
    _, sets = made()
    head = nn.Linear(2, 1)
    sets.add({"value": head})
    sets.keep("start")
    with torch.no_grad():
        head.weight += 1
    sets.mix("soup", {"start": 0.25, "current": 0.75})
    torch.testing.assert_close(sets.sets["soup"]["value.weight"], head.weight.detach() - 0.25)


def test_moves_of_references_are_mixtures_under_lora_too() -> None:
    _, sets = made()
    policy = SimpleNamespace(sets=sets)
    softly = references.plan(mm.methods.dpo(), ["ref"], {"ref": Reference(every=2, shares={"ref": 0.4, "current": 0.6})})
    references.prepare(policy, ["ref"], softly)
    wanted = torch.zeros(50, 40, dtype=torch.float64)
    for step in range(4):
        now = shaken(sets, step)
        assert references.move(policy, softly, step) == {}
        wanted = 0.4 * wanted + 0.6 * now if step % 2 == 0 else wanted
        assert distance(product(sets, "ref"), wanted) < 1e-6
    ahead = references.plan(mm.methods.accelerated_po(momentum=0.5, every=1), ["previous"], {})
    references.prepare(policy, ["previous"], ahead)
    kept = product(sets, "ended")
    now = shaken(sets, 9)
    moved = references.move(policy, ahead, 0)
    assert distance(product(sets, "start"), 1.5 * now - 0.5 * kept) < 1e-6
    assert (
        moved == {"moved_error": pytest.approx(distance(product(sets), product(sets, "start")), rel=1e-4)} and moved["moved_error"] > 0.01
    )
