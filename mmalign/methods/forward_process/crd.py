"""Centred reward distillation."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import absolute, refs
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import held, live
from mmalign.objectives.sentences.matching import matching
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Method, Steps


def crd(
    *, beta: Positive = 1.0, link: Literal["squared", "logistic"] = "squared", weight: Literal["absolute", "none"] = "absolute",
    kl: NotNegative = 0.1, std: Literal["batch", "group", "none"] = "batch", largest: Positive = 5.0,
) -> Method:  # fmt: skip
    """The reward that a model implies, how much better it explains a row than it did, is regressed on the reward itself.

    With l the squared error per scalar of one row at one noise level, under the policy and under ``previous``, which sampled, with the same
    noise, ``q = l_previous - l``, and bars over what is less its mean over the row's group::

        loss = mean over rows and noise draws of  largest / beta (beta qbar - Rbar)^2 + kl |v - v_ref|^2 / D
        R = clip(A / largest, -1, 1) / 2 + 1/2,     A = (reward - mean_group) / std

    Args:
        beta: how much of the reward a unit of implied reward is worth.
        link: ``squared``, as above; ``logistic``, the cross-entropy of ``sigmoid(beta qbar)`` and ``sigmoid(Rbar)``.
        weight: ``absolute``, each l is divided by its own mean absolute error, without gradient; ``none``.
        kl: weight of the squared distance to ``ref``.
        std: what advantages are divided by: of the ``batch``, of the ``group``, or ``none``.
        largest: the advantage that is as good as any; also the factor of the loss.

    **Where it goes.** What the group shares cancels, as the prompt's normaliser does. For small rewards, with ``weight="none"`` and
    kl 0, the minimum of one rollout is ``v = v_previous + D Cov(R, y | x_t) / (2 beta Var(y | x_t))`` in each scalar: the direction of
    the tilt, but not its size at every level, so that what samples is no tilted distribution's denoiser; and it drifts from round to
    round.

    Paper: Diffusion Reinforcement Learning via Centered Reward Distillation, arXiv 2603.14128; the weight and ``largest / beta`` are
    Flow-Factory's.

    Deviations: the group's mean has no gradient, which changes none. Uniform weights in the mean alone (their temperature -1). Their pull
    to a guided reference, its share by the reward, and the two paces of the sets that sample and that are compared with are not here:
    ``previous``, the policy that sampled, is both.

    Examples:
        >>> feedback = Feedback(torch.tensor([1.0, 3.0, 2.0]).double(), group=torch.tensor([0, 0, 1]))
        >>> mm.methods.crd(std="none").signal(feedback)[:, 0].tolist()  # R - 1/2 = -1 / 10 and 1 / 10, of group 1; a row alone
        [[-0.1, 1.0], [0.1, 1.0], [0.0, 0.0]]
    """

    def score(feedback: Feedback) -> Tensor:
        raw = advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=False)
        known = advantages.informative(feedback.rewards, feedback.group)
        numbers = torch.stack([torch.clamp(raw / largest, -1, 1) / 2, 1.0 + feedback.group.double()], -1)
        return torch.where(known[:, None], numbers, 0.0)

    def divided(steps: Steps, error: Tensor, share: float) -> Tensor:
        if weight == "none":
            return error
        return error / live(held(steps, absolute("previous", share)), steps.mask).clamp(min=errors.SMALLEST)

    def match(steps: Steps, signal: Tensor) -> Tensor:
        reward, same = errors.in_groups(signal)
        implied = divided(steps, errors.error_of(steps, "previous"), 0.0) - divided(steps, errors.error(steps), 1.0)
        known = live(same.diagonal()[:, None].expand_as(implied), steps.mask)
        count = (same @ steps.mask.to(same)).clamp(min=1)
        centre = (same @ torch.stack([live(implied.detach(), steps.mask), reward * steps.mask], -1).flatten(1)).unflatten(1, (-1, 2))
        own, wanted = beta * (implied - centre[..., 0] / count), reward - centre[..., 1] / count
        if link == "squared":
            return largest / beta * known * (own - wanted) ** 2
        return largest / beta * known * (functional.softplus(own) - torch.sigmoid(wanted) * own)

    mixtures = {absolute("previous", 0.0), absolute("previous", 1.0)} if weight == "absolute" else set()
    return matching(
        score=score, match=match, needs=frozenset({refs("previous"), *mixtures}), penalties=[errors.distant("ref", beta=kl)], unit="group",
        keep=lambda feedback: advantages.informative(feedback.rewards, feedback.group),
    )  # fmt: skip
