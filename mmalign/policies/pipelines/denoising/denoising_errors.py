"""How well a pipeline denoises given latents: rows of bounds, whose errors have a gradient.

A row's decision is a noise level and a noise; its "log-probability" is minus half of the squared error of the denoiser there, a
bound up to weights and constants, and no density.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, Protocol, get_args

import torch
from torch import Tensor

from mmalign.needs import kinds, named
from mmalign.policies.pipelines.calls.attention import SubjectCost
from mmalign.policies.pipelines.calls.scheduler_paths import PRECONDITIONED, parametrisation
from mmalign.policies.pipelines.calls.trained_levels import training_schedule
from mmalign.policies.pipelines.denoising.other_rows import other_prompts
from mmalign.policies.pipelines.rollouts.trajectories import Behind
from mmalign.samplers import kernels
from mmalign.stacking import offset, stacked_by_name
from mmalign.types import Kind, Level, Need, Prediction, Rollout, Steps, UserError

Target = Literal["native", "epsilon", "flow", "v_prediction", "sample"]


class Probed(Protocol):
    """What is asked of a policy: what its denoiser says of given latents, under whose parameters is the policy's affair."""

    pipe: Any
    sets: Any
    caller: Any
    denoisers: dict[str, torch.nn.Module]

    def first(self) -> Any:
        """What the first latent is, see ``diffusers.DiffusersPolicy``."""
        ...

    def probe(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None) -> Prediction:
        """See ``diffusers.DiffusersPolicy``."""
        ...

    def using(self, name: str) -> AbstractContextManager[None]:
        """A set of parameters in place of the current one."""
        ...

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """The trained parameters by name."""
        ...


@dataclass(frozen=True)
class Noised:
    """Given rows, and what is drawn for each of their G groups, or of G rows apart.

    clean: ``[B, ...]`` latents. noise: ``[G, draws, ...]``. places: ``[G, draws]`` on the training schedule. which: ``[B]`` the group of
    each row. others: B prompts that do not fit, see ``forward``. refs: name -> ``[B, draws]`` bounds.
    predicted: name -> ``[B, draws, ...]`` float32 on the CPU, what was predicted under each of them, in the target's parametrisation.
    weight: ``[B, ...]``, what each number of a latent counts; None: all alike. given: ``[B, ...]``, latents of data that nobody sampled,
    one beside each row, of the prompts ``given_prompts``; None: there are none. behind: the chunks before that of ``clean``, where a video
    is made in several; ``given_behind``: those before that of ``given``.
    """

    clean: Tensor
    noise: Tensor
    places: Tensor
    which: Tensor
    others: list[str | None]
    refs: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None
    given: Tensor | None = None
    given_prompts: list[str] = field(default_factory=list)
    behind: Behind | None = None
    given_behind: Behind | None = None

    def take(self, rows: Tensor) -> Noised:
        others = [self.others[row] for row in rows.tolist()]
        refs, predicted = ({name: table[rows] for name, table in tables.items()} for tables in (self.refs, self.predicted))
        weight, given = (None if value is None else value[rows] for value in (self.weight, self.given))
        beside: dict[str, Any] = {"given": given, "given_prompts": [self.given_prompts[row] for row in rows.tolist() if given is not None]}
        behind, given_behind = (None if value is None else value.take(rows) for value in (self.behind, self.given_behind))
        of_rows: dict[str, Any] = {
            "refs": refs, "predicted": predicted, "weight": weight, "behind": behind, "given_behind": given_behind, **beside,
        }  # fmt: skip
        return replace(self, clean=self.clean[rows], which=self.which[rows], others=others, **of_rows)

    @staticmethod
    def join(parts: Sequence[Noised]) -> Noised:
        return Noised(
            torch.cat([part.clean for part in parts]),
            torch.cat([part.noise for part in parts]),
            torch.cat([part.places for part in parts]),
            offset([part.which for part in parts], [len(part.noise) for part in parts]),
            [other for part in parts for other in part.others],
            stacked_by_name([part.refs for part in parts]),
            stacked_by_name([part.predicted for part in parts]),
            None if parts[0].weight is None else torch.cat([part.weight for part in parts if part.weight is not None]),
            None if parts[0].given is None else torch.cat([part.given for part in parts if part.given is not None]),
            [prompt for part in parts for prompt in part.given_prompts],
            None if parts[0].behind is None else Behind.join([part.behind for part in parts if part.behind is not None]),
            None if parts[0].given_behind is None else Behind.join([part.given_behind for part in parts if part.given_behind is not None]),
        )


class Seen(NamedTuple):
    """Rows at one draw. bound: ``[rows]`` float64 on the CPU, ``-|target - prediction|^2 / 2``. predicted, target: ``[rows, ...]``."""

    bound: Tensor
    predicted: Tensor
    target: Tensor


class DenoisingErrors:
    """A ``types.Policy`` of kind ``bound`` but for sampling: it scores rollouts that hold a ``Noised``.

    of: whose denoiser is asked. target: whose error counts, see ``forward``. with_classifier: makes the errors that ``classifying`` gives.

    Errors: UserError for a scheduler without a training schedule that is known here, and an unknown target.
    """

    kind: Kind = "bound"
    gives = frozenset({"refs", "kls", "absolute", "noise", "contrast"})

    def __init__(self, of: Probed, *, target: Target = "native", with_classifier: Callable[[Probed], DenoisingErrors] | None = None):
        if target not in get_args(Target):
            raise UserError(f"policy.target: got {target!r}, takes {', '.join(get_args(Target))}")
        self.of, self.sets, self.schedule = of, of.sets, training_schedule(of.pipe.scheduler)
        self.with_classifier = with_classifier
        self.classifying_by: dict[str, DenoisingErrors] = {}  # companion -> the same with a classifier, ``classifying.py``
        self.together: dict[type, bool] = {}  # whether a class of pipelines takes a time for each row; not known before it is tried
        self.target, self.sigma_data = (parametrisation(of.pipe.scheduler) if target == "native" else target), 0.0
        if target == "native" and type(of.pipe.scheduler).__name__ in PRECONDITIONED:
            self.target, self.sigma_data = "preconditioned", float(of.pipe.scheduler.config.sigma_data)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.of.parameters()

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.of.using(name)

    def classifying(self, name: str) -> DenoisingErrors:
        """See ``abilities.Featured``. name: of the companion whose features they are; its parameters are in place at each call."""
        if self.with_classifier is None:
            raise UserError("method: tells samples from given data, and this policy's errors are asked without a classifier")
        if name not in self.classifying_by:
            self.classifying_by[name] = self.with_classifier(self.of)
        return self.classifying_by[name]

    @functools.cached_property
    def subject_cost(self) -> SubjectCost:
        """How far the subjects of a prompt share attention."""
        return SubjectCost(self.of.pipe, self.of.caller.call)

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Bounds and predictions of a rollout under named parameter sets, without gradient, kept in the rollout."""
        noised: Noised = rollout.held
        for name in names:
            if name in noised.refs:
                continue
            table = torch.zeros_like(rollout.log_probs)
            predicted = torch.zeros((*table.shape, *noised.clean.shape[1:]))
            with torch.no_grad(), self.using(name):
                for rows in torch.arange(len(rollout.prompts)).split(rows_at_once):
                    for column in range(table.shape[1]):
                        seen = self._seen(rollout, rows, column)
                        table[rows, column], predicted[rows, column] = seen.bound, seen.predicted.float().cpu()
            noised.refs[name], noised.predicted[name] = table, predicted

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The bounds of some rows, and of some draws (all, by default), with gradient; each draw is one call of the pipeline.

        ``needs`` of ``refs`` and ``kls`` (those given to ``remember``) and ``noise`` (the level's, of each draw) fill those tables, and
        ``contrast:mismatched`` and ``contrast:ablated`` those of the same rows under another row's prompt, or under an empty one.
        """
        columns = torch.arange(rollout.mask.shape[1]) if columns is None else columns
        cells, need_kinds = (rows[:, None], columns[None, :]), kinds(needs)
        noised: Noised = rollout.held
        level = self.schedule.levels.noise[noised.places[noised.which][cells]].double()
        seen = {column: self._seen(rollout, rows, column) for column in columns.tolist()}
        weight = None if noised.weight is None else noised.weight[rows]
        near = {name: [_halved(one.predicted, noised.predicted[name][rows, column], weight) for column, one in seen.items()]
                for name in noised.predicted if {Need("kls"), Need("kls", name)} & needs}  # fmt: skip
        facts = {"noise": level} if "noise" in need_kinds else {}
        for need in (need for need in needs if need.kind == "absolute"):
            mixtures = [_absolute(one, noised.predicted[need.name][rows, column], need.share, weight) for column, one in seen.items()]
            facts[str(need)] = torch.stack(mixtures, dim=1)
        return Steps(
            log_probs=torch.stack([one.bound for one in seen.values()], dim=1),
            mask=rollout.mask[cells],
            refs={name: table[cells] for name, table in noised.refs.items()} if "refs" in need_kinds else {},
            kls={name: torch.stack(distances, dim=1) for name, distances in near.items()},
            facts=facts,
            event_size=noised.clean[0].numel(),
            kind="bound",
            contrasts={name: self._contrast(name, rollout, rows, columns) for name in named("contrast", needs)},
        )

    def _contrast(self, name: str, rollout: Rollout, rows: Tensor, columns: Tensor) -> Steps:
        """The bounds of some rows under other prompts, of the policy and of ``ref``."""
        prompts = other_prompts(name, rollout.held.others, rows)
        bounds = lambda: torch.stack([self._seen(rollout, rows, column, prompts).bound for column in columns.tolist()], 1)  # noqa: E731
        own = bounds()
        with torch.no_grad(), self.using("ref"):
            ref = bounds()
        return Steps(own, rollout.mask[rows][:, columns], refs={"ref": ref}, event_size=rollout.held.clean[0].numel(), kind="bound")

    def _seen(self, rollout: Rollout, rows: Tensor, column: int, prompts: list[str] | None = None) -> Seen:
        """What some rows look like at one draw."""
        noised: Noised = rollout.held
        clean = noised.clean[rows]
        x, timesteps, levels = self.at_level(noised, rows, column, clean)
        wide = Level(*(value.view(-1, *(1,) * (clean.ndim - 1)) for value in levels))
        prompts = [rollout.prompts[row] for row in rows.tolist()] if prompts is None else prompts
        behind = None if noised.behind is None else noised.behind.take(rows)
        predicted, noise = self.predicted(prompts, x, timesteps, levels, behind), noised.noise[noised.which[rows], column].to(clean)
        own, target = self._in_target(predicted, wide), self._in_target(Prediction(clean, noise), wide)
        return Seen(-_halved(own, target, None if noised.weight is None else noised.weight[rows]), own, target)

    def at_level(self, noised: Noised, rows: Tensor, column: int, clean: Tensor) -> tuple[Tensor, Tensor, Level]:
        """Latents ``clean [R, ...]`` of some rows, under the noise of these at one draw; their times, and levels, ``[R]``."""
        which = noised.which[rows]
        places, noise = noised.places[which, column], noised.noise[which, column].to(clean)
        levels = Level(*(value[places].to(clean) for value in self.schedule.levels))
        wide = Level(*(value.view(-1, *(1,) * (clean.ndim - 1)) for value in levels))
        return wide.signal * clean + wide.noise * noise, self.schedule.timesteps[places].to(clean.device), levels

    def predicted(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None) -> Prediction:
        """One call for all rows, or, for a pipeline whose call wants one time (``if t >= boundary``), one for each: found once. behind: as
        of ``Noised``."""
        kind = type(self.of.pipe)
        if self.together.get(kind, True):
            try:
                prediction = self.of.probe(prompts, x, timesteps, levels, behind)
                self.together[kind] = True
                return prediction
            except (RuntimeError, ValueError, TypeError) as error:
                if kind in self.together or len(prompts) == 1 or isinstance(error, torch.OutOfMemoryError):
                    raise
        parts = list[Prediction]()
        for row in torch.arange(len(prompts)).split(1):
            level, before = Level(*(value[row] for value in levels)), None if behind is None else behind.take(row)
            parts.append(self.of.probe([prompts[int(row)]], x[row], timesteps[row], level, before))
        self.together[kind] = False
        return Prediction(*(torch.cat(values) for values in zip(*parts, strict=True)))

    def _in_target(self, prediction: Prediction, t: Level) -> Tensor:
        """The target, or a prediction of it, in the parametrisation whose error counts."""
        if self.target == "epsilon":
            return prediction.noise
        if self.target == "sample":
            return prediction.clean
        if self.target == "flow":
            return prediction.noise - prediction.clean
        if self.target == "preconditioned":  # (x_0 - c_skip * x) / c_out, with x = x_0 + sigma * eps; its sign is that of v
            size = (t.noise**2 + self.sigma_data**2).sqrt()
            return (self.sigma_data**2 * prediction.noise - t.noise * prediction.clean) / (self.sigma_data * size)
        return (t.signal * prediction.noise - t.noise * prediction.clean) / (t.signal**2 + t.noise**2).sqrt()


def _halved(one: Tensor, two: Tensor, weight: Tensor | None) -> Tensor:
    """``|one - two|^2 / 2`` of each row, under a weight of each number, ``[rows]`` float64 on the CPU."""
    square = (one - two.to(one)).double().square()
    return 0.5 * kernels.per_row(square if weight is None else square * weight.to(square)).cpu()


@torch.no_grad()
def _absolute(seen: Seen, reference: Tensor, share: float, weight: Tensor | None) -> Tensor:
    """The mean absolute error of a mixture of what was seen and a reference's prediction, ``[rows]`` float64 on the CPU."""
    reference = reference.to(seen.predicted)
    mixture = reference + share * (seen.predicted - reference)
    error = (mixture - seen.target).double().abs()
    return kernels.per_row(error if weight is None else error * weight.to(error)).cpu() / mixture[0].numel()
