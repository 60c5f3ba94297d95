"""Decoupled Clip and Dynamic sAmpling Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Annotated

from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, within
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages, shaping
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Feedback, Method, UserError


def dapo(  # the paper's own numbers
    *,
    low: NotNegative = 0.2,
    high: NotNegative = 0.28,
    max_length: Count | None = None,
    buffer: Count = 4096,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO with a wider upper clip, a token mean, groups without a signal left out, and a soft price for overlong rows.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, and over all live steps of all rows::

        loss = mean_it [ -min(rho_it A_i, clip(rho_it, 1 - low, 1 + high) A_i) ]

    Args:
        low, high: how far a ratio may go below and above 1.
        max_length: steps at which the soft overlong penalty reaches -1; None leaves it out. Needs ``Feedback.lengths``.
        buffer: steps before ``max_length`` in which the penalty grows from 0.
        dual: above 1, bounds the loss of a row with ``A_i < 0`` at ``-dual A_i``; None is off.
        beta, kl: weight and kind of a KL to ``ref``; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Errors: UserError where ``max_length`` is given and the feedback has no lengths.

    Paper: DAPO: An Open-Source LLM Reinforcement Learning System at Scale, arXiv 2503.14476, eq. 8, 9 and 13; max_length 20480.

    Deviations: dynamic sampling is ``keep``, which names the rows of groups whose rewards, before the overlong penalty, are not
    tied; whether to sample more in their place is the recipe's choice (verl refills the batch, TRL does not filter). The paper
    filters by accuracy 0 and 1, which is the same for 0/1 rewards. Masking truncated rows is left to ``mask``. The paper leaves
    the standard deviation open and has no eps.

    Dialects:
    - TRL 1.16: low=0.2, high=0.2, kl="k3_weighted": `loss_type="dapo"`, its default for GRPO, inherits PPO's clip on both sides, and
      no other part.
    - TRL 1.16 bnpo: low=0.2, high=0.2, kl="k3_weighted": `loss_type="bnpo"`, the mean over the tokens of each micro-batch: the same
      where a batch is not split, and another loss for every other split.
    - verl 0.7: low=0.2, high=0.2, dual=3.0, eps=1e-6: its GRPO: the vanilla loss with a token mean; with `use_kl_loss`,
      beta=0.001 and kl="k3_clamped".

    Examples:
        >>> from mmalign.types import Feedback
        >>> method = mm.methods.dapo(max_length=10, buffer=4, unbiased=False, eps=0.0)
        >>> rewards, group = torch.tensor([1.0, 1.0, 0.0, 1.0]).double(), torch.tensor([0, 0, 1, 1])
        >>> feedback = Feedback(rewards, group, lengths=torch.tensor([6, 10, 5, 5]).double())
        >>> method.signal(feedback).tolist()  # an overlong row earns 1 - 1 = 0
        [[1.0], [-1.0], [-1.0], [1.0]]
        >>> method.keep(feedback).tolist()  # a group that was tied before its overlong row paid
        [False, False, True, True]
    """

    def advantage(feedback: Feedback) -> Tensor:
        rewards = feedback.rewards
        if max_length is not None:
            if feedback.lengths is None:
                raise UserError("dapo: got max_length, but no Feedback.lengths; takes both or neither")
            rewards = rewards + shaping.soft_overlong(feedback.lengths, max_length=max_length, buffer=buffer)
        return advantages.normalised(rewards, feedback.group, unbiased=unbiased, eps=eps)

    return policy_gradient(
        advantage=advantage,
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=low, high=high, dual=dual),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.token_mean,
        keep=lambda feedback: advantages.informative(feedback.rewards, feedback.group),
    )
