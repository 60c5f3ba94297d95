"""What a pipeline's denoiser says of given latents, at times of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.calling import Caller, unguided
from mmalign.policies.pipelines.interception import Finished, Place, watched
from mmalign.policies.pipelines.recording import ALL
from mmalign.policies.pipelines.reference_models import First
from mmalign.policies.pipelines.replay import laid_out
from mmalign.policies.pipelines.scheduler import Moment, Player
from mmalign.policies.pipelines.trajectories import Behind
from mmalign.types import Level, Prediction, UserError

Places = dict[int, Place | None]
"""Chunk of a video, 0 for all else -> where a pipeline makes its first latent, where it does not take one; kept once it is known."""


@torch.no_grad()
def first(caller: Caller, places: Places, example: Any, chunk: int = 0) -> First:
    """The timesteps and levels of a call, or of one of its chunks, from the step that it starts with, and its first latent, whose place is
    kept. example: a prompt. Errors: UserError for a chunk that the call does not come to.
    """
    firsts = list[First]()

    def answer(moment: Moment) -> Tensor:
        if moment.chunk < chunk:
            return moment.x
        scheduler = caller.pipe.scheduler  # the one that is played
        at = len(scheduler.schedule) - moment.left
        levels = Level(*(value[at:] for value in scheduler.levels))
        firsts.append(First(scheduler.schedule[at:], levels, tuple(moment.x.shape[1:]), moment.x.dtype))
        places[chunk] = find(moment.x)
        raise Finished

    with watched(caller.pipe) as find:
        caller.until_finished([example], [0], Player(answer), [example], skip=ALL if chunk else 0)
    return firsts[0]


def probed(  # all that a call of rows is
    caller: Caller, places: Places, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None,
    **beside: Any,
) -> Prediction:  # fmt: skip
    """Of all rows in one call, without guidance, with gradient.

    behind: the chunks before the one that is asked about: the call comes to it past what they became, the denoiser standing still.
    beside: arguments of the call.

    Errors: UserError for a pipeline whose first latent cannot be another.
    """
    moments, chunk = list[Moment](), 0 if behind is None else len(behind.ends)
    if chunk not in places:
        first(caller, places, prompts[0], chunk)

    def answer(moment: Moment) -> Tensor:
        if behind is not None and moment.chunk < chunk:
            return laid_out(behind.ends[moment.chunk].to(x.device))
        moments.append(moment)
        raise Finished

    player = Player(answer, timesteps=timesteps, levels=levels)
    seeds, skip = [0] * len(prompts), 0
    if behind is not None:
        seeds, skip = behind.starts.tolist(), behind.steps
        player = player._replace(beside=lambda number, own: laid_out(behind.beside[number].to(own)))
    place = places[chunk]
    placed: dict[str, Any] = {"latents": x} if place is None else {"place": (place, x)}
    arguments = {**beside, **unguided(caller.accepts, len(caller.denoisers)), **placed}
    caller.until_finished(prompts, seeds, player, list(dict.fromkeys(prompts)), skip=skip, **arguments)
    if not torch.equal(moments[0].x, x):
        name = type(caller.pipe).__name__
        raise UserError(f"probe: {name} makes its first latent inside its call, so another cannot be put in its place")
    return moments[0].prediction
