"""B2-DiffuRL: the last steps first, and of each branch the best and the worst row."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, comparisons
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def b2_diffurl(
    *,
    above: NotNegative = 0.5,
    below: NotNegative = 0.5,
    clip: Positive = 0.1,
    ratio: str = "per_scalar",
    better: NotNegative = 1.0,
    worse: NotNegative = 1.0,
    eps: NotNegative = 1e-8,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """DDPO on branches: rows that share all that came before the trained steps, of which those are learned from that tell good from bad.

    With ``policy.schedule``: ``window: {use: growing_window}``, ``random: {use: everything}``, ``branches: {use: fork}``. z is a reward
    less the mean of its group over its standard deviation + eps. Of each branch the best row is kept where ``z >= above``, and the worst
    where ``z < -below``; over trained steps t of rows i that are kept, ``A_i = better z_i`` above 0 and ``worse z_i`` below::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        above, below: how many standard deviations from its group's mean a best, and a worst, row has to be.
        clip, ratio: as in ``flow_grpo``.
        better, worse: what advantages above and below 0 are multiplied by; ``worse: 0`` learns from good rows alone.
        eps: added to the standard deviation (of one that divides by n - 1), in units of the reward.
        advantage_clip: largest z, or None.

    Paper: B2-DiffuRL: Towards Better Alignment: Training Diffusion Models with Reinforcement Learning Against Sparse Rewards, arXiv
    2503.11240.

    Deviations: z is of this rollout's rows of a prompt; the code takes those of the last eight stages with them. Rows that tie for the best
    are all kept, and a branch whose rows are all alike teaches nothing; the code keeps the first row. In closed form it drifts: nothing
    holds it, and its gradient goes on along the reward's at every distance from the reference.

    Dialects:
    - B2-DiffuRL: above=0.5, below=0.5: its script, 5 children; its configuration has 0.7 and 3.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 2.0, 5.0, 5.5, 6.0]).double(), torch.zeros(6, dtype=torch.int64),
        ...                     branch=torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> b2_diffurl().keep(feedback).tolist()  # the mean is 3.25, the standard deviation 2.56
        [True, False, False, False, False, True]
    """

    def scores(feedback: Feedback) -> Tensor:
        return advantages.normalised(feedback.rewards, feedback.group, unbiased=True, eps=eps)

    def keep(feedback: Feedback) -> Tensor:
        z, siblings = scores(feedback), comparisons.siblings(feedback)
        best, worst = (advantages.best_rows(sign * feedback.rewards, siblings) > 0 for sign in (1, -1))
        return (best & (z >= above)) | (worst & (z < -below))

    def advantage(feedback: Feedback) -> Tensor:
        z = advantages.clip(scores(feedback), largest=advantage_clip)
        return torch.where(keep(feedback), torch.where(z > 0, better * z, worse * z), 0.0)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.sequence_mean,
        keep=keep,
    )
