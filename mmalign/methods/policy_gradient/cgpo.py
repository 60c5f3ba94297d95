"""Constrained generative policy optimisation: judges that must be satisfied, and an optimiser for each task."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Literal, get_args

import torch
from torch import Tensor

from mmalign.arguments.ranges import Finite, Positive
from mmalign.needs import MASK, OLD, refs
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError

Optimiser = Literal["crpg", "crraft"]


def cgpo(
    *, judges: Mapping[str, Finite], optimiser: Optimiser = "crpg", most_kl: Positive | None = None,
    tasks: Mapping[str, Mapping[str, Any]] | None = None,
) -> Method:  # fmt: skip
    """A policy gradient that only rows earn which satisfy every judge and have not gone too far from the reference.

    A row is in order where each judge that knows it gives it at least its least score, and ``sum_t log pi_old - log ref <= most_kl``. With
    r its reward and r' the same, 0 for rows that a judge objects to::

        crpg:    A_i = r'_i - mean of r' over the group       rows too far away are left out, of the mean too
        crraft:  A_i = r_i for the best row of the group that is in order, 0 for all others
        loss = mean_i [ -A_i sum_t log pi_it ]

    Args:
        judges: name of a reward -> the score from which it is satisfied. One that is NaN for a row has nothing to say of it.
        optimiser: of the rows that belong to no task.
        most_kl: nats of a whole row; null: any.
        tasks: name of a reward that is known for the rows of one task alone (``rewards: {use: by_task, ...}``) -> what is otherwise there:
            ``{optimiser: crraft, most_kl: 5.0}``. A row of several belongs to the first.

    The third optimiser, CODPO, is ``rpo`` online with ``combine: {use: mixture_of_judges, violated: -10.0}``: the best row in order against
    the worst, likelihood of the better row included. Rewards are calibrated by ``transforms`` of the combination, best to 0..1.

    Paper: The Perfect Blend: Redefining RLHF with Mixture of Judges, arXiv 2409.20370, its CRPG and CRRAFT; recalled.

    Deviations: one update of a rollout is on-policy as there; there is no ratio. Of the best rows that tie, CRRAFT takes each by its share.

    Errors: UserError for judges that no reward is called like, and tasks of another shape.
    """
    settings = {name: _settings(f"tasks.{name}", task, optimiser, most_kl) for name, task in (tasks or {}).items()}
    _settings("cgpo", {}, optimiser, most_kl)
    limited = most_kl is not None or any(most is not None for _, most in settings.values())

    def advantage(feedback: Feedback) -> Tensor:
        rewards, scores = feedback.rewards.detach().double(), torch.zeros_like(feedback.rewards)
        known, sound = ~rewards.isnan(), _satisfied(feedback, judges)
        far = returns.kl(feedback).sum(1) if limited else torch.zeros_like(rewards)
        for name, rows in _tasks(feedback, list(settings)).items():
            how, most = settings.get(name, (optimiser, most_kl))
            near = known & rows & (True if most is None else far <= most)
            for group in feedback.group[near].unique():
                inside = near & (feedback.group == group)
                paid = torch.where(sound, rewards, 0.0)
                if how == "crpg":
                    scores[inside] = paid[inside] - paid[inside].mean()
                elif bool((inside & sound).any()):
                    best = inside & sound & (rewards == rewards[inside & sound].max())
                    scores[best] = rewards[best] / best.sum()
        return scores

    return policy_gradient(
        advantage=Reading(advantage, frozenset({MASK, OLD, refs("ref")}) if limited else frozenset()),
        log_ratio=ratios.LIKELIHOOD,
        surrogate=surrogates.likelihood,
        weigh=partial(weights.constant_length, length=1.0),
    )


def _satisfied(feedback: Feedback, judges: Mapping[str, float]) -> Tensor:
    """``[B]`` bool: no judge that knows the row objects."""
    if odd := [name for name in judges if name not in feedback.parts]:
        raise UserError(f"cgpo.judges: got {odd[0]!r}, takes names of rewards: {', '.join(feedback.parts)}")
    objects = [feedback.parts[name] < least for name, least in judges.items()]
    return ~torch.stack(objects).any(0) if objects else torch.ones_like(feedback.rewards, dtype=torch.bool)


def _tasks(feedback: Feedback, names: list[str]) -> dict[str, Tensor]:
    """Name of a task -> ``[B]`` bool, its rows; the empty word: those of none."""
    if odd := [name for name in names if name not in feedback.parts]:
        raise UserError(f"cgpo.tasks: got {odd[0]!r}, takes names of rewards: {', '.join(feedback.parts)}")
    left, rows = torch.ones_like(feedback.rewards, dtype=torch.bool), dict[str, Tensor]()
    for name in names:
        rows[name] = left & ~feedback.parts[name].isnan()
        left = left & ~rows[name]
    return {**rows, "": left}


def _settings(owner: str, task: Mapping[str, Any], optimiser: str, most_kl: float | None) -> tuple[str, float | None]:
    """A task's optimiser and its bound. Errors: UserError for other keys, words and numbers."""
    if odd := [key for key in task if key not in ("optimiser", "most_kl")]:
        raise UserError(f"{owner}: got {odd[0]!r}, takes optimiser and most_kl")
    how, most = task.get("optimiser", optimiser), task.get("most_kl", most_kl)
    if how not in get_args(Optimiser):
        raise UserError(f"{owner}.optimiser: got {how!r}, takes {', '.join(get_args(Optimiser))}")
    if most is not None and not most > 0:
        raise UserError(f"{owner}.most_kl: got {most}, takes a number of nats above 0, or null")
    return how, most
