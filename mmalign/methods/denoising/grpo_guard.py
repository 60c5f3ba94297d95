"""GRPO-Guard: the ratio of a denoising step, centred and standardised."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.types import Method


def grpo_guard(
    *,
    clip: Positive = 2e-6,
    beta: NotNegative = 0.0,
    kl: str = "flow_grpo",
    reweigh: Literal["length", "none"] = "length",
    std: Literal["batch", "group", "none"] = "batch",
    unbiased: bool = False,
    eps: NotNegative = 1e-4,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """Flow-GRPO whose clip acts alike on both sides and at all steps: a Gaussian's log-ratio is below 0 on average, most at low noise.

    m and m_old are the means of a step under the current and the sampling policy, c its std, D the numbers of a latent, A as in
    ``flow_grpo``, and over trained steps t of row i::

        rho_it = exp( c / D ( log pi - log pi_old + |m - m_old|^2 / (2 c^2) ) ) = exp( mean_d z (m - m_old) )
        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) / |dt_t| + beta KL(pi_it || ref_it) ]

    Args:
        clip: how far that ratio may leave 1; it is in units of the latent, not in nats, and shrinks as ``1 / sqrt(D)``: verl-omni has 2e-6.
        beta, kl: weight and kind of a KL to ``ref``, as in ``flow_grpo``.
        reweigh: ``length``, the division by ``|dt|``, which makes long and short steps weigh the same; ``none``, Flow-Factory's.
        std, unbiased, eps, advantage_clip: of the advantage, as in ``flow_grpo``.

    Paper: GRPO-Guard: Mitigating Implicit Over-Optimization in Flow Matching via Regulated Clipping, arXiv 2510.22319: RatioNorm is its
    eq. 8, the gradient's weight its eq. 12.

    Deviations: eq. 12 gives DanceGRPO's constant noise a further factor, ``1 + g^2 (1 - s) / (2 s)``, which verl-omni leaves out as we do.
    With the CPS sampler, c is its std.

    Dialects:
    - verl-omni: unbiased=True, eps=1e-4: an unbiased standard deviation.
    - Flow-Factory: reweigh="none": without the division.
    """

    return policy_gradient(
        advantage=partial(advantages.limited, std=std, unbiased=unbiased, eps=eps, largest=advantage_clip),
        log_ratio=ratios.named("standardised"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        gate=gates.reweighed(reweigh),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
        kinds=frozenset({"transition"}),
    )
