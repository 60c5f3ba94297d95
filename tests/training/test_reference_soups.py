"""References that are the weighted mean of several sets, folders and runs."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import mmalign as mm
from mmalign.config import check, load
from mmalign.policies.transformers import TransformersPolicy
from mmalign.runs import checkpoint
from mmalign.samplers import kernels
from mmalign.training import references
from mmalign.training.settings import Reference
from mmalign.types import UserError
from mmalign.worlds import gaussian


def policy() -> gaussian.GaussianPolicy:
    return gaussian.GaussianPolicy(gaussian.one_gaussian([0.7], [0.5]), gaussian.flow_levels(3), kernel=kernels.flow_sde())


def shift(policy: gaussian.GaussianPolicy, name: str = "trained") -> float:
    return float(policy.sets.tables()[name]["shift"].mean())


def folder(place: Path, shift: float) -> str:
    """A folder whose weights have that shift."""
    other = policy()
    with torch.no_grad():
        other.parameters()["shift"].fill_(shift)
    place.mkdir()
    save_file({key: value.detach().contiguous() for key, value in other.parameters().items()}, place / "model.safetensors")
    return str(place)


def test_a_reference_is_the_mean_of_what_training_began_with_and_of_folders(tmp_path: Path) -> None:
    given, one, two = policy(), folder(tmp_path / "one", 3.0), folder(tmp_path / "two", 8.0)
    with torch.no_grad():
        given.parameters()["shift"].fill_(1.0)
    given.sets.keep("ref")
    references.load(given, {"ref": Reference(soup=["ref", one])}, runs="runs", method=mm.methods.flow_grpo(clip=0.2, beta=0.1))
    assert shift(given, "ref") == 2.0 and shift(given) == 1.0
    assert sorted(given.sets.tables()) == ["ref", "trained"]  # what it was made of is not kept
    assert "ref" in given.sets.foreign  # so that no preflight expects a KL of 0 to it
    references.load(given, {"opponent": Reference(soup=[one, two], shares=[0.25, 0.75])}, runs="runs")
    assert shift(given, "opponent") == 0.25 * 3 + 0.75 * 8
    references.load(given, {"twice": Reference(soup=[one, two, one], shares=[0.25, 0.5, 0.25])}, runs="runs")
    assert shift(given, "twice") == 0.5 * 3 + 0.5 * 8


def test_a_soup_is_made_after_the_references_that_it_is_made_of(tmp_path: Path) -> None:
    given, one = policy(), folder(tmp_path / "one", 4.0)
    named = {"outer": Reference(soup=["inner", "ref"]), "inner": Reference(soup=["plain", "ref"]), "plain": Reference(from_=one)}
    assert references.in_order(named) == ["plain", "inner", "outer"]
    references.load(given, named, runs="runs")
    assert (shift(given, "plain"), shift(given, "inner"), shift(given, "outer")) == (4.0, 2.0, 1.0)


def test_soups_that_cannot_be_made_are_said_in_one_line(tmp_path: Path) -> None:
    one = folder(tmp_path / "one", 1.0)
    for named, line in (
        (
            {"a": Reference(soup=["b", one]), "b": Reference(soup=["a", one])},
            r"references\.[ab]\.soup: is made of itself \(([ab]) of ([ab]) of \1\)",
        ),
        ({"a": Reference(soup=["a", one])}, r"references\.a\.soup: is made of itself \(a of a\)"),
        ({"a": Reference(soup=["nowhere", one])}, r"references\.a\.soup: no folder nowhere, and no run of that name in"),
        ({"a": Reference(soup=["old", one]), "old": Reference(every=3)}, r"references\.a\.soup: old is a set that training makes"),
        ({"current": Reference(soup=["ref", one])}, r"references\.current: not a reference; takes another name"),
    ):
        with pytest.raises(UserError, match=line):
            references.load(policy(), named, runs=tmp_path)
    for keywords, line in (
        ({"soup": [one]}, r"soup: got \[.*\], takes two or more"),
        ({"soup": [one, one], "shares": [0.5, 0.6]}, r"shares: got \[0\.5, 0\.6\], takes shares of 0 or more that add up to 1"),
        ({"soup": [one, one], "shares": [1.0]}, r"shares: got \[1\.0\], takes a list with one share for each of the 2 of soup"),
        ({"soup": [one, one], "shares": {"ref": 1.0}}, r"shares: got \{'ref': 1\.0\}, takes a list"),
        ({"soup": [one, one], "every": 3}, r"soup: given beside every, and a soup is made once"),
        ({"shares": [0.5, 0.5]}, r"shares: got \[0\.5, 0\.5\], takes shares by the names of sets; a list stands beside soup"),
    ):
        with pytest.raises(UserError, match=line):
            Reference(**keywords)


def test_soups_of_each_other_are_found_before_anything_is_loaded() -> None:
    node = load("text/dpo", ["references={ref: {soup: [a, ref]}, a: {soup: [ref, b]}, b: {soup: [a, ref]}}"])
    assert [line for line in check(node) if "made of itself" in line]
    assert not check(load("text/dpo", ["references={ref: {soup: [ref, runs/other]}}"]))


def lora(seed: int, rank: int) -> TransformersPolicy:
    given = mm.policies.transformers(mm.worlds.text(), max_completion=8, lora={"rank": rank, "alpha": 2 * rank})
    with torch.no_grad():
        for p in given.sets.trained.values():
            p.copy_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(seed)))
    return given


def delta(given: TransformersPolicy, name: str) -> torch.Tensor:
    """What a set adds to one layer's weights."""
    down = "model.layers.1.self_attn.q_proj.lora_A.default.weight"
    table, scale = given.sets.tables()[name], given.sets.scales["model.layers.1.self_attn.q_proj"]
    return scale * table[down.replace("lora_A", "lora_B")].detach().double() @ table[down].detach().double()


def test_a_soup_of_adapters_of_other_ranks_is_the_mean_of_their_effective_weights(tmp_path: Path) -> None:
    wanted = torch.zeros(())
    for name, seed, rank, share in (("one", 1, 2, 0.25), ("two", 2, 5, 0.75)):
        other = lora(seed, rank)
        wanted = wanted + share * delta(other, "trained")
        checkpoint.save(tmp_path / name / "checkpoints", 1, tensors=other.sets.tables(), state={"learner": {"scales": other.sets.scales}})
    given = lora(3, 3)
    references.load(given, {"ref": Reference(soup=["one", "two"], shares=[0.25, 0.75])}, runs=tmp_path)
    assert float((delta(given, "ref") - wanted).abs().max() / wanted.abs().max()) < 1e-6
