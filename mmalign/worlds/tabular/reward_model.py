"""Reward models of a table of states and actions, whose scores of an episode are its return, or minus its regret, under what is learned."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn

from mmalign.policies.parameters import ParameterSets
from mmalign.policies.scorers.heads._head import Head
from mmalign.policies.scorers.named_features import Numbers
from mmalign.policies.scorers.scorer import ScorerPolicy
from mmalign.records import RefusedRow
from mmalign.types import EVERY, Rollout, UserError
from mmalign.worlds.tabular.mdp import Mdp, grid, optimum
from mmalign.worlds.tabular.walks import read

__all__ = ["tabular_reward"]


def tabular_reward(*, world: Mdp | None = None, by: Literal["return", "regret"] = "regret") -> ScorerPolicy:
    """A reward ``r(s, a)`` for each state and action, learned from comparisons of episodes, with the value function that belongs to it.

    With ``V*``, ``Q*`` the values of r's own best policy (dynamic programming, differentiable), an episode's score is

    - ``by="regret"``: ``sum_t discount^t (Q*_t(s_t, a_t) - V*_t(s_t))``, minus what its actions gave away;
    - ``by="return"``: ``sum_t discount^t r(s_t, a_t)``, as reward models usually have it.

    So ``bradley_terry`` on it has the likelihood of regrets, or of returns: ``P(1 > 2) = sigmoid(score_1 - score_2)``. As a reward
    (``trained``) minus the regret is maximised by r's best policies, for its mean is ``J(pi) - V*(s_0)``. What is learned stands in
    ``policy.head.reward [S, A]``, in units in which comparisons are logits; ``policy.head.values()`` are its ``V* [H + 1, S]`` and
    ``Q* [H, S, A]``.

    world: as of the policy. by: what a score is.

    Paper: Knox et al., Models of human preference for learning reward functions, arXiv 2206.02231 (its number recalled), sec. 2.2, eq. 4
    (regret as a sum of optimal advantages).

    Deviations: episodes, or their beginnings, are compared, not segments from anywhere; V* is exact for every r, where the paper takes the
    best of some policies' successor features; where several actions are best, the gradient is the mean of theirs.

    Errors: RefusedRow for an output that is no episode.
    """
    mdp = grid() if world is None else world
    reader = Visits(mdp)
    return ScorerPolicy(reader, reader, Head("tabular_reward", lambda *_: Learned(mdp, by)), scores=["score"], trained="all")


class Visits:
    """Episodes as counts of what was done; a ``readers.Reader`` without parameters."""

    differentiable = False
    rows_at_once = 4096

    def __init__(self, world: Mdp):
        self.world, self.model = world, nn.Module()
        self.shape = world.horizon, len(world.states), len(world.actions)
        self.width, self.sets = world.horizon * len(world.states) * len(world.actions), ParameterSets(self.model)

    @property
    def device(self) -> torch.device:
        """Where the numbers are."""
        return torch.device("cpu")

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Nothing: what is no start is found out with its episode."""
        return {}

    def read(self, prompts: list[Any], outputs: Any, group: Tensor, rng: torch.Generator | None, *, part: slice = EVERY) -> Rollout:
        """``Numbers [B, H S A]``: which action was done in which state at which time, ``discount^t`` there, else 0.

        Errors: RefusedRow for the first output that is no episode of this world.
        """
        places = range(len(prompts))[part]
        table = torch.zeros((len(places), *self.shape), dtype=torch.float64)
        for row, place in enumerate(places):
            try:
                states, actions = read(self.world, prompts[place], outputs[place])
            except UserError as error:
                raise RefusedRow(place, str(error)) from error
            steps = torch.arange(len(actions))
            table[row, steps, states[:-1], actions] = self.world.discount ** steps.double()
        nothing = torch.full((len(places), 1), torch.nan, dtype=torch.float64)
        asked, given = list(prompts[part]), [outputs[place] for place in places]
        return Rollout(asked, given, nothing, nothing.isnan(), group[part], held=Numbers(table.flatten(1)))

    def features(self, rollout: Rollout, rows: Tensor) -> Tensor:
        """``[R, H S A]`` float64."""
        return rollout.held.values[rows]  # type: ignore[no-any-return]


class Learned(nn.Module):
    """See ``tabular_reward``. reward: ``[S, A]`` float64, 0 at first."""

    def __init__(self, world: Mdp, by: str):
        super().__init__()
        self.world, self.by = world, by
        self.reward = nn.Parameter(torch.zeros(len(world.states), len(world.actions), dtype=torch.float64))

    def values(self) -> tuple[Tensor, Tensor]:
        """``V* [H + 1, S]`` and ``Q* [H, S, A]`` of the reward as it is, differentiable."""
        return optimum(self.world, self.reward[..., None].expand_as(self.world.transitions))

    def forward(self, features: Tensor, columns: Mapping[str, Sequence[Any]] | None = None) -> Tensor:
        """columns: not read."""
        v, q = self.values()
        each = q - v[:-1, :, None] if self.by == "regret" else self.reward.expand_as(q)
        return features @ each.flatten()[:, None]
