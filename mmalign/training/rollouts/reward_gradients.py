"""Rewards asked for their gradient, for methods that carry it back into the steps of a sample (``Method.reward_gradient``)."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Stepping
from mmalign.distributed import tables as of_all
from mmalign.distributed.tables import Whole
from mmalign.training.optimizers import Optimizer
from mmalign.training.rollouts.companions import Companions, own_seeds
from mmalign.training.rollouts.feedback import Functions, answer_of, scored_by
from mmalign.training.rollouts.given import Given
from mmalign.training.rollouts.latents import shown
from mmalign.training.rollouts.same_records import SameRecords
from mmalign.training.seeds import stream
from mmalign.training.settings import Batch
from mmalign.training.updates.learner import Learner
from mmalign.types import Feedback, Method, Policy, Rollout, UserError

Combine = Callable[..., Any]
Fit = Callable[..., Any]


def refuse_without(method: Method, rewards: Functions, batch: Batch) -> None:
    """Errors: UserError, for a method that carries the gradient of rewards, where a reward says that it has none, where others than
    the policy of now would be trained by it, and for several updates of one rollout, of which it is the gradient for the first alone."""
    how = method.reward_gradient
    if how is None:
        return
    none = [name for name, reward in rewards.items() if getattr(reward, "differentiable", None) is False]
    if none and how.utility is not None:
        raise UserError(f"reward {none[0]}: has no gradient, and this method learns from nothing else; takes a differentiable reward")
    if batch.staleness:
        raise UserError(f"batch.staleness: got {batch.staleness}; this method carries the gradient through the steps of now: takes 0")
    if how.under == "current" and batch.epochs * batch.updates > 1:
        got = f"batch.epochs: got {batch.epochs}, batch.updates: {batch.updates}"
        raise UserError(f"{got}; the gradient through a sample is right for one update: takes 1 of each")


def refuse_not_random(method: Method, mask: Tensor) -> None:
    """Errors: UserError for a rollout none of whose steps is random, where the method learns from those."""
    if method.reward_gradient is None and mask.numel() and not bool(mask.any()):
        raise UserError(
            f"policy.schedule: none of {mask.shape[1]} steps is random, so there is nothing to train; takes more steps, a window with "
            "one that is not the last, or a kernel with noise"
        )


def refuse_steps(method: Method, policy: Policy, prompts: list[Any]) -> None:
    """Errors: UserError, before anything is sampled, for a schedule that leaves a method nothing to train, where the policy knows its
    steps. prompts: some."""
    if isinstance(policy, Stepping):
        random = policy.random_steps(prompts)
        refuse_not_random(method, random[None])
        if method.reward_gradient is not None:
            method.reward_gradient.plan(random, torch.Generator().manual_seed(0))


class RewardGradients:
    """Gives the rollouts of a run what its method wants of references, of the gradients of rewards, and of differences of scores, whose
    companions it trains. optimizer: of the policy. fit: ``MicroRows.fit``. given: data for companions."""

    def __init__(  # what rollouts get it from
        self, learner: Learner, rewards: Functions, combine: Combine | None, fit: Fit, *, optimizer: Optimizer, seed: int,
        given: Given | None = None,
    ):  # fmt: skip
        self.companions = Companions(learner, optimizer, fit, seed=seed, given=given)
        self.learner, self.rewards, self.combine, self.fit, self.seed = learner, rewards, combine, fit, seed
        self.policy: Any = learner.policy
        self.how = learner.method.reward_gradient
        self.states: dict[str, Any] = {} if given is None else {"given": given, "records": SameRecords(given.records)}

    def remember(self, rollout: Rollout) -> None:
        """Tabulates the references on a rollout whose trained steps are known: where no gradient of rewards says them."""
        if self.how is None:
            self._remember(rollout)

    def carried(
        self, rollout: Rollout, whole: Whole, feedback: Feedback, prompts: list[Any], purpose: tuple[int, int]
    ) -> tuple[Rollout, Whole]:
        """The rollout with adjoints of the steps that the plan trains, which its mask then says; as it is, for other methods. In it is what
        differences of scores say, too.

        What rewards come to together is taken as ``sum_k w_k r_k + rest`` of each row, ``w_k`` the derivative of ``combine`` by reward k
        at the scores of all rows: exact for sums, the first order of anything else, and the same however rows are split. whole, feedback,
        prompts: of all rows, those of other processes too. purpose: step and attempt, which randomness depends on.
        """
        if self.how is None:
            return rollout, whole
        rollout.metrics |= self.companions.trained(rollout, whole, feedback, purpose)
        own = whole.owner == whole.rank
        weights, rest = ({}, feedback.rewards) if self.how.utility is None else _linearised(feedback, prompts, self.combine)
        weights, rest = {name: values[own] for name, values in weights.items()}, rest[own]

        def utility(outputs: Any, rows: Tensor, latents: Tensor | None = None) -> Tensor:
            named = [rollout.prompts[row] for row in rows.tolist()]
            columns = {name: [column[row] for row in rows.tolist()] for name, column in rollout.columns.items()}
            scores = differentiable(self.rewards, outputs, named, columns, latents)
            total = torch.stack([weights[name][rows].to(value) * value for name, value in scores.items()]).sum(0)
            return self.how.utility(total + rest[rows].to(total))  # type: ignore[no-any-return]

        seeds = self._seeds(whole, purpose)

        def carry(most: int) -> Rollout:
            rng = stream(self.seed, *purpose, "adjoints")
            more = {"rows_at_once": most, "seeds": seeds, **shown(self.rewards)}
            return self.policy.adjoints(rollout, self.how.at(purpose[0]), utility, rng, **more)  # type: ignore[no-any-return]

        with self.learner.profile.part("gradients of rewards"):
            carried = self.fit(carry, partial(min, len(rollout)))
        self._remember(carried)
        return carried, of_all.whole(self.learner.team, carried)

    def _seeds(self, whole: Whole, purpose: tuple[int, int]) -> Tensor:
        """Seeds ``[B, D]`` of the rows of this process, in each of the differences of scores."""
        each = [
            own_seeds(stream(self.seed, *purpose, "differences", number), whole, 1, shared=difference.noising.shared)
            for number, difference in enumerate(self.how.differences)
        ]
        return torch.cat([torch.zeros((int((whole.owner == whole.rank).sum()), 0), dtype=torch.int64), *each], 1)

    def _remember(self, rollout: Rollout) -> None:
        with self.learner.profile.part("references"):
            self.fit(partial(self.policy.remember, rollout, self.learner.references), partial(min, len(rollout)))


def differentiable(
    rewards: Functions, outputs: Any, prompts: list[Any], columns: Mapping[str, list[Any]], latents: Tensor | None = None
) -> dict[str, Tensor]:
    """Every reward's scores ``[R]`` float64 with their graph. Errors: UserError for a reward whose scores have none."""
    scores = dict[str, Tensor]()
    for name, reward in rewards.items():
        answer = answer_of("reward", name, reward, scored_by("reward", name, reward, outputs, latents), prompts, columns, graph=True)
        parts = {f"{name}/{part}": value for part, value in answer.items()} if isinstance(answer, Mapping) else {name: answer}
        for part, value in parts.items():
            if not isinstance(value, Tensor) or not value.requires_grad:
                raise UserError(f"reward {part}: its scores have no gradient by the outputs, and this method learns from nothing else")
            scores[part] = value.double()
    return scores


def _linearised(feedback: Feedback, prompts: list[Any], combine: Combine | None) -> tuple[dict[str, Tensor], Tensor]:
    """The derivative of the combined reward by each, and what is left of it, ``[B]``; 0 and NaN where a score is missing.

    Errors: UserError where the sum over rows depends on no reward: one that is normalised among rows has none.
    """
    with torch.enable_grad():
        parts = {name: values.clone().requires_grad_() for name, values in feedback.parts.items()}
        total = torch.stack(list(parts.values())).sum(0) if combine is None else combine(parts, feedback.group, prompts)
        known = torch.where(total.isnan(), 0.0, total).sum()
        slopes = torch.autograd.grad(known, list(parts.values()), allow_unused=True) if known.requires_grad else [None] * len(parts)
    named = zip(parts.items(), slopes, strict=True)
    weights = {name: torch.zeros_like(part) if slope is None else slope.nan_to_num(0.0) for (name, part), slope in named}
    largest = max(float(weight.abs().max()) for weight in weights.values())
    if bool((~total.isnan()).any()) and largest < 1e-9:
        raise UserError("combine: its sum over rows depends on no reward (what is normalised among rows sums up to 0); takes weighted_sum")
    explained = torch.stack([weights[name] * part.detach().nan_to_num(0.0) for name, part in parts.items()]).sum(0)
    return weights, feedback.rewards - explained
