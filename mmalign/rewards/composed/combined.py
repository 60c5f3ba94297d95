"""Several rewards as one reward: for guidance and search, which take one, and inside of other rewards."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Differentiable, Stepped, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.combinations._parts import Combination
from mmalign.combinations.algebra import weighted_sum
from mmalign.rewards._shared.scorer import Scorer
from mmalign.types import UserError


def combined(*, rewards: Mapping[str, Callable[..., Any]], combine: Combination | None = None) -> Scorer:
    """Reward ``combine({name: reward(outputs, prompts)})``; the sum by default. Differentiable where all of the rewards are.

    rewards: name -> reward. combine: a function of ``combinations``; their sum by default.

    What is normalised by group takes equal prompts for one group. State is used as it is, and learns nothing: training has its own
    ``combine``, which also logs each reward by itself.

    Errors: UserError for what is no reward or no combination.

    Examples:
        >>> both = mm.rewards.combined(rewards={"brief": mm.rewards.length(2), "digit": mm.rewards.format(r".*[0-9].*")})
        >>> both(["4", "it is surely 4", "four"], ["2 + 2?"] * 3).tolist()
        [1.0, 0.0, 0.0]
    """
    if not rewards or not all(callable(reward) for reward in rewards.values()):
        raise UserError(f"combined.rewards: got {dict(rewards)!r}, takes at least one {{name: reward}}")
    by = combine or weighted_sum()
    if not isinstance(by, Combination):
        raise UserError(f"combined.combine: got {type(by).__name__}, takes {{use: weighted_sum, ...}} or another of algebra.py")

    latents = {of_latents(reward) for reward in rewards.values()}
    if len(latents) > 1:
        raise UserError("combined.rewards: some score latents and some outputs, takes rewards of one of them")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        parts: dict[str, Tensor] = {}
        for name, reward in rewards.items():
            answer = reward(outputs, prompts, **accepted(reward, columns))
            scores = {f"{name}/{part}": values for part, values in answer.items()} if isinstance(answer, Mapping) else {name: answer}
            parts.update({part: torch.as_tensor(values).double().cpu() for part, values in scores.items()})
        numbers: dict[str, int] = {}
        group = torch.tensor([numbers.setdefault(repr(prompt), len(numbers)) for prompt in prompts], dtype=torch.int64)
        return by(parts, group, prompts)

    def at(step: int) -> None:
        for reward in rewards.values():
            if isinstance(reward, Stepped) and reward.at is not None:
                reward.at(step)

    differentiable = all(isinstance(reward, Differentiable) and reward.differentiable for reward in rewards.values())
    reads = frozenset[str]().union(*map(columns_read, rewards.values()))
    return Scorer("combined", score, differentiable=differentiable, at=at, reads=reads, of_latents=True in latents)
