"""What a diffusers pipeline's rollout is replayed from."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.stacking import offset
from mmalign.types import UserError


class Transition(NamedTuple):
    """A recorded step of some rows under the parameters that are in place: its mean ``[R, ...]``, its std, which all rows share, and the
    log-probabilities ``[R]`` of what was recorded."""

    mean: Tensor
    std: Tensor
    log_probs: Tensor


class Remembered(NamedTuple):
    """A reference on a rollout. log_probs: ``[B, T]``. means: of its steps, ``[T, B, ...]``."""

    log_probs: Tensor
    means: Tensor


@dataclass(frozen=True)
class Trajectories:
    """The denoising of some rows, as the scheduler's player recorded it.

    x, x_next: ``[T, B, ...]`` latents before and after each step. beside: what schedulers of further streams answered, ``[B, ...]`` each,
    in the order in which they were asked. random: ``[T]`` bool, the steps at which some row was drawn at random. dt: ``[B, T]`` length
    of a step in the path's own time. starts: ``[B]`` seeds of the first latents. together: sets of prompts that are encoded at once,
    which pads them alike; which: ``[B]`` the set of each row. means: of the random steps, in their order, ``[C, B, ...]`` float32 on the
    CPU, as the policy had them when the rows were sampled. refs: by name.
    """

    x: Tensor
    x_next: Tensor
    beside: list[Tensor]
    random: Tensor
    dt: Tensor
    starts: Tensor
    together: tuple[tuple[str, ...], ...]
    which: Tensor
    means: Tensor
    refs: dict[str, Remembered] = field(default_factory=dict)

    @property
    def columns(self) -> Tensor:
        """The numbers of the random steps."""
        return torch.nonzero(self.random).flatten()

    @property
    def event_size(self) -> int:
        """Numbers in a latent."""
        return self.x[0, 0].numel()

    def take(self, rows: Tensor) -> Trajectories:
        refs = {name: Remembered(ref.log_probs[rows], ref.means[:, rows]) for name, ref in self.refs.items()}
        return replace(
            self, x=self.x[:, rows], x_next=self.x_next[:, rows], beside=[answers[rows] for answers in self.beside], dt=self.dt[rows],
            starts=self.starts[rows], which=self.which[rows], means=self.means[:, rows], refs=refs,
        )  # fmt: skip

    @staticmethod
    def join(parts: Sequence[Trajectories]) -> Trajectories:
        """Errors: UserError for parts of different schedules."""
        lengths = sorted({(len(part.random), len(part.beside)) for part in parts})
        if len(lengths) > 1:
            raise UserError(f"Rollout.join: got rollouts of {' and '.join(str(steps) for steps, _ in lengths)} steps, takes one schedule")
        names = [name for name in parts[0].refs if all(name in part.refs for part in parts)]
        sets = [prompts for part in parts for prompts in part.together]
        together = tuple(dict.fromkeys(sets))  # parts of one rollout have the same
        places = offset([part.which for part in parts], [len(part.together) for part in parts])
        random = torch.stack([part.random for part in parts]).any(0)
        return Trajectories(
            x=torch.cat([part.x for part in parts], 1),
            x_next=torch.cat([part.x_next for part in parts], 1),
            beside=[torch.cat(answers) for answers in zip(*(part.beside for part in parts), strict=True)],
            random=random,
            dt=torch.cat([part.dt for part in parts]),
            starts=torch.cat([part.starts for part in parts]),
            together=together,
            which=torch.tensor([together.index(prompts) for prompts in sets])[places],
            means=torch.cat([_at(part, random) for part in parts], 1),
            refs={name: _joined([part.refs[name] for part in parts]) for name in names},
        )


def _at(part: Trajectories, random: Tensor) -> Tensor:
    """The means of a part at the steps that are random in some part; 0 where they are not in this one."""
    means = part.means.new_zeros((int(random.sum()), *part.means.shape[1:]))
    means[part.random[random]] = part.means
    return means


def _joined(refs: Sequence[Remembered]) -> Remembered:
    return Remembered(torch.cat([ref.log_probs for ref in refs]), torch.cat([ref.means for ref in refs], 1))
