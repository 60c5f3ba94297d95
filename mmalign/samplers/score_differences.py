"""How two denoisers differ at a noised sample, as a direction for the sample: distribution matching.

With ``x_tau = a x_0 + b eps`` and clean estimates ``D(x_tau)``, the score of what a denoiser was trained on is
``(a D(x_tau) - x_tau) / b^2``. So the derivative of ``KL(student_tau || teacher_tau)`` by a student's sample ``x_0`` is
``a (score_student - score_teacher) = a^2 / b^2 (D_student - D_teacher)``, and minus that is where the sample has to go.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor

from mmalign.samplers.kernels import flow_time
from mmalign.types import Level, Method, UserError

Normaliser = Literal["absolute", "kl"]


class Noising(NamedTuple):
    """How the clean estimates of a step are noised.

    low, high: the part of the schedule that levels are drawn from, evenly, from 0 (clean) to 1 (noise). trajectory: the latent after the
    step is noised further, so that levels lie above its own, and what the step has left of its noise stays; False: the clean estimate
    gets new noise. separate: levels lie below that of the step's beginning too, and where there is none, the lowest is
    taken. shared: rows of a group have one level and one noise.
    """

    low: float = 0.02
    high: float = 0.98
    trajectory: bool = False
    separate: bool = False
    shared: bool = False


class ScoreDifference(NamedTuple):
    """A pull on the clean estimate of a step, from what one set of parameters says of it, noised, to what another one says.

    toward, away: sets of parameters, or another model; of several ``toward``, each ``turn`` steps of training in turn. weight: of the
    pull. guidance: of ``toward``, its prompt against an empty one; 1 is none. normaliser: ``absolute``, the mean distance of ``toward`` to
    the sample, and a mean over the latent's numbers; ``kl``, the derivative of a KL in nats.
    """

    toward: str | tuple[str, ...]
    away: str
    weight: float = 1.0
    guidance: float = 1.0
    normaliser: Normaliser = "absolute"
    noising: Noising = Noising()
    turn: int = 1

    def at(self, step: int) -> ScoreDifference:
        """What it is at a step of training, counted from 0: toward one set.

        Examples:
            >>> [ScoreDifference(("cat", "dog"), "fake", turn=2).at(step).toward for step in range(5)]
            ['cat', 'cat', 'dog', 'dog', 'cat']
        """
        return self if isinstance(self.toward, str) else self._replace(toward=self.toward[step // self.turn % len(self.toward)])


class Adversary(NamedTuple):
    """A pull on the clean estimate of a step to where a classifier takes it, noised, for given data: ``-weight d softplus(-logit)``.

    of: the companion on whose features it is, and beside which it learns. noising: of the estimates, which get new noise.
    """

    of: str
    weight: float
    noising: Noising = Noising()

    def at(self, step: int) -> Adversary:
        """The same at every step."""
        return self


class Companion(NamedTuple):
    """A set of the policy's parameters that is trained beside it, on noised samples of the policy: a fake score, a surrogate reward.

    name: of the set, a copy of the policy at first. method: what it learns, of kind ``bound``. noising: of the samples, a
    ``Noising``. plan: whose end says of which step they are the clean estimates, anew for each update.
    updates: for each rollout, before the policy's own. rate: of its optimiser, otherwise the policy's; None: the same.
    """

    name: str
    method: Method
    noising: Noising
    plan: Callable[[Tensor, torch.Generator], Any]
    updates: int = 1
    rate: float | None = None


def pull(toward: Tensor, away: Tensor, sample: Tensor, t: Level, normaliser: Normaliser) -> Tensor:
    """Where the sample has to go, ``[R, ...]``: ``toward - away`` over its normaliser.

    toward, away: clean estimates ``[R, ...]``. t: the level that they were made at, which broadcasts against them. A row that is not
    finite, or whose ``toward`` is the sample itself, is not pulled.

    Examples:
        >>> toward, away, sample = torch.tensor([[2.0, 4.0]]), torch.tensor([[1.0, 1.0]]), torch.tensor([[0.0, 0.0]])
        >>> pull(toward, away, sample, Level(torch.tensor(0.8), torch.tensor(0.6)), "absolute")  # (1, 3) over a mean of 3, over 2 numbers
        tensor([[0.1667, 0.5000]])
        >>> pull(toward, away, sample, Level(torch.tensor(0.8), torch.tensor(0.4)), "kl")  # times (0.8 / 0.4)^2
        tensor([[ 4., 12.]])
    """
    gap = toward - away
    if normaliser == "kl":
        pulled = (t.signal / t.noise) ** 2 * gap
    else:
        pulled = gap / (sample - toward).abs().flatten(1).sum(1).view(-1, *(1,) * (gap.ndim - 1))
    return torch.where(pulled.flatten(1).isfinite().all(1).view(-1, *(1,) * (gap.ndim - 1)), pulled, 0.0)


def draws(seeds: Tensor, like: Tensor) -> tuple[Tensor, Tensor]:
    """Of each row by its own seed a number in 0..1, ``[R]``, and a standard normal noise ``[R, ...]`` as ``like``.

    seeds: ``[R]`` int64.
    """
    uniform, noise, rng = list[Tensor](), list[Tensor](), torch.Generator()
    kind = torch.float64 if like.dtype == torch.float64 else torch.float32
    for seed in seeds.tolist():
        rng.manual_seed(seed)
        uniform.append(torch.rand((), generator=rng))
        noise.append(torch.randn(like.shape[1:], generator=rng, dtype=kind))
    return torch.stack(uniform), torch.stack(noise).to(like)


def kept_noise(clean: Tensor, x_next: Tensor, fresh: Tensor, t_next: Level, t: Level) -> Tensor:
    """The noise by which ``a clean + b noise`` is the latent ``x_next`` of level ``t_next``, noised further to ``t``: ``[R, ...]``.

    fresh: standard normal.

    Examples:
        >>> clean, x_next, fresh = torch.tensor([2.0]), torch.tensor([1.5]), torch.tensor([1.0])
        >>> before, after = Level(torch.tensor(0.5), torch.tensor(0.5)), Level(torch.tensor(0.25), torch.tensor(0.75))
        >>> noise = kept_noise(clean, x_next, fresh, before, after)
        >>> 0.25 * clean + 0.75 * noise  # half of 1.5, and sqrt(0.75^2 - 0.25^2) of the new noise
        tensor([1.4571])
    """
    scale = t.signal / t_next.signal
    added = (t.noise**2 - (scale * t_next.noise) ** 2).clamp(min=0).sqrt()
    return (scale * (x_next - t_next.signal * clean) + added * fresh) / t.noise


def places(uniform: Tensor, levels: Level, noising: Noising, t: Level, t_next: Level) -> Tensor:
    """Numbers of levels ``[R]`` int64, of ``levels [K]`` that a model was trained at in any order.

    uniform: ``[R]`` in 0..1. t, t_next: of the step whose clean estimates are noised, 0-d.

    Errors: UserError where no level is left.

    Examples:
        >>> levels = Level(torch.tensor([0.9, 0.7, 0.5, 0.3, 0.1]), torch.tensor([0.1, 0.3, 0.5, 0.7, 0.9]))
        >>> start, end = Level(torch.tensor(0.2), torch.tensor(0.8)), Level(torch.tensor(0.6), torch.tensor(0.4))
        >>> places(torch.tensor([0.0, 0.99]), levels, Noising(0.0, 1.0), start, end).tolist()
        [0, 4]
        >>> places(torch.tensor([0.0, 0.99]), levels, Noising(0.0, 1.0, trajectory=True, separate=True), start, end).tolist()
        [2, 3]
        >>> nearly = Level(torch.tensor(0.999), torch.tensor(0.001))
        >>> own = Noising(0.0, 1.0, trajectory=True, separate=True)
        >>> places(torch.tensor([0.0, 0.99]), levels, own, nearly, Level(torch.tensor(1.0), torch.tensor(0.0))).tolist()
        [0, 0]
    """
    share = flow_time(levels).double().cpu()
    begin, end = (float(flow_time(level)) for level in (t, t_next))
    order = share.argsort()
    count = len(order)
    order = order[int(noising.low * count) : math.ceil(noising.high * count)]
    if noising.trajectory:
        order = order[share[order] > end]
    if not len(order):
        lies = f"lies above {end:.3g}, where a step ends"
        raise UserError(f"method.low, high: got {noising.low:g} and {noising.high:g}, and no trained noise level there {lies}; takes more")
    if noising.separate:  # a schedule may end in a step from almost no noise, below all levels
        own = order[share[order] <= begin + 1e-6]
        order = own if len(own) else order[:1]
    return order[(uniform * len(order)).long().clamp(max=len(order) - 1)]
