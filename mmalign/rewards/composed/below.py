"""Where a reward is too low."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Finite
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def below(reward: Callable[..., Any], *, least: Finite) -> Scorer:
    """1 where ``reward`` is below ``least``, else 0, and NaN where it says nothing: as a judge, the share of outputs that break a rule.

    reward: what the rule is about. least: what keeps it.

    Over rounds its curve says whether a model that goes on learning from what is of use to it still keeps what it was aligned to (Alignment
    Tipping Process, https://arxiv.org/abs/2510.04860, *its abstract*): ``configs/text_rounds/tipping``.

    Errors: UserError for what is no reward, or answers with parts.
    """
    if not callable(reward):
        raise UserError(f"below.reward: got a {type(reward).__name__}, takes a reward")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        scores = reward(outputs, prompts, **accepted(reward, columns))
        if not isinstance(scores, Tensor):
            raise UserError(f"below.reward: answered a {type(scores).__name__}, takes one score of each row")
        known = scores.double().cpu()
        return torch.where(known.isnan(), torch.nan, (known < least).double())

    return Scorer("below", score, low=0.0, high=1.0, reads=columns_read(reward))
