"""Novelty: its mean square is the variance of the group, up to the cap."""

from __future__ import annotations

import pytest
import torch

from mmalign.rewards.pictures.nearest_distance import nearest_distance
from mmalign.rewards.pictures.novelty import novelty
from mmalign.types import UserError


def test_mean_square_is_the_group_s_variance():
    outputs = torch.rand(9, 1, 4, 4, generator=torch.Generator().manual_seed(0)) * torch.linspace(0.1, 1, 16).view(4, 4)
    prompts = ["a"] * 5 + ["b"] * 4
    scores = novelty(scale=100.0)(outputs, prompts) * 100
    for rows in (slice(0, 5), slice(5, 9)):
        assert float(scores[rows].square().mean()) == pytest.approx(float(outputs[rows].flatten(1).var(0).mean()), rel=1e-6)


def test_rows_of_a_prompt_need_not_stand_together():
    outputs = torch.rand(6, 3, generator=torch.Generator().manual_seed(0))
    apart = novelty(scale=1.0)(outputs, ["a", "b", "a", "b", "a", "b"])
    assert torch.allclose(apart[::2], novelty(scale=1.0)(outputs[::2], ["a"] * 3))


def test_nothing_is_gained_beyond_the_scale():
    outputs = torch.tensor([[0.0], [0.1], [9.0]])
    scores = novelty(scale=0.5)(outputs, ["a"] * 3)
    assert scores.tolist() == [1.0, 1.0, 1.0]
    assert bool((novelty(scale=1000.0)(outputs, ["a"] * 3) < 0.01).all())


def test_copies_score_zero_and_a_single_sample_is_missing():
    scores = novelty(scale=1.0)(torch.ones(3, 4), ["a", "a", "b"])
    assert scores[:2].tolist() == [0.0, 0.0]
    assert bool(scores[2].isnan())


def test_features_replace_the_numbers():
    outputs = torch.tensor([[1.0, 5.0], [1.0, 9.0]])
    assert novelty(scale=1.0, features=lambda x: x[:, :1])(outputs, ["a", "a"]).tolist() == [0.0, 0.0]


def test_scale_has_to_be_positive():
    with pytest.raises(UserError, match=r"novelty\.scale"):
        novelty(scale=0.0)


def test_the_nearest_neighbour_is_by_direction_and_of_the_same_prompt():
    outputs = torch.tensor([[1.0, 0.0], [3.0, 3.0], [0.0, 1.0], [9.0, 0.0]])
    scores = nearest_distance()(outputs, ["a", "a", "b", "a"])
    assert scores[[0, 3]].tolist() == [0.0, 0.0] and scores[1] == pytest.approx(1 - 0.5**0.5) and bool(scores[2].isnan())
    assert nearest_distance(features=lambda _: outputs.flip(0))(outputs, ["a", "b", "b", "b"])[1:].tolist() == pytest.approx(
        [1 - 0.5**0.5] * 3
    )
