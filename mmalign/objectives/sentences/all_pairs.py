"""Methods for whole groups: every row is compared with every one of another level of reward."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.arguments.ranges import Positive
from mmalign.objectives import ratios, weights
from mmalign.objectives.feedback.advantages import TIE
from mmalign.objectives.parts import DENSITIES, Part, bounded_expm1, live, refuse_kind
from mmalign.types import Feedback, Loss, Method, Steps, UserError


def drift(steps: Steps) -> Tensor:
    """k3 of the current policy to the sampling one, ``[B, T]`` nats: never negative, and differentiable."""
    moved = ratios.per_step(steps)
    return bounded_expm1(-moved) + moved


def all_pairs(*, score: Part, beta: Positive, favoured: Positive, penalty: Part | None = None) -> Method:
    """A row's value: the mean of ``-log sigmoid(a beta (m_b - m_w))`` over the rows of its group with another reward.

    m: mean of ``score`` over a row's live steps, of the better and of the worse row.

    favoured: a, where the better row has the highest reward of the rollout; else a is 1. penalty: a part that every live cell pays.

    Errors: UserError for a beta or a ``favoured`` that is not above 0.
    """
    if beta <= 0 or favoured <= 0:
        raise UserError(f"beta, anisotropy: got {beta} and {favoured}, takes numbers above 0")

    def loss(steps: Steps, signal: Tensor) -> Loss:
        refuse_kind(steps, DENSITIES)
        if signal.shape != (len(steps), 1, 4):
            raise UserError(f"signal: got shape {list(signal.shape)}, takes [{len(steps)}, 1, 4]")
        reward, group, known, top = signal[:, 0].unbind(-1)
        rows = steps.mask.any(1)
        mean = score.of(steps).sum(1) / steps.mask.sum(1).clamp(min=1)
        counts = (known > 0) & rows
        apart = reward[:, None] - reward[None, :]
        differ = apart.abs() > TIE * torch.maximum(reward.abs()[:, None], reward.abs()[None, :])
        meet = (group[:, None] == group[None, :]) & counts[:, None] & counts[None, :] & differ
        best = torch.where(apart > 0, top[:, None], top[None, :])
        ahead = live((mean[:, None] - mean[None, :]) * apart.sign(), meet)
        cost = live(-functional.logsigmoid(beta * (1 + (favoured - 1) * best) * ahead), meet)
        met = meet.sum(1).clamp(min=1)
        values = live((cost.sum(1) / met)[:, None].expand_as(steps.mask), steps.mask)
        if penalty is not None:
            values = values + penalty.of(steps)
        return Loss(live(values, steps.mask), _metrics(ahead, meet, met, rows), rows.sum())

    needs = score.needs | (frozenset() if penalty is None else penalty.needs)
    return Method(signal=_signal, loss=loss, weigh=weights.sequence_mean, needs=needs, unit="group", kinds=DENSITIES, keep=None)


def _signal(feedback: Feedback) -> Tensor:
    """``[B, 1, 4]``: reward, group, 1 where the reward is known, 1 where it is the rollout's highest; 0 where it is not known."""
    known = ~feedback.rewards.isnan()
    reward = feedback.rewards.detach().double().nan_to_num(0.0)
    highest = torch.where(known, reward, -torch.inf).amax() if bool(known.any()) else torch.tensor(0.0, dtype=torch.float64)
    top = known & (highest - reward <= TIE * highest.abs())
    numbers = torch.stack([reward, feedback.group.double(), known.double(), top.double()], dim=-1)
    return torch.where(known[:, None], numbers, 0.0)[:, None]


@torch.no_grad()
def _metrics(ahead: Tensor, meet: Tensor, met: Tensor, rows: Tensor) -> dict[str, Tensor]:
    """Means over live rows of their means over comparisons. ahead: by how much the better row is. accuracy: right order; 1/2 a tie."""
    count = rows.sum().clamp(min=1)
    right = live((ahead.sign() + 1) / 2, meet).sum(1) / met
    return {"ahead": (ahead.sum(1) / met).sum() / count, "accuracy": right.sum() / count}
