"""DMD2: distribution matching distillation into few steps."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.needs import score
from mmalign.objectives.sentences.ascent import ascent, times
from mmalign.objectives.sentences.matching import denoised
from mmalign.samplers.adjoints import RewardGradient, one_of
from mmalign.samplers.score_differences import Adversary, Companion, Noising, Normaliser, ScoreDifference
from mmalign.types import Method


def dmd2(  # a keyword for each weight of theirs
    *, teacher: str = "ref", guidance: NotNegative = 1.0, updates: Count = 5, fake_rate: Positive | None = None, reward: NotNegative = 0.0,
    low: Proportion = 0.02, high: Proportion = 0.98, weight: Normaliser = "absolute", gan: NotNegative = 0.0, classify: Positive = 0.01,
    gan_high: Proportion = 1.0,
) -> Method:  # fmt: skip
    """A student of few steps whose samples, noised, get the teacher's scores: what it lacks is the difference to a fake network's.

    Of each rollout one step is drawn. With D its clean estimate, ``x_tau = a D + b eps`` at a random level, and the clean estimates that
    the teacher and ``fake``, a set of the student's parameters that learns to denoise such D, make of x_tau::

        pull = (clean_teacher - clean_fake) / (mean|D - clean_teacher| D's size)
        loss = mean over rows of  -(pull . D + reward r(D)),  differentiated through that step alone
        loss of fake = mean |y - v_fake|^2 / D's size,  ``updates`` times before each of the student's

    With ``gan``, and ``records`` of real images or videos, a classifier of a few layers reads the features of ``fake``'s middle block, and
    learns with it whether a noised row is real. With C its logit, and a real row x_r beside each D, noised alike::

        loss         += gan softplus(-C(x_tau))
        loss of fake += classify [softplus(-C(a x_r + b eps)) + softplus(C(x_tau))]

    Args:
        teacher: a reference: ``ref``, what the student was at first (the base, for LoRA), or one of ``references``, another model too.
        guidance: of the teacher, its prompt against an empty one; 1 is none.
        updates: of ``fake``, for each of the student.
        fake_rate: of the optimiser of ``fake``; None: the student's.
        reward: weight of a differentiable reward of D; 0 asks for no gradient of rewards, and they are only watched.
        low, high: the part of the schedule that levels are drawn from, evenly, 0 the cleanest.
        weight: ``absolute``, as above; ``kl``, ``a^2 / b^2 (clean_teacher - clean_fake)``, which is the exact derivative.
        gan: weight of the classifier's say; 0: there is none, and no ``records``.
        classify: weight of the classifier's loss beside that of ``fake``.
        gan_high: of the schedule, the part up to which levels of the student's ``gan`` are drawn; the classifier learns all.

    ``policy.schedule.steps`` is the student's, and its guidance 1. The student samples as it is trained: under ``kernel: ode`` as the
    pipeline's own Euler or DDIM steps, which the evaluation takes with ``call: {num_inference_steps: ...}``; under ``{use: cps,
    noise_level: 1.0}`` by noising each clean estimate anew, as theirs does, and as diffusers' FlowMatchLCMScheduler and LCMScheduler do.

    **Where it goes.** With an exact ``fake`` and ``weight="kl"`` the gradient is that of ``KL(student || teacher)`` of the noised samples,
    the mean over levels: to the teacher's distribution, if the student can be that; reverse, so that a student that cannot drops modes.
    In the Gaussian world the last of 4 steps, trained alone, goes from .136 nats to below .007. But ``fake`` sees the estimates of all
    steps as one distribution, and it is their mixture that the teacher's is matched with: there, where a fake score is linear, its mean
    and variance arrive, and single steps drift apart. Take ``tdm`` with ``separate``, where each step is matched by itself.
    Of a video that the student makes chunk by chunk (a streaming one), a step is drawn in each chunk, and the three scores are asked past
    the chunks that it made before. By the chain rule ``KL(student || teacher)`` is the sum over chunks of that of each, given those before;
    what a chunk does to those behind it is not in the gradient, which costs nothing where every chunk can be the teacher's. Of a real video
    the classifier sees each chunk past the real ones before it: ``C = log p_real(before) / p_student(before) + log p_real(chunk | before) /
    p_student(chunk | before)``, and its derivative by the chunk has no part of the first.
    A classifier at its optimum says ``C = log p_real - log p_student`` of noised rows, so that ``gan`` pulls to the real data where
    teacher and data differ: the student may become better than its teacher, and ends between the two.

    Paper: Improved Distribution Matching Distillation for Fast Image Synthesis, arXiv 2405.14867, sec. 4.2, 4.5; the weight is DMD's,
    arXiv 2311.18828, eq. 8. With a reward: Flash-DMD, arXiv 2511.20549, whose RL is another.

    Deviations: the updates of ``fake`` see one rollout, each with other steps, levels and noises; theirs are new samples. The level's
    weight besides is 1, as in their code. The classifier is a layer at each position, a mean and a line, where theirs is convolutional
    (recalled), so that it fits any denoiser; a real row and a sample share level and noise; prompts of real rows are their own.

    Dialects:
    - DMD2 SDXL: guidance=8.0, updates=5, fake_rate=5.0e-7: sdxl_cond999_8node_lr5e-7_denoising4step.
    - DMD2 SD1.5: guidance=1.75, updates=10, fake_rate=1.0e-5: laion6.25_sd_baseline_8node_guidance1.75.

    With real data theirs is gan=5.0e-3, classify=1.0e-2 (recalled).
    """
    plan = one_of(1, None)
    matched = ScoreDifference(teacher, "fake", guidance=guidance, normaliser=weight, noising=Noising(low, high))
    fake = Companion("fake", denoised(classify=classify if gan else 0.0), Noising(0.0, 1.0), plan, updates=updates, rate=fake_rate)
    opposed = (Adversary("fake", gan, Noising(0.0, gan_high)),) if gan else ()
    how = RewardGradient(plan, times(reward), differences=(matched, *opposed))
    return ascent(how, needs=frozenset({score(teacher)}), companions=(fake,))
