"""Whether pulling good rows up pulls bad ones up too: inner products of the gradients of both, and what they say of the next update."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import NamedTuple

import torch
from torch import Tensor

from mmalign.training.updates.experience import Experience
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.method_state import unchanged
from mmalign.training.updates.micro_batches import MicroBatch
from mmalign.types import UserError

PREFIX = "gradients/"


class Gradients(NamedTuple):
    """Of an update's rows, by parameters and as one sum each: of the mean log-probability of good rows and of bad ones, and of minus the
    loss through good rows and through bad ones. chosen, rejected: those means, nats."""

    of_chosen: list[Tensor]
    of_rejected: list[Tensor]
    pull: list[Tensor]
    push: list[Tensor]
    chosen: float
    rejected: float


class Entanglement:
    """``with entanglement.watched(step, experiences, micro_rows) as found:`` around an update; ``found`` then holds what the log shows.

    With ``g_w`` and ``g_l`` the gradients of ``log pi`` of good and of bad rows, and ``d_w, d_l`` what the loss pulls at them with, an
    update along the gradient changes, to first order and per unit of its rate::

        log pi_w:  d_w |g_w|^2 - d_l <g_w, g_l>        log pi_l:  d_w <g_w, g_l> - d_l |g_l|^2

    so that a chosen answer becomes less likely where ``d_w |g_w|^2 < d_l <g_w, g_l>``, whatever happens to the margin. Good rows are those
    whose signal is above 0 (chosen, thumbs up, an advantage), bad ones those below. Of many rows ``g`` is of the mean over them, and
    ``d g`` the sum of what the loss does to each, so that of one pair it is the paper's rule to the letter.

    ``gradients/cosine`` of ``g_w`` and ``g_l``, ``chosen_norm``, ``rejected_norm``, ``inner``; ``chosen_pull`` (``d_w |g_w|^2``) and
    ``chosen_push`` (``- d_l <g_w, g_l>``), likewise ``rejected_pull`` and ``rejected_push``; ``chosen_change``, ``rejected_change``: what
    the update did to both means, nats; ``rule``: the share of these two signs that the sums above foretold. An optimiser that is no
    gradient descent (AdamW), momentum and clipping are what the rule leaves out.

    every: steps between measurements, each of about three updates' cost; None: none. Only paths through log-probabilities count: a KL in
    the loss has gradients of its own.

    Paper: Yuan et al., "A Common Pitfall of Margin-based Language Model Alignment: Gradient Entanglement" (2024),
    https://arxiv.org/abs/2410.13828, the condition of its section 3.

    Errors: UserError with parameters in shards, whose gradients no process holds.
    """

    def __init__(self, learner: Learner, every: int | None):
        if every is not None and learner.shards is not None:
            raise UserError("run.gradients: got devices.place: fsdp2, whose gradients are in parts; takes replicate")
        if every is not None and learner.team.size < learner.team.count:
            raise UserError("run.gradients: got devices.sequence or tensor, whose gradients are in parts; takes 1")
        self.learner, self.every = learner, every

    @contextmanager
    def watched(self, step: int, experiences: Sequence[Experience], micro_rows: int) -> Iterator[dict[str, float]]:
        """The update inside of the block is that of these rows; nothing is measured where the step is not due, or they are silent."""
        found: dict[str, float] = {}
        if self.every is None or step % self.every or all(experience.silent for experience in experiences):
            yield found
            return
        before = self._gradients(experiences, micro_rows)
        yield found
        with torch.no_grad():
            chosen, rejected, *_ = self._means(experiences, micro_rows)
        inner = {
            "inner": _inner(before.of_chosen, before.of_rejected),
            "chosen_pull": _inner(before.of_chosen, before.pull),
            "chosen_push": _inner(before.of_chosen, before.push),
            "rejected_pull": _inner(before.of_rejected, before.pull),
            "rejected_push": _inner(before.of_rejected, before.push),
        }
        norms = {
            "chosen_norm": _inner(before.of_chosen, before.of_chosen) ** 0.5,
            "rejected_norm": _inner(before.of_rejected, before.of_rejected) ** 0.5,
        }
        changes = {"chosen_change": chosen - before.chosen, "rejected_change": rejected - before.rejected}
        told = [(inner[f"{name}_pull"] + inner[f"{name}_push"]) * changes[f"{name}_change"] > 0 for name in ("chosen", "rejected")]
        size = norms["chosen_norm"] * norms["rejected_norm"]
        cosine = inner["inner"] / size if size else float("nan")
        numbers = {"cosine": cosine, **norms, **inner, **changes, "rule": sum(told) / 2}
        found.update({PREFIX + name: value for name, value in numbers.items()})

    def _gradients(self, experiences: Sequence[Experience], micro_rows: int) -> Gradients:
        """All four, of the parameters as they are; the method's state is what it was, and no parameter keeps a gradient."""
        parameters = list(self.learner.policy.parameters().values())
        sums = [[torch.zeros_like(p, dtype=torch.float32) for p in parameters] for _ in range(4)]
        with unchanged(self.learner.method):
            up, down, good, bad = self._means(experiences, micro_rows, sums)
        for each, count in zip(sums[:2], (good, bad), strict=True):
            for tensor in each:
                tensor.div_(max(count, 1.0))
        return Gradients(sums[0], sums[1], sums[2], sums[3], up, down)

    def _means(
        self, experiences: Sequence[Experience], micro_rows: int, sums: Sequence[list[Tensor]] = ()
    ) -> tuple[float, float, float, float]:
        """Mean log-probabilities of good and of bad rows, and how many there are, of all processes; sums: gradients are added to these."""
        learner, totals = self.learner, torch.zeros(4, dtype=torch.float64)
        for batch in learner.micro_batches.whole_rows(experiences, micro_rows):
            steps, signal = batch.steps, batch.signal
            label = (signal if signal.ndim == 2 else signal.flatten(2)[..., 0]).sum(1)
            sides = [(steps.mask & (side > 0)[:, None].to(steps.mask.device)).to(steps.log_probs) for side in (label, -label)]
            totals += torch.stack([
                *((steps.log_probs.detach() * side).sum() for side in sides), (label > 0).sum().double(), (label < 0).sum().double(),
            ]).cpu()  # fmt: skip
            if sums:
                self._add_gradients(sums, batch, sides)
        learner.team.add([totals, *(tensor for total in sums for tensor in total)])
        up, down, good, bad = totals.tolist()
        return up / max(good, 1.0), down / max(bad, 1.0), good, bad

    def _add_gradients(self, sums: Sequence[list[Tensor]], batch: MicroBatch, sides: Sequence[Tensor]) -> None:
        """Adds those of a micro-batch to all four sums. sides: ``[R, T]`` each, 1 at the cells of good rows, and of bad ones."""
        steps, parameters = batch.steps, list(self.learner.policy.parameters().values())
        leaf = steps.log_probs.detach().requires_grad_()
        values = self.learner.method.loss(replace(steps, log_probs=leaf), batch.signal).values
        (slope,) = torch.autograd.grad((batch.weight * values).sum(), leaf)
        for total, weights in zip(sums, [*sides, *(-slope * side for side in sides)], strict=True):
            for tensor, gradient in zip(total, _pulled(steps.log_probs, weights, parameters), strict=True):
                if gradient is not None:
                    tensor.add_(gradient)


def _pulled(log_probs: Tensor, weights: Tensor, parameters: Sequence[Tensor]) -> Sequence[Tensor | None]:
    """The gradient of ``sum(weights * log_probs)``, of which the graph stays."""
    return torch.autograd.grad(log_probs, parameters, grad_outputs=weights, retain_graph=True, allow_unused=True)


def _inner(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    return sum(float((a.double() * b.double()).sum()) for a, b in zip(first, second, strict=True))
