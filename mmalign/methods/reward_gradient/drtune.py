"""DRTune: the reward's gradient along the latents, into steps far from the sample."""

from __future__ import annotations

from mmalign.arguments.ranges import Count
from mmalign.objectives.sentences.ascent import ascent, identity
from mmalign.samplers.adjoints import RewardGradient, spaced
from mmalign.types import Method


def drtune(*, count: Count = 2, early: Count = 1) -> Method:
    """The gradient of a differentiable reward into steps spread over the whole trajectory, which passes the denoiser by.

    With ``x_{i+1} = A_i x_i + B_i D(sg(x_i), i; theta)``, sg without gradient, so that ``dx_T / dx_i`` is the product of the A alone::

        loss = mean over rows of  -r(x_T),  D with gradient at ``count`` steps of equal distance, the first one drawn

    Args:
        count: steps that are trained.
        early: the sample is the clean estimate of one of the last so many steps, drawn; 1: of the last.

    Paper: Deep Reward Supervisions for Tuning Text-to-Image Diffusion Models, arXiv 2405.00760.

    Deviations: written from the paper's description; no public code was compared. Its own numbers differ by model and are not given here.
    """
    return ascent(RewardGradient(spaced(count, early), identity, through=False))
