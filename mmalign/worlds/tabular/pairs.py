"""Preferences between episodes whose cause is known: what they were paid, or how much better they could have been."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, Positive, Seed
from mmalign.records import Pair
from mmalign.types import UserError
from mmalign.worlds.tabular.mdp import Mdp, grid, optimum
from mmalign.worlds.tabular.policy import tabular

__all__ = ["tabular_pairs"]


def tabular_pairs(
    *, world: Mdp | None = None, reward: str = "goal", by: Literal["return", "regret"] = "return", count: Count = 256,
    temperature: Positive = 0.1, length: Count | None = None, seed: Seed = 0,
) -> list[Pair]:  # fmt: skip
    """Pairs of episodes of the policy that takes every action as often, ``P(first) = sigmoid((u_1 - u_2) / temperature)``, labels drawn.

    Episodes that are the same are a tie, strength 0.5.

    Args:
        world: as of the policy. reward: the one that is preferred.
        by: ``return``: ``u = sum_t discount^t r_t``, as Bradley-Terry reward models take it. ``regret``:
            ``u = - sum_t discount^t (V*(s_t) - Q*(s_t, a_t))``, minus what each action gave away: an episode that did
            nothing wrong and was not paid yet beats one that was paid and went astray.
        count: how many. temperature: in units of the reward; the lower, the surer. seed: of all that is drawn.
        length: the beginnings of episodes are compared, so many actions of each; None: whole ones. Between whole ones of a world without
            chance, from one start, return and regret are the same preference; of beginnings only the regret knows where they lead.

    Paper (regret): Models of human preference for learning reward functions, https://arxiv.org/abs/2206.02231, its number recalled. There
    segments from anywhere are compared, here beginnings; chance in transitions is no merit: Q* is an expectation.

    Errors: UserError for another ``by``, and for a reward that is not there.
    """
    if by not in ("return", "regret"):
        raise UserError(f"tabular_pairs.by: got {by!r}, takes return or regret")
    mdp = grid() if world is None else world
    rng = torch.Generator().manual_seed(seed)
    starts = [mdp.states[start] for start in mdp.starts]
    rollout = tabular(world=mdp).sample([starts[number % len(starts)] for number in range(count)], 2, rng)
    first_ones = rollout.mask & (torch.arange(mdp.horizon) < (mdp.horizon if length is None else length))
    outputs = [" ".join(text.split()[: 2 * int(live)]) for text, live in zip(rollout.outputs, first_ones.sum(1), strict=True)]
    worth = utilities(mdp, mdp.reward({reward: 1.0}), rollout.held.states, rollout.held.actions, first_ones, by).view(count, 2)
    chance = ((worth[:, 0] - worth[:, 1]) / temperature).sigmoid()
    first = torch.rand(count, generator=rng, dtype=torch.float64) < chance
    pairs = []
    for number, won in enumerate(first.tolist()):
        better, worse = (2 * number, 2 * number + 1) if won else (2 * number + 1, 2 * number)
        scores = (float(worth.flatten()[better]), float(worth.flatten()[worse]))
        strength = 1.0 if outputs[better] != outputs[worse] else 0.5  # nothing is better than itself, whatever was drawn
        pairs.append(Pair(rollout.prompts[better], outputs[better], outputs[worse], strength, f"pair {number}", scores=scores))
    return pairs


def utilities(mdp: Mdp, reward: Tensor, states: Tensor, actions: Tensor, mask: Tensor, by: str) -> Tensor:
    """``[B]``: the return of episodes, or minus their regret; states ``[B, H + 1]``, actions and mask ``[B, H]``."""
    steps = torch.arange(mdp.horizon)  # of int64, whose powers torch would give in float32
    if by == "return":
        each = reward[states[:, :-1], actions, states[:, 1:]]
    else:
        v, q = optimum(mdp, reward)
        each = q[steps, states[:, :-1], actions] - v[steps, states[:, :-1]]
    return (torch.where(mask, each, 0.0) * mdp.discount ** steps.double()).sum(1)
