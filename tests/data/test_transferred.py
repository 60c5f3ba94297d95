"""Labels that are carried from one task to another: the plan against all permutations, and a world that is another one turned over."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor

import mmalign as mm
from mmalign.data._transport import gromov_wasserstein, slope
from mmalign.data.transforms.transferred import carried
from mmalign.records import Pair, Thumb
from mmalign.types import UserError
from mmalign.worlds.tabular import mdp


def apart(points: Tensor) -> Tensor:
    return torch.cdist(points, points)


def cost(first: Tensor, second: Tensor, plan: Tensor) -> float:
    return sum(
        float(((first[i, k] - second) ** 2 * plan[i][:, None] * plan[k][None, :]).sum())
        for i, k in itertools.product(range(len(first)), repeat=2)
    )


def test_the_plan_is_the_best_permutation_and_its_slope_that_of_the_cost() -> None:
    rng = torch.Generator().manual_seed(1)
    points = torch.randn(5, 2, generator=rng, dtype=torch.float64)
    order = torch.tensor([3, 0, 4, 1, 2])
    turned = torch.stack([-points[order, 1], points[order, 0], torch.full((5,), 7.0).double()], 1)  # rotated, in other dimensions
    first, second = apart(points), apart(turned)
    plan = gromov_wasserstein(first, second)
    torch.testing.assert_close(plan.sum(0), torch.full((5,), 0.2).double())
    assert plan.argmax(1)[order].tolist() == list(range(5)) and float(plan.amax(1).min()) > 0.19
    every = [cost(first, second, torch.eye(5).double()[list(p)] / 5) for p in itertools.permutations(range(5))]
    assert cost(first, second, plan) < sorted(every)[1] / 2  # better than any but one
    leaf = torch.rand(5, 5, generator=rng, dtype=torch.float64, requires_grad=True)
    whole = (first[:, None, :, None] - second[None, :, None, :]) ** 2 * leaf[:, :, None, None] * leaf[None, None]
    (wanted,) = torch.autograd.grad(whole.sum(), leaf)
    torch.testing.assert_close(slope(first, second, leaf.detach()), wanted)


def test_a_label_is_the_mean_over_what_a_pair_corresponds_to_in_both_orders() -> None:
    plan, strength = torch.rand(4, 2, generator=torch.Generator().manual_seed(0), dtype=torch.float64), [0.9, 0.2]
    above = below = 0.0
    for source, p in enumerate(strength):
        i, j = 2 * source, 2 * source + 1
        for first, second, chance in ((i, j, p), (j, i, 1 - p)):
            weight = float(plan[first, 0] * plan[second, 1])
            above, below = above + weight * chance, below + weight
    assert float(carried(plan, torch.tensor(strength).double())) == pytest.approx(above / below)


def ends_at(place: int) -> Any:
    """A reward that reads the row, or the column, of the cell that an episode ends in."""

    def reward(outputs: Any, prompts: list[str], **_: Any) -> Tensor:
        return torch.tensor([float(output.split()[-1].split(",")[place]) for output in outputs])

    return reward


def test_preferences_of_a_world_are_those_of_its_mirror_image() -> None:
    """Nobody has compared anything in the second world, whose start and goal are on the other side."""
    paid = {"goal": {"G": 1.0}}
    there = mdp.grid(rows=("S....", ".....", "....G"), rewards=paid)
    here = mdp.grid(rows=("....S", ".....", "G...."), rewards=paid)
    said = mm.worlds.tabular_pairs(world=there, by="regret", count=60, temperature=1e-3, length=6)
    truth = mm.worlds.tabular_pairs(world=here, by="regret", count=60, temperature=1e-3, length=6, seed=1)
    features = {"row": ends_at(0), "column": ends_at(1)}
    asked = [pair._replace(strength=0.0) for pair in truth]  # what they have is not looked at
    records = mm.data.transferred(asked, labelled=said, features=features)
    clear = [
        (found.strength, pair.scores[0] - pair.scores[1]) for found, pair in zip(records.records, truth, strict=True)
        if pair.scores[0] - pair.scores[1] > 0.02
    ]  # fmt: skip
    assert len(clear) > 30
    assert sum(strength > 0.5 for strength, _ in clear) > 0.85 * len(clear)


def test_what_cannot_be_carried_is_one_line() -> None:
    own, features = [Pair("p", "1,0", "0,0"), Pair("p", "0,3", "0,1")], {"row": ends_at(0), "column": ends_at(1)}
    with pytest.raises(UserError, match=r"records\.labelled: got a Thumb, takes pairs"):
        mm.data.transferred(own, labelled=[Thumb("p", "1,1", 1.0)], features=features)
    with pytest.raises(UserError, match=r"records\.labelled: got no pair with a label"):
        mm.data.transferred(own, labelled=[next(mm.data.unlabelled(own).stream(seed=0))], features=features)
    with pytest.raises(UserError, match=r"records\.of: all outputs are alike by row"):
        mm.data.transferred([own[1]], labelled=own, features={"row": ends_at(0)}, labelled_features=features)
