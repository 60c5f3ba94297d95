"""Before the first update: is a recorded rollout, scored again, the same rollout? Most silent failures of others end here."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.types import Method, Policy, Rollout, UserError

CAUSES = (
    "the usual causes: dropout or another module in training mode, latents stored in another type than they were scored in, guidance on "
    "one side only, a batch shape that changes the kernels' rounding (rows_at_once against micro_rows)"
)


class Preflight(NamedTuple):
    """``difference``: largest |log-ratio| in nats, ``kl``: largest |KL to ref|, ``gradient``: norm of the policy gradient."""

    difference: float
    kl: float
    gradient: float


def preflight(policy: Policy, rollout: Rollout, method: Method, signal: Tensor, *, micro_rows: int, tolerance: float = 1e-6) -> Preflight:
    """Scores the first rows of a fresh rollout again and takes one policy gradient, which is thrown away.

    The ratio has to be 1: ``|log-ratio| <= tolerance * event_size`` nats (0.0 in float32 where batch shapes agree). The KL to
    ``ref`` has to be 0. The gradient has to be finite, and not zero where some row has a signal. Errors: UserError that names
    the likely cause; nothing has been written to the parameters then.
    """
    live = torch.nonzero((signal != 0).any(1)).flatten()
    first = int(live[0]) // micro_rows * micro_rows if len(live) else 0
    rows = torch.arange(first, min(first + micro_rows, len(rollout.prompts)))
    steps = policy.steps(rollout, rows, needs=method.needs)
    if steps.kind == "bound" or steps.old is None:
        return Preflight(float("nan"), float("nan"), float("nan"))
    difference = float((steps.log_probs.detach() - steps.old)[steps.mask].abs().max()) if bool(steps.mask.any()) else 0.0
    if not difference <= tolerance * steps.event_size:
        raise UserError(f"preflight: a recorded step scores {difference:.3g} nats differently at replay, takes at most {tolerance * steps.event_size:.3g}; {CAUSES}")
    apart = max([float(table.detach()[steps.mask].abs().max()) for table in steps.kls.values()], default=0.0) if bool(steps.mask.any()) else 0.0
    if not apart <= tolerance * steps.event_size:
        raise UserError(f"preflight: KL to the reference is {apart:.3g} nats before the first update, takes 0; {CAUSES}")
    parameters = list(policy.parameters().values())
    loss = (method.weigh(steps.mask) * method.loss(steps, signal[rows]).values).sum()
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
    norm = float(torch.stack([g.double().norm() for g in gradients if g is not None] or [torch.zeros((), dtype=torch.float64)]).norm())
    if norm != norm or norm == float("inf"):
        raise UserError("preflight: the policy gradient is not finite; the usual causes: half precision without room, a step whose std is 0 in the mask")
    if norm == 0 and bool((signal[rows] != 0).any()):
        raise UserError("preflight: the policy gradient is 0 although rewards differ: the trained parameters do not reach the log-probabilities")
    return Preflight(difference, apart, norm)
