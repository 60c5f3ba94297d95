"""Which prompts a pipeline's own call refuses, asked of the call itself and left before the denoiser runs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from typing import Any, NoReturn

import torch

from mmalign.arguments.ranges import Count
from mmalign.policies.pipelines.calls.calling import REFUSED, Caller, one_line
from mmalign.policies.pipelines.calls.interception import Finished
from mmalign.policies.pipelines.calls.scheduler import Player
from mmalign.policies.pipelines.rollouts import probing
from mmalign.types import UserError

__all__: list[str] = []  # no policy

LIST = ", or a pipeline that takes a list of generators, one for each row, as diffusers' randn_tensor does"


@torch.no_grad()
def refusals(caller: Caller, prompts: Sequence[Any], rows_at_once: Count) -> dict[int, str]:
    """Place -> why, of prompts that the call refuses when it is asked one of them alone. All are asked together first, which is enough
    where none is refused.

    Errors: torch.OutOfMemoryError, which is no prompt's fault; UserError for a call that takes one row and not two.
    """
    _refuse_one_row(caller, prompts, rows_at_once)
    chunks = [list(prompts[start : start + rows_at_once]) for start in range(0, len(prompts), rows_at_once)]
    if not any(_refusal(caller, chunk) for chunk in chunks):
        return {}
    reasons = {place: _refusal(caller, [prompt]) for place, prompt in enumerate(prompts)}
    return {place: why for place, why in reasons.items() if why}


def _refuse_one_row(caller: Caller, prompts: Sequence[Any], rows_at_once: int) -> None:
    """Asks once whether a call goes through its first step with two rows. Errors: UserError where it does so with one alone."""
    if caller.takes_several or rows_at_once == 1 or not prompts:
        return
    two = (list(prompts) * 2)[:2]
    why = _refusal(caller, two, denoise=True)
    if why and not any(_refusal(caller, [prompt], denoise=True) for prompt in two):
        raise UserError(
            f"policy.memory.rows_at_once: got {rows_at_once}, and {type(caller.pipe).__name__} goes through a step with one row and not "
            f"with two ({why}); takes 1{LIST if 'generator' in why else ''}"
        )
    caller.takes_several = not why


def _refusal(caller: Caller, prompts: list[Any], *, denoise: bool = False) -> str:
    """Why a call with these prompts fails before its denoiser runs; empty where it does not. denoise: before its first step is done."""

    try:
        _left(caller, prompts, denoise=denoise)
    except torch.OutOfMemoryError:
        raise
    except REFUSED as error:
        return one_line(error)
    return ""


def _left(caller: Caller, prompts: list[Any], *, denoise: bool = False, look: Callable[[], None] = lambda: None) -> None:
    """A call that is left before its denoiser runs, after a ``look``. denoise: before its first step is done."""

    def leave(*_: Any) -> NoReturn:
        look()
        raise Finished

    with ExitStack() as hooks:
        for denoiser in () if denoise else caller.denoisers.values():
            hooks.callback(denoiser.register_forward_pre_hook(leave).remove)
        caller.until_finished(prompts, [0] * len(prompts), Player(leave), prompts)


def refuse_beside(caller: Caller, prompt: Any) -> None:
    """Asks the call of a prompt, before anything is denoised, whether that is more than its latent, see ``probing.refuse_beside``."""
    _left(caller, [prompt], look=partial(probing.refuse_beside, caller))
