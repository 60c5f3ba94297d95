"""Flash-DMD: distribution matching distillation and reinforcement learning in one loop."""

from __future__ import annotations

from functools import partial
from typing import Any

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.methods.distillation.dmd2 import dmd2
from mmalign.needs import score
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.ascent import Reinforced, ascent
from mmalign.samplers.score_differences import Normaliser
from mmalign.types import Method


def flash_dmd(  # dmd2's, and a share
    *, teacher: str = "ref", guidance: NotNegative = 1.0, updates: Count = 5, fake_rate: Positive | None = None, share: NotNegative = 10.0,
    low: Proportion = 0.02, high: Proportion = 0.98, weight: Normaliser = "absolute", gan: NotNegative = 0.0, classify: Positive = 0.01,
    gan_high: Proportion = 0.5,
) -> Method:  # fmt: skip
    """``dmd2``, and beside it the policy gradient of any reward on the same samples: the distillation holds what rewards would pull away.

    Of each rollout one step t is drawn. With ``pull`` and D as in ``dmd2``, and ``A_i = (r_i - mean_group) / (std_group + 1e-4)`` of the
    whole sample, within +-5::

        loss = mean over rows of  -pull . D  -  share A log pi(x'_t | x_t) / D's size

    Args:
        teacher, guidance, updates, fake_rate, low, high, weight, gan, classify: as in ``dmd2``.
        gan_high: as in ``dmd2``; the detail of real data is learned at low noise.
        share: of the policy gradient; 0 is ``dmd2``.

    Rewards need no gradient. The student's steps have to be random (``flow_sde``, or ``cps``, which at noise_level 1.0 noises each clean
    estimate anew, as FlowMatchLCMScheduler does); a step without noise, the last one, learns from the pull alone.

    Where it goes: to no one optimum that is known in closed form. Its gradient is the sum of those of ``dmd2`` and of REINFORCE with
    that advantage; a test takes them apart.

    Paper: Flash-DMD: Towards High-Fidelity Few-Step Image Generation with Efficient Distillation and Joint Reinforcement Learning, arXiv
    2511.20549 (recalled; its code is not public).

    Deviations: its reinforcement learning is from preferences of a reward model on latents; here it is GRPO's gradient of any reward, and
    ``on_latents`` makes it one of latents. Its distillation matches distributions at high noise, ``low=0.5`` or so, and its GAN works
    at low noise, on pixels through the features of a pretrained segmenter (SAM); here ``gan`` is on noised latents, or pixels where the
    model has no VAE, through the features of ``fake``, as DMD2's.
    """
    same: dict[str, Any] = {"teacher": teacher, "guidance": guidance, "updates": updates, "fake_rate": fake_rate, "weight": weight}
    distilled = dmd2(**same, low=low, high=high, gan=gan, classify=classify, gan_high=gan_high)
    advantage = partial(advantages.limited, std="group", largest=5.0)
    how, companions = distilled.reward_gradient, distilled.companions
    return ascent(how, needs=frozenset({score(teacher)}), companions=companions, reinforced=Reinforced(advantage, share))
