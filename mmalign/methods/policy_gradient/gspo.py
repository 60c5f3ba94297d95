"""Group Sequence Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from mmalign.arguments.ranges import NotNegative, within
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method, UserError


def gspo(
    *,
    low: NotNegative = 3e-4,
    high: NotNegative = 4e-4,
    form: Literal["sequence", "token"] = "sequence",
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    beta: NotNegative = 0.0,
    kl: str = "k3",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """GRPO whose ratio, and clip, are the whole row's: the reward is one for a row, and so is its importance weight.

    ``s_i = exp(mean_t (log pi - log pi_old)_it)``, ``A_i = (r_i - mean_group) / (std_group + eps)``, and::

        loss = mean_i [ -min(s_i A_i, clip(s_i, 1 - low, 1 + high) A_i) ]

    Args:
        low, high: how far s may go below and above 1. It is a geometric mean over steps, so they are far smaller than GRPO's.
        form: ``sequence``, eq. 5; ``token``, eq. 13: s in value, with each step's own gradient, for advantages that differ by step
            (with one advantage for a row the gradients are the same).
        dual: above 1, bounds the loss of a row with ``A_i < 0`` at ``-dual A_i``; None is off.
        beta, kl: weight and kind of a KL to ``ref``, as a mean over steps; the paper has none.
        unbiased, eps: of the group's standard deviation; eps in units of the reward.

    Paper: Group Sequence Policy Optimization, arXiv 2507.18071, eq. 5 to 7 and 13; clips of sec. 5.1.

    Deviations: the paper has no eps. Beyond 20 nats a step the ratio goes on along its tangent (verl clamps log s at 10, and takes the
    gradient away there).

    Dialects:
    - TRL 1.16: low=0.2, high=0.2: `importance_sampling_level="sequence", loss_type="grpo"` inherits PPO's clip, under which
      next to nothing is clipped.
    - verl 0.7: low=0.2, high=0.2, form="token", eps=1e-6: inherits PPO's clip too.

    Examples:
        >>> from mmalign.types import Feedback, Steps
        >>> method = mm.methods.gspo(low=0.2, high=0.2, unbiased=False, eps=0.0)
        >>> old, mask = torch.zeros(2, 2).double(), torch.tensor([[True, True], [True, True]])
        >>> steps = Steps(torch.tensor([[2.0, -2.0], [0.25, 0.75]]).double(), mask, old=old)  # means 0 and 1/2: s = 1 and 1.65
        >>> signal = method.signal(Feedback(torch.tensor([0.0, 2.0]).double(), group=torch.tensor([0, 0])))  # A = -1 and 1
        >>> method.loss(steps, signal).values.tolist()  # not clipped, whatever single steps do; clipped at 1.2
        [[1.0, 1.0], [-1.2, -1.2]]
    """
    if form not in ("sequence", "token"):
        raise UserError(f"form: got {form!r}, takes 'sequence' or 'token'")
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_sequence" if form == "sequence" else "sequence_by_step"),
        surrogate=partial(surrogates.clipped, low=low, high=high, dual=dual),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
