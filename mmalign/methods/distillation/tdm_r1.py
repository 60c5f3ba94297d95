"""TDM-R1: any reward for few-step students, by a surrogate that learns from it beside them."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.methods.forward_process.dgpo import dgpo
from mmalign.needs import score
from mmalign.objectives.sentences.ascent import ascent
from mmalign.objectives.sentences.matching import denoised
from mmalign.samplers.adjoints import RewardGradient, one_of
from mmalign.samplers.score_differences import Companion, Noising, ScoreDifference
from mmalign.types import Method


def tdm_r1(
    *, teacher: str = "ref", guidance: NotNegative = 1.0, share: Proportion = 0.7, reward_guidance: NotNegative = 1.0,
    reward_low: Proportion = 0.3, beta: Positive = 10.0, updates: Count = 1, rate: Positive | None = None,
) -> Method:  # fmt: skip
    """``tdm`` with a second difference of scores: from the base to a surrogate, which DGPO trains on what rewards say of the samples.

    With D a clean estimate of the student's, noised as in ``tdm``, and each difference over its own mean distance to D and D's size::

        loss = mean over rows of  -D . ((clean_teacher - clean_fake)  +  share (clean_surrogate - clean_ref))

    Rewards need no gradient: ``surrogate``, a set of the student's parameters, learns by ``dgpo`` what denoises good samples well and bad
    ones badly, and the student follows its scores, which are the gradient of an implied reward. ``fake`` learns as in ``tdm``.

    Args:
        teacher: a reference, as in ``tdm``.
        guidance: of the teacher; what it adds is a reward, too, and has the share ``1 - share``.
        share: of the surrogate's pull.
        reward_guidance: of the surrogate, its prompt against an empty one; 1 is none.
        reward_low: levels that the surrogate is trained and asked at lie in the part of the schedule above that.
        beta: of ``dgpo``.
        updates: of ``fake`` and of ``surrogate``, each, for one of the student.
        rate: of their optimisers; None: the student's.

    Paper: TDM-R1: Reinforcing Few-Step Diffusion Models with Non-Differentiable Reward, arXiv 2603.07700, and their code,
    train_tdmr1_pub.py.

    Deviations: a sample has one reward, and all of its steps have that one. The surrogate's errors are those of D, as for ``fake``; theirs
    are of x'. Nothing is clipped against earlier surrogates, which theirs is against a moving average; dgpo's ``kl`` (1e-3) holds it.
    Steps count alike (``use_tweight`` off).

    Dialects:
    - TDM-R1 OCR: guidance=4.5, share=0.7, reward_guidance=4.5, reward_low=0.3, beta=10.0: general_ocr_sd3_8gpu_G24_4step.
    """
    plan, whole = one_of(1, None), Noising(0.02, 0.99, trajectory=True)
    judged = whole._replace(low=max(reward_low, whole.low), shared=True)
    fake = Companion("fake", denoised(), whole, plan, updates=updates, rate=rate)
    surrogate = Companion("surrogate", dgpo(beta=beta, clip=None), judged, plan, updates=updates, rate=rate)
    matched = ScoreDifference(teacher, "fake", guidance=1 + (1 - share) * (guidance - 1), noising=whole)
    rewarded = ScoreDifference("surrogate", "ref", weight=share, guidance=reward_guidance, noising=judged)
    how = RewardGradient(plan, None, differences=(matched, rewarded))
    return ascent(how, needs=frozenset({score(teacher)}), companions=(fake, surrogate))
