"""Pairs compared by an embedding of each row: preferences that need not be transitive, so that no score of a row by itself tells them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.objectives import links, scores
from mmalign.objectives.parts import SCORES
from mmalign.objectives.terms.pairs import Order, Term
from mmalign.types import Steps

ROWS = scores.policy()


def preferred(own: Tensor, other: Tensor, *, normalised: bool = False) -> Tensor:
    """``v' R u = sum_l v_2l u_2l+1 - v_2l+1 u_2l``, by how much rows ``v [N, T]`` are ahead of others ``u [N, T]``: ``[N, 1]``.

    R is block diagonal, of quarter turns, so that ``v' R u = -u' R v``. An odd last number stands beside a 0, and says nothing.

    own, other: numbers of rows. normalised: embeddings have length 1.

    Examples:
        >>> rock, paper = torch.tensor([[1.0, 0.0]]), torch.tensor([[-0.5, -0.8660254]])
        >>> preferred(paper, rock)  # a third of a turn apart
        tensor([[0.8660]])
    """
    v, u = (functional.pad(rows, (0, rows.shape[1] % 2)) for rows in (own, other))
    if normalised:
        v, u = functional.normalize(v, dim=1), functional.normalize(u, dim=1)
    return (v[:, 0::2] * u[:, 1::2] - v[:, 1::2] * u[:, 0::2]).sum(1, keepdim=True)


def ahead_in_turn(*, temperature: float, normalised: bool) -> Term:
    """``-log sigmoid(v_w' R v_l / temperature)``, v the numbers of a row.

    temperature: above 0. normalised: embeddings have length 1.
    """
    links.positive(temperature=temperature)

    def ahead(steps: Steps, order: Order) -> Tensor:
        return preferred(*order.sides(ROWS.of(steps)), normalised=normalised) / temperature

    return Term(lambda steps, order: functional.softplus(-ahead(steps, order)), ROWS.needs, kinds=SCORES, ahead=ahead)


def wins(own: Tensor, other: Tensor, *, temperature: float, normalised: bool) -> Tensor:
    """How probably rows are better than others, ``[N, 1]``.

    own, other: numbers of rows, ``[N, T]``. temperature, normalised: as in ``ahead_in_turn``.
    """
    return torch.sigmoid(preferred(own, other, normalised=normalised) / temperature)
