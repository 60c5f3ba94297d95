"""One update of the parameters from rows of one or more rollouts, and all state that updates have."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from mmalign.distributed.meshes import is_cut, of_rows, own_rows
from mmalign.distributed.shards import sharded
from mmalign.distributed.team import ALONE, Team
from mmalign.needs import MASK, OLD, REWARDS, called, needed, refs
from mmalign.runs import checkpoint
from mmalign.runs.profile import Profile
from mmalign.stacking import joined, stacked
from mmalign.training import references
from mmalign.training.kept_references import KeptReferences
from mmalign.training.optimizer_state import clipped, flatten_optimizer, parted, restore_optimizer
from mmalign.training.optimizers import Optimizer
from mmalign.training.settings import Devices, Reference
from mmalign.training.updates import allocator, method_state, not_finite
from mmalign.training.updates.climbing import climbed
from mmalign.training.updates.experience import Experience
from mmalign.training.updates.kept_rows import Kept
from mmalign.training.updates.measured import Measured, pooled
from mmalign.training.updates.micro_batches import MicroBatch, MicroBatches
from mmalign.training.updates.units import spread, steps_at_once
from mmalign.types import Method, Need, Policy, Rollout

ROUNDING = 1e-9
"""A gradient's norm up to here is what sums in float32 that cancel leave (3e-11 for WPO on ties), and a tenth of Adam's ``eps``."""

BEHIND = "behind"
"""The set of parameters that the next step's rollout is of, where rollouts are sampled one step early."""


class Learner:
    """An optimiser over a policy's parameters, with its schedule, clipping by norm, references that move, and a moving average.

    steps: of the whole run, over which the learning rate decays. team: the processes of the run, each of which has a learner; they start
    from the main one's parameters, and stay alike, since the gradient of an update is the sum of what all of them found. non_finite: what
    becomes of an update whose numbers are not finite (``not_finite``). stale: rollouts are sampled one step early; the parameters
    that a step began with are then kept as the set ``behind``, so that a resumed run can sample the rollout that is on its way again.
    beside: each adds gradients of something else to an update's (``recipes._beside``): micro_rows -> what was measured. replayed: rows that
    belong into checkpoints.
    """

    def __init__(  # one keyword for each thing that updates depend on
        self, policy: Policy, method: Method, optimizer: Optimizer, *, steps: int, moving: Mapping[str, Reference] | None = None,
        team: Team = ALONE, non_finite: not_finite.Then = "skip", devices: Devices = Devices(),  # noqa: B008 (records are frozen)
        stale: bool = False,
    ):  # fmt: skip
        self.non_finite, self.profile = not_finite.NotFinite(non_finite), Profile()
        self.policy, self.method, self.settings, self.steps, self.team = policy, method, optimizer, steps, team
        optimizer.refuse_longer(steps)
        self.shards = sharded(policy, devices, team)
        spread(policy, method, devices, team)
        self.copies = devices.tensor  # processes that take the whole loss of the same rows
        team.copy([parameter for parameter in policy.parameters().values() if not is_cut(parameter)])
        self.optimizer = parted(optimizer.make(policy.parameters().values()))
        self.optimizer.zero_grad(set_to_none=True)  # of whoever trained the model before
        if all(parameter.device.type == "cpu" for parameter in policy.parameters().values()):
            allocator.keep()
        needs = needed(policy, method)
        self.micro_batches = MicroBatches(policy, method, needs, team)
        self.references = references.references(method, needs)
        self.moves = references.plan(method, references.named(method, needs), moving or {})
        references.prepare(policy, references.named(method, needs), self.moves)
        self.kept = KeptReferences(policy, references.fixed(self.references, self.moves), team)
        self.beside: list[Callable[[int], dict[str, float]]] = []
        self.replayed: Kept | None = None
        self.updates, self.kl_every = 0, 1
        self.companions: dict[str, Learner] = {}  # of sets that are trained beside the policy, see ``rollouts.companions``
        self.moments = {move.name: self._optimizer() for move in self.moves if move.moments and move.name != "current"}
        if optimizer.ema is not None:
            policy.sets.follow("ema", decay=0.0)
        self.stale, self._kept = stale, -1
        if stale:
            policy.sets.keep(BEHIND)

    def begin(self, step: int) -> dict[str, float]:
        """Before a step's rows are made: renews the sets of parameters that are due, as the method and ``references`` say.

        A reference that the log alone asks for is asked in every ``kl_every``-th step and in the last: with guidance it takes two passes of
        a denoiser, where an update through LoRA takes four. Returns what the log should hold of the renewal, see ``references.move``.
        """
        asked = "ref" in references.references(self.method, self.method.needs)
        due = (step + 1) % self.kl_every == 0 or step + 1 == self.steps
        needs = needed(self.policy, self.method, kl=asked or due)
        self.micro_batches, self.references = replace(self.micro_batches, needs=needs), references.references(self.method, needs)
        self.non_finite.begin()
        measured = references.move(self.policy, self.moves, step)
        for move in references.due(self.moves, step):
            if move.moments and move.name != "current":
                self.moments[move.name] = self._optimizer()
            elif move.moments:
                (kept,) = move.shares
                restore_optimizer(self.optimizer, self.policy.parameters(), *self.moments[kept])
        return measured

    def end(self, step: int) -> None:
        """After a step's updates, of which there may have been none: keeps what the step began with, where that is wanted."""
        if self.stale and self._kept != step:
            self.policy.sets.keep(BEHIND)
            self._kept = step

    @property
    def shown(self) -> str:
        """The parameter set that users get: ``ema`` where there is one."""
        return "current" if self.settings.ema is None else "ema"

    def update(self, experiences: Sequence[Experience], *, micro_rows: int, step: int, micro_steps: int | None = None) -> dict[str, float]:
        """One optimiser step on ``sum(weight * values)`` over all rows given, in micro-batches of ``micro_rows`` and ``micro_steps``.

        The weights are those of all rows at once, and so is what a method surveys, so the split changes nothing but rounding. Rows
        that a method has to see at once (``unit``) stand side by side. micro_steps: the most live steps of a row in one micro-batch,
        for methods of single cells alone; None: one of a denoising policy, and all of any other. Returns means over what
        ``Loss.over`` counts (``*_max``: the largest), with ``loss`` and ``grad_norm``. An update whose loss or gradient is not finite is
        skipped, and counted in ``skipped``, unless ``non_finite`` drops the rows that it is of, or raises; ``live``: 1 where some row had a
        signal, and the gradient is finite and not 0 (``ROUNDING``). step: of training, from 0, for warm-up and decay. At least one row has
        to be given. Errors: UserError of ``non_finite``; the parameters are as they were then.
        """
        state = method_state.dump(self.method) if self.non_finite.then == "drop" else None
        micro_steps = steps_at_once(self.policy, self.method, micro_steps)
        measured, odd = self._backward(experiences, micro_rows, micro_steps)
        if any(any(one) for one in odd):
            rows = sum(len(experience.rows) for experience in experiences)
            self.non_finite.met(odd, rows)
            if self.non_finite.then == "drop":
                experiences = [not_finite.without(self.method.unit, *pair) for pair in zip(experiences, odd, strict=True)]
                kept = sum(len(experience.rows) for experience in experiences)
                self.non_finite.left_out(rows - kept)
                self.forget_gradients()
                method_state.load(self.method, state)
                measured, odd = self._backward(experiences, micro_rows, micro_steps) if kept else ([], odd)
        others = {name: value for add in self.beside for name, value in add(micro_rows).items()}
        self.add_gradients()
        with self.profile.part("optimizer"):
            norm = clipped(self.policy.parameters().values(), self.settings.max_norm)
            sound, finite = not any(any(one) for one in odd), bool(norm.isfinite())
            live = sound and finite and bool(norm > ROUNDING) and not all(experience.silent for experience in experiences)
            if sound and finite:
                self._step(step)
            self.optimizer.zero_grad(set_to_none=True)
        if not (sound and finite):
            self.non_finite.left(gradient=sound)
        total = sum(one.loss for one in measured)
        skipped = float(not (sound and finite))
        return {**pooled(measured), **others, "loss": total, "grad_norm": float(norm), "skipped": skipped, "live": float(live)}

    def add(self, experience: Experience, micro_rows: int) -> dict[str, float]:
        """Adds the gradient of these rows' loss to those that are there, of this process's; returns what ``measure`` does."""
        measured, _ = self._backward([experience], micro_rows, steps_at_once(self.policy, self.method, None))
        return {**pooled(measured), "loss": sum(one.loss for one in measured)}

    def measure(self, experience: Experience, micro_rows: int) -> tuple[dict[str, float], Tensor]:
        """What an update on these rows would measure, and its loss, with the parameters that are in place; nothing is updated.

        And ``[M, 2]`` float64 what was compared (``types.Loss.compared``), of which there is none where a method compares no two rows.
        """
        with torch.no_grad(), method_state.unchanged(self.method):
            measured, _ = self._backward([experience], micro_rows, steps_at_once(self.policy, self.method, None))
        compared = torch.tensor([pair for one in measured for pair in one.compared], dtype=torch.float64).view(-1, 2)
        return {**pooled(measured), "loss": sum(one.loss for one in measured)}, compared

    def _backward(
        self, experiences: Sequence[Experience], micro_rows: int, micro_steps: int | None
    ) -> tuple[list[Measured], list[not_finite.Odd]]:
        """The gradient, where one is wanted, of this process's micro-batches; what was measured, and rows that are not finite, of all."""
        with self.profile.part("forward"), climbed(self, experiences, micro_rows):
            measured, odd = self._passes(experiences, micro_rows, micro_steps)
        processes = self.team.tell([measured, odd])
        odd_of_all = [not_finite.together(parts) for parts in zip(*(rows for _, rows in processes), strict=True)]
        return [Measured(*one) for part, _ in processes for one in part], odd_of_all

    def _passes(
        self, experiences: Sequence[Experience], micro_rows: int, micro_steps: int | None
    ) -> tuple[list[Measured], list[not_finite.Odd]]:
        """The passes of this process: what was measured, and the rows of each experience that are not finite."""
        measured, odd = list[Measured](), list[not_finite.Odd]()
        for experience, weight in self.micro_batches.weighed(experiences, micro_rows):
            passes = [self._pass(batch) for batch in self.micro_batches.of(experience, weight, micro_rows, micro_steps)]
            odd.append(not_finite.together([rows for _, rows in passes]))
            if self.team.main or not self.micro_batches.apart(experience):  # of what all processes see, one tells
                measured += [one for one, _ in passes]
        return measured, odd

    def _pass(self, batch: MicroBatch) -> tuple[Measured, not_finite.Odd]:
        """Adds the gradient of a micro-batch, where one is wanted; what was measured, and its rows that are not finite."""
        steps, signal, weight, places = batch
        values, metrics, over, compared = self.method.loss(steps, signal)
        losses = weight * values
        odd, loss = not_finite.odd(steps, losses, places), losses.sum()
        if torch.is_grad_enabled() and (loss.requires_grad or self.team.size == 1):  # of what all see, one may hold no row
            with self.profile.part("backward"):
                loss.backward()
        things = float(steps.mask.sum() if over is None else over)
        numbers = {name: float(one) for name, one in metrics.items()}
        pairs = [] if compared is None or torch.is_grad_enabled() else compared.tolist()
        return Measured(float(loss.detach()), things, numbers, pairs), odd

    def forget_gradients(self) -> None:
        """Drops what a backward pass has left, also one that an exception ended."""
        self.optimizer.zero_grad(set_to_none=True)
        if self.shards is not None:
            self.shards.forget()

    def add_gradients(self) -> None:
        """Makes every gradient the sum over processes; None stays None where no process has one."""
        if self.team.alone:
            return
        leaves = {} if self.shards is None else self.shards.leaves
        parameters = [parameter for name, parameter in self.policy.parameters().items() if name not in leaves]
        held = self.team.tell([parameter.grad is not None for parameter in parameters])
        wanted = [parameter for parameter, *flags in zip(parameters, *held, strict=True) if any(flags)]
        for parameter in wanted:
            if parameter.grad is None:
                parameter.grad = torch.zeros_like(parameter)
        self.sum_over_processes([parameter.grad for parameter in wanted if parameter.grad is not None])
        if self.shards is not None:
            self.shards.add_gradients()

    def sum_over_processes(self, gradients: Sequence[Tensor]) -> None:
        """Makes each the sum over processes, in place, of rows that each takes the whole loss of once for all of ``devices.tensor``."""
        self.team.add(gradients)
        for gradient in gradients if self.copies > 1 else ():
            gradient /= self.copies

    def remember(self, rollout: Rollout, micro_rows: int) -> None:
        """What the method's references say of a rollout, kept in it (``Policy.remember``), and for when its rows come again."""
        self.kept.remember(rollout, self.references, micro_rows)

    def tables(self, rollout: Rollout, *, micro_rows: int) -> dict[Need, Tensor]:
        """What the method reads of the steps of all processes' rollouts before it makes its signal, ``[B, T]`` each, without gradient."""
        if not self.method.reads:
            return {}
        own = {MASK: rollout.mask, OLD: rollout.log_probs, **{Need(name): table for name, table in rollout.facts.items()}}
        needs = frozenset(self.method.reads - own.keys() - {REWARDS})
        rows = torch.arange(len(rollout.prompts))
        self.policy.remember(rollout, self.references, micro_rows)
        with torch.no_grad():
            columns = torch.arange(rollout.mask.shape[1])
            steps = joined([self.policy.steps(rollout, part, columns, needs=needs) for part in rows.split(micro_rows)]) if needs else None
        if steps is not None:
            own |= {called(name): table for name, table in {**steps.terms, **steps.facts}.items()}
            own |= {refs(name): table for name, table in steps.refs.items()}
        parts = self.team.gather({str(need): table.detach() for need, table in own.items() if need in self.method.reads})
        return {need: stacked([part[str(need)] for part in parts]) for need in own if need in self.method.reads}

    def _step(self, step: int) -> None:
        rate = self.settings.rate_at(step, self.steps)
        for group in self.optimizer.param_groups:
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate)  # 8-bit optimisers keep it so
            else:
                group["lr"] = rate
        self.updates += 1  # before it: a step that fails half way has changed parameters too
        self.end(step)  # before the first update of the step: what it began with
        self.optimizer.step()
        ema = self.settings.ema
        if ema is not None and self.updates % ema.every == 0:
            self.policy.sets.follow("ema", decay=min(ema.decay, (1 + self.updates) / (10 + self.updates)))

    def _optimizer(self) -> tuple[dict[str, Tensor], dict[str, Any]]:
        """The optimiser's state as it is now, as tensors and JSON: a copy."""
        flat, rest = flatten_optimizer(self.optimizer, self.policy.parameters())
        return {name: value.clone() for name, value in flat.items()}, rest

    def tensors(self) -> dict[str, dict[str, Tensor]]:
        """All of the learner that is tensors, for a checkpoint; what is in shards stays so."""
        flat, _ = flatten_optimizer(self.optimizer, self.policy.parameters())
        kept = {f"optimizer.{name}": tensors for name, (tensors, _) in self.moments.items()}
        kept |= {f"optimizer.{name}": one.tensors()["optimizer"] for name, one in self.companions.items()}
        kept |= {f"classifier.{name}": dict(module.state_dict()) for name, module in self._classifiers().items()}
        kept |= {} if self.replayed is None else self.replayed.tensors()
        return {**self.policy.sets.tables(), "optimizer": flat, **kept, **self.kept.tensors()}

    def read(self, name: str, stored: checkpoint.Stored) -> Tensor:
        """What this process needs of a tensor of a checkpoint: its rows of one that belongs to a parameter in shards."""
        p = self.policy.parameters().get(name.partition("/")[2] or name)
        own = None if p is None or list(p.shape) != stored.shape else own_rows(p)
        if p is None or own is None:
            return stored.read()
        return of_rows(stored.read(slice(own.first, own.first + len(own.value))), p)

    def state(self) -> dict[str, Any]:
        """The rest of it, as JSON."""
        moments = {name: kept for name, (_, kept) in self.moments.items()}
        scales, digests = dict(self.policy.sets.scales), references.digests_of(self.policy)
        companions = {name: one.own_state() for name, one in self.companions.items()}
        further = (("moments", moments), ("scales", scales), ("digests", digests), ("companions", companions))
        kept = {name: some for name, some in further if some}
        return {**self.own_state(), **kept}

    def own_state(self) -> dict[str, Any]:
        """Of it what belongs to one set of parameters."""
        _, rest = flatten_optimizer(self.optimizer, self.policy.parameters())
        return {"updates": self.updates, "optimizer": rest, "method": method_state.dump(self.method)}

    @property
    def changes(self) -> int:
        """How often it has changed parameters, those of companions too."""
        return self.updates + sum(one.changes for one in self.companions.values())

    def load(self, tensors: Mapping[str, Mapping[str, Tensor]], state: Mapping[str, Any]) -> None:
        """Puts back what ``tensors`` and ``state`` gave, bit for bit. Errors: UserError where a reference is another model than before."""
        references.refuse_others(self.policy, state.get("digests", {}))
        self.policy.sets.load({name: tensors[name] for name in checkpoint.parameter_sets(tensors)})
        for held in (self.kept, *([] if self.replayed is None else [self.replayed])):
            held.load(tensors)
        self.moments |= {name: (dict(tensors[f"optimizer.{name}"]), kept) for name, kept in state.get("moments", {}).items()}
        self.load_own(tensors["optimizer"], state)
        for name, kept in state.get("companions", {}).items():
            self.companions[name].load_own(tensors[f"optimizer.{name}"], kept)
        for name, module in self._classifiers().items():
            module.load_state_dict(dict(tensors[f"classifier.{name}"]))

    def _classifiers(self) -> dict[str, torch.nn.Module]:
        """Companion -> the classifier on its features, of those that have one."""
        found = {name: getattr(one.policy, "classifier", None) for name, one in self.companions.items()}
        return {name: module for name, module in found.items() if module is not None}

    def load_own(self, optimizer: Mapping[str, Tensor], state: Mapping[str, Any]) -> None:
        """Puts back what ``own_state`` gave, and the tensors of the optimiser."""
        restore_optimizer(self.optimizer, self.policy.parameters(), optimizer, state["optimizer"])
        self.updates = state["updates"]
        method_state.load(self.method, state["method"])
