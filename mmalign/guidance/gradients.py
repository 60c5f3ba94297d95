"""Guidance by the gradient of a reward: one implementation, and the published methods as settings of it.

With ``p(x_0) exp(scale r(x_0))`` as the target, the score of a noisy latent gets ``scale * grad_x ln E[exp(r(x_0)) | x]`` on top. What
the methods differ in is how that is approximated; here D(x) is the denoiser's clean estimate and F what decodes and scores it.

    along x (rho):  score += rho scale grad_x ln mean_i exp F(D(x) + sigma e_i),          through the denoiser
    along D (mu):   D += mu v(t) scale grad_D F(D), ``steps`` times,                      not through it; v(t) = b^2 / (a^2 + b^2)
    recurrences:    the step is taken, undone with fresh noise, and taken again

============  ====  ====  =======  =====  ===========  ==========================================
method        rho   mu    samples  steps  recurrences  paper
============  ====  ====  =======  =====  ===========  ==========================================
``dps``       1     0     1        -      1            https://arxiv.org/abs/2209.14687
``lgd``       1     0     n        -      1            loss-guided diffusion (Song et al. 2023)
``mpgd``      0     1     1        1      1            https://arxiv.org/abs/2311.16424
``freedom``   1     0     1        -      r            https://arxiv.org/abs/2303.09833
``universal`` 1     1     1        m      k            https://arxiv.org/abs/2302.07121
``tfg``       any                                      https://arxiv.org/abs/2409.15761
``nrg``       grad_x r(x, t), of a reward of latents   https://arxiv.org/abs/2501.13918
============  ====  ====  =======  =====  ===========  ==========================================

v(t) is the variance of x_0 given x where the data have unit variance, so that rho and mu speak of the same tilt: ``scale`` has the
unit of 1 / reward in all of them, and 1 / beta of a KL-regularised optimum. Papers have step sizes without a unit in their places.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import called
from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.guidance._checks import check_above, check_counts, check_interval
from mmalign.guidance._run import Guidance, GuidedRun
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.types import Kernel, Prediction, UserError

__all__ = ["dps", "freedom", "lgd", "mpgd", "nrg", "tfg", "universal"]


def tfg(  # the published sampler's own numbers
    *, scale: NotNegative = 1.0, rho: NotNegative = 1.0, mu: NotNegative = 1.0,
    samples: Count = 1, sigma: NotNegative = 0.0, steps: Count = 1,
    recurrences: Count = 1,
    start: Proportion = 0.0, stop: Proportion = 1.0, limit: Positive | None = 1.0, kernel: Kernel | None = None, name: str = "tfg",
) -> Guidance:  # fmt: skip
    """The family: gradients along the noisy latent, along the clean estimate, and time travel, each with its own strength.

    Paper: TFG, https://arxiv.org/abs/2409.15761

    Args:
        scale: of the reward: the target is ``p exp(scale r)``. 0 is the model without guidance, to the last bit.
        rho: strength along the noisy latent, through the denoiser; 0 saves its backward pass.
        mu, steps: strength along the clean estimate, in each of ``steps`` steps of gradient ascent; a mu of 0 is none.
        samples, sigma: clean estimates with noise of ``sigma`` (in units of the latent) over which the reward is averaged in ``rho``.
        recurrences: how often each level is come by.
        start, stop: fractions of the schedule between which it acts.
        limit: a row's clean estimate moves by no more than this root mean square in one step, in units of the latent; None for any.
        kernel: how steps are made random; deterministic by default. name: what errors call it.

    Cost per step: ``recurrences`` evaluations; as many gradients with rho; ``samples + steps`` decodes and rewards each time.
    Rows whose gradient is not finite go on without it, and are counted (``failed``). Pure noise (signal 0) says nothing of the data: its
    step is not guided; nor is, along x, the first one where a pipeline makes its first latent inside its call, or shows a part of it.

    Errors: UserError for a number out of range, and for a reward or a pipeline without a gradient.
    """
    check_interval(name, start, stop)
    check_counts(name, samples=samples, steps=steps, recurrences=recurrences)
    check_above(name, limit=limit)
    for key, number in {"scale": scale, "rho": rho, "mu": mu, "sigma": sigma}.items():
        if not number >= 0 or number == float("inf"):
            raise UserError(f"{name}.{key}: got {number}, takes a number of 0 or more")
    if samples > 1 and sigma == 0:
        raise UserError(f"{name}.sigma: got 0 with {samples} samples, which would all be the same")

    def change(run: GuidedRun, moment: Moment, rows: Sequence[int]) -> Prediction:
        if scale == 0 or not start <= place_in_schedule(run, moment) < stop or float(moment.t.signal.min()) <= 0:
            return moment.prediction
        clean = moment.prediction.clean
        with torch.enable_grad():
            shift = torch.zeros_like(clean.detach())
            if rho > 0:
                ascent = _along_x(run, moment, rows, scale, samples, sigma)
                shift = shift + rho * moment.t.noise.to(ascent) ** 2 / moment.t.signal.to(ascent) * ascent
            if mu > 0:
                share = (moment.t.noise**2 / (moment.t.signal**2 + moment.t.noise**2)).to(shift)
                for _ in range(steps):
                    shift = shift + mu * share * _along_clean(run, clean.detach() + shift, rows, scale)
        return shifted(moment, limited(shift, limit))

    through = {"denoiser"} if rho > 0 and scale > 0 else set()
    needs = frozenset({"reward", "gradient", *through})
    return Guidance(name, needs, change=change, repeats=recurrences, kernel=kernel)


def dps(
    *, scale: NotNegative = 1.0, start: Proportion = 0.0, stop: Proportion = 1.0, limit: Positive | None = 1.0, kernel: Kernel | None = None
) -> Guidance:
    """The gradient of the clean estimate's reward along the noisy latent, through the denoiser; see ``tfg``.

    ``tfg`` with rho 1 and mu 0::

        score += scale * grad_x r(D(x))

    scale, start, stop, limit, kernel: as in ``tfg``.

    Paper: Diffusion Posterior Sampling, https://arxiv.org/abs/2209.14687

    Deviations: any reward in place of a measurement's error; no division by its norm.

    Errors: as in ``tfg``.
    """
    return tfg(scale=scale, mu=0.0, start=start, stop=stop, limit=limit, kernel=kernel, name="dps")


def lgd(
    *,
    scale: NotNegative = 1.0,
    samples: Count = 4,
    sigma: NotNegative = 0.1,
    start: Proportion = 0.0,
    stop: Proportion = 1.0,
    limit: Positive | None = 1.0,
) -> Guidance:
    """``dps`` of a reward that is averaged (in exponentials) over clean estimates with noise; see ``tfg``.

    ``tfg`` with rho 1 and mu 0, over ``samples`` draws e_i of standard normal noise::

        score += grad_x ln mean_i exp(scale * r(D(x) + sigma e_i))

    scale, samples, sigma, start, stop, limit: as in ``tfg``.

    Paper: Loss-Guided Diffusion Models, Song et al., ICML 2023

    Errors: as in ``tfg``.
    """
    return tfg(scale=scale, mu=0.0, samples=samples, sigma=sigma, start=start, stop=stop, limit=limit, name="lgd")


def mpgd(
    *, scale: NotNegative = 1.0, steps: Count = 1, start: Proportion = 0.0, stop: Proportion = 1.0, limit: Positive | None = 1.0
) -> Guidance:
    """Gradient ascent on the clean estimate alone: no backward pass through the denoiser; see ``tfg``.

    ``tfg`` with rho 0 and mu 1; at a level ``x = a x_0 + b eps``, ``steps`` times::

        D += b^2 / (a^2 + b^2) * scale * grad_D r(D)

    scale, steps, start, stop, limit: as in ``tfg``.

    Paper: Manifold Preserving Guided Diffusion, https://arxiv.org/abs/2311.16424

    Deviations: no projection by an autoencoder; latents already are one's.

    Errors: as in ``tfg``.
    """
    return tfg(scale=scale, rho=0.0, steps=steps, start=start, stop=stop, limit=limit, name="mpgd")


def freedom(
    *, scale: NotNegative = 1.0, recurrences: Count = 2, start: Proportion = 0.2, stop: Proportion = 0.8, limit: Positive | None = 1.0
) -> Guidance:
    """``dps`` with time travel, in the middle of the schedule by default; see ``tfg``.

    scale, recurrences, start, stop, limit: as in ``tfg``.

    Paper: FreeDoM, https://arxiv.org/abs/2303.09833

    Deviations: levels outside the interval are come by as often as those inside; their steps are not guided.

    Errors: as in ``tfg``.
    """
    return tfg(scale=scale, mu=0.0, recurrences=recurrences, start=start, stop=stop, limit=limit, name="freedom")


def universal(
    *,
    scale: NotNegative = 1.0,
    steps: Count = 1,
    recurrences: Count = 1,
    start: Proportion = 0.0,
    stop: Proportion = 1.0,
    limit: Positive | None = 1.0,
) -> Guidance:
    """Forward guidance through the denoiser and backward guidance of the clean estimate, half of the tilt each; see ``tfg``.

    ``tfg`` with rho 1/2 and mu 1 / (2 steps).

    scale, steps, recurrences, start, stop, limit: as in ``tfg``.

    Paper: Universal Guidance for Diffusion Models, https://arxiv.org/abs/2302.07121

    Deviations: both in units of the reward, half each, so that together they are one tilt; the paper tunes a scale for each task.

    Errors: as in ``tfg``.
    """
    check_counts("universal", steps=steps)
    return tfg(
        scale=scale, rho=0.5, mu=0.5 / steps, steps=steps, recurrences=recurrences, start=start, stop=stop, limit=limit, name="universal"
    )


def nrg(
    *, scale: NotNegative = 1.0, start: Proportion = 0.0, stop: Proportion = 1.0, limit: Positive | None = 1.0, kernel: Kernel | None = None
) -> Guidance:
    """The gradient of a reward of noisy latents: no denoiser and no decoder in the backward pass.

    Paper: Flow-NRG, in Improving Video Generation with Human Feedback, https://arxiv.org/abs/2501.13918

    ``v += - scale (b (a + b) / a) grad_x r(x, t)``, which is ``s / (1 - s)`` on a rectified flow at time s. The reward is called
    as ``reward(latents, prompts, level=Level)`` and answers ``[B]``; several, with ``guide``'s ``weights``, are weighed anew at each use.
    Cost per step: one evaluation, one gradient of the reward.

    scale, start, stop, kernel: as in ``tfg``. limit: of the clean estimate's move, as in ``tfg``.

    Errors: as in ``tfg``.
    """
    check_interval("nrg", start, stop)
    check_above("nrg", limit=limit)
    if not 0 <= scale < float("inf"):
        raise UserError(f"nrg.scale: got {scale}, takes a number of 0 or more")

    def change(run: GuidedRun, moment: Moment, rows: Sequence[int]) -> Prediction:
        if scale == 0 or not start <= place_in_schedule(run, moment) < stop or float(moment.t.signal.min()) <= 0:
            return moment.prediction
        with torch.enable_grad():
            x = moment.x.detach().float().requires_grad_()
            ascent = _gradient(run, scale * run.score(x, rows, level=moment.t), x)
        return shifted(moment, limited(moment.t.noise.to(ascent) ** 2 / moment.t.signal.to(ascent) * ascent, limit))

    return Guidance("nrg", frozenset({"reward", "gradient", "noisy"}), change=change, kernel=kernel)


# Parts


def shifted(moment: Moment, shift: Tensor) -> Prediction:
    """The prediction with its clean estimate moved, and the noise that goes with it: ``x = a clean + b noise`` still holds."""
    t, clean = moment.t, moment.prediction.clean.detach() + shift
    return Prediction(clean, moment.prediction.noise.detach() - t.signal.to(shift) / t.noise.to(shift).clamp(min=1e-12) * shift)


def place_in_schedule(run: GuidedRun, moment: Moment) -> float:
    """How far the schedule has gone, 0 to 1."""
    total = len(run.pipe.scheduler.schedule)
    return (total - moment.left) / total


def _along_x(run: GuidedRun, moment: Moment, rows: Sequence[int], scale: float, samples: int, sigma: float) -> Tensor:
    """``grad_x ln mean_i exp(scale F(D + sigma e_i))``, ``[B, ...]``, through the denoiser."""
    clean = moment.prediction.clean
    if not clean.requires_grad or not moment.x.requires_grad:
        if moment.column == 0:  # made inside the pipeline's call, where nothing can mark it, or a part of what was made
            return torch.zeros_like(clean)
        raise UserError(f"{type(run.pipe).__name__}: its latent has no gradient through the denoiser; mpgd needs none")
    if samples == 1:
        value = scale * run.score_latents(clean, rows)
    else:
        rng = torch.Generator(clean.device).manual_seed(moment.left)
        noisy = [clean + sigma * torch.randn(clean.shape, generator=rng, device=clean.device) for _ in range(samples)]
        value = torch.logsumexp(torch.stack([scale * run.score(run.decode(one, rows), rows) for one in noisy]), dim=0)
    run.ledger.gradients += len(rows)
    return _gradient(run, value, moment.x).to(clean.dtype)


def _along_clean(run: GuidedRun, clean: Tensor, rows: Sequence[int], scale: float) -> Tensor:
    """``grad_D scale F(D)``, ``[B, ...]``."""
    leaf = clean.detach().requires_grad_()
    return _gradient(run, scale * run.score_latents(leaf, rows), leaf)


def _gradient(run: GuidedRun, value: Tensor, of: Tensor) -> Tensor:
    """The gradient, 0 in rows where it is not finite. Errors: UserError for a value that has none."""
    names = ", ".join(called(reward, key) for key, reward in run.rewards.items())
    if not value.requires_grad:
        raise UserError(f"reward {names}: no gradient arrives at what it scores; gradient guidance takes a differentiable reward")
    alive = value.isfinite()
    gradient: Any = torch.autograd.grad(torch.where(alive, value, 0.0).sum(), of, allow_unused=True)[0]
    if gradient is None:
        raise UserError(f"reward {names}: no gradient arrives at the latent of {type(run.pipe).__name__}; fk, svdd and best_of need none")
    run.ledger.reward_gradients += len(value)
    good = gradient.flatten(1).isfinite().all(1) & alive.to(gradient.device)
    run.ledger.failed += int((~good).sum())
    return torch.where(good.view(-1, *(1,) * (gradient.ndim - 1)), gradient, 0.0)


def limited(shift: Tensor, limit: float | None) -> Tensor:
    """A shift ``[B, ...]`` whose root mean square in each row is at most ``limit``; None: as it is."""
    if limit is None:
        return shift
    size = shift.flatten(1).square().mean(1).sqrt().view(-1, *(1,) * (shift.ndim - 1))
    return shift * (limit / size.clamp(min=1e-12)).clamp(max=1.0)
