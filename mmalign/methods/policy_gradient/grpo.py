"""Group Relative Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from mmalign.arguments.ranges import NotNegative, Positive, within
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def grpo(
    *,
    clip: Positive = 0.2,
    dual: Annotated[float, within(1, above=True, below=True)] | None = None,
    beta: NotNegative = 0.04,
    kl: str = "k3",
    ratio: str = "per_step",
    std: Literal["group", "batch", "none"] = "group",
    unbiased: bool = True,
    eps: NotNegative = 1e-4,
) -> Method:
    """Clipped policy gradient whose baseline is the group: no value network.

    ``A_i = (r_i - mean_group) / (std_group + eps)``, and over live steps t of row i, with ``rho = pi / pi_old``::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta k3(pi_it, ref_it) ]

    Args:
        clip: how far a ratio may leave 1, both ways.
        dual: above 1, limits the loss of a row with ``A_i < 0`` to ``-dual A_i`` (dual clip); None is off.
        beta: weight of the KL to the reference ``ref``; 0 needs no reference.
        kl: ``k3`` from the sampled step, or ``exact`` where the policy gives it; others in ``objectives.penalties``, among them
            ``k3_clamped``, verl's.
        ratio: ``per_step`` (nats), or another of ``objectives.ratios``; ``per_sequence`` with a small clip is GSPO's.
        std: ``group``, ``batch`` or ``none``. unbiased, eps: of that standard deviation; eps in units of the reward.

    Paper: DeepSeekMath: Pushing the Limits of Mathematical Reasoning in Open Language Models, arXiv 2402.03300, eq. 3 and 4.

    Deviations: the paper leaves the kind of standard deviation open and has no eps; TRL and verl take the unbiased one, with
    1e-4 and 1e-6. A tied group has advantage 0 exactly. beta .04 is the paper's; TRL has 0, verl .001. Both weigh every token
    the same by default, as ``dapo(low=0.2, high=0.2)`` does, and verl has ``dual=3``. The paper gives no clip; .2 is PPO's and
    theirs. Beyond 20 nats the ratio and k3 go on along their tangents.

    Dialects:
    - TRL 1.16: beta=0.0, kl="k3_weighted": `loss_type="grpo"`; its two-sided clip `delta` is ``dual``, and a KL, if any, is weighted by
      the ratio (`use_bias_correction_kl`).
    - TRL 1.16 sequence: beta=0.0, ratio="per_sequence": `importance_sampling_level="sequence"`; a KL, if any, is weighted by the
      row's ratio there, here only by a step's (``k3_weighted``) or not at all.
    - verl 0.7: beta=0.001, kl="k3_clamped", dual=3.0, eps=1e-6: `loss_agg_mode="seq-mean-token-mean"` with `use_kl_loss`; without both
      it is ``dapo``.
    - HALOs: unbiased=False, eps=1e-2: the standard deviation of the group, not of a sample.

    Examples:
        >>> from mmalign.types import Feedback
        >>> method = mm.methods.grpo(unbiased=False, eps=0.0, beta=0.0)
        >>> feedback = Feedback(torch.tensor([0.0, 2.0, 5.0, 5.0]).double(), group=torch.tensor([0, 0, 1, 1]))
        >>> method.signal(feedback).tolist()  # (r - 1) / 1, and a tie
        [[-1.0], [1.0], [0.0], [0.0]]
        >>> sorted(map(str, method.needs)), sorted(map(str, mm.methods.grpo(beta=0.04).needs))
        (['old'], ['old', 'refs:ref'])
    """
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip, dual=dual),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
