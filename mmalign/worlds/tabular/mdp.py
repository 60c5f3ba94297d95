"""Decision processes as tables: what every policy is worth in them, and what the best one is, by dynamic programming.

Numbers are float64. Letters: S states, A actions, H the horizon. Whatever is a function of a policy is differentiable in it, so that exact
policy gradients, and their derivatives, are autograd's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Finite, Proportion
from mmalign.types import UserError

__all__ = ["Mdp", "grid"]

MOVES = {"east": (0, 1), "west": (0, -1), "north": (-1, 0), "south": (1, 0)}
ROWS = ("S..t", ".#..", "...G")
REWARDS = {"goal": {"G": 1.0}, "tokens": {"t": 0.3}}


@dataclass(frozen=True)
class Mdp:
    """A finite decision process whose episodes end in ``ends``, or after ``horizon`` actions.

    states, actions: their names, without spaces. transitions: ``[S, A, S]``, the probability of each next state. rewards: name ->
    ``[S, A, S]`` of a step. ends: ``[S]`` bool, where nothing is done any more. starts: numbers of the states that episodes begin in.
    discount: of a step, in ``V = E[sum_t discount^t r_t]``. horizon: actions of the longest episode.

    Errors: UserError for tables that do not fit each other, probabilities that do not add up to 1, and names with spaces.
    """

    states: tuple[str, ...]
    actions: tuple[str, ...]
    transitions: Tensor
    rewards: Mapping[str, Tensor]
    ends: Tensor
    starts: tuple[int, ...]
    discount: float = 0.95
    horizon: int = 16

    def __post_init__(self) -> None:
        s, a = len(self.states), len(self.actions)
        for name, table in {"transitions": self.transitions, **{f"rewards.{key}": value for key, value in self.rewards.items()}}.items():
            if tuple(table.shape) != (s, a, s):
                raise UserError(f"Mdp.{name}: got shape {list(table.shape)}, takes [{s}, {a}, {s}], states, actions and next states")
        if bool((self.transitions < 0).any()) or not torch.allclose(self.transitions.sum(-1), torch.ones(s, a, dtype=torch.float64)):
            raise UserError("Mdp.transitions: takes probabilities that add up to 1 over next states")
        if odd := [name for name in (*self.states, *self.actions) if not name or " " in name]:
            raise UserError(f"Mdp: got the name {odd[0]!r}, takes names without spaces")
        if not 0 <= self.discount <= 1 or self.horizon < 1 or not self.starts:
            raise UserError(f"Mdp: got discount={self.discount}, horizon={self.horizon}, takes 0 to 1, 1 or more, and a start")

    def reward(self, weights: Mapping[str, Tensor | float]) -> Tensor:
        """``sum_k weights[k] rewards[k]``, ``[S, A, S]``. Errors: UserError for a name that is not there."""
        if odd := [name for name in weights if name not in self.rewards]:
            raise UserError(f"reward: got {odd[0]!r}, takes {', '.join(self.rewards)}")
        return sum((weight * self.rewards[name] for name, weight in weights.items()), torch.zeros_like(self.transitions))


def grid(
    *, rows: Sequence[str] = ROWS, rewards: Mapping[str, Mapping[str, Finite]] = REWARDS, ends: str = "G", starts: str = "S",
    slip: Proportion = 0.0, discount: Proportion = 0.95, horizon: Count = 16,
) -> Mdp:  # fmt: skip
    """A map on which one goes east, west, north and south; a state is called by its row and column, ``0,3``.

    Args:
        rows: the map, a letter for each cell; ``#`` is a wall. Who walks into one, or off the map, stays where they are.
        rewards: name -> letter -> what every step is paid that leads to such a cell, also by staying there.
        ends, starts: letters of the cells where episodes end, and begin.
        slip: how often a step goes in any of the four directions instead, each as likely.
        discount: of a step. horizon: actions of the longest episode.

    Errors: UserError for rows of different lengths, letters that are not on the map, and settings out of range.
    """
    if not rows or len({len(row) for row in rows}) != 1:
        raise UserError(
            f"grid.rows: got rows of {', '.join(map(str, sorted({len(row) for row in rows})) or ['none'])} cells, takes one length"
        )
    letters = "".join(rows)
    wanted = [("ends", ends), ("starts", starts), *((f"rewards.{name}", "".join(paid)) for name, paid in rewards.items())]
    for key, some in wanted:
        if odd := [letter for letter in some or " " if letter not in letters.replace("#", "")]:
            raise UserError(f"grid.{key}: got {odd[0]!r}, takes letters of the map: {', '.join(sorted(set(letters) - {'#'}))}")
    cells = [(r, c) for r, row in enumerate(rows) for c, letter in enumerate(row) if letter != "#"]
    number = {cell: place for place, cell in enumerate(cells)}
    letter_of = [rows[r][c] for r, c in cells]
    sure = torch.zeros(len(cells), len(MOVES), len(cells), dtype=torch.float64)
    for place, (r, c) in enumerate(cells):
        for move, (down, right) in enumerate(MOVES.values()):
            sure[place, move, number.get((r + down, c + right), place)] = 1.0
    paid = {name: torch.tensor([own.get(letter, 0.0) for letter in letter_of], dtype=torch.float64) for name, own in rewards.items()}
    return Mdp(
        states=tuple(f"{r},{c}" for r, c in cells),
        actions=tuple(MOVES),
        transitions=(1 - slip) * sure + slip * sure.mean(1, keepdim=True),
        rewards={name: table.expand_as(sure).clone() for name, table in paid.items()},
        ends=torch.tensor([letter in ends for letter in letter_of]),
        starts=tuple(place for place, letter in enumerate(letter_of) if letter in starts),
        discount=discount,
        horizon=horizon,
    )


def values(mdp: Mdp, probabilities: Tensor, reward: Tensor, *, discount: Tensor | float | None = None) -> tuple[Tensor, Tensor]:
    """What a policy is worth: ``V [H + 1, S]`` and ``Q [H, S, A]`` of ``probabilities [S, A]``, from each time on; ``V_H`` and ends are 0.

    ``Q_h(s, a) = sum_s' P(s' | s, a) (r(s, a, s') + discount V_{h+1}(s'))``, ``V_h = sum_a pi Q_h`` (Bellman's equations). discount:
    another one than the world's.
    """
    return _backwards(mdp, reward, lambda q: (probabilities * q).sum(-1), mdp.discount if discount is None else discount)


def optimum(mdp: Mdp, reward: Tensor) -> tuple[Tensor, Tensor]:
    """``V* [H + 1, S]`` and ``Q* [H, S, A]``: the same with ``V_h = max_a Q_h``, which no policy exceeds, nor one that knows the time."""
    return _backwards(mdp, reward, lambda q: q.amax(-1), mdp.discount)


def _backwards(mdp: Mdp, reward: Tensor, of_actions: Callable[[Tensor], Tensor], discount: Tensor | float) -> tuple[Tensor, Tensor]:
    paid = (mdp.transitions * reward).sum(-1)
    v = [torch.zeros(len(mdp.states), dtype=torch.float64)]
    q: list[Tensor] = []
    for _ in range(mdp.horizon):
        q.append(paid + discount * (mdp.transitions @ v[-1]))
        v.append(torch.where(mdp.ends, 0.0, of_actions(q[-1])))
    return torch.stack(v[::-1]), torch.stack(q[::-1])


def worth(mdp: Mdp, probabilities: Tensor, reward: Tensor, *, discount: Tensor | float | None = None) -> Tensor:
    """``J = E[sum_t discount^t r_t]`` from the starts, each as likely, a 0-d tensor. discount: another one than the world's."""
    return values(mdp, probabilities, reward, discount=discount)[0][0][list(mdp.starts)].mean()


def distances(mdp: Mdp) -> Tensor:
    """``[S]``: the fewest steps to an end, along steps that are possible at all; the number of states where there is no way."""
    possible = (mdp.transitions > 0).any(1)
    steps = torch.where(mdp.ends, 0.0, float(len(mdp.states))).double()
    for _ in mdp.states:
        nearest = torch.where(possible, steps, float(len(mdp.states))).amin(1)
        steps = torch.where(mdp.ends, 0.0, torch.minimum(steps, nearest + 1))
    return steps
