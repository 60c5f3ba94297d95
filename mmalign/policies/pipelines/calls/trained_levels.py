"""The noise levels that a model under some scheduler was trained at."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.policies.pipelines.calls.scheduler_paths import EXPLODING, FLOW, FROM_SIGMAS, PRECONDITIONED, PRESERVING, inverted
from mmalign.types import Level, UserError

GRID = 1000  # places on the schedule of a model that was trained at any noise level


class TrainingSchedule(NamedTuple):
    """``timesteps [K]``, in the denoiser's own units, and ``levels`` (``[K]`` each) that a model was trained at."""

    timesteps: Tensor
    levels: Level


def training_schedule(scheduler: Any) -> TrainingSchedule:
    """The times that a model under this scheduler was trained at, a static shift included. Errors: UserError for others.

    EDM models (noise far above 1) were trained at a continuous noise level whose distribution no config tells: theirs is the
    scheduler's own sampling schedule, in 1000 steps from ``sigma_max`` to ``sigma_min``.
    """
    own, name = type(scheduler).from_config(scheduler.config), type(scheduler).__name__
    count = int(own.config.get("num_train_timesteps", 1000))
    if name in FLOW:
        sigmas, timesteps = own.sigmas[:count].float(), own.timesteps[:count].float()
        if inverted(scheduler):
            return TrainingSchedule((1 - sigmas) * count, Level(1 - sigmas, sigmas))
        if float(sigmas.max()) <= 1.001:
            return TrainingSchedule(timesteps, Level(1 - sigmas, sigmas))
    elif name in FROM_SIGMAS and own.config.get("use_flow_sigmas", False):
        sigmas, shift = torch.arange(count, 0, -1) / count, float(own.config.get("flow_shift") or 1.0)
        sigmas = shift * sigmas / (1 + (shift - 1) * sigmas)
        return TrainingSchedule(sigmas * count, Level(1 - sigmas, sigmas))
    elif name in PRESERVING | FROM_SIGMAS | EXPLODING:
        alphas_cumprod = own.alphas_cumprod.float()
        signal, noise = alphas_cumprod.sqrt(), (1 - alphas_cumprod).sqrt()
        ratio = noise / signal.clamp(min=1e-12)
        return TrainingSchedule(torch.arange(count), Level(torch.ones_like(ratio), ratio) if name in EXPLODING else Level(signal, noise))
    elif name in PRECONDITIONED:
        own.set_timesteps(GRID)
        sigmas = own.sigmas[:GRID].float()
        return TrainingSchedule(own.timesteps[:GRID].float().cpu(), Level(torch.ones_like(sigmas), sigmas))
    accepted = ", ".join(sorted(FLOW | PRESERVING | FROM_SIGMAS | EXPLODING | PRECONDITIONED))
    raise UserError(f"scheduler: the training schedule of {name} is not known here, or its noise goes above 1; takes one of {accepted}")
