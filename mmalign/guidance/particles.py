"""Particles: rows that are weighed while they are sampled, and resampled; in log space, with generators of their own.

Each wanted row has K particles. Weights follow a potential of the reward of the clean estimate, ``r_t``; whatever potentials were used
on the way, the last one makes their product ``exp(scale r(x_0))``, so that the filter targets ``p(x_0) exp(scale r(x_0))``:

    difference   ln G_t = scale (r_t - r_before)          max   ln G_t = scale max_{s<=t} r_s
    sum          ln G_t = scale sum_{s<=t} r_s            mean  ln G_t = scale mean_{s<=t} r_s

(s <= t: from noise up to now.) A constant that is added to the reward changes no weight; ``exp`` is never taken of a reward, so nothing
saturates. Between resamplings weights go on being multiplied. A missing score counts as the mean of its group.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Annotated, Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion, within
from mmalign.guidance import _smc
from mmalign.guidance._checks import check_above, check_counts, check_interval
from mmalign.guidance._run import Guidance, GuidedRun
from mmalign.policies.pipelines.calls.scheduler import Moment
from mmalign.samplers import kernels
from mmalign.types import Kernel, Prediction, UserError

__all__ = ["das", "fk", "svdd"]

Potential = Literal["difference", "max", "sum", "mean"]
Select = Literal["best", "draw"]


def fk(  # the published sampler's own numbers
    *, scale: NotNegative = 10.0, particles: Count = 4, potential: Potential = "difference", every: Count = 1, start: Proportion = 0.2,
    stop: Proportion = 1.0,
    ess: Proportion = 0.5, select: Select = "best", kernel: Kernel | None = None,
) -> Guidance:  # fmt: skip
    """Feynman-Kac steering: particles are resampled by a potential of the reward of their clean estimates.

    Paper: A General Framework for Inference-time Scaling and Steering of Diffusion Models, https://arxiv.org/abs/2501.06848

    Args:
        scale: of the reward: the target is ``p exp(scale r)``. 0 samples the model.
        particles: K, rows of one batch; 1 is the model's own stochastic sampler.
        potential: what weighs at a step, of the rewards r_s of clean estimates from noise up to now, times ``scale``: ``difference``
            from the one before, ``max``, ``sum`` or ``mean`` of all so far. The last one makes the product ``exp(scale r(x_0))``.
        every: weigh at every so many steps. start, stop: fractions of the schedule between which that is.
        ess: resample once the effective number of particles is at most this fraction of K; 1 resamples always.
        select: what is handed over of the K: the best one, or one drawn by weight (the latter targets ``p exp(scale r)``).
        kernel: how steps are made random; ``kernels.ddim(eta=1)``, the ancestral sampler, by default.

    Cost: K evaluations a step; K decodes and rewards where it weighs, and at the end. The reward needs no gradient.

    Deviations: weights in log space, systematic resampling and generators by row; the published code takes ``exp(scale r)`` clamped
    to 1e10, which is the same weight for all above r = 2.3 at scale 10.

    Errors: UserError for a number out of range, and for another potential or selection.
    """
    _check("fk", scale=scale, particles=particles, every=every, ess=ess, select=select)
    check_interval("fk", start, stop)
    if potential not in LOG_POTENTIALS:
        raise UserError(f"fk.potential: got {potential!r}, takes {', '.join(LOG_POTENTIALS)}")
    rule = Rule(scale=scale, log_potential=LOG_POTENTIALS[potential], every=every, start=start, stop=stop, ess=ess, select=select)
    make = lambda run, rows, count: Particles(run, rows, count, rule)  # noqa: E731
    return Guidance("fk", frozenset({"reward"}), filter=make, particles=particles, kernel=kernel or kernels.ddim(eta=1.0))


def svdd(
    *,
    scale: Annotated[float, within(0)] = math.inf,
    particles: Count = 4,
    every: Count = 1,
    start: Proportion = 0.0,
    stop: Proportion = 1.0,
    kernel: Kernel | None = None,
) -> Guidance:
    """Of the proposals of each step one goes on, by the soft value ``scale r(D(x))``; all the others are dropped.

    Paper: Derivative-Free Guidance in Continuous and Discrete Diffusion Models with Soft Value-Based Decoding (SVDD-PM),
    https://arxiv.org/abs/2408.08252

    Args:
        scale: infinite takes the best proposal; a number draws by ``exp(scale r)``.
        particles: proposals for each row (the paper's code has 20).
        every, start, stop, kernel: as in ``fk``, and so is the cost.

    Errors: UserError for a number out of range.
    """
    _check("svdd", scale=scale, particles=particles, every=every, ess=1.0, select="best")
    check_interval("svdd", start, stop)
    rule = Rule(scale=scale, log_potential=_current, every=every, start=start, stop=stop, ess=1.0, select="best", one=True)
    make = lambda run, rows, count: Particles(run, rows, count, rule)  # noqa: E731
    return Guidance("svdd", frozenset({"reward"}), filter=make, particles=particles, kernel=kernel or kernels.ddim(eta=1.0))


def das(  # the published sampler's own numbers
    *, scale: NotNegative = 10.0, particles: Count = 4, tempering: NotNegative = 0.0, gradient: bool = True, start: Proportion = 0.0,
    ess: Proportion = 0.5,
    select: Select = "best", limit: Positive | None = 1.0, kernel: Kernel | None = None,
) -> Guidance:  # fmt: skip
    """Tempered particles that are moved by the reward's gradient, and weighed by what that did to their probability.

    Paper: Test-time Alignment of Diffusion Models without Reward Over-optimization (DAS), https://arxiv.org/abs/2501.05803

    Weights are ``lambda_t scale r(D(x_t))`` in differences, times ``p / q`` of each step: the kernel's density at the plain prediction
    over that at the guided one, so that the filter targets ``p exp(scale r)`` whatever the gradient did.

    Args:
        scale, particles, ess, select, kernel: as in ``fk``.
        tempering: ``lambda_t = (1 + tempering)^t - 1`` after t steps, at most 1 (the paper's code has 0.008 at 100 steps); 0 rises in
            proportion to the steps done, to 1 at the last.
        gradient: whether proposals are moved by ``lambda_t scale grad r`` (as in ``dps``); without it any reward will do.
        start: fraction of the schedule from which it weighs and moves. limit: of the move, as in ``tfg``.

    Cost per step: K evaluations, decodes and rewards, and K gradients with ``gradient``.

    Errors: UserError for a number out of range.
    """
    _check("das", scale=scale, particles=particles, every=1, ess=ess, select=select)
    check_interval("das", start, 1.0)
    check_above("das", limit=limit)
    if tempering < 0:
        raise UserError(f"das.tempering: got {tempering}, takes a number of 0 or more")
    temper = _tempering(tempering)
    rule = Rule(scale=scale, log_potential=_current, every=1, start=start, stop=1.0, ess=ess, select=select, temper=temper, telescopes=True)
    change = _tempered_gradient(scale, temper, start, limit) if gradient else None
    return Guidance(
        "das", frozenset({"reward", "gradient", "denoiser"} if gradient else {"reward"}), change=change, particles=particles,
        filter=lambda run, rows, count: Particles(run, rows, count, rule), kernel=kernel or kernels.ddim(eta=1.0),
    )  # fmt: skip


# Potentials: rewards from noise up to now, [visits, groups, K], without the scale -> ln G / scale, [groups, K]


def _difference(path: Tensor) -> Tensor:
    return path[-1] - path[-2] if len(path) > 1 else path[-1]


def _current(path: Tensor) -> Tensor:
    return path[-1]


LOG_POTENTIALS: dict[str, Callable[[Tensor], Tensor]] = {
    "difference": _difference,
    "max": lambda path: path.amax(0),
    "sum": lambda path: path.sum(0),
    "mean": lambda path: path.mean(0),
}


class Rule:
    """When and by what particles are weighed and resampled: the arguments of ``fk``, and

    one: all K places go to one parent, and weights are forgotten. temper: fraction of the schedule -> lambda. telescopes: the potential
    is a value, of which only what was added since the last time counts.
    """

    def __init__(  # the published sampler's own numbers
        self, *, scale: float, log_potential: Callable[[Tensor], Tensor], every: int, start: float, stop: float, ess: float, select: Select,
        one: bool = False, temper: Callable[[int, int], float] = lambda step, total: 1.0, telescopes: bool = False,
    ):  # fmt: skip
        self.scale, self.log_potential, self.every, self.start, self.stop = scale, log_potential, every, start, stop
        self.ess, self.select, self.one, self.temper, self.telescopes = ess, select, one, temper, telescopes


class Particles:
    """The particles of one call, ``K`` of each wanted row side by side; ``log_normaliser``: of each row, ln of the estimate of Z."""

    def __init__(self, run: GuidedRun, rows: Sequence[int], count: int, rule: Rule):
        self.run, self.rows, self.count, self.rule = run, rows, count, rule
        self.groups = len(rows) // count
        self.rng = torch.Generator().manual_seed(run.seed if run.seed is not None else 0)
        self.log_weights = torch.zeros((self.groups, count), dtype=torch.float64)
        self.spent = torch.zeros_like(self.log_weights)  # the logarithm of the product of a particle's potentials so far
        self.path: list[Tensor] = []
        self.log_normaliser = torch.zeros(self.groups, dtype=torch.float64)

    def weigh(self, moment: Moment, prediction: Prediction) -> Tensor | None:
        total = len(self.run.pipe.scheduler.schedule)
        step = total - moment.left
        rule = self.rule
        if not rule.start <= step / total < rule.stop or step % rule.every or float(moment.t.signal.min()) <= 0 or rule.scale == 0:
            return None
        scores = self.run.score_latents(moment.prediction.clean, self.rows).detach().double().cpu().view(self.groups, self.count)
        self.run.trace.append({"step": step, "scores": scores})
        return self.weighed(_smc.imputed(scores), rule.temper(step, total))

    def weighed(self, scores: Tensor, temper: float = 1.0) -> Tensor | None:
        """Row numbers that go on, after the particles' potentials at the scores ``[groups, K]`` of now."""
        self.path.append(scores)
        if self.rule.one:
            return self._moved(self._one(scores))
        value = self.rule.scale * temper * self.rule.log_potential(torch.stack(self.path))
        self._add(value - self.spent if self.rule.telescopes else value)
        if bool((_smc.effective_size(self.log_weights) > self.rule.ess * self.count + 1e-9).all()):
            return None
        return self._moved(self._resampled())

    def _one(self, scores: Tensor) -> Tensor:
        if math.isinf(self.rule.scale):
            return _smc.best(scores)[:, None].expand(-1, self.count)
        return _smc.one_of_each(self.rule.scale * scores, self.rng)[:, None].expand(-1, self.count)

    def _add(self, log_potential: Tensor) -> None:
        self.log_weights = self.log_weights + log_potential
        self.spent = self.spent + log_potential

    def _resampled(self) -> Tensor:
        """Parents of groups that need it; of the others, each its own, weights kept."""
        needed = _smc.effective_size(self.log_weights) <= self.rule.ess * self.count + 1e-9
        parents = torch.where(needed[:, None], _smc.systematic(self.log_weights, self.rng), torch.arange(self.count))
        self.log_normaliser += torch.where(needed, _smc.log_mean(self.log_weights), 0.0)
        self.log_weights = torch.where(needed[:, None], 0.0, self.log_weights)
        return parents

    def _moved(self, parents: Tensor) -> Tensor:
        self.spent = self.spent.gather(1, parents)
        self.path = [scores.gather(1, parents) for scores in self.path]
        return (torch.arange(self.groups)[:, None] * self.count + parents).flatten()

    def proposed(self, log_ratio: Tensor) -> None:
        self.log_weights = self.log_weights + log_ratio.double().cpu().view(self.groups, self.count)

    def finish(self, scores: Tensor) -> Tensor:
        """Log-weights ``[groups, K]`` under which the outputs stand for ``p exp(scale r)``; the normaliser is complete."""
        final = 0.0 if self.rule.scale == 0 else self.rule.scale * scores
        weights = self.log_weights + final - self.spent
        self.log_normaliser += _smc.log_mean(weights)
        return weights

    def chosen(self, scores: Tensor) -> Tensor:
        if self.rule.select == "best" or self.rule.one:
            return _smc.best(scores)
        return _smc.one_of_each(self.finish(_smc.imputed(scores)), self.rng)


def _tempering(growth: float) -> Callable[[int, int], float]:
    return lambda step, total: min(1.0, (1 + growth) ** step - 1) if growth > 0 else step / max(total - 1, 1)


def _tempered_gradient(scale: float, temper: Callable[[int, int], float], start: float, limit: float | None) -> Any:
    from mmalign.guidance.gradients import tfg

    def change(run: GuidedRun, moment: Moment, rows: Any) -> Prediction:
        total = len(run.pipe.scheduler.schedule)
        strength = scale * temper(total - moment.left, total)
        inner: Any = tfg(scale=strength, mu=0.0, start=start, limit=limit, name="das").change
        return inner(run, moment, rows)

    return change


def _check(name: str, *, scale: float, particles: int, every: int, ess: float, select: str) -> None:
    if not scale >= 0:
        raise UserError(f"{name}.scale: got {scale}, takes a number of 0 or more")
    if name != "svdd" and math.isinf(scale):
        raise UserError(f"{name}.scale: got infinity, which only svdd takes")
    check_counts(name, particles=particles, every=every)
    if not 0 <= ess <= 1:
        raise UserError(f"{name}.ess: got {ess}, takes a fraction of the particles, 0 to 1")
    if select not in ("best", "draw"):
        raise UserError(f"{name}.select: got {select!r}, takes 'best' or 'draw'")
