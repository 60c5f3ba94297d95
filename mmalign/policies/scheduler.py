"""The seam: a scheduler that turns a diffusers pipeline's own ``__call__`` into an environment.

``seat`` gives a pipeline, for one call, a scheduler of the class it had and with the config it had, whose ``step`` asks a
``Player`` for the next latent. Timesteps, shift, mu and sigmas are computed by diffusers' own code, so the pipeline runs as it
always does: classifier-free guidance, image conditions and all.
"""

from __future__ import annotations

import copy
import functools
import inspect
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.samplers.kernels import predict
from mmalign.types import Level, Prediction, UserError

# How each scheduler's latents relate to data and noise. A scheduler whose own timesteps are no plain grid (they repeat or
# interleave for a higher order) is replaced by the first-order one of its path.
FLOW = {"FlowMatchEulerDiscreteScheduler", "FlowMatchLCMScheduler", "FlowMatchHeunDiscreteScheduler"}
PRESERVING = {"DDIMScheduler", "DDPMScheduler", "PNDMScheduler", "LCMScheduler", "TCDScheduler", "DDIMParallelScheduler", "DDPMParallelScheduler"}
FROM_SIGMAS = {"DPMSolverMultistepScheduler", "DPMSolverSinglestepScheduler", "UniPCMultistepScheduler", "DEISMultistepScheduler", "SASolverScheduler"}
EXPLODING = {"EulerDiscreteScheduler", "EulerAncestralDiscreteScheduler", "HeunDiscreteScheduler", "LMSDiscreteScheduler", "KDPM2DiscreteScheduler", "KDPM2AncestralDiscreteScheduler", "DPMSolverSDEScheduler"}  # fmt: skip
FIRST_ORDER = {"PNDMScheduler": "DDIMScheduler", "FlowMatchHeunDiscreteScheduler": "FlowMatchEulerDiscreteScheduler", "DPMSolverSinglestepScheduler": "DPMSolverMultistepScheduler"} | dict.fromkeys(EXPLODING - {"EulerDiscreteScheduler"}, "EulerDiscreteScheduler")  # fmt: skip


class Moment(NamedTuple):
    """One question of the pipeline: the step's number, its level and the next one, the latent, and what the model says."""

    index: int
    t: Level
    t_next: Level
    x: Tensor
    prediction: Prediction


class Player(NamedTuple):
    """Who answers. ``answer``: Moment -> next latent. ``only``: play this step alone (a number), or None for all of them.

    ``timesteps``: a vector, one time per row, in place of the schedule (a probe); ``times`` are then its noise levels.
    """

    answer: Callable[[Moment], Tensor]
    only: int | None = None
    timesteps: Tensor | None = None
    levels: Level | None = None


def grid(scheduler: Any) -> Level:
    """Levels ``[T + 1]`` of a scheduler after ``set_timesteps``, from its first timestep to clean data, float32 on the CPU.

    Errors: UserError for a scheduler whose path is not known here.
    """
    name = _own_name(scheduler)
    if name in FLOW or (name in FROM_SIGMAS and scheduler.config.get("use_flow_sigmas", False)):
        sigmas = scheduler.sigmas.cpu().float()
        return Level(1 - sigmas, sigmas)
    if name in PRESERVING:
        abar = scheduler.alphas_cumprod.cpu()[scheduler.timesteps.cpu().long()].float()
        last = torch.ones(()) if scheduler.config.get("set_alpha_to_one", True) else scheduler.alphas_cumprod[0].cpu().float()
        abar = torch.cat([abar, last[None]])
        return Level(abar.sqrt(), (1 - abar).sqrt())
    if name in FROM_SIGMAS:
        sigmas = scheduler.sigmas.cpu().float()
        signal = 1 / (1 + sigmas**2).sqrt()
        return Level(signal, sigmas * signal)
    if name in EXPLODING:
        sigmas = scheduler.sigmas.cpu().float()
        return Level(torch.ones_like(sigmas), sigmas)
    raise UserError(f"scheduler: got {name}, takes one of {', '.join(sorted(FLOW | PRESERVING | FROM_SIGMAS | EXPLODING))}")


def parametrisation(scheduler: Any) -> str:
    """What the model predicts, in ``samplers.kernels.predict``'s words. Errors: UserError for one not known here."""
    if _own_name(scheduler) in FLOW:
        return "flow"
    kind = scheduler.config.get("prediction_type", "epsilon")
    names = {"epsilon": "epsilon", "v_prediction": "v_prediction", "sample": "sample", "flow_prediction": "flow"}
    if kind not in names:
        raise UserError(f"scheduler.prediction_type: got {kind!r}, takes {', '.join(names)}")
    return names[kind]


def clean_and_noise(scheduler: Any, output: Tensor, x: Tensor, t: Level) -> Prediction:
    """The model's output as a Prediction.

    On a variance-exploding path the network saw ``x / sqrt(1 + sigma^2)`` and speaks about that variance-preserving latent;
    what is clean and what is noise is the same there. A model that predicts its variance too (twice the channels) keeps
    the first half, as diffusers' DDPM and DDIM do.
    """
    if output.shape != x.shape and output.shape[1] == 2 * x.shape[1]:
        output = output[:, : x.shape[1]]
    if _own_name(scheduler) in EXPLODING:
        size = (t.signal**2 + t.noise**2).sqrt()
        x, t = x.float() / size, Level(t.signal / size, t.noise / size)
    return predict(output, x, t, parametrisation=parametrisation(scheduler))  # type: ignore[arg-type]


def first_order(scheduler: Any) -> Any:
    """The same path with a plain grid of timesteps: the scheduler itself, or its first-order sibling from the same config."""
    import diffusers

    sibling = FIRST_ORDER.get(type(scheduler).__name__)
    return getattr(diffusers, sibling).from_config(scheduler.config) if sibling else scheduler


@contextmanager
def seat(pipe: Any, player: Player) -> Iterator[Any]:
    """``pipe.scheduler`` is the player's while the block lasts; yields it. The pipeline gets its own back in any case."""
    own = pipe.scheduler
    seated = copy.deepcopy(first_order(own))
    seated.__class__ = _played(type(seated))
    seated.begin(player)
    pipe.scheduler = seated
    try:
        yield seated
    finally:
        pipe.scheduler = own


def _own_name(scheduler: Any) -> str:
    kind = type(scheduler)
    return (kind.__mro__[2] if issubclass(kind, _Played) else kind).__name__


class _Played:
    """What is put before a scheduler class: the same object, with ``step`` answered by a player.

    A sub-class made on the spot, because pipelines look at their scheduler's class, config and signatures.
    """

    def begin(self, player: Player) -> None:
        self.player, self.position = player, 0

    def level(self, index: int) -> Level:
        signal, noise = self.levels  # type: ignore[has-type]
        return Level(signal[index], noise[index])

    def _arrange(self) -> None:
        """After diffusers has computed its schedule: keep the levels, and show the pipeline only the steps to be played."""
        self.position = 0
        if self.player.timesteps is not None:
            self.timesteps: Any = [self.player.timesteps]
            return
        self.levels = grid(self)
        self.schedule = self.timesteps
        if self.player.only is not None:
            self.position = self.player.only
            self.timesteps = self.timesteps[self.player.only : self.player.only + 1]

    def _moment_levels(self, x: Tensor) -> tuple[Level, Level]:
        if self.player.levels is not None:
            shape = (-1, *(1,) * (x.ndim - 1))
            here = Level(*(value.to(x.device).reshape(shape) for value in self.player.levels))
            return here, here
        here, there = self.level(self.position), self.level(self.position + 1)
        return Level(*(v.to(x.device) for v in here)), Level(*(v.to(x.device) for v in there))

    def scale_model_input(self, sample: Tensor, timestep: Any = None) -> Tensor:
        if _own_name(self) not in EXPLODING:
            return sample
        t, _ = self._moment_levels(sample)
        noise = torch.cat([t.noise] * 2) if t.noise.ndim and t.noise.shape[0] * 2 == sample.shape[0] else t.noise
        return (sample / (noise**2 + 1).sqrt().to(sample)).to(sample.dtype)

    def step(self, model_output: Tensor, timestep: Any, sample: Tensor, eta: float = 0.0, generator: Any = None, return_dict: bool = True, **kwargs: Any) -> Any:  # fmt: skip
        t, t_next = self._moment_levels(sample)
        prediction = clean_and_noise(self, model_output, sample, t)
        answer = self.player.answer(Moment(self.position, t, t_next, sample, prediction))
        self.position += 1
        if not return_dict:
            return (answer, prediction.clean)
        from diffusers.schedulers.scheduling_ddim import DDIMSchedulerOutput

        return DDIMSchedulerOutput(prev_sample=answer, pred_original_sample=prediction.clean)


@functools.cache
def _played(kind: type) -> type:
    """A sub-class of a scheduler class that plays. ``set_timesteps`` keeps its signature: pipelines inspect it."""

    @functools.wraps(kind.set_timesteps)  # type: ignore[attr-defined]
    def set_timesteps(self: Any, *args: Any, **kwargs: Any) -> None:
        kind.set_timesteps(self, *args, **kwargs)  # type: ignore[attr-defined]
        self._arrange()

    native = inspect.getattr_static(kind, "init_noise_sigma", None)  # a property in some classes, an attribute in others

    def initial(self: Any) -> Any:
        """A latent that is given is already at its level; only fresh noise is scaled."""
        if self.player.only is not None or self.player.timesteps is not None:
            return 1.0
        return native.fget(self) if isinstance(native, property) else self.__dict__["init_noise_sigma"]  # type: ignore[misc]

    scale = property(initial, lambda self, value: self.__dict__.__setitem__("init_noise_sigma", value))
    return type(f"Played{kind.__name__}", (_Played, kind), {"set_timesteps": set_timesteps, "init_noise_sigma": scale})
