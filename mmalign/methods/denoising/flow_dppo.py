"""Flow-DPPO: a denoising step is cut by the exact KL that it has moved, and not by the ratio of its one sample."""

from __future__ import annotations

from functools import partial
from typing import Literal

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.types import Method


def flow_dppo(
    *,
    largest: NotNegative = 1e-5,
    beta: NotNegative = 0.0,
    kl: str = "flow_grpo",
    ratio: str = "per_scalar",
    std: Literal["batch", "group", "none"] = "batch",
    unbiased: bool = False,
    eps: NotNegative = 1e-4,
    advantage_clip: Positive | None = 5.0,
) -> Method:
    """Flow-GRPO without a clip: a step loses its gradient where its Gaussian has moved too far, in the direction of its advantage.

    ``K_it = KL(pi_old,it || pi_it) / D = mean_d (m - m_old)^2 / (2 c^2)``, known in closed form; ``keep_it`` = 0 where
    ``K_it >= largest`` and ``rho_it`` is above 1 for ``A_i > 0``, or below 1 for ``A_i < 0``; 1 elsewhere; over trained steps t::

        loss = mean_i mean_t [ -keep_it rho_it A_i + beta KL(pi_it || ref_it) ]

    Args:
        largest: nats per number of the latent. 1e-5 is 0.66 nats of a whole latent at D = 65,536 (SD3.5, 512 px).
        beta, kl, ratio: as in ``flow_grpo``.
        std, unbiased, eps, advantage_clip: of the advantage, as in ``flow_grpo``.

    Paper: Flow-DPPO, arXiv 2606.11025; the rule and its numbers as UniRL and verl-omni have them.

    Deviations: none known. The KL is in the direction old to new; two Gaussians of one std have the same in the other.

    Dialects:
    - verl-omni: unbiased=True: an unbiased standard deviation.
    """

    return policy_gradient(
        advantage=partial(advantages.limited, std=std, unbiased=unbiased, eps=eps, largest=advantage_clip),
        log_ratio=ratios.named(ratio),
        surrogate=surrogates.unclipped,
        gate=gates.drift(largest=largest),
        penalty=penalties.named(kl, beta=beta),
        weigh=weights.sequence_mean,
        kinds=frozenset({"transition"}),
    )
