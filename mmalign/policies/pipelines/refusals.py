"""Which prompts a pipeline's own call refuses, asked of the call itself and left before the denoiser runs."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Any

import torch

from mmalign.arguments.ranges import Count
from mmalign.policies.pipelines.calling import Caller, one_line
from mmalign.policies.pipelines.interception import Finished
from mmalign.policies.pipelines.scheduler import Moment, Player
from mmalign.types import UserError

REFUSED = (UserError, ValueError, TypeError, KeyError, IndexError, AttributeError, OSError, RuntimeError)
"""What pipelines, tokenizers and readers of pictures raise of a prompt that they cannot use."""


@torch.no_grad()
def refusals(caller: Caller, prompts: Sequence[Any], rows_at_once: Count) -> dict[int, str]:
    """Place -> why, of prompts that the call refuses when it is asked one of them alone. All are asked together first, which is enough
    where none is refused. Errors: torch.OutOfMemoryError, which is no prompt's fault."""
    chunks = [list(prompts[start : start + rows_at_once]) for start in range(0, len(prompts), rows_at_once)]
    if not any(_refusal(caller, chunk) for chunk in chunks):
        return {}
    reasons = {place: _refusal(caller, [prompt]) for place, prompt in enumerate(prompts)}
    return {place: why for place, why in reasons.items() if why}


def _refusal(caller: Caller, prompts: list[Any]) -> str:
    """Why a call with these prompts fails before its denoiser runs; empty where it does not."""

    def leave(*_: Any) -> None:
        raise Finished

    def answer(moment: Moment) -> Any:
        raise Finished

    with ExitStack() as hooks:
        for denoiser in caller.denoisers.values():
            hooks.callback(denoiser.register_forward_pre_hook(leave).remove)
        try:
            caller.until_finished(prompts, [0] * len(prompts), Player(answer), prompts)
        except torch.OutOfMemoryError:
            raise
        except REFUSED as error:
            return one_line(error)
    return ""
