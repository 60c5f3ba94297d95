"""GRPO on the denoising steps of a flow or diffusion model."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.types import Method


def flow_grpo(
    *,
    clip: Positive = 1e-4,
    beta: NotNegative = 0.0,
    kl: str = "paper",
    ratio: str = "per_scalar",
    std: Literal["batch", "group", "none"] = "batch",
    unbiased: bool = False,
    eps: NotNegative = 1e-4,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """GRPO where a step is a denoising step: the sampler is made stochastic, so that each step is a Gaussian.

    ``A_i = (r_i - mean_group) / (std_batch + eps)``, limited to ``+-advantage_clip``, and over trained steps t of row i::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta KL(pi_it || ref_it) ]

    Args:
        clip: how far a ratio may leave 1. With ``ratio="per_scalar"`` that is about ``clip * event_size`` nats for the whole
            latent: 1e-4 is 6.55 nats at D = 65,536 (SD3.5, 512 px) but 0.0064 at D = 64. It does not carry over between
            resolutions, autoencoders or video lengths.
        beta: weight of the KL to ``ref``; 0 needs no reference. With ``kl="paper"``, ``ratio="per_step"`` and ``std="none"`` it is
            reward per nat of a whole trajectory, because both terms are means over steps: the best policy on the trained steps is
            ``ref exp(r / beta) / Z``. (In groups of G, whose mean includes the row itself, beta counts as ``beta G / (G - 1)``.)
            With another std, beta is in units of that standard deviation.
        kl: ``paper``, the exact KL in nats, ``|mean - mean_ref|^2 / (2 std^2)``; ``per_scalar``, that divided by D, the scale
            of the default ratio; ``flow_grpo``, that times ``|dt|``, as flow_grpo and verl-omni compute it; ``mean_distance``,
            Flow-Factory's ``x-based``.
        ratio: ``per_scalar``, ``exp((log pi - log pi_old) / D)``; ``per_step``, the true importance ratio, clip in nats;
            ``cps``, the same scaled by ``2 std^2``, which public code uses with the CPS sampler.
        std: ``batch``, over all rewards of the batch; ``group``, the paper's; ``none``.
        unbiased, eps: of that standard deviation; eps in units of the reward.
        advantage_clip: largest advantage, or None.

    Paper: Flow-GRPO: Training Flow Matching Models via Online RL, arXiv 2505.05470.

    Deviations: ratio, clip and std are the code's, because the paper's numbers were made with them: the paper's ratio is
    ``per_step``, its std ``group``. flow_grpo is reproduced by ``flow_grpo(kl="flow_grpo", beta=0.04)`` (GenEval and OCR; 0.01
    for PickScore); a beta found so is not one for ``kl="paper"``, which is ``D / |dt|`` times larger: hence the default of 0.
    flow_grpo drops rows without advantage before the update; here they stay, and pay the KL.

    Dialects:
    - flow_grpo: kl="flow_grpo", beta=0.04: its GenEval and OCR runs.
    - verl-omni: kl="flow_grpo", unbiased=True: an unbiased standard deviation.
    - DanceGRPO: std="group", unbiased=True, eps=1e-8: by group, and no KL.

    Examples:
        >>> from mmalign.types import Feedback
        >>> method = mm.methods.flow_grpo(std="none", advantage_clip=2.0)
        >>> feedback = Feedback(torch.tensor([0.0, 1.0, 11.0]).double(), group=torch.tensor([0, 0, 0]))
        >>> method.signal(feedback).tolist()  # -4, -3 and 7, limited to 2
        [[-2.0], [-2.0], [2.0]]
    """

    return policy_gradient(
        advantage=partial(advantages.limited, std=std, unbiased=unbiased, eps=eps, largest=advantage_clip),
        log_ratio=ratios.named(ratio),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
    )
