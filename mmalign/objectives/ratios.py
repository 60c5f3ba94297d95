"""Log importance ratios of a table to the policy that sampled it: ``Steps -> [B, T]``, 0 in dead cells.

The true log-ratio of a step is ``log_probs - old`` in nats. Everything else here is a dialect: a rescaling that public code
applies before it exponentiates and clips, so that one clip range means different things in different dialects.
"""

from __future__ import annotations

import torch
from torch import Tensor

from mmalign.needs import DRIFT, OLD, STD
from mmalign.objectives.parts import Part, choose, held, live
from mmalign.types import Steps, UserError


def per_step(steps: Steps) -> Tensor:
    """``log pi - log pi_old`` of each step, nats: a token's, or a whole latent's."""
    if steps.old is None:
        raise UserError("Steps.old: got None, an importance ratio takes the log-probabilities at sampling time")
    return live(steps.log_probs - steps.old.detach(), steps.mask)


def per_scalar(steps: Steps) -> Tensor:
    """``(log pi - log pi_old) / D``, nats per scalar of the event: what public diffusion code does (a mean over the latent)."""
    return per_step(steps) / steps.event_size


def per_sequence(steps: Steps) -> Tensor:
    """The mean of a row's log-ratios over its live steps, in each of them (GSPO, arXiv 2507.18071): nats per step.

    Examples:
        >>> mask = torch.tensor([[True, True, False]])
        >>> old = torch.tensor([[-1.0, -2.0, 0.0]], dtype=torch.float64)
        >>> per_sequence(Steps(torch.tensor([[-1.5, -1.0, 0.0]], dtype=torch.float64), mask, old=old)).tolist()  # (-0.5 + 1) / 2
        [[0.25, 0.25, 0.0]]
    """
    length = steps.mask.sum(1, keepdim=True).clamp(min=1)
    return live((per_step(steps).sum(1, keepdim=True) / length).expand_as(steps.log_probs), steps.mask)


def sequence_by_step(steps: Steps) -> Tensor:
    """``per_sequence`` in value, with each step's own gradient: ``sg[s_i] pi_it / sg[pi_it]`` (GSPO-token, arXiv 2507.18071, eq. 14).

    With one advantage for a whole row its gradient, summed with equal weights, is that of ``per_sequence``.
    """
    own = live(steps.log_probs - steps.log_probs.detach(), steps.mask)
    return per_sequence(steps).detach() + own


def whole_sequence(steps: Steps) -> Tensor:
    """The log-ratio of the whole row, in each of its live steps: nats. Its exponential is the exact importance weight."""
    return live(per_step(steps).sum(1, keepdim=True).expand_as(steps.log_probs), steps.mask)


def cps(steps: Steps) -> Tensor:
    """``2 std^2 (log pi - log pi_old) / D``: flow_grpo's "log-probability" of CPS, ``-mean (x' - mean)^2``, which is no density.

    Needs ``facts["std"]``. Flow-Factory, verl-omni, UniRL and GenRL do the same; a clip range for ``per_scalar`` does not
    carry over.
    """
    return per_scalar(steps) * 2 * live(held(steps, STD), steps.mask) ** 2


def standardised(steps: Steps) -> Tensor:
    """``std (log pi - log pi_old + KL(pi_old || pi)) / D``: what is left of a Gaussian step's log-ratio is ``mean z (m - m_old)``.

    z is the noise that was drawn and m the mean, so that its expectation is 0 at every step and its spread does not grow as std falls
    (RatioNorm of GRPO-Guard, arXiv 2510.22319, eq. 8). Needs ``facts["std"]`` and ``terms["drift"]``.
    """
    centred = per_step(steps) + live(held(steps, DRIFT), steps.mask)
    return live(held(steps, STD), steps.mask) * centred / steps.event_size


def geometric(log_ratio: Tensor, advantage: Tensor, mask: Tensor, *, low: float, high: float) -> Tensor:
    """The mean of a row's log-ratios, in each of its live steps, clipped on the side where PPO clips (GMPO, arXiv 2507.20673).

    ``min(x, high)`` where ``A > 0``, ``max(x, -low)`` where ``A < 0``: a step that has gone far enough the right way adds no more.

    low, high: how far a mean may fall and rise, nats, 0 or more.
    """
    if min(low, high) < 0:
        raise UserError(f"low, high: got {low} and {high}, takes 0 or more nats")
    bound = torch.where(advantage > 0, log_ratio.clamp(max=high), torch.where(advantage < 0, log_ratio.clamp(min=-low), log_ratio))
    length = mask.sum(1, keepdim=True).clamp(min=1)
    return live((live(bound, mask).sum(1, keepdim=True) / length).expand_as(log_ratio), mask)


def likelihood(steps: Steps) -> Tensor:
    """``log pi`` of each step itself, nats: what REINFORCE's score function is the gradient of."""
    return live(steps.log_probs, steps.mask)


def likelihood_per_scalar(steps: Steps) -> Tensor:
    """``log pi / D`` of each step: the same in the scale of ``per_scalar``."""
    return likelihood(steps) / steps.event_size


LIKELIHOOD, LIKELIHOOD_PER_SCALAR = Part(likelihood), Part(likelihood_per_scalar)
_NAMED = {
    "per_step": Part(per_step, frozenset({OLD})),
    "per_scalar": Part(per_scalar, frozenset({OLD})),
    "per_sequence": Part(per_sequence, frozenset({OLD}), "row"),
    "sequence_by_step": Part(sequence_by_step, frozenset({OLD}), "row"),
    "whole_sequence": Part(whole_sequence, frozenset({OLD}), "row"),
    "cps": Part(cps, frozenset({OLD, STD})),
    "standardised": Part(standardised, frozenset({OLD, STD, DRIFT})),
}


def named(name: str) -> Part:
    """The log-ratio of that name, with what it needs. Errors: UserError for an unknown name."""
    return choose("ratio", name, _NAMED)
