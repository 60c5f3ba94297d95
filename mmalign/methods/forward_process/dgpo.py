"""DGPO: a group's good half against its bad half, on denoising errors."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import refs
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import live
from mmalign.objectives.sentences.matching import matching
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Method, Steps


def dgpo(
    *, beta: Positive = 100.0, clip: Positive | None = 1e-3, kl: NotNegative = 1e-3, std: Literal["batch", "group"] = "group",
    largest: Positive = 5.0,
) -> Method:  # fmt: skip
    """Diffusion-DPO for whole groups: rows weighted by their advantages, whose sum is 0, so that the prompt's normaliser cancels.

    With l the squared error per scalar of one row at one noise level, under the policy, under ``ref`` and under ``previous``, with the same
    noise, and G the rows of its group::

        w = sg[ sigmoid( beta / G sum over the group of  A_i (l_i - l_i^ref) ) ]
        loss = mean over rows and noise draws of  w A_i l_i + kl |v - v_ref|^2 / D

    Args:
        beta: how soon a group that is told apart better than by ``ref`` stops counting; for means over the latent.
        clip: a row's pull stops where ``exp(l_previous - l)`` has left 1 by so much the way that it pulls; None is off, and needs no
            ``previous``.
        kl: weight of the squared distance to ``ref``.
        std: what advantages are divided by: of the ``group`` or of the ``batch``.
        largest: advantage.

    **Where it goes.** The advantages of a group sum to 0: what is added to all its errors, as the normaliser of its prompt is, moves no
    weight. The loss's gradient is that of ``-G / beta log sigmoid(-...)``, whose minimum lies at infinity: weights fade as a group is
    told apart, and it drifts ever slower along the rewards; only ``kl`` gives it a place to rest.

    Paper: DGPO: Reinforcing Diffusion Models by Direct Group Preference Optimization, arXiv 2510.08425.

    Deviations: G counts the rows of the group that are known; theirs is the configured size. ``clip`` is their code's; its "old" model
    is a fast moving average, here ``previous``, the policy that sampled, unless ``references.previous`` moves otherwise. Of the sampling
    steps they train those above a noise level; here ``policy.times`` draws them.

    Examples:
        >>> feedback = Feedback(torch.tensor([1.0, 3.0, 2.0]).double(), group=torch.tensor([0, 0, 1]))
        >>> mm.methods.dgpo().signal(feedback)[:, 0, 1].tolist()  # groups, from 1; 0 for a row alone
        [1.0, 1.0, 0.0]
    """

    def score(feedback: Feedback) -> Tensor:
        raw = advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=False)
        known = advantages.informative(feedback.rewards, feedback.group)
        numbers = torch.stack([advantages.clip(raw, largest=largest), 1.0 + feedback.group.double()], -1)
        return torch.where(known[:, None], numbers, 0.0)

    def match(steps: Steps, signal: Tensor) -> Tensor:
        ahead, same = errors.in_groups(signal)
        error = errors.error(steps)
        with torch.no_grad():
            gap = ahead * (error - errors.error_of(steps, "ref"))
            count = (same @ steps.mask.to(same)).clamp(min=1)
            pull = torch.sigmoid(beta * (same @ gap) / count) * ahead
            if clip is not None:
                ratio = torch.exp((errors.error_of(steps, "previous") - error).clamp(max=20.0))
                pull = torch.where(((ahead > 0) & (ratio > 1 + clip)) | ((ahead < 0) & (ratio < 1 - clip)), 0.0, pull)
        return live(pull * error, steps.mask)

    previous = frozenset() if clip is None else frozenset({refs("previous")})
    return matching(
        score=score, match=match, needs=previous | {refs("ref")}, penalties=[errors.distant("ref", beta=kl)], unit="group",
        keep=lambda feedback: advantages.informative(feedback.rewards, feedback.group),
    )  # fmt: skip
