"""VA-pi: an image, made again under teacher forcing, rewarded by its pixels."""

from __future__ import annotations

from functools import partial

from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Positive
from mmalign.needs import contrast
from mmalign.objectives import penalties, ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Term, live, under
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms.gates import Signal
from mmalign.types import Method, Steps


def va_pi(*, clip: Positive = 1e-4, beta: NotNegative = 0.01, truth: NotNegative = 0.0, advantage_clip: Positive | None = 5.0) -> Method:
    """GRPO on the codes of an image that a prompt holds, each drawn behind the true ones before it, and their cross-entropy.

    ``A_i = (r_i - mean_group) / (std_group + 1e-4)`` within ``+-advantage_clip``, r how near the decoded pixels come; over codes t of row
    i, with z the true ones, which both are drawn behind::

        loss = mean_i mean_t [ -min(rho_it A_i, clip(rho_it, 1 - clip, 1 + clip) A_i) + beta k3_it - truth log pi(z_it) ]

    Args:
        clip: how far a ratio may leave 1.
        beta: of the KL to ``ref``; 0 needs no reference.
        truth: of the cross-entropy of the true codes; 0 is none, and does not score them.
        advantage_clip: largest advantage, or None.

    ``policy: {use: image_tokens, teacher_forcing: 0.5}``, and as rewards ``reconstruction`` and ``lpips``, their sum.

    Paper: VA-pi: Variational Policy Alignment for Pixel-Aware Autoregressive Generation, arXiv 2512.19680, and its code.

    Deviations: the code's reward has a GAN's term where one was trained; any reward is one here.

    Dialects:
    - VA-pi: clip=1e-4, beta=0.01: LlamaGen, rate 1e-5, groups of 8.
    """

    def taught(steps: Steps, known: Signal) -> Tensor:
        return -truth * live(under(steps, "true").log_probs, steps.mask)

    term = {"truth": Term(taught, frozenset({contrast("true")}), kinds=frozenset({"token"}))} if truth else None
    return policy_gradient(
        advantage=partial(advantages.limited, std="group", largest=advantage_clip),
        log_ratio=ratios.named("per_step"),
        surrogate=partial(surrogates.clipped, low=clip, high=clip),
        penalty=penalties.named("k3", beta=beta),
        weigh=weights.sequence_mean,
        terms=term,
        kinds=frozenset({"token"}),
    )
