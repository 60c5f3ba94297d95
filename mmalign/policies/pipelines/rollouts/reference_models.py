"""Another pipeline as a reference: the recorded latents, denoised by a model of another size that was trained in the same latents.

What a latent means is told by the autoencoder, and what its noise is by the schedule; both have to be the policy's. How the other model is
asked (its text encoders, its guidance) is its own affair.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.distributed.messages import spread
from mmalign.policies.pipelines.calls.calling import REFUSED, one_line
from mmalign.policies.settings import Schedule
from mmalign.samplers.windows import Window
from mmalign.types import Kernel, Level, Prediction, UserError

ROUNDED = 2.0**-6  # of an autoencoder's weights, between half precision and full
MEANING = ("scaling_factor", "shift_factor", "latents_mean", "latents_std")


class First(NamedTuple):
    """What a pipeline's call begins with. timesteps: ``[T]``. levels: ``[T + 1]``. shape, dtype: of a latent."""

    timesteps: Tensor
    levels: Level
    shape: tuple[int, ...]
    dtype: torch.dtype


def asked(key: str, other: Any, examples: Sequence[Any]) -> First:
    """What another pipeline's call begins with, which is made once for that. Errors: UserError where it refuses the first of examples."""
    try:
        return other.first(examples)  # type: ignore[no-any-return]
    except torch.OutOfMemoryError:
        raise
    except REFUSED as error:
        name = type(other.pipe).__name__
        raise UserError(
            f"{key}: {name} refuses a call ({one_line(error)}); takes what its call needs in its own call and conditions"
        ) from error


def refuse_latents(key: str, pipe: Any, other: Any, own: First, theirs: First) -> None:
    """Errors: UserError where the latents of two pipelines are not the same thing."""
    if own.shape != theirs.shape:
        sizes = f"its latents are {list(theirs.shape)} and the policy's {list(own.shape)}"
        raise UserError(f"{key}: {sizes}; takes the same size, and a model of the same latents")
    if own.dtype != theirs.dtype:
        types = [str(kind).removeprefix("torch.") for kind in (theirs.dtype, own.dtype)]
        raise UserError(f"{key}.dtype: its latents are {types[0]}, the policy's {types[1]}; takes dtype: {types[1]}")
    here, there = (part.components.get("vae") for part in (pipe, other))
    if here is there:
        return
    if here is None or there is None or type(here) is not type(there):
        kinds = [type(vae).__name__ if vae is not None else "none" for vae in (there, here)]
        raise UserError(f"{key}.pipeline: its autoencoder is {kinds[0]}, the policy's {kinds[1]}; takes a model of the same latents")
    for name in MEANING:
        if (one := there.config.get(name)) != (two := here.config.get(name)):
            raise UserError(f"{key}.pipeline: {name} of its autoencoder is {one}, of the policy's {two}; takes a model of the same latents")
    if differing := _apart(here, there):
        raise UserError(f"{key}.pipeline: its autoencoder has other weights ({differing}); takes a model of the same latents")


def _apart(one: nn.Module, two: nn.Module) -> str:
    """The first tensor that two modules do not share, up to rounding; empty where they share all."""
    tables = one.state_dict(), two.state_dict()
    for name in sorted(tables[0].keys() | tables[1].keys()):
        values = [table.get(name) for table in tables]
        if values[0] is None or values[1] is None or values[0].shape != values[1].shape:
            return name
        at = spread(values[0].numel())
        here, there = (value.detach().flatten()[at.to(value.device)].double().cpu() for value in values if value is not None)
        if not torch.allclose(here, there, rtol=ROUNDED, atol=ROUNDED * float(here.abs().max()) if len(at) else 0.0):
            return name
    return ""


def refuse_times(key: str, own: tuple[Tensor, Level], theirs: tuple[Tensor, Level]) -> None:
    """Errors: UserError where two schedules, ``timesteps`` and ``levels`` each, differ."""
    if len(own[0]) != len(theirs[0]):
        raise UserError(f"{key}.schedule.steps: got {len(theirs[0])}, and the policy has {len(own[0])}; takes as many")
    tables = [{"timesteps": times, "signal": levels.signal, "noise": levels.noise} for times, levels in (own, theirs)]
    for what in tables[0]:
        here, there = (table[what].double().cpu() for table in tables)
        if not torch.allclose(here, there, rtol=1e-5, atol=1e-6 * max(1.0, float(here.abs().max()))):
            at = int((here - there).abs().argmax())
            raise UserError(
                f"{key}.pipeline: the {what} of its schedule is {float(there[at]):.4g} at place {at}, the policy's {float(here[at]):.4g}; "
                "takes a model with the policy's noise schedule"
            )


def refuse_sampling(key: str, own: tuple[Kernel, Window], schedule: Schedule, first: First) -> None:
    """Errors: UserError for a kernel or a window of ``schedule`` that is not the policy's: those of the policy are used for both."""
    if schedule.kernel is not None:
        x = torch.randn(1, 8, generator=torch.Generator().manual_seed(0))
        prediction = Prediction(x.flip(1), x.roll(1))
        for place in range(len(first.timesteps)):
            t, t_next = (Level(*(value[at].cpu().float() for value in first.levels)) for at in (place, place + 1))
            for here, there in zip(own[0](prediction, x, t, t_next), schedule.kernel(prediction, x, t, t_next), strict=True):
                if not torch.allclose(here, there):
                    raise UserError(f"{key}.schedule.kernel: is another one than the policy's, which both are asked with; takes none")
    if schedule.window is not None:
        windows = [window(len(first.timesteps), 0, torch.Generator().manual_seed(0)) for window in (own[1], schedule.window)]
        if not torch.equal(*windows):
            raise UserError(f"{key}.schedule.window: is another one than the policy's, which tells what was recorded; takes none")
