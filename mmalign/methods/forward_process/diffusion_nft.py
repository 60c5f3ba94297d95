"""DiffusionNFT: what is better and what is worse, on the forward process."""

from __future__ import annotations

from functools import partial
from typing import Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import NOISE, absolute, kls, refs
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.matching import matching
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Method, Move, Steps


def diffusion_nft(
    *,
    beta: Positive = 1.0,
    weight: Literal["absolute", "none"] = "absolute",
    largest: Positive = 5.0,
    std: Literal["batch", "group", "none"] = "batch",
    kl: NotNegative = 1e-4,
    growth: NotNegative = 0.001,
    decay: Proportion = 0.5,
    flat: NotNegative = 0.0,
) -> Method:
    """A row pulls the prediction towards what explains it, or pushes it away from there, by how good the row is; no likelihoods.

    With y = eps - x_0 the velocity of a row that ``previous`` sampled, r in 0..1 how good it is, and the two mixtures of velocities
    ``v+ = (1 - beta) v_previous + beta v`` and ``v- = (1 + beta) v_previous - beta v``::

        loss = mean over rows and noise draws of  largest / beta [ r l(v+) + (1 - r) l(v-) ] + kl |v - v_ref|^2 / D
        r = clip(A / largest, -1, 1) / 2 + 1/2,     A = (reward - mean_group) / std

    Before step n, ``previous <- d previous + (1 - d) current`` with ``d = min(growth (n - flat), decay)``, not below 0, and ``previous``
    samples.

    Args:
        beta: strength of the mixtures; with 1, v+ is v, and v- its mirror image in v_previous.
        weight: ``absolute``, l is the squared error of the clean estimate over its mean absolute error (which has no gradient), so that
            every noise level counts; ``none``, the plain ``|v+- - y|^2 / D``.
        largest: the advantage that is as good as any; also the factor of the loss.
        std: what advantages are divided by: of the ``batch``, of the ``group``, or ``none``.
        kl: weight of the squared distance to ``ref``.
        growth, decay, flat: of the set that samples: how fast its share of itself grows, up to ``decay``, after ``flat`` steps.

    **Where it goes.** With ``weight="none"`` and kl 0 the minimum, for the rows of one v_previous and any noise level, is
    ``v = v_previous + 1/beta E[(2 r - 1) (y - v_previous) | x_t]``; the gradient at v = v_previous is
    ``2 largest (1 - 2 r) (y - v_previous)``, 0 at r = 1/2, whatever beta is. In one Gaussian with a linear reward c . x and advantages
    that are not clipped, the minimum is the data's tilt by ``exp(c . x / (beta largest std))``, once for each time that ``previous``
    becomes the current policy: it drifts along the tilted family without end, at this pace; only ``kl`` holds it back.

    Paper: DiffusionNFT: Online Diffusion Reinforcement with Forward Process, arXiv 2509.16117, eq. 5 and algorithm 1; the weight, the
    factor ``largest / beta`` and the schedule are their code's, train_nft_sd3.py.

    Deviations: rows share levels and noise within a group unless the policy says ``noise: row``. A tied group has r = 1/2, and
    no gradient while v = v_previous, but pays ``kl``. The set that samples is named ``previous``, their "old". ``absolute`` is for a
    rectified flow, whose clean estimate is x_t - s v.

    Dialects:
    - DiffusionNFT OCR: beta=1.0, growth=0.001, decay=0.5: its decay type 1.
    - DiffusionNFT multi-reward: beta=0.1, growth=0.0075, decay=0.999, flat=75: its decay type 2.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 11.0, 4.0]).double(), group=torch.tensor([0, 0, 0, 1]))
        >>> mm.methods.diffusion_nft(std="none").signal(feedback).tolist()  # -4 / 5, -3 / 5, 7 / 5 and no comparison: / 2 + 1/2 - 1/2
        [[-0.4], [-0.3], [0.5], [0.0]]
    """

    def score(feedback: Feedback) -> Tensor:
        ahead = advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=False)
        return torch.clamp(ahead / largest, -1, 1) / 2  # r - 1/2, so that 0 says nothing

    error = errors.by_absolute_error if weight == "absolute" else errors.mixture_error

    def match(steps: Steps, r: Tensor) -> Tensor:
        better, worse = (partial(error, name="previous", share=share)(steps) for share in (beta, -beta))
        return largest / beta * ((0.5 + r) * better + (0.5 - r) * worse)

    mixtures = {absolute("previous", beta), absolute("previous", -beta), NOISE} if weight == "absolute" else set()
    return matching(
        score=score,
        match=match,
        needs=frozenset({refs("previous"), kls("previous"), *mixtures}),
        penalties=[errors.distant("ref", beta=kl)],
        moves=(Move("previous", {"previous": 1.0, "current": 1.0}, decay=lambda step: min(max(growth * (step - flat), 0.0), decay)),),
        sampled_by="previous",
        unguided=True,
    )
