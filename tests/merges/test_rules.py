"""Rules of merges, against their formulas by hand."""

from __future__ import annotations

import pytest

import mmalign as mm
from mmalign.merges._parts import blocks, with_mean
from mmalign.types import UserError

LLAMA = ["model.embed_tokens.weight", "model.layers.0.a", "model.layers.0.b", "model.layers.1.a", "model.norm.weight", "lm_head.weight"]
UNET = ["conv_in.weight", "down_blocks.0.w", "down_blocks.1.w", "up_blocks.0.w", "mid_block.resnets.0.w", "conv_out.weight"]


def test_layers_are_dealt_out_in_their_order() -> None:
    assert list(blocks(LLAMA, 4).values()) == [0, 1, 1, 2, 3, 3]
    assert list(blocks(LLAMA, 2).values()) == [0, 0, 0, 1, 1, 1]
    assert list(blocks(LLAMA, 1).values()) == [0] * 6
    assert list(blocks(UNET, 6).values()) == [0, 1, 2, 3, 4, 5]
    with pytest.raises(UserError, match=r"rule: got 5 blocks, and this model has 4 layers, embeddings and head among them; takes fewer"):
        blocks(LLAMA, 5)


def test_rules_have_their_formulas() -> None:
    assert mm.merges.soup(of=["a", "b", "c"], shares=[0.5, 0.75, -0.25]).shares == ({"a": 0.5, "b": 0.75, "c": -0.25},)
    staged = mm.merges.two_stage(instruct="i", distilled="d", pretrained="p", inner=0.25, outer=0.5).shares[0]
    assert staged == {"i": 0.125, "d": 0.375, "p": 0.5}
    assert mm.merges.residue(onto="i", tuned="f", before="b", ratios=[0.5, 2.0]).shares == (
        {"i": 1.0, "f": 0.5, "b": -0.5},
        {"i": 1.0, "f": 2.0, "b": -2.0},
    )
    assert mm.merges.residue(onto="base", tuned="f", ratios=[0.25]).shares == ({"base": 0.75, "f": 0.25},)  # onto what it was tuned from
    assert mm.merges.by_block(aligned="r", before="s", ratios=[0.0, 1.0]).shares == ({"r": 0.0, "s": 1.0}, {"r": 1.0, "s": 0.0})


def test_every_share_of_a_block_is_of_a_mean() -> None:
    for rule in (
        mm.merges.soup(of=["a", "b"]),
        mm.merges.two_stage(instruct="a", distilled="b", inner=0.3, outer=0.9),
        mm.merges.residue(onto="a", tuned="b", ratios=[3.0, -1.0]),
        mm.merges.by_block(aligned="a", mean=0.3, blocks=3),
    ):
        assert all(abs(sum(block.values()) - 1) < 1e-12 for block in rule.shares)


@pytest.mark.parametrize("mean", [0.0, 0.3, 0.5, 1.0])
def test_ratios_that_are_searched_keep_their_mean(mean: float) -> None:
    rule = mm.merges.by_block(aligned="a", mean=mean, blocks=3)
    for given in ([0.9, 0.1, 0.4], [5.0, -3.0, 0.0], [0.3, 0.3, 0.3]):
        moved = rule.again(given).ratios
        assert abs(sum(moved) / 3 - mean) < 1e-9 and all(0 <= ratio <= 1 for ratio in moved)
        assert all(moved[a] >= moved[b] for a in range(3) for b in range(3) if given[a] > given[b])  # their order stays
    assert with_mean([0.25, 0.75], 0.5) == pytest.approx([0.25, 0.75], abs=1e-9)  # what has the mean already stays


def test_what_is_no_rule_is_said() -> None:
    for call, line in (
        (lambda: mm.merges.soup(of=["a"]), r"rule\.of: got \['a'\], takes two or more parts, each once"),
        (lambda: mm.merges.soup(of=["a", "a"]), r"rule\.of: got \['a', 'a'\], takes two or more"),
        (lambda: mm.merges.soup(of=["a", "b"], shares=[0.5, 0.6]), r"rule\.shares: got \[0\.5, 0\.6\], takes one for each of the 2 parts"),
        (lambda: mm.merges.soup(of=["a", "b"], shares=[1.0]), r"rule\.shares: got \[1\.0\], takes one for each"),
        (lambda: mm.merges.two_stage(instruct="a", distilled="a"), r"rule: got the parts a, a, base, takes three"),
        (lambda: mm.merges.residue(onto="a", tuned="a"), r"rule\.tuned: got a, takes another part"),
        (lambda: mm.merges.residue(onto="a", tuned="b", ratios=[]), r"rule\.ratios: got \[\], takes one or more"),
        (lambda: mm.merges.by_block(aligned="base"), r"rule\.before: got base, takes another part"),
        (lambda: mm.merges.by_block(aligned="a", ratios=[1.5]), r"ratios: got \[1\.5\], takes 0 to 1"),
    ):
        with pytest.raises(UserError, match=line):
            call()
