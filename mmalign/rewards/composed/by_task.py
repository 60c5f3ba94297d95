"""Every prompt by the reward of its own task: a rule for arithmetic, a judge for chat, in one run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.columns import Column
from mmalign.arguments.facts import Differentiable, Stepped, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.reads import columns_read
from mmalign.rewards._shared.scorer import Scorer, column_of, taken
from mmalign.types import UserError


def by_task(*, rewards: Mapping[str, Callable[..., Any]], column: Column = "task", others: str | None = None) -> Scorer:
    """The score of the reward that a row's task names; no other reward is asked about that row.

    Each reward keeps its own range: methods that compare the rows of one prompt see one of them at a time, and for methods that compare
    across prompts, bring them to one scale (``{use: combined, rewards: ..., combine: {use: weighted_sum, transforms: ...}}``).
    Differentiable where all rewards are. A row whose task is empty has no score.

    rewards: task -> its reward, which answers one number for a row. column: of the prompts, that holds their task.
    others: the task in ``rewards`` by whose reward all other tasks are scored; null refuses a task that is not in ``rewards``.

    Source: rules for what can be checked and a model for the rest, as in DeepSeek-R1, https://arxiv.org/abs/2501.12948, section 2.3.4.

    Errors: UserError for no rewards, for ``others`` that is none of them, for a task that no reward is for, and for one that answers parts.

    Examples:
        >>> both = mm.rewards.by_task(rewards={"sum": mm.rewards.exact_match(), "chat": mm.rewards.length(2)})
        >>> both(["4", "it is 4"], ["2 + 2?", "hello"], task=["sum", "chat"], answer=["4", None]).tolist()
        [1.0, -1.0]
    """
    if not rewards or not all(callable(reward) for reward in rewards.values()):
        raise UserError(f"by_task.rewards: got {dict(rewards)!r}, takes at least one {{task: reward}}")
    if others is not None and others not in rewards:
        raise UserError(f"by_task.others: got {others!r}, takes one of the tasks: {', '.join(rewards)}")
    latents = {of_latents(reward) for reward in rewards.values()}
    if len(latents) > 1:
        raise UserError("by_task.rewards: some score latents and some outputs, takes rewards of one of them")

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Tensor:
        rows: dict[str, list[int]] = {}
        for row, task in enumerate(column_of("by_task", column, columns)):
            if task is not None:
                name = str(task) if str(task) in rewards else others
                if name is None:
                    raise UserError(f"by_task: the prompt of row {row} has the task {task!r}; takes {', '.join(rewards)}, or others: TASK")
                rows.setdefault(name, []).append(row)
        scores = torch.full((len(prompts),), torch.nan, dtype=torch.float64)
        for name, of_task in rows.items():
            its = {key: [values[row] for row in of_task] for key, values in columns.items()}
            answer = rewards[name](*taken(of_task, outputs, prompts), **accepted(rewards[name], its))
            if isinstance(answer, Mapping):
                raise UserError(f"by_task.rewards.{name}: answers parts ({', '.join(answer)}), takes {{use: combined}} around them")
            scores = scores.index_copy(0, torch.tensor(of_task), torch.as_tensor(answer).double().cpu())
        return scores

    def at(step: int) -> None:
        for reward in rewards.values():
            if isinstance(reward, Stepped) and reward.at is not None:
                reward.at(step)

    reads = frozenset[str]({column}).union(*map(columns_read, rewards.values()))
    differentiable = all(isinstance(reward, Differentiable) and reward.differentiable for reward in rewards.values())
    return Routed("by_task", score, differentiable=differentiable, at=at, reads=reads, of_latents=True in latents)


@dataclass(frozen=True)
class Routed(Scorer):
    """A scorer whose rows need what their own reward reads, and no more: what another task's reads may be missing there."""

    def __call__(self, outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        return self.score(outputs, prompts, **columns)
