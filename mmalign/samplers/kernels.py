"""One denoising step as a Gaussian ``x_next ~ N(mean, std^2 I)``, and what follows from it: sample, log-probability, KL.

Letters: a level is ``x_t = a * x_0 + b * eps`` with ``a = t.signal`` and ``b = t.noise``; a prime marks the next level. Every
kernel here has one form, and is a choice of two numbers, ``weight`` and ``std``:

    mean = a' * clean + weight * noise

=============  =============================================  =============================================
kernel         weight                                         std
=============  =============================================  =============================================
``ode``        b'                                             0
``ddim``       sqrt(b'^2 - std^2)                             eta * b' * sqrt(1 - (a b' / (a' b))^2)
``cps``        sqrt(b'^2 - std^2)                             b' * sin(noise_level * pi / 2)
``flow_sde``   b' - (a' + b') * g^2 * h / (2 s)               (a' + b') * g * sqrt(h),  g = noise_level * sqrt(s / (1 - s))
``dance_sde``  b' - (a' + b') * g^2 * h / (2 s)               (a' + b') * g * sqrt(h),  g = noise_level
=============  =============================================  =============================================

``s = b / (a + b)`` is the flow time of a level (1 is noise, 0 is data) and ``h = s - s'``. ``x / (a + b)`` is a rectified flow at
time ``s`` on any Gaussian path, so the two SDEs are stated there and scaled back: all kernels take flow, variance-preserving
and variance-exploding schedules, with one level for the batch or one for each row.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Annotated, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import NotNegative, Proportion, within
from mmalign.types import Kernel, Level, Prediction, UserError

__all__ = ["cps", "dance_sde", "ddim", "flow_sde", "ode"]  # what a configuration may name as a kernel

Parametrisation = Literal["epsilon", "v_prediction", "sample", "flow"]
Weights = Callable[[Level, Level], tuple[Tensor, Tensor]]


# From a model's output to the one form that kernels take


def predict(output: Tensor, x: Tensor, t: Level, *, parametrisation: Parametrisation) -> Prediction:
    """The estimates of ``x_0`` and ``eps`` in a model's output; ``x = a * clean + b * noise`` holds.

    epsilon:       output = eps
    sample:        output = x_0
    v_prediction:  output = a * eps - b * x_0   (Salimans & Ho 2022; here for any a and b, not only a^2 + b^2 = 1)
    flow:          output = eps - x_0           (Liu et al. 2022; here for any a and b, not only a + b = 1)

    ``output`` and ``x``: ``[B, ...]``; half precision is widened to float32 first, so that the step is never rounded to it.
    Pure noise (a = 0) has no finite clean estimate in ``epsilon``, and clean data (b = 0) no noise estimate in ``sample``: the
    estimate is 0 there, and so is its gradient.

    Errors: UserError for an unknown parametrisation.

    Examples:
        >>> half = Level(torch.tensor(0.5), torch.tensor(0.5))  # x = x_0 / 2 + eps / 2, of x_0 = 1 and eps = 3
        >>> predict(torch.tensor([2.0]), torch.tensor([2.0]), half, parametrisation="flow")
        Prediction(clean=tensor([1.]), noise=tensor([3.]))
    """
    output, x = _wide(output), _wide(x)
    a, b = t.signal.to(x), t.noise.to(x)
    if parametrisation == "epsilon":
        return Prediction(clean=_ratio(x - b * output, a), noise=output)
    if parametrisation == "sample":
        return Prediction(clean=output, noise=_ratio(x - a * output, b))
    if parametrisation == "v_prediction":
        return Prediction(clean=(a * x - b * output) / (a * a + b * b), noise=(b * x + a * output) / (a * a + b * b))
    if parametrisation == "flow":
        return Prediction(clean=(x - b * output) / (a + b), noise=(x + a * output) / (a + b))
    raise UserError(f"parametrisation: got {parametrisation!r}, takes 'epsilon', 'v_prediction', 'sample' or 'flow'")


def flow_time(level: Level) -> Tensor:
    """``s = b / (a + b)``: the rectified-flow time of a level, 1 for noise and 0 for data. Differences of it are ``dt``.

    Examples:
        >>> flow_time(Level(torch.tensor([1.0, 0.75, 0.0]), torch.tensor([0.0, 0.25, 1.0]))).tolist()
        [0.0, 0.25, 1.0]
    """
    return level.noise / (level.signal + level.noise)


# The kernels


def ode() -> Kernel:
    """The deterministic step (DDIM with eta 0; Euler's method on a rectified flow): ``std`` is 0, there is no density.

    Examples:
        >>> t, t_next = Level(torch.tensor(0.5), torch.tensor(0.5)), Level(torch.tensor(0.75), torch.tensor(0.25))
        >>> ode()(Prediction(clean=torch.tensor([1.0]), noise=torch.tensor([3.0])), torch.tensor([2.0]), t, t_next)  # 0.75 * 1 + 0.25 * 3
        (tensor([1.5000]), tensor(0.))
    """
    return _kernel(lambda t, t_next: (t_next.noise, torch.zeros_like(t_next.noise)))


def ddim(*, eta: Proportion = 1.0) -> Kernel:
    """The stochastic DDIM step of DDPO; ``eta=1`` is the ancestral sampler, ``eta=0`` is ``ode``.

    Paper: Song et al. 2020, https://arxiv.org/abs/2010.02502, eq. 12 and 16; DDPO, https://arxiv.org/abs/2305.13301

    ``std^2 = eta^2 (b'/b)^2 (b^2 - (a/a')^2 b'^2)``, which for a^2 + b^2 = 1 is ``eta^2 (1-abar')/(1-abar) (1-abar/abar')``.
    The step into b' = 0 is deterministic; ddpo-pytorch returns NaN as its log-probability.

    eta: 0 to 1, how much of the ancestral sampler's noise is drawn anew.

    Errors: UserError for a number outside 0..1.
    """
    _check("ddim", "eta", eta, high=1.0)

    def weights(t: Level, t_next: Level) -> tuple[Tensor, Tensor]:
        # 1 - (a b' / (a' b))^2 from its small factor, which does not cancel. Two levels of pure noise, or of none, are no step.
        gap = _ratio(t_next.signal * t.noise - t.signal * t_next.noise, t_next.signal * t.noise)
        share = eta * torch.sqrt((gap * (2 - gap)).clamp(0, 1))
        return t_next.noise * torch.sqrt(1 - share * share), t_next.noise * share

    return _kernel(weights)


def cps(*, noise_level: Proportion = 0.8) -> Kernel:
    """Coefficients-preserving sampling: with the clean image known, the noise after a step is exactly the schedule's.

    Paper: Flow-CPS, https://arxiv.org/abs/2509.05952

    ``std = b' sin(noise_level * pi / 2)``; the step into b' = 0 is deterministic. Public code uses ``-mean((x' - mean)^2)`` as a
    "log-probability"; here it is the density, so clip ranges differ by 2 std^2. The noise does not shrink with the step, so many
    steps do not lead to the data: of Gaussian data's variance, ``(1 + cos(noise_level * pi / 2)) / 2`` is left (.65 at 0.8, a
    result of this project's closed-form world).

    noise_level: 0 to 1, how much of the noise is drawn anew; 0 is ``ode``.

    Errors: UserError for a number outside 0..1.
    """
    _check("cps", "noise_level", noise_level, high=1.0)
    sin, cos = math.sin(noise_level * math.pi / 2), math.cos(noise_level * math.pi / 2)
    return _kernel(lambda t, t_next: (t_next.noise * cos, t_next.noise * sin))


def flow_sde(
    *,
    noise_level: NotNegative = 0.7,
    first: Literal["next"] | Annotated[float, within(0, 1, above=True, below=True)] = "next",
    last: Literal["ode", "noise"] = "ode",
) -> Kernel:
    """The SDE of Flow-GRPO, with noise that grows with the level: ``g = noise_level * sqrt(s / (1 - s))``.

    Paper: Flow-GRPO, https://arxiv.org/abs/2505.05470

        mean = x + (v + g^2 / (2 s) * (x + (1 - s) v)) dt,   std = g sqrt(|dt|),   dt = s' - s,   v = eps - x_0

    It keeps the path's marginals only as steps become many: at 10 steps (shift 3) each leaves .014 to .059 too much noise.

    noise_level: 0 or more; 0 is ``ode``.
    first: g is infinite at s = 1. ``"next"`` puts 1 - s' for 1 - s there, inside g alone (flow_grpo, verl-omni), so that the
      first flow step has std noise_level. A number below 1 puts min(s, number) for s inside 1 - s (0.99: AWM, UniRL's default);
      take it where s is almost 1 but not 1 (``vp_levels``, rescaled zero-SNR schedules), which makes g very large.
    last: at b' = 0 the formula leaves noise that no later step removes. ``"ode"`` returns the clean prediction with std 0
      instead; ``"noise"`` keeps to the paper. A schedule that ends in a tiny b' before 0 (diffusers with a static shift: 0.278,
      0.009, 0) has the same trouble one step earlier: ``windows.all_but_last(count=2)``.

    Errors: UserError for a number out of range, and for another word.
    """
    _check("flow_sde", "noise_level", noise_level)
    if first != "next" and (isinstance(first, (str, bool)) or not 0 < first < 1):
        raise UserError(f"flow_sde.first: got {first!r}, takes 'next' or a number between 0 and 1")

    def variance(t: Level, t_next: Level) -> Tensor:
        if first == "next":
            at_noise = _ratio(t_next.signal + t_next.noise, t_next.signal)  # s / (1 - s') at s = 1
            return noise_level**2 * _ratio(t.noise, t.signal, otherwise=at_noise)
        s = flow_time(t)
        return noise_level**2 * s / (1 - s.clamp(max=float(first)))

    return _sde("flow_sde", variance, last)


def dance_sde(*, noise_level: NotNegative = 0.3, last: Literal["ode", "noise"] = "ode") -> Kernel:
    """The SDE of DanceGRPO, with constant noise: ``g = noise_level``; otherwise that of ``flow_sde``.

    Paper: DanceGRPO, https://arxiv.org/abs/2505.07818

    noise_level: 0 or more; 0 is ``ode``. last: as in ``flow_sde``; DanceGRPO decodes the last clean prediction, which is ``"ode"``.

    Errors: UserError for a number out of range, and for another word.
    """
    _check("dance_sde", "noise_level", noise_level)
    return _sde("dance_sde", lambda t, t_next: torch.full_like(t.noise, noise_level**2), last)


# What follows from (mean, std), once for all kernels


def sample(mean: Tensor, std: Tensor, noise: Tensor) -> Tensor:
    """``mean + std * noise``; ``noise`` is standard normal, of the shape of ``mean``."""
    return mean + std * noise


def log_prob(x_next: Tensor, mean: Tensor, std: Tensor) -> Tensor:
    """``log N(x_next; mean, std^2 I)`` summed over the event, ``[B]`` float64, in nats; ``x_next`` is taken as a constant.

    x_next, mean: ``[B, ...]``; std broadcasts against them. Elements are computed in float32 (float64 if given), sums in
    float64. Where std is 0 there is no density: such elements add 0, and no gradient; leave the step out of the mask.

    Examples:
        >>> log_prob(torch.tensor([[1.0, 3.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor(1.0))  # -(0 + 2^2) / 2 - log(2 pi)
        tensor([-3.8379], dtype=torch.float64)
    """
    x_next, mean, std = _wide(x_next.detach()), _wide(mean), _wide(std)
    alive = std > 0
    # The inner where keeps 0 / 0 out of the backward pass, in which 0 * inf would be NaN.
    z = torch.where(alive, (x_next - mean) / torch.where(alive, std, 1.0), 0.0)
    log_scale = torch.where(alive, torch.where(alive, std, 1.0).double().log() + 0.5 * math.log(2 * math.pi), 0.0)
    return -0.5 * per_row(z * z, z) - per_row(log_scale, z)


def kl(mean: Tensor, std: Tensor, mean_ref: Tensor, std_ref: Tensor) -> Tensor:
    """``KL(N(mean, std^2) || N(mean_ref, std_ref^2))`` summed over the event, ``[B]`` float64, in nats, differentiable.

        ln(std_ref / std) + (std^2 + (mean - mean_ref)^2) / (2 std_ref^2) - 1/2        for each element

    Equal stds leave ``|mean - mean_ref|^2 / (2 std^2)``, where std is that of the step: flow_grpo and verl-omni leave the
    sqrt(h) out, and so have h times this. Where either std is 0 the KL is infinite or undefined: such elements add 0, and no
    gradient; leave the step out of the mask.

    Examples:
        >>> one = torch.tensor(1.0)
        >>> kl(torch.tensor([[1.0, 3.0]]), one, torch.tensor([[1.0, 1.0]]), one).tolist()  # 2^2 / 2
        [2.0]
    """
    mean, std, mean_ref, std_ref = _wide(mean), _wide(std), _wide(mean_ref), _wide(std_ref)
    alive = (std > 0) & (std_ref > 0)
    z = torch.where(alive, (mean - mean_ref) / torch.where(alive, std_ref, 1.0), 0.0)
    ratio = (torch.where(alive, std, 1.0).double() / torch.where(alive, std_ref, 1.0).double()).square()
    return 0.5 * (per_row(z * z, z) + per_row(ratio - 1 - ratio.log(), z))


def of_step(kernel: Kernel, t: Level, t_next: Level) -> tuple[Tensor, Tensor]:
    """``std`` of a step, and by how much its mean moves as the velocity ``eps - x_0`` does (absolute), 0-d each; from 0-d levels.

    The mean is a linear function of what the model says, so that this holds wherever the step begins.

    Examples:
        >>> t, t_next = Level(torch.tensor(0.5), torch.tensor(0.5)), Level(torch.tensor(0.75), torch.tensor(0.25))
        >>> of_step(ode(), t, t_next)  # Euler's method: x + v dt
        (tensor(0.), tensor(0.2500))
    """
    scale = t.signal + t.noise
    zero = torch.zeros_like(scale)
    still, std = kernel(Prediction(zero, zero), zero, t, t_next)
    moved, _ = kernel(Prediction(-t.noise / scale, t.signal / scale), zero, t, t_next)
    return std, (moved - still).abs()


def per_row(cells: Tensor, like: Tensor | None = None) -> Tensor:
    """Sums over all but the first dimension, ``[B]`` float64; a row's last bits depend on its numbers alone.

    like: what ``cells`` broadcast to, without being copied. One dimension at a time: a single large sum is split over threads when there
    is one row, and not when there are several. In the order of the shape, however memory is laid out: what a denoiser answers, and what
    was recorded of it, may be laid out in two ways, and sums take another order for each.

    Examples:
        >>> per_row(torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [3.0, 7.0]
    """
    cells = cells.contiguous() if like is None else cells.contiguous().expand_as(like)
    while cells.ndim > 1:
        cells = cells.sum(-1, dtype=torch.float64)
    return cells.double()


# Parts


def _kernel(weights: Weights) -> Kernel:
    def kernel(prediction: Prediction, x: Tensor, t: Level, t_next: Level) -> tuple[Tensor, Tensor]:
        clean, noise = prediction
        weight, std = (value.to(clean) for value in weights(t, t_next))
        return t_next.signal.to(clean) * clean + weight * noise, std

    return kernel


def _sde(name: str, variance: Callable[[Level, Level], Tensor], last: str) -> Kernel:
    """An Euler step of the SDE with the path's marginals and ``variance`` = g^2, noise added per unit of flow time."""
    if last not in ("ode", "noise"):
        raise UserError(f"{name}.last: got {last!r}, takes 'ode' or 'noise'")

    def weights(t: Level, t_next: Level) -> tuple[Tensor, Tensor]:
        s, scale = flow_time(t), t_next.signal + t_next.noise
        added = variance(t, t_next) * (s - flow_time(t_next)).clamp(min=0)
        if last == "ode":
            added = torch.where(t_next.noise > 0, added, 0.0)
        return t_next.noise - scale * _ratio(added, 2 * s), scale * torch.sqrt(added)

    return _kernel(weights)


def _ratio(top: Tensor, bottom: Tensor, otherwise: Tensor | float = 0.0) -> Tensor:
    """``top / bottom``, and ``otherwise`` where ``bottom`` is 0, with finite gradients on both sides."""
    alive = bottom > 0
    return torch.where(alive, top / torch.where(alive, bottom, 1.0), otherwise)


def _wide(tensor: Tensor) -> Tensor:
    return tensor if tensor.dtype == torch.float64 else tensor.float()


def _check(owner: str, name: str, value: float, high: float = 1e6) -> None:
    """high: 1e6 where any level has a meaning; the square of a larger one, over a small signal, is soon no number."""
    number = isinstance(value, (int, float)) and not isinstance(value, bool)
    if not (number and 0 <= value <= high):
        raise UserError(f"{owner}.{name}: got {value!r}, takes a number from 0 to {high:g}")
