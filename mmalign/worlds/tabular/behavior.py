"""BARFI, exactly: weights of two rewards, and a discount, learned for what the best policy under them does by the first alone."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Positive
from mmalign.types import UserError
from mmalign.worlds.tabular.bilevel import Level, best_response, hypergradient
from mmalign.worlds.tabular.mdp import Mdp, worth


@dataclass(frozen=True)
class Behavior:
    """weights: ``[3, S]``, of 1, of the primary and of the auxiliary reward for steps from each state. discount: that the policy is trained
    with. worth: of that policy by the primary reward and the world's own discount, after each round, the start first."""

    weights: Tensor
    discount: float
    worth: tuple[float, ...]


def levels(mdp: Mdp, primary: Tensor, auxiliary: Tensor, *, ridge: float, price: float, weight_price: float) -> tuple[Level, Level]:
    """(lower, upper) of ``theta`` (logits ``[S A]``) and ``nu`` (``[3 S + 1]``: weights, and the logit of the discount ``g``)::

        lower = J_g(theta; phi_1(s) + phi_2(s) r_p + phi_3(s) r_aux) - ridge / 2 |theta|^2
        upper = J(theta; r_p) - price * g - weight_price / 2 |phi - (0, 1, 1)|^2

    ``J_g`` discounts by g, ``J`` by the world's own.
    """
    count = len(mdp.states)

    def table(theta: Tensor) -> Tensor:
        return theta.view(count, len(mdp.actions)).softmax(-1)

    def lower(theta: Tensor, nu: Tensor) -> Tensor:
        alone, first, second = (weight[:, None, None] for weight in nu[:-1].view(3, count))
        paid = alone + first * primary + second * auxiliary
        return worth(mdp, table(theta), paid, discount=nu[-1].sigmoid()) - ridge / 2 * (theta**2).sum()

    def upper(theta: Tensor, nu: Tensor) -> Tensor:
        away = nu[:-1] - beginning(mdp, 0.5)[:-1]
        return worth(mdp, table(theta), primary) - price * nu[-1].sigmoid() - weight_price / 2 * (away**2).sum()

    return lower, upper


def beginning(mdp: Mdp, discount: float) -> Tensor:
    """``[3 S + 1]``: the plain sum of the two rewards, and the logit of a discount."""
    count = len(mdp.states)
    return torch.cat([torch.zeros(count), torch.ones(2 * count), torch.logit(torch.tensor([discount]))]).double()


def behavior_alignment(
    mdp: Mdp, primary: Tensor, auxiliary: Tensor, *, rounds: Count = 20, rate: Positive = 10.0, ridge: Positive = 0.01,
    price: NotNegative = 0.0, weight_price: NotNegative = 0.0,
) -> Behavior:  # fmt: skip
    """Learns ``phi`` and the discount by gradient ascent on what their best policy is worth by the primary reward.

    Lower level: the policy that is best by ``phi_1(s) + phi_2(s) r_p + phi_3(s) r_aux`` under the learned discount, found to its optimum.
    Upper level: that policy's worth by ``r_p`` under the world's own discount, less ``price`` for every unit of the learned one. Its
    gradient goes through the lower optimum (implicit differentiation, ``bilevel.hypergradient``).

    Args:
        mdp: the world. primary, auxiliary: ``[S, A, S]``, what counts, and what a designer thought would help.
        rounds: steps of phi and the discount. rate: of a step, in units of phi for one of the worth; a step that
            does not raise the upper level is halved, a dozen times at most.
        ridge: of the lower level, ``ridge / 2 |theta|^2``, without which a softmax has no optimum.
        price: of the discount. weight_price: of phi's distance to the plain sum, ``/ 2``, squared.

    Paper: Behavior Alignment via Reward Function Optimization, https://arxiv.org/abs/2310.19007: its form of the reward, and its two levels
    with a price of the discount; recalled. Deviations: values and Hessians are exact in place of samples and a Neumann series.

    Errors: UserError for tables of other shapes, and where a lower level does not arrive at an optimum.
    """
    shape = tuple(mdp.transitions.shape)
    if tuple(primary.shape) != shape or tuple(auxiliary.shape) != shape:
        raise UserError(f"behavior_alignment: got {list(primary.shape)} and {list(auxiliary.shape)}, takes {list(shape)} for both rewards")
    lower, upper = levels(mdp, primary, auxiliary, ridge=ridge, price=price, weight_price=weight_price)
    nu = beginning(mdp, 0.5)
    theta = best_response(lower, nu, torch.zeros(shape[0] * shape[1], dtype=torch.float64))
    reached = [float(worth(mdp, theta.view(shape[:2]).softmax(-1), primary))]
    for _ in range(rounds):
        step, value = rate * hypergradient(lower, upper, theta, nu), float(upper(theta, nu))
        for halved in range(12):
            tried = nu + step / 2**halved
            answer = best_response(lower, tried, theta)
            if float(upper(answer, tried)) > value:
                nu, theta = tried, answer
                break
        reached.append(float(worth(mdp, theta.view(shape[:2]).softmax(-1), primary)))
    return Behavior(nu[:-1].view(3, shape[0]), float(nu[-1].sigmoid()), tuple(reached))
