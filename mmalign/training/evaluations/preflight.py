"""Before the first update: is a recorded rollout, scored again, the same rollout? Most silent failures of others end here."""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.arguments.facts import Tolerant
from mmalign.distributed.shards import leaves
from mmalign.needs import needed
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.method_state import unchanged
from mmalign.training.updates.units import live_columns, micro_sizes, steps_at_once
from mmalign.types import Method, Need, Policy, Steps, UserError

CAUSES = (
    "the usual causes: dropout or another module in training mode, latents stored in another type than they were scored in, guidance on "
    "one side only, a batch shape that changes the kernels' rounding (rows_at_once against micro_rows)"
)


class Preflight(NamedTuple):
    """What was found; NaN where the policy has no such number.

    difference: largest |log-ratio| to the sampling policy (to ``ref`` where nothing was sampled), nats. kl: largest KL of ``ref``
    to itself, nats. gradient: norm of the policy gradient. event_size: as of ``Steps``.
    """

    difference: float
    kl: float
    gradient: float
    event_size: int

    @staticmethod
    def facts(checked: Sequence[Preflight | None]) -> dict[str, float] | None:
        """What a run keeps of the preflights of its processes: the largest difference, and the size of an event of several numbers.

        None where no process had rows to look at.
        """
        known = [Preflight(*one) for one in checked if one is not None]  # JSON, as processes tell each other, has lists of them
        if not known:
            return None
        largest = max((one.difference for one in known), key=lambda each: -math.inf if math.isnan(each) else each)
        size = known[0].event_size
        return {"preflight_difference": largest, **({"event_size": size} if size > 1 else {})}


def preflight(
    policy: Policy,
    method: Method,
    experience: Experience,
    *,
    micro_rows: int,
    micro_steps: int | None = None,
    tolerance: float | None = None,
    needs: frozenset[Need] | None = None,
) -> Preflight:
    """Scores a few rows of a fresh rollout again and takes one policy gradient, which is thrown away.

    Of the update's rows, the first micro-batch with a signal is taken. The ratio has to be 1:
    ``|log-ratio| <= tolerance * event_size`` nats (0.0 in float32 where batch shapes agree; by default the ``tolerance`` that a policy
    names, or 1e-6). The reference, scored again as itself, has to have KL 0, and where nothing was sampled its log-probabilities have
    to be the policy's, so that margins are 0; those of a reference from elsewhere, its own again. The gradient has to be finite, and where
    it is 0 although some row has a signal, some trained parameter has to reach the log-probabilities (rewards that are all 0 have no
    gradient beside a critic). Trained parameters that the loss of these rows does not depend on, a part of the model that only some rows
    use or a layer that is cut off, are counted in a warning.
    micro_rows, micro_steps: as of ``Learner.update``. needs: what the steps hold, ``units.needed`` by default.

    Errors: UserError that names the likely cause; nothing has been written to the parameters then.
    """
    rollout, limit = experience.rollout, _tolerance(policy) if tolerance is None else tolerance
    parts = experience.rows.split(micro_sizes(method.unit, experience.group, micro_rows))
    informative = [part for part in parts if not replace(experience, rows=part).silent]
    rows = (informative or parts)[0]
    micro_steps = steps_at_once(policy, method, micro_steps)
    columns, *later = live_columns(rollout, rows).split(micro_steps or rollout.mask.shape[1])
    needs = needed(policy, method) if needs is None else needs
    steps = policy.steps(rollout, rows, columns, needs=needs)
    difference = kl = float("nan")
    if steps.old is not None and steps.kind != "bound":
        with torch.no_grad():  # what other steps keep for a gradient would grow with their number
            others = [policy.steps(rollout, rows, some) for some in later]
        difference = max(_difference(one) for one in (steps, *others))
        _refuse(f"a recorded step scores {difference:.3g} nats differently at replay", difference, limit * steps.event_size)
    elif steps.old is None and "ref" in steps.refs and "ref" in policy.sets.foreign:
        with torch.no_grad(), policy.using("ref"):
            itself = policy.steps(rollout, rows, columns)
            own = _tolerance(policy) if tolerance is None else tolerance  # another model may be of another type
        difference = _largest(steps, itself.log_probs - steps.refs["ref"])
        _refuse(f"the reference scores {difference:.3g} nats differently at replay", difference, own * steps.event_size)
    elif steps.old is None and "ref" in steps.refs:
        difference = kl = _largest(steps, steps.log_probs.detach() - steps.refs["ref"])
        what = f"the policy scores {difference:.3g} nats differently from its reference before any update"
        _refuse(what, difference, limit * steps.event_size)
    if "ref" in steps.kls:
        with torch.no_grad(), policy.using("ref"):
            itself = policy.steps(rollout, rows, columns, needs=needs)
        kl = _largest(itself, itself.kls["ref"])
        _refuse(f"the reference has a KL of {kl:.3g} nats to itself", kl, limit * steps.event_size)
    signal = experience.signal_at(rows, columns)
    if method.survey is not None:
        with torch.no_grad(), unchanged(method):
            surveyed = policy.steps(rollout, rows, columns, needs=needs | method.survey_needs)
            signal = method.survey(surveyed, signal)
    norm, unreached = _gradient(policy, (method.weigh(steps.mask) * method.loss(steps, signal).values).sum())
    alike = bool(method.companions)  # as they start, a companion and what it is compared with may say the same
    dead = norm == 0 and bool(informative) and not alike and not _reaches(policy, policy.steps(rollout, rows, columns))
    _judge_gradient(policy, norm, unreached, dead=dead)
    return Preflight(difference, kl, norm, steps.event_size)


def _judge_gradient(policy: Policy, norm: float, unreached: Sequence[str], *, dead: bool) -> None:
    """Errors: UserError for a gradient that is not finite, and for one that no trained parameter could have. A warning for some without."""
    if not norm < float("inf"):
        raise UserError(
            f"preflight: the policy gradient is {norm}; the usual causes: half precision without room, a step in the mask whose std is 0"
        )
    if dead:
        raise UserError("preflight: the policy gradient is 0 although rewards differ: no trained parameter reaches the log-probabilities")
    if norm > 0 and unreached:
        count, some = len(policy.parameters()), ", ".join(unreached[:2])
        warnings.warn(f"policy: {len(unreached)} of {count} trained tensors have no gradient on these rows, such as {some}", stacklevel=3)


def _tolerance(policy: Policy) -> float:
    return policy.tolerance if isinstance(policy, Tolerant) else 1e-6


def _difference(steps: Steps) -> float:
    """The largest |log-ratio| to the policy that sampled."""
    return float("nan") if steps.old is None else _largest(steps, steps.log_probs.detach() - steps.old)


def _largest(steps: Steps, table: Tensor) -> float:
    return float(table[steps.mask].abs().max()) if bool(steps.mask.any()) else 0.0


def _refuse(what: str, distance: float, limit: float) -> None:
    if not distance <= limit:  # NaN is refused too
        raise UserError(f"preflight: {what}, takes at most {limit:.3g}; {CAUSES}")


def _reaches(policy: Policy, steps: Steps) -> bool:
    """Whether some trained parameter moves some log-probability, whatever the method makes of it: rewards that are all 0 teach nothing."""
    signs = torch.randn(steps.mask.shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64).to(steps.log_probs.device)
    return _gradient(policy, (signs * steps.log_probs)[steps.mask].sum())[0] > 0


def _gradient(policy: Policy, loss: Tensor) -> tuple[float, list[str]]:
    """The norm of a loss's gradient, and the trained parameters that it does not depend on."""
    if not loss.requires_grad:
        return 0.0, []
    gradients = torch.autograd.grad(loss, leaves(policy), allow_unused=True)
    norms = [gradient.double().norm().cpu() for gradient in gradients if gradient is not None]
    unreached = [name for name, gradient in zip(policy.parameters(), gradients, strict=True) if gradient is None]
    return (float(torch.stack(norms).norm()) if norms else 0.0), unreached
