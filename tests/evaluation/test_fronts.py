"""Fronts of several objectives, against counting."""

from __future__ import annotations

import itertools
import math

import pytest
import torch

from mmalign.evaluation.fronts import crowding, expected_utility, hypervolume, pareto_front, sparsity


def test_nobody_on_a_front_is_beaten_and_everybody_else_is() -> None:
    points = torch.randint(0, 4, (40, 3), generator=torch.Generator().manual_seed(0)).tolist()
    front = pareto_front(points)
    beats = lambda a, b: a != b and all(x >= y for x, y in zip(a, b, strict=True))  # noqa: E731
    for place, point in enumerate(points):
        again = any(points[other] == point for other in front if other != place)
        assert (place in front) == (not any(beats(other, point) for other in points) and not again)


def test_measures_of_a_front_by_hand() -> None:
    points = [(0.0, 4.0), (1.0, 2.0), (4.0, 0.0), (2.0, 1.5)]
    assert crowding(points) == [math.inf, pytest.approx(2 / 4 + 2.5 / 4), math.inf, pytest.approx(3 / 4 + 2 / 4)]
    gaps = [1, 1, 2, 1.5, 0.5, 2]  # of 0 1 2 4, and of 0 1.5 2 4
    assert sparsity(points) == pytest.approx(sum(gap**2 for gap in gaps) / 3)
    weights = torch.linspace(0, 1, 21).double()
    best = torch.stack([w * torch.tensor([p[0] for p in points]) + (1 - w) * torch.tensor([p[1] for p in points]) for w in weights]).amax(1)
    assert expected_utility(points) == pytest.approx(float(best.mean()))
    three = [(1.0, 0.0, 0.0), (0.0, 1.0, 0.0), (0.2, 0.2, 0.9)]
    simplex = [w for w in itertools.product(range(6), repeat=3) if sum(w) == 5]
    by_hand = [max(sum(w * p for w, p in zip(weight, point, strict=True)) for point in three) / 5 for weight in simplex]
    assert expected_utility(three, divisions=5) == pytest.approx(sum(by_hand) / len(by_hand))
    assert hypervolume(points, (0.0, 0.0)) == pytest.approx(1 * 2 + 1 * 1.5)
