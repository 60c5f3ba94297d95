"""B2-DiffuRL: the last steps first, and of each branch the best and the worst row."""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor

from mmalign.arguments.ranges import Natural, NotNegative, Positive
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, comparisons
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.state.running import Recent
from mmalign.types import Feedback, Method


def b2_diffurl(
    *,
    above: NotNegative = 0.5,
    below: NotNegative = 0.5,
    clip: Positive = 0.1,
    ratio: str = "per_scalar",
    better: NotNegative = 1.0,
    worse: NotNegative = 1.0,
    history: Natural = 8,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """DDPO on branches: rows that share all that came before the trained steps, of which those are learned from that tell good from bad.

    With ``policy.schedule``: ``window: {use: growing_window}``, ``random: {use: everything}``, ``branches: {use: fork}``. z is a reward
    less the mean, over the standard deviation + 1e-8, of its group and of its prompt's rewards in earlier rollouts. Of each branch the
    best row is kept where ``z >= above``, and the worst where ``z < -below``; over trained steps t of rows i that are kept,
    ``A_i = better z_i`` above 0 and ``worse z_i`` below::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) ]

    Args:
        above, below: how many standard deviations from that mean a best, and a worst, row has to be.
        clip, ratio: as in ``flow_grpo``.
        better, worse: what advantages above and below 0 are multiplied by; ``worse: 0`` learns from good rows alone.
        history: rollouts of a prompt before this one whose rewards count in its mean and its standard deviation (which divides by n - 1);
            they are kept in checkpoints. 0: its group's alone.
        advantage_clip: largest z, or None.

    Paper: B2-DiffuRL: Towards Better Alignment: Training Diffusion Models with Reinforcement Learning Against Sparse Rewards, arXiv
    2503.11240.

    Deviations: a prompt's last eight rollouts count; in the code those of the last eight stages, which all have every prompt. Rows
    that tie for the best are all kept, and a branch whose rows are all alike teaches nothing; the code keeps the first row. In closed form
    it drifts: nothing holds it, and its gradient goes on along the reward's at every distance from the reference.

    Dialects:
    - B2-DiffuRL: above=0.5, below=0.5: its script, 5 children; its configuration has 0.7 and 3.

    Examples:
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 2.0, 5.0, 5.5, 6.0]).double(), torch.zeros(6, dtype=torch.int64),
        ...                     branch=torch.tensor([0, 0, 0, 1, 1, 1]))
        >>> b2_diffurl().keep(feedback).tolist()  # the mean is 3.25, the standard deviation 2.56
        [True, False, False, False, False, True]
    """

    recent = Recent(history)

    def scores(feedback: Feedback) -> Tensor:
        rewards, group = feedback.rewards.detach().double(), feedback.group
        if feedback.prompts is not None:
            before, of_group = recent.of(feedback.prompts, group)
            rewards, group = torch.cat([rewards, before.to(rewards)]), torch.cat([group, of_group.to(group)])
        return advantages.normalised(rewards, group, unbiased=True, eps=1e-8)[: len(feedback.rewards)]

    def keep(feedback: Feedback) -> Tensor:
        z, siblings = scores(feedback), comparisons.siblings(feedback)
        best, worst = (advantages.best_rows(sign * feedback.rewards, siblings) > 0 for sign in (1, -1))
        return (best & (z >= above)) | (worst & (z < -below))

    def advantage(feedback: Feedback) -> Tensor:
        z, kept = advantages.clip(scores(feedback), largest=advantage_clip), keep(feedback)
        if feedback.prompts is not None:
            recent.add(feedback.prompts, feedback.rewards)
        return torch.where(kept, torch.where(z > 0, better * z, worse * z), 0.0)

    return policy_gradient(
        advantage=Reading(advantage, state=recent),
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.sequence_mean,
        keep=keep,
    )
