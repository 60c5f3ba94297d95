"""What a diffusers pipeline's rollout is replayed from."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.stacking import offset
from mmalign.types import Level, UserError


class Transition(NamedTuple):
    """A recorded step of some rows under the parameters that are in place: its mean ``[R, ...]``, its std, which all rows share, the
    log-probabilities ``[R]`` of what was recorded, the clean estimate ``[R, ...]``, and the noise levels that the step began and ended
    at."""

    mean: Tensor
    std: Tensor
    log_probs: Tensor
    clean: Tensor
    level: Level
    next_level: Level


class Remembered(NamedTuple):
    """A reference on a rollout. log_probs: ``[B, T]``. means: of its steps, ``[T, B, ...]``."""

    log_probs: Tensor
    means: Tensor


@dataclass(frozen=True)
class Adjoint:
    """What a reward says of one step's outcome.

    column: the step. vector: the reward's gradient by the outcome, ``[B, ...]``. point: the outcome that it was taken at. x: the latent
    that the step began with; None: the recorded one. clean: whether the outcome is the clean estimate, not the next latent.
    """

    column: int
    vector: Tensor
    point: Tensor
    x: Tensor | None = None
    clean: bool = False

    def take(self, rows: Tensor) -> Adjoint:
        """Of some rows."""
        return self._of([self], lambda values: values[0][rows])

    @staticmethod
    def join(parts: Sequence[Adjoint]) -> Adjoint:
        """Of the rows of several; all of one step."""
        return Adjoint._of(parts, torch.cat)

    @staticmethod
    def _of(parts: Sequence[Adjoint], put: Callable[[list[Tensor]], Tensor]) -> Adjoint:
        begun = [part.x for part in parts if part.x is not None]
        vector, point = put([part.vector for part in parts]), put([part.point for part in parts])
        return replace(parts[0], vector=vector, point=point, x=put(begun) if begun else None)

    def grown(self, transition: Transition, rows: Tensor) -> Tensor:
        """``[R]`` float64: by how much the reward would grow, to first order, as this transition's outcome is not the recorded one."""
        outcome = transition.clean if self.clean else transition.mean
        vector, point = self.vector[rows].to(outcome.device).double(), self.point[rows].to(outcome.device).double()
        return (vector * (outcome.double() - point)).flatten(1).sum(1)


@dataclass(frozen=True)
class Behind:
    """The chunks of a video before one that goes on from them, of B rows.

    ends: ``[chunks, B, ...]``, what each became. beside: as of ``Trajectories``. starts: ``[B]`` seeds of the calls. steps: how many the
    chunks took.
    """

    ends: Tensor
    beside: list[Tensor]
    starts: Tensor
    steps: int

    def take(self, rows: Tensor) -> Behind:
        """Of some rows."""
        return replace(self, ends=self.ends[:, rows], beside=[answers[rows] for answers in self.beside], starts=self.starts[rows])

    @staticmethod
    def join(parts: Sequence[Behind]) -> Behind:
        """Of the rows of several, before one chunk."""
        beside = [torch.cat(answers) for answers in zip(*(part.beside for part in parts), strict=True)]
        ends, starts = torch.cat([part.ends for part in parts], 1), torch.cat([part.starts for part in parts])
        return replace(parts[0], ends=ends, beside=beside, starts=starts)


@dataclass(frozen=True)
class Trajectories:
    """The denoising of some rows, as the scheduler's player recorded it.

    All of it is on the CPU, wherever the pipeline works: a rollout is as large as it is long, and a replay asks for one step of some rows.

    x, x_next: ``[T, B, ...]`` latents before and after each step. beside: what schedulers of further streams answered, ``[B, ...]`` each,
    in the order in which they were asked. random: ``[T]`` bool, the steps at which some row was drawn at random; trained: those that are
    trained in some row. dt: ``[B, T]`` length
    of a step in the path's own time. starts: ``[B]`` seeds of the first latents. together: sets of prompts that are encoded at once,
    which pads them alike; which: ``[B]`` the set of each row. means: of the trained steps, in their order, ``[C, B, ...]`` float32, as
    the policy had them when the rows were sampled, where a method measures its drift from there; else None. refs: by name.
    adjoints: of the steps that a reward's gradient trains, where it is that which does; then they are the columns. chunk: ``[T]`` the
    number of the chunk of a video that each step makes, all 0 where a call has one schedule.
    """

    x: Tensor
    x_next: Tensor
    beside: list[Tensor]
    random: Tensor
    trained: Tensor
    dt: Tensor
    starts: Tensor
    together: tuple[tuple[str, ...], ...]
    which: Tensor
    means: Tensor | None = None
    refs: dict[str, Remembered] = field(default_factory=dict)
    adjoints: tuple[Adjoint, ...] = ()
    chunk: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.int64))

    @property
    def chunks(self) -> int:
        """How many schedules a call has: 1, or one for each chunk of a video."""
        return int(self.chunk.max()) + 1 if len(self.chunk) else 1

    def steps_of(self, chunk: int) -> list[int]:
        """The numbers of a chunk's steps."""
        return torch.nonzero(self.chunk == chunk).flatten().tolist() if len(self.chunk) else list(range(len(self.x)))

    def behind(self, column: int) -> Behind | None:
        """What lies before the chunk that a step belongs to; None before the first one."""
        if (chunk := int(self.chunk[column]) if len(self.chunk) else 0) == 0:
            return None
        ends = [self.steps_of(number)[-1] for number in range(chunk)]
        return Behind(self.x_next[ends], self.beside, self.starts, ends[-1] + 1)

    @property
    def columns(self) -> Tensor:
        """The numbers of the steps that are trained: those of the window that are random, or those with an adjoint."""
        if self.adjoints:
            return torch.tensor(sorted({adjoint.column for adjoint in self.adjoints}))
        return torch.nonzero(self.trained).flatten()

    @property
    def noisy(self) -> bool:
        """Whether some trained step has noise, and so a density and a KL."""
        return bool(self.random[self.columns].any())

    @property
    def event_size(self) -> int:
        """Numbers in a latent."""
        return self.x[0, 0].numel()

    def take(self, rows: Tensor) -> Trajectories:
        refs = {name: Remembered(ref.log_probs[rows], ref.means[:, rows]) for name, ref in self.refs.items()}
        return replace(
            self, x=self.x[:, rows], x_next=self.x_next[:, rows], beside=[answers[rows] for answers in self.beside], dt=self.dt[rows],
            starts=self.starts[rows], which=self.which[rows], refs=refs, means=None if self.means is None else self.means[:, rows],
            adjoints=tuple(adjoint.take(rows) for adjoint in self.adjoints),
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
        trained = torch.stack([part.trained for part in parts]).any(0)
        means = [part.means for part in parts if part.means is not None]
        return Trajectories(
            x=torch.cat([part.x for part in parts], 1),
            x_next=torch.cat([part.x_next for part in parts], 1),
            beside=[torch.cat(answers) for answers in zip(*(part.beside for part in parts), strict=True)],
            random=torch.stack([part.random for part in parts]).any(0),
            trained=trained,
            dt=torch.cat([part.dt for part in parts]),
            starts=torch.cat([part.starts for part in parts]),
            together=together,
            which=torch.tensor([together.index(prompts) for prompts in sets])[places],
            means=torch.cat([_at(*pair, trained) for pair in zip(parts, means, strict=True)], 1) if len(means) == len(parts) else None,
            refs={name: _joined([part.refs[name] for part in parts]) for name in names},
            adjoints=_one_plan([part.adjoints for part in parts]),
            chunk=parts[0].chunk,
        )


def spread(values: Tensor | None, live: Tensor, rows: int) -> Tensor:
    """Values of the rows ``live``, ``[rows]`` on the CPU, 0 in others; None: of no row."""
    if values is not None and len(live) == rows:
        return values.cpu()
    nothing = torch.zeros(rows, dtype=torch.float64)
    return nothing if values is None else nothing.index_put((live,), values.cpu())


def _at(part: Trajectories, means: Tensor, trained: Tensor) -> Tensor:
    """The means of a part at the steps that are trained in some part; 0 where they are not in this one."""
    wide = means.new_zeros((int(trained.sum()), *means.shape[1:]))
    wide[part.trained[trained]] = means
    return wide


def _joined(refs: Sequence[Remembered]) -> Remembered:
    return Remembered(torch.cat([ref.log_probs for ref in refs]), torch.cat([ref.means for ref in refs], 1))


def _one_plan(parts: Sequence[Sequence[Adjoint]]) -> tuple[Adjoint, ...]:
    steps = sorted({tuple(adjoint.column for adjoint in part) for part in parts})
    if len(steps) > 1:
        raise UserError(f"Rollout.join: got rollouts of which the steps {' and '.join(map(str, steps))} are trained, takes one plan")
    return tuple(Adjoint.join(same) for same in zip(*parts, strict=True))
