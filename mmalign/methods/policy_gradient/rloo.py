"""REINFORCE Leave-One-Out."""

from __future__ import annotations

from functools import partial

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def rloo(*, ratio: str = "whole_sequence", clip: Positive | None = None, beta: NotNegative = 0.0, kl: str = "k3") -> Method:
    """REINFORCE whose baseline is the mean reward of the group's other rows: unbiased, and without a clip.

    ``A_i = r_i - mean_{j != i} r_j``, and ``rho_i = pi(row i) / pi_old(row i)``::

        loss = mean_i [ -rho_i A_i ]        gradient where pi = pi_old:  mean_i [ -A_i sum_t grad log pi_it ]

    Args:
        ratio: ``whole_sequence``, the row as one action: the exact gradient also after several updates on one rollout, but a
            row has to stay in one micro-batch; ``per_step`` lets steps be trained apart, scales the gradient by 1 over the
            row's number of steps, and is exact on-policy alone (up to that scale, where rows are equally long).
        clip: how far the ratio may leave 1, both ways, or None.
        beta, kl: weight and kind of a KL to ``ref``, as a mean over steps.

    Paper: Back to Basics: Revisiting REINFORCE Style Optimization for Learning from Human Feedback in LLMs, arXiv 2402.14740.

    Deviations: the paper writes ``-A grad log pi`` for on-policy rows; the ratio has the same gradient there. The paper and TRL
    subtract ``beta * (log pi - log ref)`` from the reward; here the KL is a term of the loss, off by default, and a KL in the
    reward is the reward's business.

    Dialects:
    - TRL 1.16: clip=0.2: the row's ratio is clipped; its KL, beta 0.05, is in the reward.
    - verl 0.7: ratio="per_step", clip=0.2: the estimator `rloo` goes with any policy loss, PPO's by default, and its token mean.

    Examples:
        >>> from mmalign.types import Feedback
        >>> feedback = Feedback(torch.tensor([3.0, 0.0, 0.0]).double(), group=torch.tensor([0, 0, 0]))
        >>> mm.methods.rloo(beta=0.0).signal(feedback).tolist()
        [[3.0], [-1.5], [-1.5]]
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.leave_one_out(feedback.rewards, feedback.group),
        log_ratio=ratios.named(ratio),
        surrogate=surrogates.unclipped if clip is None else partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
