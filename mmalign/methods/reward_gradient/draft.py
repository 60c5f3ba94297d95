"""DRaFT: the reward's gradient through all steps, the last K, or the last one from several noises."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, NotNegative
from mmalign.objectives import penalties
from mmalign.objectives.sentences.ascent import ascent, identity
from mmalign.samplers.adjoints import RewardGradient, last
from mmalign.types import Method


def draft(*, last_steps: Count | None = 1, copies: Count = 1, beta: NotNegative = 0.0, kl: str = "paper") -> Method:
    """The gradient of a differentiable reward through the last K denoising steps, straight into the parameters.

    ``x_T`` the sample, made of ``x_{i+1} = f(x_i, i; theta)`` with the noise of each step held fixed::

        loss = mean over rows of  -r(x_T),  differentiated through the steps i >= T - K alone

    Args:
        last_steps: K; None: all (DRaFT). 1 and 10 are the paper's.
        copies: samples that are made of each: above 1, noise of the last step's level is put onto the sample, the last step is
            taken again, and the gradients of all are averaged (DRaFT-LV, with ``last_steps: 1``; the paper has 2).
        beta: reward that a nat of KL to ``ref`` costs, over the trained steps; the paper has none. A step without noise has no KL, so
            that with a beta none such is trained: the last one, of most kernels.
        kl: which KL, as ``flow_grpo`` has it.

    Nothing but ``beta`` holds it: on ``moving_digits``, whose proxy looks at no shape, the proxy goes from .65 to .97 in 15 steps of 20
    videos, and the gold judge from .48 to .20. Of a video that is made chunk by chunk, the last K steps of each chunk are trained, with the
    other chunks as they were made: what a chunk does to those behind it is not in the gradient.

    Paper: Directly Fine-Tuning Diffusion Models on Differentiable Rewards, arXiv 2309.17400, algorithm 1.

    Deviations: steps are gone back through one at a time, so that memory is flat in K, where the paper has checkpointing. Of the copies
    the recorded sample is one. Any sampler, with noise or without. DRaFT+ (NVIDIA) is this with a beta.
    """
    how = RewardGradient(last(last_steps, noisy=beta > 0), identity, copies=copies)
    return ascent(how, penalty=penalties.named(kl, beta=beta))
