"""What is kept of a rollout, and what stops one at its first steps, before hours are spent on what is no table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.calling import Caller
from mmalign.policies.pipelines.scheduler import Moment, Player
from mmalign.samplers.windows import Window
from mmalign.types import Kernel, Prediction, UserError

ALL = 10**9  # steps: through all of them the denoiser stands still


@torch.no_grad()
def random_steps(caller: Caller, window: Window, kernel: Kernel, prompt: str) -> Tensor:
    """Which steps of a first rollout are random, ``[T]`` bool: of a whole call in which the denoiser stands still.

    Errors: UserError for a pipeline that asks its scheduler never, or more than once at one time, and for a window that does not fit.
    """
    before, noisy = list[int](), list[bool]()

    def answer(moment: Moment) -> Tensor:
        refuse_again(caller.pipe, moment, before)
        nothing = torch.zeros(1, device=moment.x.device)
        noisy.append(bool((kernel(Prediction(nothing, nothing), nothing, moment.t, moment.t_next)[1] > 0).all()))
        return moment.x

    caller.until_finished([prompt], [0], Player(answer), [prompt], skip=ALL)
    refuse_unasked(caller.pipe, noisy)
    random = window(before[0], 0, torch.Generator().manual_seed(0))
    refuse_window(random, before[0])
    return random[: len(noisy)] & torch.tensor(noisy)


def generator_at(state: Tensor) -> torch.Generator:
    """A generator that goes on from a state."""
    rng = torch.Generator()
    rng.set_state(state)
    return rng


def refuse_window(window: Tensor, left: int) -> None:
    """Refuses a window of another length than the trajectory's.

    window: ``[left]`` bool. left: steps that are taken.

    Errors: UserError for another length.
    """
    if tuple(window.shape) != (left,):
        raise UserError(f"policy.schedule.window: got a mask of shape {list(window.shape)}, takes [{left}], one for each denoising step")


def stacked_means(part: dict[str, Any], columns: list[int]) -> Tensor:
    """The means of the random steps of some rows, ``[C, R, ...]`` float32 on the CPU; C may be 0.

    part: what was recorded of the rows. columns: numbers of the random steps.
    """
    x: Tensor = part["x"]
    return torch.stack([part["means"][column] for column in columns]) if columns else torch.zeros(0, *x.shape[1:])


def refuse_again(pipe: Any, moment: Moment, before: list[int]) -> None:
    """Refuses a pipeline that asks its scheduler a second time where it has just been: its table would have two columns for a step.

    before: how many steps were left at each question so far; that of this one is added.

    Errors: UserError for such a pipeline.
    """
    if before and moment.left >= before[-1]:
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} asks its scheduler more than once at one time (question {moment.column + 1}), so that "
            "its steps are no policy's; takes a pipeline that steps once at each time"
        )
    before.append(moment.left)


def refuse_unasked(pipe: Any, questions: list[Any]) -> None:
    """Refuses a pipeline whose call has ended without a step of its scheduler.

    questions: that the scheduler was asked.

    Errors: UserError for such a pipeline.
    """
    if not questions:
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} never asks its scheduler for a step, so there is nothing to record; takes a pipeline "
            "whose call steps through `pipe.scheduler`"
        )


def kept(latents: Tensor) -> Tensor:
    """As a rollout keeps them, on the CPU: pipelines may write into what they hold."""
    return latents.to("cpu", copy=True)
