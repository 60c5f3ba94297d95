"""What episodes are paid: the world's own rewards, and what is added to help."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite
from mmalign.objectives.feedback.shaping import potential_shaping, progress_shaping
from mmalign.types import UserError
from mmalign.worlds.tabular.mdp import Mdp, distances, grid
from mmalign.worlds.tabular.walks import read, said

__all__ = ["tabular_return"]

Shaping = Literal["potential", "progress"]


def tabular_return(
    *,
    reward: str = "goal",
    world: Mdp | None = None,
    shaping: Shaping | None = None,
    scale: Finite = 1.0,
    dense: bool = False,
    by_state: bool = False,
) -> Callable[..., Any]:
    """The discounted return of an episode, ``sum_t discount^t r_t``, and what is added to it to help.

    Args:
        reward: one of the world's; an empty word: none, the help alone.
        world: as of the policy; the standard grid by default.
        shaping: ``potential``: ``F = discount Phi(s') - Phi(s)`` with ``Phi(s) = - scale * (fewest steps to an end)``, under which the best
            policies stay the best. ``progress``: ``max(Phi(s') - Phi(s), 0)``, under which they do not. None: nothing.
        scale: of the potential.
        dense: whether each step is paid by itself, for methods that give credit to steps; its ``discount^t`` is in it.
        by_state: whether what is paid for steps from each state is a part of its own, ``NAME/STATE``, for sums whose weights depend on the
            state (BARFI); of the states from which the world pays anything, or of all where there is ``shaping``.

    Errors: UserError for a reward that is not there; at an output that is no episode.

    Examples:
        >>> paid = mm.worlds.tabular_return()
        >>> round(float(paid(["south 1,0 south 2,0 east 2,1 east 2,2 east 2,3"], ["0,0"])), 4)  # 0.95 ** 4
        0.8145
    """
    mdp = grid() if world is None else world
    table = mdp.reward({reward: 1.0} if reward else {})
    if shaping not in (None, "potential", "progress"):
        raise UserError(f"tabular_return.shaping: got {shaping!r}, takes potential, progress or null")
    if dense and by_state:
        raise UserError("tabular_return: got dense and by_state, takes one of them")
    potential = -scale * distances(mdp)
    pays = (table * (mdp.transitions > 0)).flatten(1).any(1) if shaping is None else torch.ones_like(mdp.ends)
    paying = (pays & ~mdp.ends).nonzero()[:, 0].tolist()

    def score(outputs: Any, prompts: list[str], **_: Any) -> Any:
        rows = [read(mdp, prompt, output) for prompt, output in zip(prompts, outputs, strict=True)]
        paid = [_paid(mdp, table, potential, shaping, *row) for row in rows]
        if by_state:
            return {mdp.states[place]: torch.stack(_from(place, rows, paid)) for place in paying}
        if not dense:
            return torch.stack([each.sum() for each in paid])
        spans = [said(mdp, *row)[1] for row in rows]
        return [[(*span, float(one)) for span, one in zip(*pair, strict=True)] for pair in zip(spans, paid, strict=True)]

    return score


def _paid(mdp: Mdp, table: Tensor, potential: Tensor, shaping: Shaping | None, states: list[int], actions: list[int]) -> Tensor:
    """``[T]``: what each step of an episode is paid, discounted."""
    steps, mask = torch.arange(len(actions), dtype=torch.float64), torch.ones(1, len(actions), dtype=torch.bool)
    paid = table[states[:-1], actions, states[1:]]
    if shaping == "potential":
        paid = paid + potential_shaping(potential[states][None], mask, discount=mdp.discount)[0]
    elif shaping == "progress":
        paid = paid + progress_shaping(potential[states][None], mask)[0]
    return mdp.discount**steps * paid


def _from(place: int, rows: list[tuple[list[int], list[int]]], paid: list[Tensor]) -> list[Tensor]:
    """What each episode was paid for its steps from one state."""
    return [each[torch.tensor(states[:-1]) == place].sum() for (states, _), each in zip(rows, paid, strict=True)]
