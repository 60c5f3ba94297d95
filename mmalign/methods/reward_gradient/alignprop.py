"""AlignProp: the reward's gradient through a random number of last steps."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, Finite
from mmalign.objectives.sentences.ascent import ascent, identity, near
from mmalign.samplers.adjoints import RewardGradient, some_last
from mmalign.types import Method


def alignprop(*, low: Count = 1, high: Count | None = None, target: Finite | None = None) -> Method:
    """The gradient of a differentiable reward through the last K denoising steps, K drawn anew for each rollout.

    ::

        loss = mean over rows of  -r(x_T),  differentiated through the last K steps,  K uniform in low .. high

    Args:
        low, high: the fewest and the most steps; None: all.
        target: ``|target - r|`` in place of ``-r`` (10 for the aesthetic score in the paper's code).

    Paper: Aligning Text-to-Image Diffusion Models with Reward Backpropagation, arXiv 2310.03739. VADER (arXiv 2407.08737) is this, or
    ``draft``, on videos, with rewards of some of their frames (``frames``).

    Deviations: at least one step is trained, where the code draws 0 too. Memory is flat in K, without checkpointing.
    """
    return ascent(RewardGradient(some_last(low, high), identity if target is None else near(target)))
