"""Adjoint matching: the memoryless optimum of reward and KL, by regression on the base's adjoint."""

from __future__ import annotations

from torch import Tensor

from mmalign.arguments.ranges import Count, Fraction, NotNegative, Positive
from mmalign.needs import ADJOINT_SIZE, MASK, STD
from mmalign.objectives import penalties
from mmalign.objectives.parts import Reading, read
from mmalign.objectives.sentences.ascent import ascent, identity
from mmalign.objectives.state.running import RunningMean
from mmalign.samplers.adjoints import RewardGradient, some_random
from mmalign.types import Feedback, Method


def adjoint_matching(
    *, beta: Positive = 1.0, count: Count | None = None, quantile: Fraction | None = None, subjects: NotNegative = 0.0
) -> Method:  # fmt: skip
    """Each step's control is matched to what the reward's gradient, carried back through the base model, says of it.

    With ``a_T = -dr/dx_T / beta`` and ``a_i = (d mean_ref,i / dx)^T a_{i+1}`` (the lean adjoint: along the trained policy's own samples,
    but by the reference's derivative), over random steps with mean, mean_ref and std::

        loss = mean over rows of  sum_i beta/2 | (mean_i - mean_ref,i) / std_i + std_i a_{i+1} |^2

    which is ``beta KL(pi || ref) - adjoint . mean`` and a constant. Where the sampler is memoryless (the sample does not depend on
    the first latent) its one fixed point is the policy whose samples have the density ``ref exp(r / beta) / Z``. A video that is made chunk
    by chunk is one process of all its chunks' steps: the adjoint of what a chunk became has what each chunk says that goes on from it.

    Args:
        beta: reward that a nat costs: 1 / lambda of the paper, whose lambda goes up to 12,500 for rewards in hundredths.
        count: random steps that are trained of each rollout, drawn anew; None: all.
        quantile: a step of a row counts where ``std_i |a_{i+1}|`` is at most a moving average (decay .9, in checkpoints) of this quantile
            among the rollouts' steps, so that a few rows with large gradients do not carry an update; None: all count.
        subjects: weight of FOCUS's running cost, in units of the reward: with C in 0..1 how far the subjects of a prompt (its column
            ``subjects``, a list of words) share attention at x_i, ``r(x_T) - subjects sum_i (t_i - t_{i+1}) C(x_i)`` is maximised, and
            ``a_i`` has ``subjects (t_i - t_{i+1}) dC/dx / beta`` on top. Each step costs a call of the denoiser and its gradient; 0: none.

    Paper: Adjoint Matching: Fine-tuning Flow and Diffusion Generative Models with Memoryless Stochastic Optimal Control,
    arXiv 2409.08861, eq. 37 to 39, whose running cost f is ``subjects``: Optimal Control Meets Flow Matching: A Principled Route to
    Multi-Subject Fidelity (FOCUS), arXiv 2510.02315 (the cost as its code has it: cubed maps, Jensen-Shannon within and between; recalled).

    Deviations: the loss is times ``beta / 2`` of theirs. Samplers are those of ``policy.schedule``; memoryless are ``flow_sde`` with
    noise_level 1.414 (sqrt 2) and ``ddim`` with eta 1. A step without noise, the last one, is not trained. Steps are drawn as likely one as
    another, where the code prefers the last ones. Its code leaves out by the root of a cell's loss, ``std |a|`` before the first update.

    Dialects:
    - soc-fine-tuning-sd: quantile=0.9: its code.
    """
    how, usual = RewardGradient(some_random(count), identity, under="ref", subjects=subjects, across=True), RunningMean(decay=0.9)

    def left_out(feedback: Feedback) -> Tensor:
        size = read(feedback, STD) * read(feedback, ADJOINT_SIZE)
        cells = read(feedback, MASK) & ~feedback.rewards.isnan()[:, None]
        limit = usual.update(size[cells].quantile(quantile)[None]) if bool(cells.any()) else 0.0  # type: ignore[arg-type]
        return cells & (size > limit * (1 + 1e-9))  # rounding of a mean of equal numbers

    reading = None if quantile is None else Reading(left_out, frozenset({STD, ADJOINT_SIZE, MASK}), state=usual)
    return ascent(how, penalty=penalties.named("paper", beta=beta), left_out=reading)
