"""The best of many in stages, as a reward: the dear one is asked about few."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Stepped, of_latents
from mmalign.arguments.parameters import accepted
from mmalign.arguments.ranges import Count
from mmalign.arguments.reads import columns_read
from mmalign.combinations._stages import in_stages, refuse_stages
from mmalign.rewards._shared.scorer import Scorer, taken
from mmalign.types import UserError


def staged(*, rewards: Mapping[str, Callable[..., Any]], keep: Mapping[str, Count], apart: bool = False) -> Scorer:
    """The last reward's score of what the ones before have kept of each prompt's outputs; NaN of all others.

    Each reward of ``keep``, in its order, is asked about what is left, and keeps its best; the sum of the rewards that are not in ``keep``
    is the score. With ``batch.missing: drop``, ``raft`` learns from the best of many by a reward that could not be asked about all of them,
    and ``make_pairs`` makes pairs of those that came to the end. ``guidance.best_of(keep=...)`` does the same while a pipeline samples.

    Equal prompts are one group. An output that a stage has no score for goes on only where there is room. ``counts`` says how many outputs
    each reward was asked about (``asked/NAME``), and of how many it had no score (``missing/NAME``), since the run began.

    Args:
        rewards: name -> reward, which answers one number for a row.
        keep: name -> how many outputs of a prompt go on, each fewer than the one before.
        apart: two parts and more, ``score``, and ``asked/NAME``, 1 for a row that NAME was asked about and 0 elsewhere, so that what each
            reward costs stands in the log.

    Paper: the choice of candidates at test time in MIND-V (*recalled, from its abstract*). Deviations: that model chooses once for each
    part of a long task, and goes on from what it chose, which is ``best_of`` in a loop (guidance's page); its own checks are not known
    here, so that the stages are the user's.

    Errors: UserError for what is no reward, for names in ``keep`` that are none, for no reward that is left for the last stage, for numbers
    that do not fall, and for a reward that answers parts.

    Examples:
        >>> rewards = {"brief": mm.rewards.length(4, least=2), "digit": mm.rewards.format(r".*[0-9].*")}
        >>> many = mm.rewards.staged(rewards=rewards, keep={"brief": 2})
        >>> many(["it is surely 4", "it is four", "no"], ["2 + 2?"] * 3).tolist()
        [1.0, 0.0, nan]
        >>> dict(many.counts)
        {'asked/brief': 3, 'asked/digit': 2}
    """
    if not rewards or not all(callable(reward) for reward in rewards.values()):
        raise UserError(f"staged.rewards: got {dict(rewards)!r}, takes at least two {{name: reward}}")
    refuse_stages("staged", keep, list(rewards))
    if len({of_latents(reward) for reward in rewards.values()}) > 1:
        raise UserError("staged.rewards: some score latents and some outputs, takes rewards of one of them")
    stages = {name: [name] for name in keep} | {"+".join(last := [name for name in rewards if name not in keep]): last}
    counts = Counts()

    def score(outputs: Any, prompts: list[Any], **columns: Any) -> Any:
        def asked(names: list[str]) -> Callable[[list[int]], Tensor]:
            def of_rows(rows: list[int]) -> Tensor:
                its = {key: [values[row] for row in rows] for key, values in columns.items()}
                return torch.stack([_one(name, rewards[name], *taken(rows, outputs, prompts), its) for name in names]).sum(0)

            return of_rows

        numbers: dict[str, int] = {}
        group = torch.tensor([numbers.setdefault(repr(prompt), len(numbers)) for prompt in prompts], dtype=torch.int64)
        found = in_stages({key: asked(names) for key, names in stages.items()}, group, keep)
        counts.take({f"asked/{name}": number for name, number in found.asked.items()})
        counts.take({f"missing/{name}": number for name, number in found.missing.items() if number})
        parts = {f"asked/{name}": rows.double() for name, rows in found.reached.items()}
        return {"score": found.last, **parts} if apart else found.last

    def at(step: int) -> None:
        for reward in rewards.values():
            if isinstance(reward, Stepped) and reward.at is not None:
                reward.at(step)

    reads = frozenset[str]().union(*map(columns_read, rewards.values()))
    of = any(of_latents(reward) for reward in rewards.values())
    return InStages("staged", score, at=at, reads=reads, of_latents=of, state=counts)


@dataclass
class Counts:
    """Counts by name, for checkpoints."""

    of: Counter[str] = field(default_factory=Counter)

    def take(self, more: Mapping[str, int]) -> None:
        self.of.update(more)

    def dump(self) -> dict[str, Any]:
        return dict(self.of)

    def load(self, state: Mapping[str, Any]) -> None:
        self.of = Counter(state)


@dataclass(frozen=True)
class InStages(Scorer):
    """A scorer that counts whom it asked."""

    @property
    def counts(self) -> Counter[str]:
        """``asked/NAME`` and ``missing/NAME``."""
        counted: Counter[str] = self.state.of
        return counted


def _one(name: str, reward: Callable[..., Any], outputs: Any, prompts: list[Any], columns: Mapping[str, Any]) -> Tensor:
    answer = reward(outputs, prompts, **accepted(reward, columns))
    if isinstance(answer, Mapping):
        raise UserError(f"staged.rewards.{name}: answers parts ({', '.join(answer)}), takes {{use: combined}} around them")
    return torch.as_tensor(answer).detach().double().cpu()
