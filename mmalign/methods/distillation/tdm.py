"""TDM: the teacher's distribution at every step of a student's trajectory."""

from __future__ import annotations

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.needs import score
from mmalign.objectives.sentences.ascent import ascent, times
from mmalign.objectives.sentences.matching import denoised
from mmalign.samplers.adjoints import RewardGradient, one_of
from mmalign.samplers.score_differences import Companion, Noising, ScoreDifference
from mmalign.types import Method


def tdm(
    *, teacher: str = "ref", guidance: NotNegative = 1.0, updates: Count = 1, fake_rate: Positive | None = None, reward: NotNegative = 0.0,
    low: Proportion = 0.02, high: Proportion = 0.99, separate: bool = True,
) -> Method:  # fmt: skip
    """A student of few deterministic steps, each of which leads to where the teacher's data, noised so far, would be.

    Of each rollout one step is drawn, from x at level t to x' at t'. With D its clean estimate, and x' noised further, to a random level
    tau above t', so that ``x_tau = a D + b noise`` keeps what the step left of its noise::

        pull = (clean_teacher - clean_fake) / (mean|D - clean_teacher| D's size)
        loss = mean over rows of  -(pull . D + reward r(D)),  differentiated through that step alone
        loss of fake = mean |y - v_fake|^2 / D's size,  at such x_tau

    Args:
        teacher: a reference: ``ref``, what the student was at first, or one of ``references``, another model too.
        guidance: of the teacher, its prompt against an empty one; 1 is none.
        updates: of ``fake``, for each of the student.
        fake_rate: of the optimiser of ``fake``; None: the student's.
        reward: weight of a differentiable reward of D; 0 asks for no gradient of rewards.
        low, high: the part of the schedule that levels are drawn from, 0 the cleanest.
        separate: levels lie below t too, so that each step has levels, and a fake score, of its own; False: up to ``high``.

    **Where it goes.** At the last step, whose t' is 0, to the teacher's distribution, as ``dmd2`` does. On the way ``fake`` learns D, not
    x', so that its score is that of x_tau only as steps become short; in the Gaussian world states on the way come nearer all the same:
    from .05, .07, .09 to .03, .03, .02 nats off, and samples from .136 to .005.

    Take ``kernel: ode``: the student's samples are then those of the pipeline's own Euler or DDIM steps.

    Paper: Learning Few-Step Diffusion Models by Trajectory Distribution Matching, arXiv 2503.06674, eq. 8 to 10 and algorithm 1.

    Deviations: the loss of ``fake`` has no weights of signal to noise and of importance (their demo's). Levels t' are those of the
    schedule (``use_randmid`` off). No Huber loss. The student is not told its number of steps.

    Dialects:
    - TDM demo: guidance=3.5, separate=False: train_tdm_demo.py without its flags.
    """
    plan, noising = one_of(1, None), Noising(low, high, trajectory=True, separate=separate)
    fake = Companion("fake", denoised(), noising, plan, updates=updates, rate=fake_rate)
    how = RewardGradient(plan, times(reward), differences=(ScoreDifference(teacher, "fake", guidance=guidance, noising=noising),))
    return ascent(how, needs=frozenset({score(teacher)}), companions=(fake,))
