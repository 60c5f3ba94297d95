"""Methods for three rows of a list: one to imitate, and two of which one is the better."""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import MASK
from mmalign.objectives import links, scores, weights
from mmalign.objectives.parts import DENSITIES, live, read, refuse_kind
from mmalign.types import Feedback, Loss, Method, Steps

GOLD, BETTER, WORSE = 2.0, 1.0, -1.0


def roles(feedback: Feedback) -> Tensor:
    """``[B]``: GOLD for the best row of a group, BETTER for the second, WORSE for the last, 0 for all others. Reads ``mask``.

    Rows without a reward or without a step are passed over; a group of fewer than three, or in which two of these are equal, is 0.
    """
    rewards, role = feedback.rewards.detach(), torch.zeros(len(feedback.rewards), dtype=torch.float64)
    known = ~rewards.isnan() & read(feedback, MASK).any(1)
    for name in feedback.group[known].unique().tolist():
        rows = torch.nonzero(known & (feedback.group == name)).flatten()
        rows = rows[rewards[rows].argsort(descending=True)]
        distinct = rewards[rows[:3]].diff().ne(0).all() & rewards[rows[-2:]].diff().ne(0).all()
        if len(rows) > 2 and distinct:
            role[rows[0]], role[rows[1]], role[rows[-1]] = GOLD, BETTER, WORSE
    return role


def triples(*, beta: Positive, likelihood: NotNegative, margin: scores.Over, gamma: NotNegative) -> Method:
    """``-log sigmoid(beta (better - worse) - gamma) - likelihood * mean log pi(gold)``, in all live cells of the three rows.

    **Layout.** The signal ``[B, 1, 2]`` holds a row's role and the number of its group; groups stay whole (``unit="group"``). With
    ``weights.sequence_mean`` the loss is the mean over triples where every row has a part.

    likelihood: weight of the gold row's likelihood. margin: how a row's score is summed, as in ``scores.policy``. gamma: the margin that is
    asked for, nats times beta.
    """
    link = links.ahead(links.named("logistic", beta=beta), by=gamma / beta)
    score, mean = scores.policy(margin), scores.policy("per_step")
    links.not_negative(likelihood=likelihood)

    def signal(feedback: Feedback) -> Tensor:
        role = roles(feedback)
        return torch.stack([role, feedback.group.double() * (role != 0)], -1)[:, None]

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, DENSITIES)
        role, group = signal[:, 0, :1], signal[:, 0, 1]
        there = (role != 0) & steps.mask.any(1, keepdim=True)
        same = ((group[:, None] == group[None, :]) & there & there.T).double()
        pick = lambda values, part: same @ (values * (role == part))  # noqa: E731
        rows = score.of(steps)
        better, worse, gold = pick(rows, BETTER), pick(rows, WORSE), pick(mean.of(steps), GOLD)
        whole = same.sum(1, keepdim=True) == 3
        values = live(link(better, worse) - likelihood * gold, whole)
        return Loss(live(values.expand_as(steps.mask), steps.mask), _metrics(steps, better - worse, whole), steps.mask.any(1).sum())

    return Method(
        signal=signal,
        loss=loss,
        weigh=weights.sequence_mean,
        needs=score.needs | mean.needs,
        unit="group",
        kinds=DENSITIES,
        keep=lambda feedback: signal(feedback)[:, 0, 0] != 0,
        reads=frozenset({MASK}),
    )


@torch.no_grad()
def _metrics(steps: Steps, ahead: Tensor, whole: Tensor) -> dict[str, Tensor]:
    """Means over live rows: ``margin`` of the better row over the worse, 0 for rows of no triple; ``triples``, rows that are of one."""
    rows = steps.mask.any(1, keepdim=True)
    count = rows.sum().clamp(min=1)
    return {"margin": live(ahead, whole).sum() / count, "triples": (whole & rows).double().sum() / count}
