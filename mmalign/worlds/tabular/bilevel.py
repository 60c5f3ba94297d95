"""Rewards that are learned for what their best policy does: two levels, both exact, and what is wrong with leaving the lower one out.

``upper(nu)`` is judged on what the optimum ``theta*(nu) = argmax lower(theta, nu)`` does, so that its gradient by ``nu`` has two parts:
that of what is said of the rows, and that of which rows there are. ``combinations.bilevel_weights`` is the sampled form.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from mmalign.types import UserError
from mmalign.worlds.tabular.mdp import Mdp

Level = Callable[[Tensor, Tensor], Tensor]  # (theta, nu) -> 0-d


def hypergradient(lower: Level, upper: Level, theta: Tensor, nu: Tensor, *, score_term: bool = True) -> Tensor:
    """The gradient of ``upper(theta*(nu), nu)`` by ``nu``, at a ``theta`` that maximises ``lower(., nu)``; shape of ``nu``.

    ``d_nu upper - (d2_{nu theta} lower) (d2_{theta theta} lower)^+ d_theta upper`` (implicit function theorem). ``d_theta upper``, of
    an expectation over rows that the policy draws, is ``E[U grad log pi]``, PARL's score-function term: without it (``score_term``) rows
    count as given, as if who is trained on ``nu`` went on drawing the same ones. ``^+``: directions that change no probability are left.

    Paper: PARL, https://arxiv.org/abs/2308.02585 (its number recalled); the formula is derived here.
    """
    theta, nu = theta.detach().requires_grad_(), nu.detach().requires_grad_()
    of_theta, of_nu = torch.autograd.grad(upper(theta, nu), (theta, nu), materialize_grads=True, allow_unused=True)
    if not score_term:
        return of_nu
    (slope,) = torch.autograd.grad(lower(theta, nu), theta, create_graph=True)
    rows = [torch.autograd.grad(one, (theta, nu), retain_graph=True, materialize_grads=True, allow_unused=True) for one in slope.flatten()]
    bend, cross = (torch.stack([row[part].flatten() for row in rows]) for part in (0, 1))
    moved = torch.linalg.pinv(bend, rtol=1e-9, hermitian=True) @ of_theta.flatten()
    return of_nu - (cross.T @ moved).view_as(of_nu)


def best_response(lower: Level, nu: Tensor, start: Tensor) -> Tensor:
    """``argmax_theta lower(theta, nu)`` from ``start``, by L-BFGS in float64. Errors: UserError where it does not arrive."""
    theta, fixed = start.detach().clone().requires_grad_(), nu.detach()
    ascent = torch.optim.LBFGS([theta], max_iter=500, tolerance_grad=1e-10, tolerance_change=0, line_search_fn="strong_wolfe")

    def loss() -> Tensor:
        ascent.zero_grad()
        value = -lower(theta, fixed)
        value.backward()
        return value

    ascent.step(loss)
    (slope,) = torch.autograd.grad(lower(theta, fixed), theta)
    if float(slope.abs().max()) > 1e-6:
        raise UserError(f"best_response: the gradient is still {float(slope.abs().max()):.1g}; takes a lower level with an optimum")
    return theta.detach()


def episodes(mdp: Mdp, *, most: int = 100_000) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Every episode there can be: states ``[N, H + 1]``, actions ``[N, H]``, live steps ``[N, H]``, and ``[N]`` how probably the world
    alone (start and transitions) lets it happen. Errors: UserError for more than ``most``."""
    walks: list[tuple[list[int], list[int], float]] = [([start], [], 1 / len(mdp.starts)) for start in mdp.starts]
    for _ in range(mdp.horizon):
        longer = list[tuple[list[int], list[int], float]]()
        for states, actions, chance in walks:
            if bool(mdp.ends[states[-1]]):
                longer.append((states, actions, chance))
                continue
            for action, nexts in enumerate(mdp.transitions[states[-1]].tolist()):
                longer += [([*states, at], [*actions, action], chance * p) for at, p in enumerate(nexts) if p > 0]
        walks = longer
        if len(walks) > most:
            raise UserError(f"episodes: more than {most:,}; takes a smaller world, or fewer steps")
    padded = lambda row, width: row + [0] * (width - len(row))  # noqa: E731
    return (
        torch.tensor([padded(states, mdp.horizon + 1) for states, _, _ in walks]),
        torch.tensor([padded(actions, mdp.horizon) for _, actions, _ in walks]),
        torch.tensor([[True] * len(actions) + [False] * (mdp.horizon - len(actions)) for _, actions, _ in walks]),
        torch.tensor([chance for _, _, chance in walks], dtype=torch.float64),
    )
