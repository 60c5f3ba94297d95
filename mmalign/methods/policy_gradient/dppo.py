"""Divergence Proximal Policy Optimization."""

from __future__ import annotations

from typing import Literal

from mmalign.objectives import advantages, gates, ratios, surrogates, weights
from mmalign.objectives.compose import policy_gradient
from mmalign.objectives.parts import Part
from mmalign.types import Method


def dppo(
    *,
    low: float = 0.2,
    high: float = 0.2,
    divergence: Literal["tv", "kl"] = "tv",
    trust: float = 0.0,
    std: Literal["group", "batch", "none"] = "group",
    unbiased: bool = True,
    eps: float = 1e-4,
) -> Method:
    """A policy gradient cut where a token's probability, and not its ratio, has moved too far: a rare token may double, a sure one not.

    D is the divergence of the choice "this token or another" from the old policy's. m = 0 where ``A > 0``, ``pi > pi_old`` and
    ``D > high``, or where ``A < 0``, ``pi < pi_old`` and ``D > low``; m = 1 elsewhere; ``rho = pi / pi_old``::

        loss = mean_it [ -m_it rho_it A_i + trust (log rho_it)^2 ]

    Args:
        low, high: how far the choice may move before its gradient is cut, as a probability (tv) or in nats (kl).
        divergence: ``tv``, ``|pi - pi_old|``; ``kl``, ``KL(old choice || new choice)``.
        trust: weight of the squared log-ratio, which every token pays.
        std, unbiased, eps: of the advantage, as in ``grpo``.

    Paper: Rethinking the Trust Region in LLM Reinforcement Learning, arXiv 2602.04879 (its Binary-TV and Binary-KL).

    Deviations: the bounds are prime-rl's; those of the paper are not verified here. Tokens only: a density is no probability.

    Dialects:
    - prime-rl: low=0.2, high=0.2, trust=1e-3, std="none": its default loss.
    """
    part = Part(lambda steps: trust * ratios.per_step(steps) ** 2, frozenset({"old"}))
    return policy_gradient(
        advantage=lambda feedback: advantages.normalised(feedback.rewards, feedback.group, std=std, unbiased=unbiased, eps=eps),
        log_ratio=ratios.named("per_step"),
        surrogate=surrogates.unclipped,
        gate=gates.divergence(divergence, low=low, high=high),
        penalty=part if trust else None,
        weigh=weights.token_mean,
        kinds=frozenset({"token"}),
    )
