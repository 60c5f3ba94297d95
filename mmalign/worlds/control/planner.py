"""AlignDiff: motions as samples of a diffusion model that is asked for the strengths of attributes, some of them or all.

Letters: N motions, H steps, D dimensions of a state, K attributes. Strengths are in 0..1: the part of the recorded motions that have less.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from mmalign.arguments.ranges import Count, NotNegative, Positive, Seed
from mmalign.objectives.links import logistic
from mmalign.samplers import kernels
from mmalign.types import Level, Prediction, UserError
from mmalign.worlds._fitting import fit
from mmalign.worlds.control.runner import Control
from mmalign.worlds.gaussian import vp_levels

__all__ = ["preferred"]


class AttributeModel(nn.Module):
    """What preferences say of a motion: K numbers that order motions, and their places among those that were recorded.

    ``zeta_k(tau)`` in 0..1 is the part of the recorded motions whose score is lower.
    """

    places: Tensor

    def __init__(self, steps: int, size: int, attributes: int, width: int = 64) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(steps * size, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, attributes)
        )
        self.register_buffer("places", torch.zeros(0, attributes))

    def scores(self, motions: Tensor) -> Tensor:
        """``[N, H + 1, D] -> [N, K]``; more is stronger, in no unit."""
        out: Tensor = self.net(motions.flatten(1))
        return out

    @torch.no_grad()
    def strengths(self, motions: Tensor) -> Tensor:
        """``[N, H + 1, D] -> [N, K]`` in 0..1."""
        return places_among(self.places, self.scores(motions))

    def learn(self, motions: Tensor, pairs: Tensor, wins: Tensor, *, iterations: int, seed: int) -> None:
        """Bradley-Terry in each attribute. pairs: ``[P, 2]`` places of motions; wins: ``[P, K]`` in 0..1, whether the first has more."""
        rng = torch.Generator().manual_seed(seed)

        def loss() -> Tensor:
            some = torch.randint(len(pairs), (256,), generator=rng)
            first, second = self.scores(motions[pairs[some, 0]]), self.scores(motions[pairs[some, 1]])
            win = wins[some]
            return (win * logistic(first - second, beta=1.0) + (1 - win) * logistic(second - first, beta=1.0)).mean()

        fit(self, loss, name="attributes", iterations=iterations, learning_rate=3e-3, progress=False)
        with torch.no_grad():
            self.places = self.scores(motions).sort(0).values


def places_among(sorted_scores: Tensor, scores: Tensor) -> Tensor:
    """The part of ``sorted_scores [M, K]`` below each of ``scores [N, K]``."""
    return torch.searchsorted(sorted_scores.T.contiguous(), scores.T.contiguous()).T / len(sorted_scores)


def labelled(world: Control, motions: Tensor, *, count: int, temperature: float, rng: torch.Generator) -> tuple[Tensor, Tensor]:
    """Judgements of annotators who see an attribute with noise: pairs ``[P, 2]`` of motions, and who won ``[P, K]``, 0 or 1.

    ``P(first) = sigmoid((m_1 - m_2) / temperature)``, m the measured attribute in units of its standard deviation.
    """
    pairs = torch.randint(len(motions), (count, 2), generator=rng)
    measured = world.measure(motions)
    ahead = (measured[pairs[:, 0]] - measured[pairs[:, 1]]) / measured.std(0) / temperature
    return pairs, (torch.rand(ahead.shape, generator=rng) < ahead.sigmoid()).float()


class Planner(nn.Module):
    """``eps(x_t, t, v * mask, mask)``, a denoiser of whole motions; a mask of zeros is the unconditional one.

    ``plan`` samples with classifier-free guidance, every plan from the state that one is in, and keeps the best of some by the attribute
    model.

    Paper: AlignDiff: Aligning Diverse Human Preferences via Behavior-Customisable Diffusion Model, https://arxiv.org/abs/2310.02054, its
    formulas recalled: preferences of attributes, masks, guidance, ``argmin ||(v - zeta(tau)) mask||``. Deviations: a multilayer perceptron
    in place of a transformer; strengths are not cut into tokens; judgements are drawn, as nobody is asked here.
    """

    mean: Tensor
    scale: Tensor

    def __init__(self, steps: int, size: int, attributes: int, width: int = 192) -> None:
        super().__init__()
        self.steps, self.size, self.attributes = steps, size, attributes
        inside = steps * size + 2 + 2 * attributes
        self.net = nn.Sequential(
            nn.Linear(inside, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(), nn.Linear(width, width), nn.SiLU(),
            nn.Linear(width, steps * size),
        )  # fmt: skip
        self.register_buffer("mean", torch.zeros(steps * size))
        self.register_buffer("scale", torch.ones(steps * size))

    def forward(self, x: Tensor, t: Level, wanted: Tensor, mask: Tensor) -> Tensor:
        """The clean motion ``[N, (H + 1) D]`` by its noisy one, in units of the recorded ones. wanted, mask: ``[N, K]``."""
        levels = torch.cat([t.signal.expand(len(x), 1), t.noise.expand(len(x), 1)], 1)
        out: Tensor = self.net(torch.cat([x, levels, (wanted - 0.5) * mask, mask], 1))
        return out

    def learn(self, motions: Tensor, strengths: Tensor, *, iterations: int, seed: int) -> None:
        """Denoising of motions, given their strengths ``[N, K]`` through masks: all hidden in a tenth, each in half of the others."""
        rng, rows = torch.Generator().manual_seed(seed), motions.flatten(1)
        self.mean, self.scale = rows.mean(0), rows.std(0).clamp(min=1e-3)
        data = (rows - self.mean) / self.scale

        def loss() -> Tensor:
            some = torch.randint(len(data), (256,), generator=rng)
            clean, angle = data[some], torch.rand(256, 1, generator=rng) * math.pi / 2
            level, noise = Level(angle.cos(), angle.sin()), torch.randn(clean.shape, generator=rng)
            mask = (torch.rand(256, self.attributes, generator=rng) < 0.5) & (torch.rand(256, 1, generator=rng) > 0.1)
            noisy = level.signal * clean + level.noise * noise
            return (self(noisy, level, strengths[some], mask.float()) - clean).square().mean()

        fit(self, loss, name="planner", iterations=iterations, learning_rate=2e-3, ema_decay=0.99, progress=False)

    @torch.no_grad()
    def plan(
        self, states: Tensor, wanted: Tensor, mask: Tensor, judge: AttributeModel, *, candidates: Count = 8, guidance: NotNegative = 1.0,
        denoising: Count = 12, seed: Seed = 0,
    ) -> Tensor:  # fmt: skip
        """Motions ``[N, H + 1, D]`` from ``states [N, D]`` on, of those drawn for each the nearest to ``wanted [N, K]`` in ``mask``.

        candidates: drawn for each. guidance: w of ``(1 + w) eps(v) - w eps(nothing)``. denoising: steps of DDIM.
        """
        rows = len(states) * candidates
        states, v, m = (one.float().repeat_interleave(candidates, 0) for one in (states, wanted, mask))
        levels, kernel, first = vp_levels(denoising), kernels.ode(), slice(0, self.size)
        begin = (states - self.mean[first]) / self.scale[first]
        x = torch.randn(rows, self.steps * self.size, generator=torch.Generator().manual_seed(seed))
        for at in range(denoising):
            t, after = (Level(levels.signal[place].float(), levels.noise[place].float()) for place in (at, at + 1))
            asked, free = (self(x, t, v, one) for one in (m, torch.zeros_like(m)))
            clean = (1 + guidance) * asked - guidance * free
            clean[:, first] = begin
            x, _ = kernel(Prediction(clean, (x - t.signal * clean) / t.noise), x, t, after)
        x[:, first] = begin
        motions = (x * self.scale + self.mean).view(rows, self.steps, self.size)
        return _nearest(motions, judge.strengths(motions), v, m, candidates)


def _nearest(motions: Tensor, strengths: Tensor, wanted: Tensor, mask: Tensor, candidates: int) -> Tensor:
    """Of every ``candidates`` motions the one with the least ``||(v - zeta(tau)) mask||``; the first of equals."""
    away = ((wanted - strengths) * mask).norm(dim=1).view(-1, candidates)
    return motions.view(len(away), candidates, *motions.shape[1:])[torch.arange(len(away)), away.argmin(1)]


def followed(world: Control, plans: Tensor, rng: torch.Generator) -> Tensor:
    """What comes of plans ``[N, H + 1, D]`` in the world, by the actions that lead from where one is to where the plan is next."""
    states = [plans[:, 0]]
    for following in plans[:, 1:].unbind(1):
        states.append(world.step(states[-1], following - states[-1], rng))
    return torch.stack(states, 1)


def area_under_errors(errors: Tensor) -> float:
    """The area under the distribution function of errors in 0..1: ``int_0^1 P(error <= e) de = 1 - E[error]``; 1 where none is wrong."""
    return float(1 - errors.clamp(0, 1).mean())


def preferred(
    world: Control,
    *,
    motions: Count = 4000,
    judgements: Count = 8000,
    temperature: Positive = 0.3,
    iterations: Count = 3000,
    seed: Seed = 0,
) -> tuple[Planner, AttributeModel, Tensor]:
    """(planner, attribute model, the recorded motions), all from judgements of a world's attributes.

    world: whose motions they are. motions: that are recorded. judgements: of two motions each, in every attribute. temperature: of those
    who judge, in standard deviations of the attribute. iterations: of the model's training, and of the planner's.

    Errors: UserError for a world whose motions or measures have another shape.
    """
    rng = torch.Generator().manual_seed(seed)
    recorded = world.record(motions, rng)
    if recorded.ndim != 3 or tuple(world.measure(recorded).shape) != (motions, len(world.attributes)):
        raise UserError(f"preferred: got motions of shape {list(recorded.shape)}, takes [N, H + 1, D], and a number for each attribute")
    steps, size = recorded.shape[1:]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        judge, planner = AttributeModel(steps, size, len(world.attributes)), Planner(steps, size, len(world.attributes))
    pairs, wins = labelled(world, recorded, count=judgements, temperature=temperature, rng=rng)
    judge.learn(recorded, pairs, wins, iterations=iterations, seed=seed + 1)
    planner.learn(recorded, judge.strengths(recorded), iterations=iterations, seed=seed + 2)
    return planner, judge, recorded
