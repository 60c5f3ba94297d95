"""The trajectory that a model's call denoises, before anything is loaded: the size of its latents and the levels of its steps."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from mmalign.policies.inspecting.footprint import Calls
from mmalign.policies.inspecting.ledger import Fake
from mmalign.policies.inspecting.weightless import pipeline
from mmalign.policies.pipelines.calls.calling import Caller, one_line, quiet
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.samplers import kernels
from mmalign.samplers.windows import Window
from mmalign.types import Kernel, Prediction, UserError

__all__: list[str] = []  # no policy


class Trajectory(NamedTuple):
    """name: the pipeline's class. shape: of a latent. std, dt: ``[T]`` float64, of the random steps, under the kernel."""

    name: str
    shape: tuple[int, ...]
    steps: int
    std: Tensor
    dt: Tensor

    @property
    def event_size(self) -> int:
        """Numbers in a latent."""
        return int(torch.tensor(self.shape).prod())


@quiet()
def trajectory(model: Any, call: dict[str, Any], kernel: Kernel, window: Window, *, kind: str | None = None) -> Trajectory:
    """Of a hub id, a folder or a pipeline, for arguments of its call; modules run without numbers.

    kind: the pipeline's class, where nothing else tells it. Errors: UserError where a shape is not known, for an argument that the call
    does not take, and where the call does not run without numbers.
    """
    pipe = pipeline(model, kind=kind)
    caller, moments = Caller(pipe, call, None), list[Moment]()
    for part in pipe.components.values():
        if isinstance(part, nn.Module):
            part.eval().requires_grad_(False)
    Calls(pipe, Fake(), caller.denoisers)

    def answer(moment: Moment) -> Tensor:
        moments.append(moment)
        return moment.x

    example = caller.example or "a"
    try:
        with torch.no_grad():
            caller.until_finished([example], [0], Player(answer), [example])
    except UserError:
        raise
    except Exception as error:  # whatever a pipeline, a tokenizer or a scheduler raises where it gets zeros
        raise UserError(f"--model: the call of {type(pipe).__name__} does not run without weights: {one_line(error)}") from error
    if not moments:
        raise UserError(f"--model: {type(pipe).__name__} never asks its scheduler for a step, so there is no trajectory")
    random, nothing = window(len(moments), 0, torch.Generator().manual_seed(0)), torch.zeros(1)
    std = torch.stack([kernel(Prediction(nothing, nothing), nothing, m.t, m.t_next)[1].reshape(-1)[0].double() for m in moments])
    dt = torch.stack([(kernels.flow_time(m.t) - kernels.flow_time(m.t_next)).reshape(-1)[0].double() for m in moments])
    noisy = random & (std > 0)
    return Trajectory(type(pipe).__name__, tuple(moments[0].x.shape[1:]), len(moments), std[noisy], dt[noisy])
