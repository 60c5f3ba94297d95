"""SPO: preferences between the next latents of one step, by a judge that knows the step."""

from __future__ import annotations

from dataclasses import replace

import torch

from mmalign.arguments.ranges import Interior, NotNegative, Positive
from mmalign.objectives.feedback import comparisons
from mmalign.objectives.sentences.pairwise import pairwise
from mmalign.objectives.terms.denoising_pairs import of_steps
from mmalign.types import Feedback, Method


def step_aware_po(*, beta: Positive = 10.0, clip: Interior | None = 0.1, ratio: str = "per_scalar", gap: NotNegative = 0.3) -> Method:
    """D3PO's loss on candidates of one step: the best and the worst of several next latents of one state, if the judge tells them apart.

    With ``policy.schedule.branches: {use: candidates}`` a row is a candidate, and its output the clean estimate at it, which rewards judge.
    Of each branch its best row w and its worst row l are a pair where ``p_w - p_l > gap``, p the softmax of the two rewards, and at the
    step t of their branch, x and clip() as in ``d3po``::

        loss = mean_pairs [ -log sigmoid( beta clip(x_wt) - beta clip(x_lt) ) ]

    Args:
        beta, clip, ratio: as in ``d3po``.
        gap: smallest difference of the two probabilities; 0 takes every pair that is no tie. In units of the reward, ``p_w - p_l`` is
            ``tanh((r_w - r_l) / 2)``: .3 is a difference of .62.

    Paper: SPO: Aesthetic Post-Training Diffusion Models from Generic Preferences with Step-by-step Preference Optimization, arXiv
    2406.04314. (``spo`` is self-play preference optimisation.)

    Deviations: the paper's judge is a PickScore that was trained on noisy images and is told the step; any reward is one here. It sees
    clean estimates, and is told their level where it takes ``level=None``; a reward model on ``noisy_latents``, ``{use: on_latents, of:
    {use: trained, run: ...}}``, judges the latents themselves, as in LPO (arXiv 2502.01051). A trajectory goes on from a draw of its own,
    and not from one of the candidates. Where it rests, in closed form (one Gaussian, a linear reward, no gap): labels are hard, so that it
    drifts as ``d3po`` does, up to the clip.

    Dialects:
    - SPO: beta=10.0, clip=0.1, gap=0.3: SD 1.5, 4 candidates at each of the last 16 of 20 steps.
    """

    def pairs(feedback: Feedback) -> Feedback:
        paired = comparisons.best_and_worst(replace(feedback, group=comparisons.siblings(feedback)))
        assert paired.pairs is not None and paired.strength is not None
        better, worse = feedback.rewards[paired.pairs].unbind(1)
        told = torch.tanh((better - worse) / 2) > gap
        return replace(feedback, pairs=paired.pairs[told], strength=paired.strength[told])

    return replace(pairwise(of_steps(beta=beta, clip=clip, ratio=ratio), kinds=frozenset({"transition"}), by_step=True), pairs=pairs)
