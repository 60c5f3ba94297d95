"""The seam: a scheduler that turns a diffusers pipeline's own ``__call__`` into an environment.

``seat`` gives a pipeline, for one call, a scheduler of the class it had and with the config it had, whose ``step`` asks a
``Player`` for the next latent. Timesteps, shift, mu and sigmas are computed by diffusers' own code, so the pipeline runs as it
always does: classifier-free guidance, image conditions and all.
"""

from __future__ import annotations

import copy
import functools
import inspect
import itertools
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.policies.pipelines.calls.scheduler_paths import (
    EXPLODING,
    FLOW,
    FROM_SIGMAS,
    PLAYED,
    PRECONDITIONED,
    above_one,
    clean_and_noise,
    first_order,
    grid,
    own_name,
)  # fmt: skip
from mmalign.types import Level, Prediction

# Pipelines that read ``scheduler.sigmas`` by the number of the step: a probe of theirs takes one time in a call
READ_SIGMAS = {"Cosmos2_5_PredictBasePipeline", "Cosmos2_5_TransferPipeline", "Cosmos3OmniPipeline", "CosmosVideoToWorldPipeline"}
# Pipelines that ask their scheduler for the clean latent first, and for the step with ``pred_original_sample`` after guidance
ASK_CLEAN_FIRST = {"CosmosTextToWorldPipeline", "CosmosVideoToWorldPipeline"}


class Moment(NamedTuple):
    """One question of the pipeline.

    column: how many it has asked before. left: questions from this one to the end of the schedule. t, t_next: the step's level
    and the next one. x: the latent. prediction: what the model says. chunk: how many schedules are over, of a pipeline that makes a
    video in chunks.
    """

    column: int
    left: int
    t: Level
    t_next: Level
    x: Tensor
    prediction: Prediction
    chunk: int = 0


class Player(NamedTuple):
    """Who answers. ``answer``: Moment -> next latent.

    ``beside``: (number of the question, the scheduler's own answer) -> answer, for copies that a pipeline makes of its scheduler
    for a second stream (the sound of a video): those steps are not trained, and a replay has to repeat them.
    ``timesteps``: a vector, one time per row, in place of the schedule (a probe); ``levels`` are then its noise levels.
    ``repeats``: how often the pipeline is shown each time of its schedule (``left`` says which it is).
    """

    answer: Callable[[Moment], Tensor]
    beside: Callable[[int, Tensor], Tensor] = lambda number, own: own
    timesteps: Tensor | None = None
    levels: Level | None = None
    repeats: int = 1


class Rows(NamedTuple):
    """How a pipeline hands its scheduler the latents of ``number`` rows; players see one entry for each row, ``[B, ...]``.

    Some fold the frames of a video into the batch, ``[B * F, C, ...]`` for ``[B, C, F, ...]``. Some hand over both halves of
    their guidance, two times the same latent: the first half counts, and both get its answer.
    """

    number: int
    times: int
    halves: bool

    def unfold(self, value: Tensor) -> Tensor:
        if self.times == 1:
            return value
        return value[: self.number] if self.halves else value.unflatten(0, (self.number, self.times)).transpose(1, 2)

    def fold(self, value: Tensor) -> Tensor:
        if self.times == 1:
            return value
        return torch.cat([value, value]) if self.halves else value.transpose(1, 2).flatten(0, 1)


def rows_of(x: Tensor, count: int | None) -> Rows:
    """How ``x`` holds ``number`` rows; as it is, where the count is not known or does not fit."""
    if count is None or len(x) == count or len(x) % count:
        return Rows(len(x), 1, False)
    return Rows(count, len(x) // count, len(x) == 2 * count and torch.equal(x[:count], x[count:]))


@contextmanager
def seat(pipe: Any, player: Player, rows: int | None = None) -> Iterator[Any]:
    """``pipe.scheduler`` is the player's while the block lasts; yields it. The pipeline gets its own back in any case.

    rows: how many the call has, for pipelines that hand over their latents otherwise (``Rows``).
    """
    own = pipe.scheduler
    seated = copy.deepcopy(first_order(own))
    seated.__class__ = _played(type(seated))  # type: ignore[arg-type]
    name = type(pipe).__name__
    seated.begin(player, rows, name in ASK_CLEAN_FIRST, name in READ_SIGMAS)
    pipe.scheduler = seated
    try:
        yield seated
    finally:
        pipe.scheduler = own


class _Played:
    """What is put before a scheduler class: the same object, with ``step`` answered by a player.

    A sub-class made on the spot, because pipelines look at their scheduler's class, config and signatures. ``column`` counts the
    steps that were asked for, ``position`` is the place in the schedule: they differ where a pipeline starts late (strength < 1).
    """

    def begin(self, player: Player, rows: int | None, clean_first: bool, reads_sigmas: bool) -> None:
        self.player, self.column, self.position = player, 0, 0
        self.chunk, self.asked = 0, False  # of the schedules, whether anything was asked of the present one
        self.rows, self.clean_first, self.reads_sigmas = rows, clean_first, reads_sigmas
        self.numbers, self.copies = itertools.count(), 0  # of further streams: the numbers of their questions, and how many there are

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        """A pipeline that copies its scheduler, for a second stream, gets one that steps by itself."""
        self.copies += 1
        player, numbers = self.player, self.numbers
        kind: Any = type(self).__mro__[2]
        copied = kind.__new__(kind)
        copied.__dict__.update(
            {name: copy.deepcopy(value, memo) for name, value in self.__dict__.items() if name not in ("player", "numbers")}
        )

        @functools.wraps(kind.step)  # type: ignore[attr-defined]
        def step(*args: Any, **kwargs: Any) -> Any:
            result = kind.step(copied, *args, **kwargs)  # type: ignore[attr-defined]
            answer = player.beside(next(numbers), result[0])
            return (answer, *result[1:]) if isinstance(result, tuple) else type(result)(**{**result, "prev_sample": answer})

        copied.__dict__["step"] = step
        return copied

    def _arrange(self) -> None:
        """After diffusers has computed its schedule: keep the levels; a probe shows the pipeline its own times instead."""
        self.position = 0
        self.chunk, self.asked = self.chunk + self.asked, False
        self.above_one = None
        self.above_one = above_one(self)
        self.levels = grid(self)
        self.schedule = self.timesteps[: len(self.levels.noise) - 1]  # type: ignore[has-type]  # some end with the time of clean data
        if self.player.timesteps is not None:
            self._arrange_probe(self.player.timesteps)
        elif self.player.repeats > 1:
            self.timesteps = self.schedule.repeat_interleave(self.player.repeats)

    def _arrange_probe(self, times: Tensor) -> None:
        """Shows the pipeline the probe's times: a plain schedule of the one time where there is one, sigmas included."""
        if len(times) > 1 and (self.reads_sigmas or above_one(self)):
            raise ValueError(f"{own_name(self)}: the pipeline reads its sigma by step, so that a probe takes one time in a call")
        levels, name = self.player.levels, own_name(self)
        if len(times) == 1 and levels is not None and name in FLOW | FROM_SIGMAS | EXPLODING | PRECONDITIONED:
            flow = name in FLOW or self.config.get("use_flow_sigmas", False)  # type: ignore[attr-defined]
            sigma = levels.noise if flow else levels.noise / levels.signal
            self.sigmas = torch.full_like(self.sigmas, float(sigma))  # type: ignore[has-type]
        self.timesteps = _one_time_for_each_row(times, len(self.schedule)) if len(times) > 1 else times.repeat(len(self.schedule))

    def _find(self, timestep: Any) -> None:
        """Goes to where the pipeline is: the place of its timestep, unless the present place has that very timestep."""
        if self.player.timesteps is not None or timestep is None:
            return
        value = torch.as_tensor(timestep).detach().flatten()[:1].to(self.schedule)
        here = min(self.position, len(self.schedule) - 1)
        if not bool(self.schedule[here] == value):
            same = torch.nonzero(self.schedule == value).flatten().tolist()
            self.position = same[0] if same else self.position

    def _moment_levels(self, x: Tensor) -> tuple[Level, Level]:
        if self.player.levels is not None:
            shape = (-1, *(1,) * (x.ndim - 1))
            here = Level(*(value.to(x.device).reshape(shape) for value in self.player.levels))
            return here, here
        at, last = self.position, len(self.levels.noise) - 1
        return tuple(Level(*(v[min(i, last)].to(x.device) for v in self.levels)) for i in (at, at + 1))  # type: ignore[return-value]

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        name = own_name(self)
        if name not in EXPLODING | PRECONDITIONED:
            return sample
        self._find(timestep)
        noise = self._moment_levels(sample)[0].noise
        noise = torch.cat([noise] * 2) if noise.ndim and noise.shape[0] * 2 == sample.shape[0] else noise
        if name in PRECONDITIONED:
            return self.precondition_inputs(sample, noise).to(sample.dtype)  # type: ignore[attr-defined]
        return (sample / (noise**2 + 1).sqrt().to(sample)).to(sample.dtype)

    def _play(self, model_output: Tensor, timestep: Any, sample: Tensor, return_dict: bool, clean: Tensor | None = None) -> Any:
        self._find(timestep)
        rows = rows_of(sample, self.rows)
        x = rows.unfold(sample)
        t, t_next = self._moment_levels(x)
        prediction = clean_and_noise(self, rows.unfold(model_output), x, t)
        if clean is not None:
            prediction = Prediction(clean=clean.float(), noise=(x.float() - t.signal * clean.float()) / t.noise)
        elif self.clean_first:
            self._step_index = self.position + 1  # the pipeline takes one off again
            return (sample, clean_and_noise(self, model_output, sample, self._moment_levels(sample)[0]).clean)
        self.asked = True
        moment = Moment(self.column, len(self.schedule) - self.position, t, t_next, x, prediction, self.chunk)
        answer = rows.fold(self.player.answer(moment))
        self.column, self.position = self.column + 1, self.position + 1
        if "_step_index" in self.__dict__:  # add_noise asks for it between steps
            self._step_index = self.position
        if not return_dict:
            return (answer, rows.fold(prediction.clean))
        from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

        return DDIMSchedulerOutput(prev_sample=answer, pred_original_sample=rows.fold(prediction.clean))


class _OfRows(Tensor):
    """A time for each row, along the first dimension of what it is expanded to, which may be ``[rows, 1, frames, ...]``."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]  # what is computed of it is a plain tensor

    def expand(self, *sizes: Any) -> Tensor:  # type: ignore[override]
        shape = sizes[0] if len(sizes) == 1 and not isinstance(sizes[0], int) else sizes
        return self.as_subclass(Tensor).view(-1, *(1,) * (len(shape) - 1)).expand(*shape)  # type: ignore[no-any-return]


def _one_time_for_each_row(vector: Tensor, count: int) -> Tensor:
    """A list of timesteps to all that measures and slices it, in which each single one is the vector of all rows' times.

    Examples:
        >>> time = _one_time_for_each_row(torch.tensor([900.0, 100.0]), 4)[0]
        >>> time.expand(2).tolist(), time.expand(torch.Size([2, 1, 2])).tolist()
        ([900.0, 100.0], [[[900.0, 900.0]], [[100.0, 100.0]]])
    """
    rows = vector.as_subclass(_OfRows)

    class Times(Tensor):
        def __getitem__(self, at: Any) -> Any:
            return rows if isinstance(at, int) else super().__getitem__(at)

        def __iter__(self) -> Iterator[Tensor]:
            return iter([rows] * len(self))

    return vector[:1].repeat(count).as_subclass(Times)


@functools.cache
def _played(kind: Any) -> type:
    """A sub-class of a scheduler class that plays. Its methods keep their signatures: pipelines inspect them."""
    signature = inspect.signature(kind.step)
    noising: dict[str, Any] = {name: _noising(getattr(kind, name)) for name in ("add_noise", "scale_noise") if name in dir(kind)}

    @functools.wraps(kind.set_timesteps)
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)
        self._arrange()

    @functools.wraps(kind.step)
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        arguments = signature.bind(self, *args, **kwargs).arguments
        required = (arguments["model_output"], arguments["timestep"], arguments["sample"], arguments.get("return_dict", True))
        return self._play(*required, arguments.get("pred_original_sample"))

    return type(f"{PLAYED}{kind.__name__}", (_Played, kind), {"set_timesteps": set_timesteps, "step": step, **noising})


def _noising(own: Any) -> Any:
    """Noise for a given image. In a probe the latent is placed, so that what is made here is not looked at."""

    @functools.wraps(own)
    def noised(self: Any, sample: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        return sample if self.player.timesteps is not None else own(self, sample, *args, **kwargs)

    return noised
