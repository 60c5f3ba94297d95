"""Rows of earlier rollouts that an online run goes on to learn from: a replay buffer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.recipes._beside import Beside
from mmalign.recipes._records import learned_from
from mmalign.training.journal import hashed
from mmalign.training.seeds import stream
from mmalign.training.updates.kept_rows import newest
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback, Rollout, UserError, contents

GROUP, PREFIX = "replayed", "replay/"
"""What its part of a checkpoint is called, and how the names of numbers begin that the log has of it."""


def replayed_in(learner: Learner, prompts: Sequence[Any], fit: Callable[..., Any], *, seed: int) -> Replayed | None:
    """The rows that the learner's method goes on to learn from; None for a method that learns from the rollout at hand alone.

    Errors: UserError for a policy whose rows cannot be kept.
    """
    if learner.method.replay is None:
        return None
    if "replay" not in learner.policy.gives:
        raise UserError(
            "method: learns from rows of earlier rollouts, which this policy does not keep; takes replay: 0, or a language model"
        )
    return Replayed(learner, prompts, fit, seed=seed)


class Replayed:
    """A replay buffer: the newest rows of a run, as ids beside the number of their prompt, and their rewards; all processes hold all.

    Every update draws some of them evenly, and the method of ``Method.replay`` makes their signal anew, by the parameters as they are.
    The rows, and nothing else of it, are in the checkpoints: what is drawn depends on seed, step and update alone.
    """

    def __init__(self, learner: Learner, prompts: Sequence[Any], fit: Callable[..., Any], *, seed: int):
        self.learner, self.policy, self.prompts, self.fit, self.seed = learner, learner.policy, contents(prompts), fit, seed
        self.replay: Any = learner.method.replay
        self.beside = Beside(learner, self.replay.method, PREFIX)
        self.own, self.largest = self.beside.own, self.beside.largest
        self.places = {hashed([prompt]): place for place, prompt in enumerate(prompts)}
        self.rows: dict[str, Tensor] = {}
        learner.replayed = self

    def take_in(self, rollout: Rollout, feedback: Feedback) -> None:
        """Keeps a rollout's rows, those of all processes; the oldest make room. feedback: on all of them."""
        tokens, lengths = self.policy.kept(rollout)  # type: ignore[attr-defined]
        said = torch.arange(tokens.shape[1]) < lengths.cpu()[:, None]  # behind a row's end stands anything
        own = {"tokens": torch.where(said, tokens.cpu(), 0), "mask": rollout.mask.cpu(), "lengths": lengths.cpu()}
        told = torch.tensor([self.places[name] for name in feedback.prompts or ()], dtype=torch.int64)
        new = newest(self.learner.team.gather(own), len(told)) | {"prompt": told, "rewards": feedback.rewards}
        self.rows = newest([self.rows, new] if self.rows else [new], self.replay.capacity)

    def next(self, step: int, update: int) -> None:
        """The rows of the next update. step, update: what randomness depends on."""
        team, held = self.learner.team, len(self.rows.get("rewards", ()))
        self.beside.begin()
        count = min(self.replay.rows, held) // team.size * team.size
        if not count:
            return
        drawn = torch.randperm(held, generator=stream(self.seed, step, "replay", update))[:count]
        rewards, own = self.rows["rewards"][drawn], drawn[team.share(count)]
        mask = self.rows["mask"][own]
        width = int(self.rows["lengths"][drawn].max())
        prompts = [self.prompts[place] for place in self.rows["prompt"][own].tolist()]
        rollout = self.policy.revived(prompts, self.rows["tokens"][own, :width], self.rows["lengths"][own], mask[:, :width])  # type: ignore[attr-defined]
        tables = self.fit(lambda most: self.own.tables(rollout, micro_rows=most), partial(min, len(rollout)))
        feedback = replace(Feedback(rewards, torch.arange(count)), tables=tables)
        self.beside.experience, _ = learned_from(self.own.method, feedback, rollout, team)

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """Its part of a checkpoint."""
        return {GROUP: self.rows} if self.rows else {}

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]]) -> None:
        """Puts back what ``tensors`` gave."""
        self.rows = {name: tensors[GROUP][name] for name in tensors[GROUP]} if GROUP in tensors else {}
