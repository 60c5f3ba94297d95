"""Optimisation of the noise that a sample is made of, by the reward's gradient through the whole sampler."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch import Tensor

from mmalign.arguments.facts import called
from mmalign.arguments.ranges import Count, NotNegative, Positive, Proportion
from mmalign.guidance._calls import outputs_of
from mmalign.guidance._run import Guidance, GuidedRun, Samples
from mmalign.guidance.guide import run_particles
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.samplers import kernels
from mmalign.types import UserError

__all__ = ["dno", "noise_log_prob", "reno"]

Optimiser = Literal["sgd", "adam"]


def noise_log_prob(noise: Tensor) -> Tensor:
    """How likely the length of noise is, ``[B]``: ``(D - 1) ln |z| - |z|^2 / 2``, up to a constant; D numbers in each row.

    That of a chi distribution, largest at ``|z|^2 = D - 1``: the density itself is largest at 0, where no noise ever is.

    noise: ``[B, ...]``, of unit variance.
    """
    size = noise.flatten(1).double().norm(dim=1).clamp(min=1e-12)
    return (noise[0].numel() - 1) * size.log() - size**2 / 2


def reno(*, iterations: Count = 10, rate: Positive = 0.05, regulariser: NotNegative = 0.01, clip: Positive = 0.1) -> Guidance:
    """The first noise of a deterministic sampler moved up the reward's gradient; the best sample on the way is kept.

    Paper: ReNO, https://arxiv.org/abs/2406.04312

        maximise r(sample(z)) + regulariser * noise_log_prob(z),  by gradient ascent with Nesterov momentum 0.9

    Samples for models of one step or few: memory grows with their number, as the graph runs through all of them.

    Args:
        iterations: updates; one sample more is made.
        rate: of an update, as a share of the noise's length ``sqrt(D)`` where the gradient is as long as ``clip`` or longer.
        regulariser: weight of the noise's length (the paper's code: 0.01). 0 lets the noise go where no sample comes from.
        clip: the largest length of a row's gradient; infinite leaves it as it is, and ``rate`` multiplies it.

    Cost: ``iterations + 1`` samples of each row, as many backward passes through every step.

    Deviations: the rate is in units of the noise's length (the paper's 5 at a clip of 0.1 is 0.5 of absolute length an update).

    Errors: UserError for a number out of range, for another guidance of steps inside, for a reward or a pipeline without a gradient.
    """
    return _optimised("reno", iterations, rate, regulariser, clip, "sgd", every=False)


def dno(*, iterations: Count = 10, rate: Positive = 0.05, regulariser: NotNegative = 0.01, eta: Proportion = 1.0) -> Guidance:
    """All the noise that a stochastic sampler draws, moved up the reward's gradient with Adam; the best sample is kept.

    Paper: Direct Noise Optimization, https://arxiv.org/abs/2405.18881

    The regulariser is on by default, on the length of each step's noise as in ``reno`` and, beside it, on its mean and variance over
    the elements, which a move in a few directions leaves alone; the published code has it switched off.

    Args:
        iterations: as in ``reno``, and so is the cost. rate: of Adam, in units of the noise's standard deviation.
        regulariser: weight of both. eta: of the DDIM step that draws the noise.

    Deviations: the paper bounds the probability of the noise by concentration inequalities over random permutations; moments of the
    elements are in their place.

    Errors: as in ``reno``.
    """
    return _optimised("dno", iterations, rate, regulariser, math.inf, "adam", every=True, eta=eta)


def _optimised(
    name: str, iterations: int, rate: float, regulariser: float, clip: float, optimiser: Optimiser, *, every: bool, eta: float = 0.0
) -> Guidance:
    if iterations < 1:
        raise UserError(f"{name}.iterations: got {iterations}, takes 1 or more")
    for key, value in {"rate": rate, "regulariser": regulariser, "clip": clip, "eta": eta}.items():
        if not value >= 0 or (key == "rate" and value == 0):
            raise UserError(
                f"{name}.{key}: got {value}, takes a number {'above' if key == 'rate' else 'of'} 0{'' if key == 'rate' else ' or more'}"
            )

    def search(run: GuidedRun) -> Samples:
        if run_particles(run) > 1 or any(part.change for part in run.guides):
            raise UserError(f"{name}: takes no other guidance of steps inside")
        rows, seeds = list(range(len(run.call.prompts))), run.seeds(1)
        noises = _Noises(run, rows, seeds, eta if every else None)
        best: Samples | None = None
        for number in range(iterations + 1):
            samples = noises.sample(keep_graph=number < iterations)
            best = samples if best is None else _better(best, samples)
            run.trace.append({"iteration": number, "scores": samples.scores, "length": noises.lengths()})
            if number < iterations:
                noises.update(rate, regulariser, clip, optimiser)
        assert best is not None
        return best

    return Guidance(name, frozenset({"reward", "gradient"}), search=search)


class _Noises:
    """The noise of some rows: ``values``, of the first latent and, with ``eta``, of every step; leaves of a graph through the sampler."""

    def __init__(self, run: GuidedRun, rows: Sequence[int], seeds: list[int], eta: float | None):
        self.run, self.rows, self.seeds = run, rows, seeds
        self.kernel = kernels.ode() if eta is None else kernels.ddim(eta=eta)
        self.place, start = run.first_latents(rows, seeds)
        self.size = start.flatten(1).float().std(1).mean()
        self.values = [(start.float() / self.size).requires_grad_()]
        self.random, self.rng = eta is not None and eta > 0, run.rng(seeds)
        self.momentum: list[Any] = []
        self.score: Tensor | None = None

    def _answer(self, moment: Moment) -> Tensor:
        mean, std = self.kernel(moment.prediction, moment.x, moment.t, moment.t_next)
        if not self.random or float(std.detach().max()) == 0:
            return mean.to(moment.x.dtype)
        if len(self.values) <= moment.column + 1:
            self.values.append(torch.randn(mean.shape, generator=self.rng).to(mean).requires_grad_())
        return (mean + std * self.values[moment.column + 1]).to(moment.x.dtype)

    def sample(self, *, keep_graph: bool) -> Samples:
        with torch.set_grad_enabled(keep_graph):
            latents = (self.place, self.size * self.values[0])
            result = self.run.sample(self.rows, self.seeds, player=Player(self._answer), latents=latents)
            outputs = outputs_of(result)
            self.score = self.run.score(outputs, self.rows)
        return Samples(result, outputs.detach(), self.score.detach().double().cpu(), list(range(len(self.rows))), type(result))

    def lengths(self) -> Tensor:
        """``|z|^2 / D`` of each row, over all noise: 1 is typical."""
        return torch.stack([value.detach().flatten(1).double().square().mean(1) for value in self.values]).mean(0)

    def update(self, rate: float, regulariser: float, clip: float, optimiser: Optimiser) -> None:
        run, score = self.run, self.score
        if score is None or not score.requires_grad:
            names = ", ".join(called(reward, key) for key, reward in run.rewards.items())
            raise UserError(f"reward {names}: no gradient arrives at what it scores; noise is optimised by a differentiable reward")
        likely = torch.stack([_likely(value, optimiser == "adam") for value in self.values]).sum(0)
        total = torch.where(score.isfinite(), score, 0.0).sum() + regulariser * likely.to(score).sum()
        gradients = torch.autograd.grad(total, self.values, allow_unused=True)
        run.ledger.gradients += len(self.rows) * max(1, len(run.pipe.scheduler.timesteps))
        run.ledger.reward_gradients += len(self.rows)
        if gradients[0] is None:
            raise UserError(f"{type(run.pipe).__name__}: no gradient arrives at its first latent; noise_search needs none")
        self._move([torch.zeros_like(v) if g is None else g for g, v in zip(gradients, self.values, strict=True)], rate, clip, optimiser)

    @torch.no_grad()
    def _move(self, ascent: list[Tensor], rate: float, clip: float, optimiser: Optimiser) -> None:
        size = torch.stack([g.flatten(1).square().sum(1) for g in ascent]).sum(0).sqrt()
        good = size.isfinite()
        self.run.ledger.failed += int((~good).sum())
        share = torch.where(good, (clip / size.clamp(min=1e-12)).clamp(max=1.0), 0.0)
        moves = []
        for place, (value, g) in enumerate(zip(self.values, ascent, strict=True)):
            wide = (-1, *(1,) * (g.ndim - 1))
            g = torch.where(good.view(wide), g, 0.0) * share.view(wide)
            if optimiser == "sgd":  # a clipped gradient of full length moves the noise by ``rate`` of its own
                g = g * (value[0].numel() ** 0.5 / clip if math.isfinite(clip) else 1.0)
            if len(self.momentum) <= place:
                self.momentum.append((torch.zeros_like(g), torch.zeros_like(g), 0))
            step, self.momentum[place] = _stepped(g, self.momentum[place], optimiser)
            moves.append((value + rate * step).requires_grad_())
        self.values = moves


def _stepped(g: Tensor, kept: tuple[Tensor, Tensor, int], optimiser: Optimiser) -> tuple[Tensor, tuple[Tensor, Tensor, int]]:
    """One step of Nesterov's momentum (0.9), or of Adam (0.9, 0.999), by the gradient and what is kept from before."""
    one, two, count = kept
    if optimiser == "sgd":
        one = 0.9 * one + g
        return g + 0.9 * one, (one, two, count + 1)
    one, two, count = 0.9 * one + 0.1 * g, 0.999 * two + 0.001 * g * g, count + 1
    return (one / (1 - 0.9**count)) / ((two / (1 - 0.999**count)).sqrt() + 1e-12), (one, two, count)


def _likely(noise: Tensor, moments: bool) -> Tensor:
    """``noise_log_prob``, and minus how far mean and variance of the elements are from 0 and 1 in their own standard errors, squared."""
    log_prob = noise_log_prob(noise)
    if not moments:
        return log_prob
    flat = noise.flatten(1).double()
    count = flat.shape[1]
    return log_prob - 0.5 * count * flat.mean(1).square() - 0.25 * count * (flat.square().mean(1) - 1).square()


def _better(a: Samples, b: Samples) -> Samples:
    """Row by row the better of two."""
    wins = (b.scores > a.scores) | (a.scores.isnan() & ~b.scores.isnan())
    wide = (-1, *(1,) * (a.outputs.ndim - 1))
    outputs = torch.where(wins.view(wide).to(a.outputs.device), b.outputs, a.outputs)
    return Samples(a.result, outputs, torch.where(wins, b.scores, a.scores), a.places, a.kind)
