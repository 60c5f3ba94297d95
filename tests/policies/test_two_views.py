"""Reward models with a contrastive term: two views of every output, and what is made of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mmalign as mm
from mmalign.policies.scorers.thinned import thinned
from mmalign.records import Pair
from mmalign.report.read import read
from mmalign.types import UserError
from tests.helpers import tiny_text
from tests.helpers.flat import transformers

NAMES = ["score", "a1", "a2", "b1", "b2"]
PAIRS = [Pair("p", "one", "two", id="0"), Pair("p", "three", "four", id="1")]


def language() -> Any:
    return transformers(tiny_text.model("qwen2"), tiny_text.tokenizer(tiny_text.CHATML), max_completion=8)


def reward_model(**settings: Any) -> Any:
    return mm.policies.scorer(mm.policies.two_views(language(), **settings), head=mm.heads.prototypes(), scores=NAMES)


def test_the_views_are_two_draws_of_dropout_and_the_first_features_know_none() -> None:
    reader: Any = mm.policies.two_views(language(), share=0.3)
    rollout = reader.read(["p"] * 2, ["one", "two"], torch.tensor([0, 0]), torch.Generator().manual_seed(1))
    rows = torch.tensor([1, 0])
    with torch.no_grad():
        plain, first, second = reader.features(rollout, rows).chunk(3, 1)
        inner = reader.of.read(["p"] * 2, ["one", "two"], torch.tensor([0, 0]), torch.Generator())
        assert torch.equal(plain, reader.of.features(inner, rows))
        (seed,) = set(rollout.held.seeds.tolist())
        with thinned(reader.model, share=0.3, seed=2**31 + seed):
            torch.testing.assert_close(first, reader.of.features(inner, rows))
        assert not torch.allclose(first, second) and not torch.allclose(first, plain)
        again = reader.features(rollout, rows)
        assert torch.equal(again, torch.cat([plain, first, second], 1))  # what is scored again is the same
        other = reader.read(["p"] * 2, ["one", "two"], torch.tensor([0, 0]), torch.Generator().manual_seed(2))
        assert not torch.allclose(reader.features(other, rows).chunk(3, 1)[1], first)
        as_reward = reader.features(reader.read(["p"], ["one"], torch.tensor([0]), None), torch.tensor([0])).chunk(3, 1)
        assert torch.equal(as_reward[0], as_reward[1]) and torch.equal(as_reward[0], as_reward[2])


def test_rows_keep_their_draws_where_they_are_joined_and_taken() -> None:
    reader: Any = mm.policies.two_views(language(), share=0.3)
    each = [reader.read(["p"], [word], torch.tensor([0]), torch.Generator().manual_seed(seed)) for seed, word in enumerate(("one", "two"))]
    with torch.no_grad():
        first, second = (reader.features(one, torch.tensor([0])) for one in each)
        taken = type(each[0]).join(each).take(torch.tensor([1, 0])).take(torch.tensor([0]))
        torch.testing.assert_close(reader.features(taken, torch.tensor([0])), second)
        assert not torch.allclose(first, second)


def test_the_views_come_to_agree_and_the_run_is_a_reward_of_one_score(tmp_path: Path) -> None:
    policy = reward_model()
    before = {name: value.detach().clone() for name, value in policy.parameters().items()}
    method = mm.methods.bradley_terry_contrastive(prototypes=2, weight=1.0)
    held = [Pair("q", "one", "two", id="e")]
    mm.offline(
        policy, PAIRS, method, steps=6, batch={"records": 2}, optimizer=mm.adamw(rate=3e-3), evaluation={"records": held, "every": 6},
        run={"folder": str(tmp_path), "name": "run", "trackers": ()},
    )  # fmt: skip
    rows = read(tmp_path / "run").train
    assert rows[-1]["loss"] < rows[0]["loss"] - 0.1 and 0 <= rows[-1]["views_agree"] <= 1
    moved = {name for name, value in policy.parameters().items() if not torch.equal(value, before[name])}
    assert {"head.weight", "head.directions"} < moved  # and the language model


def test_what_does_not_fit_is_one_line() -> None:
    with pytest.raises(UserError, match=r"policy\.head: linear takes 1, TwoViewsReader reads 3 features in place of one; takes what"):
        mm.policies.scorer(mm.policies.two_views(language()))
    with pytest.raises(UserError, match=r"policy\.head: prototypes takes 3, LastToken reads 1 features"):
        mm.policies.scorer(language(), head=mm.heads.prototypes(), scores=NAMES)
    with pytest.raises(UserError, match=r"policy\.scores: got score, a1; the head prototypes gives"):
        mm.policies.scorer(mm.policies.two_views(language()), head=mm.heads.prototypes(), scores=NAMES[:2])
    with pytest.raises(UserError, match=r"has no linear layer"):
        mm.policies.two_views(mm.policies.named_features(rewards={"long": mm.rewards.length(2)}))
