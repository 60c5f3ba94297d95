"""What a policy pays for leaving a named reference: ``Steps -> [B, T]``, 0 in dead cells, differentiable.

Two ways to know a step's KL: in closed form (``Steps.kls``: Gaussians, or whole vocabularies), or estimated from the sampled
step alone (``k1``, ``k2``, ``k3`` of ``Steps.refs``; names by John Schulman, http://joschu.net/blog/kl-approx.html).
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import Tensor

from mmalign.needs import DT, OLD, STD, kls, refs, reverse_kls
from mmalign.objectives import ratios
from mmalign.objectives.parts import Part, bounded_exp, bounded_expm1, choose, held, live
from mmalign.types import Need, Steps, UserError


def _log_ratio(steps: Steps, name: str) -> Tensor:
    return live(steps.log_probs - held(steps, refs(name)), steps.mask)


def exact_kl(steps: Steps, name: str = "ref") -> Tensor:
    """``KL(pi || ref)`` of each step's whole distribution, nats; for a Gaussian step ``|mean - mean_ref|^2 / (2 std^2)``."""
    return live(held(steps, kls(name)), steps.mask)


def reverse_kl(steps: Steps, name: str = "ref") -> Tensor:
    """``KL(ref || pi)`` of each step's whole distribution, nats: it asks the policy to cover all that the reference does."""
    return live(held(steps, reverse_kls(name)), steps.mask)


def k1(steps: Steps, name: str = "ref") -> Tensor:
    """``log pi - log ref``, nats. Unbiased as a number; as a loss its expected gradient is 0, so it belongs into rewards."""
    return _log_ratio(steps, name)


def k2(steps: Steps, name: str = "ref") -> Tensor:
    """``(log pi - log ref)^2 / 2``, nats. Biased as a number; as a loss its expected gradient on own samples is the KL's."""
    return _log_ratio(steps, name) ** 2 / 2


def k3(steps: Steps, name: str = "ref") -> Tensor:
    """``ref / pi - 1 - log(ref / pi)``, nats: never negative, unbiased (GRPO, arXiv 2402.03300, eq. 4).

    Beyond 20 nats the exponential goes on along its tangent. verl clamps the value to -10..10 instead, which takes the
    gradient away exactly where the policy is farthest from the reference.

    Examples:
        >>> log_probs, mask = torch.tensor([[0.5, 0.25]], dtype=torch.float64).log(), torch.tensor([[True, True]])
        >>> steps = Steps(log_probs, mask, refs={"ref": torch.tensor([[0.5, 0.5]], dtype=torch.float64).log()})
        >>> k3(steps)  # 0, and 2 - 1 - log 2
        tensor([[0.0000, 0.3069]], dtype=torch.float64)
    """
    difference = _log_ratio(steps, name)
    return bounded_expm1(-difference) + difference


def k3_clamped(steps: Steps, name: str = "ref") -> Tensor:
    """k3, at most 10 nats: verl's ``low_var_kl``. Above, which is 2.6 nats below the reference, its gradient is 0."""
    return k3(steps, name).clamp(max=10.0)


def k3_straight(steps: Steps, name: str = "ref") -> Tensor:
    """k3 in value with k2's gradient, which on own samples is the KL's on average: verl's ``k3+``."""
    slope = k2(steps, name)
    return slope + (k3(steps, name) - slope).detach()


def k3_weighted(steps: Steps, name: str = "ref") -> Tensor:
    """k3 times the step's importance ratio, both differentiable: unbiased in value and gradient off-policy too, a step at a time.

    DeepSeek-V3.2 (arXiv 2512.02556); TRL's default where there is a KL at all. Needs ``old``.
    """
    return bounded_exp(ratios.per_step(steps)) * k3(steps, name)


def per_scalar_kl(steps: Steps, name: str = "ref") -> Tensor:
    """The exact KL divided by D: nats per scalar, the scale that the ratio ``per_scalar`` has."""
    return exact_kl(steps, name) / steps.event_size


def flow_grpo_kl(steps: Steps, name: str = "ref") -> Tensor:
    """``mean |mean - mean_ref|^2 / (2 std_dev_t^2)`` of flow_grpo's and verl-omni's code: the exact KL times ``|dt| / D``.

    Their denominator leaves out ``|dt|``, the variance's time factor; at 10 steps it is about 10 times smaller than the
    paper's KL. Needs ``facts["dt"]``.
    """
    return per_scalar_kl(steps, name) * live(held(steps, DT), steps.mask).abs()


def mean_distance(steps: Steps, name: str = "ref") -> Tensor:
    """``mean (mean - mean_ref)^2``, no denominator (Flow-Factory's ``x-based``): the exact KL times ``2 std^2 / D``.

    Needs ``facts["std"]``. Its ``v-based`` twin, a mean squared difference of velocities, cannot be had from this table:
    the factor between means and velocities differs from kernel to kernel.
    """
    return per_scalar_kl(steps, name) * 2 * live(held(steps, STD), steps.mask) ** 2


_NAMED: dict[str, tuple[Callable[..., Tensor], str, tuple[Need, ...]]] = {
    "paper": (exact_kl, "kls", ()),
    "per_scalar": (per_scalar_kl, "kls", ()),
    "flow_grpo": (flow_grpo_kl, "kls", (DT,)),
    "mean_distance": (mean_distance, "kls", (STD,)),
    "exact": (exact_kl, "kls", ()),
    "reverse": (reverse_kl, "reverse_kls", ()),
    "k1": (k1, "refs", ()),
    "k2": (k2, "refs", ()),
    "k3": (k3, "refs", ()),
    "k3_weighted": (k3_weighted, "refs", (OLD,)),
    "k3_clamped": (k3_clamped, "refs", ()),
    "k3_straight": (k3_straight, "refs", ()),
}


def named(kl: str, *, beta: float, name: str = "ref") -> Part | None:
    """``beta`` times the KL of that name to the reference of that name, with what it needs; None where ``beta`` is 0.

    kl: ``exact`` (also called ``paper``), ``per_scalar``, ``flow_grpo``, ``mean_distance``, ``reverse``, ``k1``, ``k2``, ``k3``,
        ``k3_weighted``, ``k3_clamped``, ``k3_straight``.

    Errors: UserError for an unknown name or a negative ``beta``.
    """
    parts = {
        dialect: Part(partial(function, name=name), frozenset({Need(table, name), *facts}))
        for dialect, (function, table, facts) in _NAMED.items()
    }
    part = choose("kl", kl, parts)
    if beta < 0:
        raise UserError(f"beta: got {beta}, takes 0 or more")
    return part._replace(of=lambda steps: beta * part.of(steps)) if beta else None
