"""Rollouts that are made once, where a test is about what is made of them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch


def once(function: Callable[..., Any]) -> Callable[..., Any]:
    """The same rollout for the same prompts or outputs: all that a method has to do with it is to score it."""
    made: dict[str, Any] = {}

    def rollout(*args: Any, **kwargs: Any) -> Any:
        key = repr((args[:2], kwargs))
        if key not in made:
            made[key] = function(*args, **kwargs)
        return made[key].take(torch.arange(len(made[key])))

    return rollout
