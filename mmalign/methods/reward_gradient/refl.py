"""ReFL: the reward of the clean estimate at one late step."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, Finite
from mmalign.objectives.sentences.ascent import ascent, up_to
from mmalign.samplers.adjoints import RewardGradient, one_of
from mmalign.types import Method


def refl(*, low: Count = 31, high: Count = 40, most: Finite = 2.0) -> Method:
    """The gradient of the reward of a late step's clean estimate, through that step alone.

    At one step t, drawn for each rollout, with ``x_0`` what the denoiser takes for clean there::

        loss = mean over rows of  relu(most - r(x_0(x_t; theta)))

    Args:
        low, high: the first and the last step, from 1, of which one is drawn; the paper's for 40 steps.
        most: a reward beyond which nothing is gained; the paper's is for ImageReward, whose spread over images is 1.

    Paper: ImageReward: Learning and Evaluating Human Preferences for Text-to-Image Generation, arXiv 2304.05977, algorithm 1.

    Deviations: no loss on pretraining data (the published code has none either), and no factor of 1e-3 before the reward, which Adam
    divides out. The sample is made to its end, so that the log has its reward.
    """
    return ascent(RewardGradient(one_of(low, high), up_to(most)))
