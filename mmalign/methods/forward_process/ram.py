"""Reinforce adjoint matching."""

from __future__ import annotations

from typing import Literal

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import kls, refs
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.matching import matching
from mmalign.objectives.terms import matching as errors
from mmalign.types import Feedback, Method, Steps


def ram(*, scale: Positive = 1.0, baseline: Literal["group", "none"] = "group", std: Literal["batch", "group", "none"] = "none",
        eps: NotNegative = 1e-4, largest: Positive | None = None) -> Method:  # fmt: skip
    """The target of pretraining, corrected by the reward: no likelihoods, no random steps, no gradient of the reward.

    With y = eps - x_0 the velocity of a sample of the current policy, made by any sampler, and sg[] without gradient::

        loss = mean over rows and noise draws of  | v - sg[ v_ref + R (y - v) ] |^2 / D

    and ``R = scale * reward``, less its mean in the group.

    Args:
        scale: nats for a unit of reward: 1 / beta of ``E[reward] - beta KL``.
        baseline: ``group``, the mean of a row's group is taken off, which changes no expectation at the fixed point (there E[y - v | x_t]
            is 0) and much of its noise; ``none``, the reward as it is.
        std: R is divided by the standard deviation of the ``batch``, or of the ``group``, too; ``none``: not, so that scale is in nats.
        eps: added to that, in units of the reward.
        largest: bound of the reward's advantage before it is scaled, or None.

    **Where it goes.** At a fixed point ``v - v_ref = Cov(R, y | x_t)`` under its own samples, at every level. In the Gaussian world that
    is the optimum, ``p exp(R) / Z``, exactly, for a linear reward. For a quadratic one it is not: the covariance at the end of the tilt
    stands for its mean along the way, so that it stops short. (With a group's own mean as the baseline, R counts as R (G - 1) / G.)

    Paper: Reinforce Adjoint Matching: Scaling RL Post-Training of Diffusion and Flow-Matching Models, arXiv 2605.10759, eq. 17 and
    algorithm 1.

    Deviations: the mean over the D scalars, where the paper has the norm. The baseline and ``std`` are what re-implementations do. The
    value is the published one; it and its gradient are computed of squared errors and distances alone, see ``terms.matching``.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 11.0]).double(), group=torch.tensor([0, 0, 0]))
        >>> mm.methods.ram(scale=0.5).signal(feedback).tolist()
        [[-2.0], [-1.5], [3.5]]
    """

    def score(feedback: Feedback) -> Tensor:
        if baseline == "none":
            known = feedback.rewards.nan_to_num(0.0)
            return scale * advantages.clip(known, largest=largest)
        ahead = advantages.normalised(feedback.rewards, feedback.group, std=std, eps=eps)
        return scale * advantages.clip(ahead, largest=largest)

    def match(steps: Steps, reward: Tensor) -> Tensor:
        error, away, before = errors.error(steps), errors.distance(steps, "ref"), errors.error_of(steps, "ref")
        along = (before - away - error) / 2  # (v - v_ref) . (y - v) / D
        value = away - 2 * reward * along + reward**2 * error
        slope = away + reward * error  # its gradient is 2 (v - v_ref - R (y - v)) . dv / D, that of the loss
        return slope + (value - slope).detach()

    return matching(score=score, match=match, needs=frozenset({refs("ref"), kls("ref")}), unguided=True)
