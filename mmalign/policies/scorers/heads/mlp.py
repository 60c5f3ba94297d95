"""Scores by a small network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, Seed
from mmalign.policies.scorers.heads._head import Head

__all__ = ["mlp"]

ACTIVATIONS = {"relu": torch.relu, "tanh": torch.tanh, "gelu": nn.functional.gelu}
IN_WORDS = {"relu": "torch.relu", "tanh": "torch.tanh", "gelu": "torch.nn.functional.gelu"}


def mlp(*, width: Count = 16, layers: Count = 1, activation: Literal["relu", "tanh", "gelu"] = "relu", seed: Seed = 0) -> Head:
    """Head: ``s = W_n a(... a(W_1 h + b_1))``, for features that do not add up, such as named ones.

    Args:
        width: of each hidden layer. layers: how many of them. activation: a.
        seed: of the hidden layers' weights, which are Gaussian with variance 1 over their inputs; biases start as 0, and so does W_n, so
            that every score starts as 0.

    Source: ours; over named features that of Leveraging Domain Knowledge for Efficient Reward Modelling in RLHF, arXiv 2402.15473.

    Examples:
        >>> mlp().make(3, ["score"])(torch.ones(2, 3), {}).tolist()
        [[0.0], [0.0]]
    """
    return Head("mlp", lambda features, scores: Mlp(features, len(scores), width=width, layers=layers, activation=activation, seed=seed))


class Mlp(nn.Module):
    """See ``mlp``. hidden: ``[width, H]``, then ``[width, width]``, with a bias each; out: ``[T, width]``."""

    def __init__(self, features: int, scores: int, *, width: int, layers: int, activation: str, seed: int):
        super().__init__()
        rng, self.activation, self.kind = torch.Generator().manual_seed(seed), ACTIVATIONS[activation], activation
        sizes = [features, *[width] * (layers - 1)]
        self.hidden = nn.ParameterList(torch.randn(width, size, generator=rng) / size**0.5 for size in sizes)
        self.biases = nn.ParameterList(torch.zeros(width) for _ in sizes)
        self.out = nn.Parameter(torch.zeros(scores, width))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        states = features
        for weight, bias in zip(self.hidden, self.biases, strict=True):
            states = self.activation(states @ weight.T + bias)
        return states @ self.out.T

    def code(self) -> tuple[str, ...]:
        """As in ``_head.Plain``."""
        hidden = [f'x = {IN_WORDS[self.kind]}(x @ head["hidden.{n}"].T + head["biases.{n}"])' for n in range(len(self.hidden))]
        return (*hidden, 'scores = x @ head["out"].T')
