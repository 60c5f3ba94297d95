"""What a pipeline's denoiser says of given latents, at times of their own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.calling import Caller, unguided
from mmalign.policies.pipelines.interception import Finished, Place
from mmalign.policies.pipelines.scheduler import Moment, Player
from mmalign.types import Level, Prediction, UserError


def probed(  # all that a call of rows is
    caller: Caller, place: Place | None, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, **beside: Any
) -> Prediction:  # fmt: skip
    """Of all rows in one call, without guidance, with gradient. place: where the pipeline makes its first latent; None: it takes them.
    beside: arguments of the call.

    Errors: UserError for a pipeline whose first latent cannot be another.
    """
    moments: list[Moment] = []

    def answer(moment: Moment) -> Tensor:
        moments.append(moment)
        raise Finished

    player = Player(answer, timesteps=timesteps, levels=levels)
    placed: dict[str, Any] = {"latents": x} if place is None else {"place": (place, x)}
    arguments = {**beside, **unguided(caller.accepts, len(caller.denoisers)), **placed}
    caller.until_finished(prompts, [0] * len(prompts), player, list(dict.fromkeys(prompts)), **arguments)
    if not torch.equal(moments[0].x, x):
        name = type(caller.pipe).__name__
        raise UserError(f"probe: {name} makes its first latent inside its call, so another cannot be put in its place")
    return moments[0].prediction
