"""A limit on the time of any reward, so that one that hangs does not hang the run."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from threading import Thread
from typing import Any

import torch

from mmalign.arguments.facts import Differentiable, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Positive
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.patience import wait
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def time_limit(reward: Callable[..., Any], *, seconds: Positive = 60.0) -> Scorer:
    """What ``reward`` answers; where a batch takes longer than ``seconds`` by the clock, all of its scores are missing: NaN.

    So a run stops with one line, or goes on without those rows (``batch.missing: drop``), where it would wait for ever for a server, a lock
    or a loop. What hangs is left behind in a thread: while it is at work the reward is not asked again, and has no scores. A call into
    C that keeps Python's lock cannot be left behind; rewards of ours that may meet such calls have ``seconds`` of their own.

    reward: that is asked. seconds: of a batch, by the clock; one that stands while this process is stopped, or has no processor.

    Errors: UserError for what is no reward, and for no time.

    Examples:
        >>> mm.rewards.time_limit(mm.rewards.length(2), seconds=5)(["one two", "one two three"], ["count"] * 2).tolist()
        [0.0, -1.0]
    """
    if not callable(reward) or not seconds > 0:
        raise UserError(f"time_limit: got {type(reward).__name__}, seconds={seconds}, takes a reward, and more than 0")
    working: list[Future[Any]] = []  # the batch that it was asked about last
    parts: list[str] = []

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        if working and not working[0].done():
            missing = "is still at work on a batch before"
        else:
            working[:] = [_begun(_as_here(reward), outputs, prompts, accepted(reward, columns))]
            wait(working, seconds)
            if working[0].done():
                answer = working[0].result()
                parts[:] = [*answer] if isinstance(answer, Mapping) else []
                return answer
            missing = f"took more than {seconds:g} s"
        warnings.warn(f"time_limit: the reward {missing}; these {len(prompts)} scores are missing", stacklevel=2)
        nothing = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        return dict.fromkeys(parts, nothing) if parts else nothing

    if isinstance(reward, Scorer):
        facts = (reward.differentiable, reward.low, reward.high, reward.at, reward.reads, reward.of_latents)
        return Scorer("time_limit", score, *facts, state=reward.state)
    differentiable = isinstance(reward, Differentiable) and reward.differentiable
    return Scorer("time_limit", score, differentiable=differentiable, reads=columns_read(reward), of_latents=of_latents(reward))


def _begun(reward: Callable[..., Any], outputs: Any, prompts: list[Any], columns: Mapping[str, Any]) -> Future[Any]:
    """What a reward is about to answer, in a thread of its own, which does not keep Python from ending."""
    answer: Future[Any] = Future()

    def work() -> None:
        try:
            answer.set_result(reward(outputs, prompts, **columns))
        except BaseException as error:  # the caller's, who is told of all of them
            answer.set_exception(error)

    Thread(target=work, daemon=True).start()
    return answer


def _as_here(reward: Callable[..., Any]) -> Callable[..., Any]:
    """The reward as it would be asked in this thread: gradients and the device are settings of a thread."""
    gradients, device = torch.is_grad_enabled(), torch.cuda.current_device() if torch.cuda.is_initialized() else None

    def here(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        if device is not None:
            torch.cuda.set_device(device)
        with torch.set_grad_enabled(gradients):
            return reward(outputs, prompts, **columns)

    return here
