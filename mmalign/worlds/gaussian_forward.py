"""The closed-form world seen through denoising errors: what methods on the forward process converge to is known exactly here."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mmalign.types import EVERY, Kind, Level, Need, Rollout, Steps
from mmalign.worlds._gaussian_rows import Draws
from mmalign.worlds.gaussian import GaussianPolicy, Mixture, one_gaussian

__all__ = ["GaussianForward"]


class GaussianForward:
    """A ``types.Policy`` of kind ``bound`` around a ``GaussianPolicy``: errors of the velocity ``noise - clean`` at (x_t, t).

    of: whose ODE samples, and whose parameters are trained. draws: levels of the schedule, uniformly, and noises, of each row by itself.
    sampler: ``(count, rng) -> [count, D]`` in place of the ODE: any sampler serves.
    """

    kind: Kind = "bound"
    gives = frozenset({"refs", "kls", "absolute", "noise", "unguided"})

    def __init__(self, of: GaussianPolicy, *, draws: int = 4, sampler: Any = None) -> None:
        self.of, self.draws, self.sampler, self.sets = of, draws, sampler, of.sets

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.of.parameters()

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.of.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Errors: UserError, always, as of the policy inside."""
        self.of.refer(name, other, examples)

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """None: prompts only tell groups apart here."""
        return {}

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs ``[B, D]`` of the ODE, one seed for each prompt."""
        return self.of.generate(prompts, seeds, **call)

    def sample(self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, part: slice = EVERY) -> Rollout:
        rows, group = [prompt for prompt in prompts for _ in range(group_size)], torch.arange(len(prompts)).repeat_interleave(group_size)
        here = torch.nonzero(torch.isin(group, torch.arange(len(prompts))[part])).flatten()
        if self.sampler is None:
            seeds = torch.randint(2**62, (len(rows),), generator=rng).tolist()
            outputs = self.generate(rows, seeds)
        else:
            outputs = self.sampler(len(rows), rng)
        return self.encode(rows, outputs, group, rng, part=slice(int(here[0]), int(here[-1]) + 1))

    def encode(self, prompts: list[str], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given points ``[B, D]`` as a rollout."""
        shape = (len(outputs), self.draws)
        places = torch.randint(self.of.num_steps, shape, generator=rng)
        noise = torch.randn((*shape, self.of.size), generator=rng, dtype=torch.float64)
        own = torch.stack(list(outputs[part]))
        nothing = torch.full((len(own), self.draws), torch.nan, dtype=torch.float64)
        drawn = Draws(own, noise[part], places[part], torch.arange(len(own)))
        return Rollout(list(prompts[part]), own, nothing, ~nothing.isfinite(), group[part], drawn)

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int = 0) -> None:
        """Velocities under named sets of parameters."""
        self.of.errors.remember(rollout, names)

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        return self.of.errors.steps(rollout, rows, columns, needs)


def denoising(world: Mixture, of: Mixture, levels: Level) -> tuple[Tensor, Tensor]:
    """``log_scale`` and ``shift``, ``[T, D]``, with which a policy on ``world`` denoises as one on ``of``; both are single Gaussians.

    At a = 0, where the exact estimate is a mean that is the same for every x, the scale is 1.
    """
    scales, shifts = [], []
    for a, b in zip(levels.signal[:-1], levels.noise[:-1], strict=True):
        (slope, start), (other, begin) = (_affine(mixture, a, b) for mixture in (world, of))
        scale = torch.where(slope > 0, other / torch.where(slope > 0, slope, 1.0), 1.0)
        scales.append(scale.log())
        shifts.append(begin - scale * start)
    return torch.stack(scales), torch.stack(shifts)


def _affine(mixture: Mixture, a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
    """``E[x_0 | x] = slope x + start`` of one Gaussian."""
    mean, variance = mixture.means[0], mixture.variances[0]
    slope = a * variance / (a**2 * variance + b**2)
    return slope, mean - slope * a * mean


@torch.no_grad()
def set_to(policy: GaussianPolicy, of: Mixture) -> None:
    """Makes the trained parameters those of the exact denoiser of another Gaussian."""
    log_scale, shift = denoising(policy.mixture, of, policy.levels)
    policy.parameters()["log_scale"].copy_(log_scale)
    policy.parameters()["shift"].copy_(shift)


def tilted_sampler(mixture: Mixture) -> Any:
    """``(count, rng) -> [count, D]``: exact draws of a single Gaussian, in place of an ODE that has an error of its own."""

    def sampler(count: int, rng: torch.Generator) -> Tensor:
        noise = torch.randn((count, mixture.means.shape[1]), generator=rng, dtype=torch.float64)
        return mixture.means[0] + mixture.variances[0].sqrt() * noise

    return sampler


def implied(policy: GaussianPolicy, at: int) -> Mixture:
    """The data whose exact denoiser a policy on one Gaussian is at level ``at`` (a > 0): where levels differ, there is none for all."""
    world, a, b = policy.mixture, policy.levels.signal[at], policy.levels.noise[at]
    slope, start = _affine(world, a, b)
    scale = policy.parameters()["log_scale"][at].detach().exp()
    slope, start = scale * slope, scale * start + policy.parameters()["shift"][at].detach()
    variance = slope * b**2 / (a * (1 - slope * a))
    return one_gaussian((start / (1 - slope * a)).tolist(), variance.tolist())
