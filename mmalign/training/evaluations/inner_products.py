"""The policy gradient of each reward by itself, and how they lie to each other, for combinations that learn their weights from that."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from mmalign.arguments.facts import Following
from mmalign.needs import REWARDS
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.method_state import unchanged
from mmalign.training.updates.micro_batches import MicroBatch
from mmalign.types import Feedback, UserError


class InnerProducts:
    """``products.tell(feedback, experience, prompts, micro_rows)`` after each rollout, before its updates.

    ``g_k`` is the direction in which an update would move the parameters if reward k were the only one: minus the gradient of the method's
    loss, along log-probabilities, with the signal that it makes of that reward, less what it is with no signal (a KL in the loss is no
    reward's). The combination is told ``<g_k, g_j>``, ``[K, K]``, in float64. One pass forward and K backward; none for combinations that
    do not ask.

    Errors: UserError for methods of pairs (whose rows would be others for each reward), those that survey an update or read rewards of
    steps, and with parameters in shards.
    """

    def __init__(self, learner: Learner, combine: Callable[..., Any] | None):
        self.learner = learner
        self.gradients = combine.gradients if isinstance(combine, Following) else None
        if self.gradients is None:
            return
        method = learner.method
        if method.unit not in ("cell", "row", "group") or method.survey is not None or REWARDS in method.reads:
            raise UserError(
                "combine: learns from the policy gradient of each reward by itself; takes a method of single rows or groups that looks at "
                "rewards of rows, and at no update as a whole (grpo, ppo, rloo, ...), or by: advantages where it has that"
            )
        if learner.shards is not None:
            raise UserError("combine: learns from the gradient of each reward; takes devices.place: replicate, whose gradients are whole")

    @property
    def row(self) -> dict[str, float]:
        """What the log says of a step: ``weight/NAME``, the weights that the next rollout has."""
        return {} if self.gradients is None else {f"weight/{name}": value for name, value in self.gradients.values.items()}

    def tell(self, feedback: Feedback, experience: Experience, prompts: Sequence[Any], fit: Callable[..., Any]) -> None:
        """Lets the combination know, where it asks and some row is worth an update. prompts: of the groups. fit: ``MicroRows.fit``."""
        if self.gradients is None or not len(experience.rows):
            return
        scores = self.gradients.apart(feedback.parts, feedback.group, [prompts[place] for place in feedback.group.tolist()])
        signals = {name: self._signal(feedback, values) for name, values in scores.items()}
        gradients = fit(lambda most: self._gradients(signals, experience, most), partial(self.learner.micro_batches.largest, [experience]))
        self.gradients.follow(list(scores), gradients @ gradients.T)

    def _signal(self, feedback: Feedback, scores: Tensor) -> Tensor:
        """What the method makes of one reward alone; its state is as it was."""
        method = self.learner.method
        with unchanged(method):
            return method.signal(replace(feedback, rewards=scores, parts={}))

    def _gradients(self, signals: Mapping[str, Tensor], experience: Experience, micro_rows: int) -> Tensor:
        """``[K, N]`` float64, of all N numbers that are trained, of all processes."""
        parameters = list(self.learner.policy.parameters().values())
        sums = torch.zeros(len(signals), sum(p.numel() for p in parameters), dtype=torch.float64)
        wide = torch.stack([*signals.values(), torch.zeros_like(next(iter(signals.values())))], -1)  # the last: no signal
        with unchanged(self.learner.method):
            for batch in self.learner.micro_batches.whole_rows([replace(experience, signal=wide)], micro_rows):
                *slopes, without_signal = self._slopes(batch)
                for total, slope in zip(sums, slopes, strict=True):
                    pulled = torch.autograd.grad(
                        batch.steps.log_probs, parameters, grad_outputs=without_signal - slope, retain_graph=True, allow_unused=True
                    )
                    whole_ones = (torch.zeros_like(p) if one is None else one for p, one in zip(parameters, pulled, strict=True))
                    total += torch.cat([one.flatten().double().cpu() for one in whole_ones])
            self.learner.sum_over_processes([sums])
        return sums

    def _slopes(self, batch: MicroBatch) -> list[Tensor]:
        """Of the loss by each of the signals ``[R, 1 or T, S]``, its gradient to the log-probabilities."""
        leaf = batch.steps.log_probs.detach().requires_grad_()
        slopes = []
        for signal in batch.signal.unbind(-1):
            values = self.learner.method.loss(replace(batch.steps, log_probs=leaf), signal).values
            (slope,) = torch.autograd.grad((batch.weight * values).sum(), leaf, allow_unused=True)
            slopes.append(torch.zeros_like(leaf) if slope is None else slope)
        return slopes
