"""Sums of rewards whose weights are learned from the rewards' policy gradients: which ones help, which ones only hinder.

``g_k`` is the policy gradient of reward k alone, ``<g_k, g_j>`` the inner product of two over all trained parameters, measured before the
updates of a rollout (``training.evaluations.inner_products``: one backward pass for each reward). Weights move after it, and count from the
next rollout on; they are in every checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, NotNegative, Positive
from mmalign.combinations._parts import Both, Chain, Combination, Rows, Transforms, chosen, table
from mmalign.types import UserError

__all__ = ["bilevel_weights", "gradient_weights", "min_norm_weights"]

Parts = Mapping[str, Tensor]
Move = Callable[[Tensor, Tensor], Tensor]  # weights [K] and inner products [K, K] -> weights [K]


def gradient_weights(
    *, weights: Mapping[str, Positive], rate: Positive = 0.1, by: Literal["advantages", "gradients"] = "advantages",
    transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``sum_k w_k r_k``, whose weights move to the rewards that help the others: ``w_k <- w_k exp(rate * I_k) / Z``.

    ``I_k = sum_j <g_k, g_j>``, g_k the policy gradient of reward k alone. Weights stay positive and keep their sum.

    weights: name -> weight at the start, above 0. rate: of the weights, for a rollout.
    by: ``gradients`` are the model's, a backward pass for each reward. ``advantages`` takes the mean over rows of the product of their
        group-relative advantages, which it is (up to a factor) where the score functions of rows are orthogonal and of one length: no
        gradient of the model is taken.

    Paper: Learning to Optimize Multi-Objective Alignment Through Dynamic Reward Weighting, https://arxiv.org/abs/2509.11452.
    Deviations: ``advantages`` is an estimate of our own. A row without one of the scores has no reward.

    Errors: UserError for settings out of range.
    """
    if not weights or not all(weight > 0 for weight in weights.values()) or rate <= 0:
        raise UserError(f"gradient_weights: got weights={dict(weights)}, rate={rate}, takes numbers above 0")
    if by not in ("advantages", "gradients"):
        raise UserError(f"gradient_weights.by: got {by!r}, takes advantages or gradients")
    total = sum(weights.values())

    def mirror(now: Tensor, inner: Tensor) -> Tensor:
        return ((now.log() + rate * inner.sum(1)).softmax(0) * total).clamp(min=1e-12)

    return _learned("gradient_weights", weights, mirror, transforms, estimated=by == "advantages")


def min_norm_weights(*, of: Sequence[str], transforms: Transforms | None = None) -> Combination:
    """``sum_k w_k r_k`` with the weights of the shortest mixture of gradients: ``argmin |sum_k w_k g_k|^2``, ``w_k >= 0``, sum 1.

    Along it no reward falls to first order; it is 0 where no step raises them all (Pareto stationary). The weights that one rollout gives
    are those of the next. of: the rewards; all count alike in the first rollout.

    Paper: Desideri 2012 (MGDA); Sener and Koltun, Multi-Task Learning as Multi-Objective Optimization, https://arxiv.org/abs/1810.04650,
    whose Frank-Wolfe solver this is, with exact line search (its algorithm 2).

    Errors: UserError for fewer than two rewards.
    """
    if len(of) < 2:
        raise UserError(f"min_norm_weights.of: got {list(of)}, takes two rewards or more")
    return _learned("min_norm_weights", dict.fromkeys(of, 1 / len(of)), lambda now, inner: shortest(inner), transforms)


def bilevel_weights(
    *, weights: Mapping[str, Finite], target: str, rate: Positive = 1.0, price: NotNegative = 0.0, least: Finite | None = None,
    transforms: Transforms | None = None,
) -> Combination:  # fmt: skip
    """``sum_k w_k r_k`` trains the policy; the weights are trained so that the policy which comes of it is good by ``target`` alone.

    Upper level ``G(w) = E_{pi*(w)}[target] - price / 2 |w|^2``, lower level ``pi*(w) = argmax E_pi[sum_k w_k r_k]``. The target depends on
    the weights only through the rows that the policy draws, so that the whole of its gradient is the score-function term, through the lower
    level's optimum: ``dG/dw_k = g_target (-H)^{-1} g_k - price w_k``, H the lower level's Hessian. With ``-H`` taken as the identity over
    ``rate``::

        w_k <- max(w_k + rate * <g_target, g_k> - rate * price * w_k, least)

    Rewards that pull where the target does are paid more, those that pull elsewhere less, and below 0 less than nothing.

    Args:
        weights: name -> at the start; the target too, where it is to be in the sum: a sparse one may not be enough by itself.
        target: what counts. Its own weight stays what it is (``w_target g_target`` only sets the scale).
        rate: of the weights, for a rollout. price: of large weights. least: of a weight; null: none.

    Papers: PARL, https://arxiv.org/abs/2308.02585 (the term); Behavior Alignment via Reward Function Optimization,
    https://arxiv.org/abs/2310.19007 (BARFI: primary and auxiliary rewards, by implicit differentiation); both numbers recalled.
    Deviations: the Hessian above, of which ``worlds/tabular`` has the exact one to compare with; one update of the policy between two of
    the weights; weights depend on the state where a reward says its part for each (``configs/tabular/barfi``); the discount is given.
    BARFI whole, with its discount, exactly: ``worlds/tabular/behavior.py``.

    Errors: UserError for a target that has no weight, and settings out of range.
    """
    if target not in weights or rate <= 0 or price < 0:
        raise UserError(
            f"bilevel_weights: got weights={dict(weights)}, target={target!r}, rate={rate}, price={price}, takes a target that has a "
            "weight (0 keeps it out of the sum), rate above 0, price of 0 or more"
        )
    own = list(weights).index(target)

    def climb(now: Tensor, inner: Tensor) -> Tensor:
        moved = now + rate * (inner[own] - price * now)
        moved = moved if least is None else moved.clamp(min=least)
        moved[own] = now[own]
        return moved

    return _learned("bilevel_weights", weights, climb, transforms)


def shortest(inner: Tensor, *, iterations: int = 1000) -> Tensor:
    """Weights ``[K]`` on the simplex with the least ``w' M w``, M ``[K, K]`` inner products; by Frank-Wolfe, exact for two.

    Examples:
        >>> shortest(torch.tensor([[1.0, 0.0], [0.0, 3.0]]).double()).tolist()  # orthogonal: by the inverse of their squares
        [0.75, 0.25]
    """
    weights = torch.full((len(inner),), 1 / len(inner), dtype=inner.dtype)
    for _ in range(iterations):
        toward = torch.nn.functional.one_hot((inner @ weights).argmin(), len(inner)).to(inner) - weights
        slope, bend = float(toward @ inner @ weights), float(toward @ inner @ toward)
        if slope >= -1e-12 * float(inner.diagonal().mean()) or bend <= 0:
            break
        weights = weights + min(1.0, -slope / bend) * toward
    return weights


def _learned(name: str, weights: Mapping[str, float], move: Move, transforms: Transforms | None, *, estimated: bool = False) -> Combination:
    chain = Chain(name, transforms)
    state = _Weights(name, weights, move, chain, estimated)

    def of(parts: Parts, rows: Rows) -> Tensor:
        parts = chain.apply(parts, rows)
        names = chosen(name, "weights", weights, parts)
        return sum(state.values[name] * parts[name] for name in names)  # type: ignore[return-value]

    return Combination(name, of, Both(chain, state), gradients=None if estimated else state)


class _Weights:
    """Weights that move by the inner products of gradients, or by an estimate of these; a State, and a ByGradient."""

    def __init__(self, owner: str, weights: Mapping[str, float], move: Move, chain: Chain, estimated: bool):
        self.owner, self.move, self.chain, self.estimated = owner, move, chain, estimated
        self.values: Mapping[str, float] = dict(weights)

    def apart(self, parts: Parts, group: Tensor, prompts: Sequence[Any]) -> dict[str, Tensor]:
        """The scores as its chain leaves them."""
        scores = self.chain.apply(parts, Rows(group, prompts))
        return {name: scores[name] for name in chosen(self.owner, "weights", self.values, scores)}

    def follow(self, names: Sequence[str], inner: Tensor) -> None:
        """A step of the weights."""
        now = torch.tensor([self.values[name] for name in names], dtype=torch.float64)
        moved = self.move(now, inner)
        if bool(moved.isfinite().all()):
            self.values = dict(zip(names, moved.tolist(), strict=True))

    def learn(self, parts: Parts, rows: Rows) -> None:
        names = chosen(self.owner, "weights", self.values, parts)
        if not self.estimated:
            return
        scores, known = table(parts, names)
        scores, group = scores[:, known.all(0)], rows.group[known.all(0)]
        if not scores.shape[1]:
            return
        same = (group[:, None] == group[None, :]).double()
        advantages = scores - scores @ same / same.sum(1)
        self.follow(names, advantages @ advantages.T / scores.shape[1])

    def dump(self) -> dict[str, Any]:
        return {"values": self.values}

    def load(self, state: Mapping[str, Any]) -> None:
        self.values = dict(state["values"])
