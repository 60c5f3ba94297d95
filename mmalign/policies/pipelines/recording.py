"""What is kept of a rollout, and what stops one at its first steps, before hours are spent on what is no table."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from mmalign.policies.pipelines.scheduler import Moment
from mmalign.types import UserError


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


def refuse_unasked(pipe: Any, latents: list[Tensor]) -> None:
    """Refuses a pipeline whose call has ended without a step of its scheduler.

    latents: that the scheduler was shown.

    Errors: UserError for such a pipeline.
    """
    if not latents:
        raise UserError(
            f"policy.pipeline: {type(pipe).__name__} never asks its scheduler for a step, so there is nothing to record; takes a pipeline "
            "whose call steps through `pipe.scheduler`"
        )
