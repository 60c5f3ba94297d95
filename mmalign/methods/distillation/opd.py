"""On-policy distillation of language models."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive, Proportion
from mmalign.needs import MASK, OLD, refs
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, returns
from mmalign.objectives.parts import Reading
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method


def opd(*, teacher: str = "teacher", discount: Proportion = 0.0, reward: NotNegative = 0.0, clip: Positive | None = None) -> Method:
    """The student's own samples, each token of which is judged by how much likelier the teacher finds it: the reverse KL, by its score.

    ``A_it = sum_{s >= t} discount^(s - t) [log pi_teacher - log pi_old]_is + reward z_i``, z the reward less its group's mean, over the
    group's standard deviation, and with ``rho = pi / pi_old``::

        loss = mean_it [ -rho_it A_it ]

    Args:
        teacher: name of a reference: ``references: {teacher: {policy: ...}}`` is another model of the same words, ``{from: RUN}`` the
            same one as a run left it.
        discount: how much of what a token leads to is laid at its door; 0 judges it by itself.
        reward: how much the run's reward counts beside the teacher, in nats for a standard deviation; 0: no reward is maximised, and any
            serves to watch.
        clip: how far a ratio may leave 1, both ways, as in ``ppo``; None: as it is.

    Its whole-vocabulary form, with the exact KL of each step and less variance, is ``diffusion_opd``, which takes tokens too.

    Paper: On-Policy Distillation of Language Models: Learning from Self-Generated Mistakes, arXiv 2306.13649, sec. 3, with samples of the
    student's alone and the reverse KL, whose gradient as one of a policy, token by token with discount 0, is what Thinking Machines'
    On-Policy Distillation (2025) describes.

    Deviations: the paper differentiates the KL of each token's distribution (``diffusion_opd``). A reward beside it is ours. Rows without
    a reward are left out, as everywhere.
    """

    def advantage(feedback: Feedback) -> Tensor:
        judged = returns.to_go(-returns.kl(feedback, name=teacher), returns.known(feedback), gamma=discount)
        if not reward:
            return judged
        earned = reward * advantages.normalised(feedback.rewards, feedback.group)
        return judged + earned[:, None] * returns.known(feedback)

    return policy_gradient(
        advantage=Reading(advantage, frozenset({MASK, OLD, refs(teacher)})),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped if clip is None else partial(surrogates.clipped, low=clip, high=clip),
        weigh=weights.token_mean,
    )
