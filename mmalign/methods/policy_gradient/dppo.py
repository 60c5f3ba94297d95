"""Divergence Proximal Policy Optimization."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Literal

from mmalign.arguments.ranges import NotNegative, Positive, within
from mmalign.needs import OLD
from mmalign.objectives import ratios, surrogates, weights
from mmalign.objectives.feedback import advantages
from mmalign.objectives.parts import Part
from mmalign.objectives.sentences.policy_gradient import policy_gradient
from mmalign.objectives.terms import gates
from mmalign.types import Method

_BOUNDS = {"tv": 0.2, "kl": 0.05}


def dppo(
    *,
    low: NotNegative | None = None,
    high: NotNegative | None = None,
    divergence: Literal["tv", "kl"] = "tv",
    largest: Annotated[float, within(1, below=True)] | None = None,
    trust: NotNegative = 0.0,
    length: Positive | None = 1.0,
    std: Literal["none", "group", "batch"] = "none",
    eps: NotNegative = 1e-4,
) -> Method:
    """A policy gradient cut where a token's probability, and not its ratio, has moved too far: a rare token may double, a sure one not.

    D is the divergence of the choice "this token or another" from the old policy's. m = 0 where ``A > 0``, ``pi > pi_old`` and
    ``D > high``, or where ``A < 0``, ``pi < pi_old`` and ``D > low``; m = 1 elsewhere; ``rho = pi / pi_old``, ``A_i = r_i - mean_group``::

        loss = mean_i [ 1 / length * sum_t -m_it rho_it A_i + trust (log rho_it)^2 ]

    Args:
        low, high: how far the choice may move before its gradient is cut, as a probability (tv) or in nats (kl); None: .2 or .05.
        divergence: ``tv``, ``|pi - pi_old|``; ``kl``, ``KL(old choice || new choice)``.
        largest: the gradient has no larger weight than this in place of rho (C of eq. 23); None: none.
        trust: weight of the squared log-ratio, which every token pays; the paper has none.
        length: what the sum over a row is divided by, in steps; None: the mean over all tokens instead.
        std, eps: a standard deviation to divide the advantage by after all, as in ``dr_grpo``.

    Paper: Rethinking the Trust Region in LLM Reinforcement Learning, arXiv 2602.04879: eq. 12, D its Binary-TV (eq. 13) or Binary-KL
    (eq. 14). Bounds .2 and .05 are those of its large runs (app. E), with C = 5; without C, and for LoRA, it has .15 in place of .2.

    Deviations: its divergences over the k likeliest tokens (eq. 15, 16) are not here; it finds the two-way ones as good. ``old`` has to
    be what the sampler said, not a second pass (its sec. 5.2). Tokens only: a density is no probability.

    Dialects:
    - prime-rl: low=0.2, high=0.2, trust=1e-3, length=None: its default loss.
    - verl: low=0.15, high=0.15: the script of its example; it divides by the longest answer.
    """
    part = Part(lambda steps: trust * ratios.per_step(steps) ** 2, frozenset({OLD}))
    bound = _BOUNDS.get(divergence, 0.0)
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, std=std, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped,
        gate=gates.divergence(divergence, low=bound if low is None else low, high=bound if high is None else high, largest=largest),
        penalty=part if trust else None,
        weigh=weights.token_mean if length is None else partial(weights.constant_length, length=length),
        kinds=frozenset({"token"}),
    )
