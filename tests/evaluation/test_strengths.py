"""Strengths of who were compared in pairs: what is likeliest, how sure it is, and whom to compare next."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from mmalign.evaluation.strengths import next_comparison, zermelo
from mmalign.types import UserError

WINS = [[0, 4, 7, 2], [3, 0, 5, 1], [1, 2, 0, 3], [0.5, 2, 6, 0]]


def log_likelihood(values: torch.Tensor) -> torch.Tensor:
    table = torch.tensor(WINS, dtype=torch.float64)
    return (table * torch.nn.functional.logsigmoid(values[:, None] - values[None, :])).sum()


def test_strengths_are_the_likeliest_and_their_errors_its_curvature() -> None:
    fit = zermelo(WINS)
    values = torch.tensor(fit.values, requires_grad=True)
    (slope,) = torch.autograd.grad(log_likelihood(values), values)
    assert slope.abs().max() < 1e-9 and abs(fit.values.sum()) < 1e-12
    information = -torch.autograd.functional.hessian(log_likelihood, values.detach())
    np.testing.assert_allclose(fit.covariance, torch.linalg.pinv(information, hermitian=True).numpy(), atol=1e-10)
    np.testing.assert_allclose(fit.errors**2, np.diag(fit.covariance))


def test_the_next_comparison_makes_the_information_grow_most() -> None:
    fit = zermelo(WINS)

    def determinant(first: int, second: int) -> float:
        information = np.linalg.pinv(fit.covariance)
        apart = np.eye(4)[first] - np.eye(4)[second]
        chance = 1 / (1 + np.exp(fit.values[second] - fit.values[first]))
        grown = information + chance * (1 - chance) * np.outer(apart, apart)
        return float(np.linalg.det(grown + np.ones((4, 4)) / 4))  # all strengths moved together say nothing

    pairs = [(first, second) for first in range(4) for second in range(first + 1, 4)]
    assert next_comparison(WINS) == max(pairs, key=lambda pair: determinant(*pair))
    assert next_comparison([[0, 1, 1], [1, 0, 0], [1, 0, 0]]) == (1, 2)
    assert next_comparison(np.zeros((3, 3))) == (0, 1)


def test_strengths_that_are_not_finite_are_refused() -> None:
    with pytest.raises(UserError, match="wins: number 1 is not better than number 0, nor than any who are"):
        zermelo([[0, 1], [0, 0]])
    with pytest.raises(UserError, match=r"wins: got shape \[2, 3\], takes counts"):
        zermelo(np.ones((2, 3)))
