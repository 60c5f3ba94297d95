"""A diffusers policy seen through its training objective: given images, noised, and how well they are denoised.

A row's decision is a noise level and a noise; its "log-probability" is minus half of the squared error of the denoiser there, a
bound up to weights and constants, and no density. Rows come from a data set, or are the pipeline's own samples, made by whatever sampler
it has: no step has to be random.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field, replace
from typing import Any, Literal, NamedTuple, get_args

import torch
from torch import Tensor

from mmalign.arguments.ranges import Count
from mmalign.needs import kinds, named
from mmalign.policies.diffusers import DiffusersPolicy
from mmalign.policies.pipelines import reference_models
from mmalign.policies.pipelines.arguments import all_arguments
from mmalign.policies.pipelines.calling import unguided
from mmalign.policies.pipelines.latents import latents, weights_of
from mmalign.policies.pipelines.other_rows import following, other_prompts
from mmalign.policies.pipelines.scheduler import PRECONDITIONED, parametrisation
from mmalign.policies.pipelines.trained_levels import training_schedule
from mmalign.policies.pipelines.unfit import without_probe
from mmalign.samplers import kernels
from mmalign.stacking import offset, stacked_by_name
from mmalign.types import EVERY, Adapter, Level, Need, Prediction, Rollout, Steps, UserError

__all__ = ["ForwardPolicy", "forward"]

ADAPTER = Adapter(
    "bound", frozenset({"refs", "kls", "absolute", "noise", "contrast", "unguided", "latents"}), call=lambda arguments: all_arguments()
)
Times = Literal["uniform", "logit_normal"]
Target = Literal["native", "epsilon", "flow", "v_prediction", "sample"]
Noise = Literal["group", "row"]
Edits = Callable[[list[str]], list[str]]
Mask = Callable[[Tensor, list[str]], Tensor]


def forward(
    of: DiffusersPolicy, *, times: Times = "uniform", draws: Count = 1, target: Target = "native", noise: Noise = "group",
    guided: bool = False, edits: Edits | None = None, mask: Mask | None = None,
) -> ForwardPolicy:  # fmt: skip
    """A policy for methods on the denoising error (Diffusion-DPO, DiffusionNFT), around one that ``diffusers`` makes.

    Online, its rows are samples of the pipeline's own scheduler, in as many steps as ``of`` says, and without guidance.

    Args:
        of: the policy whose denoiser is trained, and whose pipeline samples for evaluations.
        times: how places on the scheduler's training schedule (its shift included) are drawn: ``uniform``, as Diffusion-DPO does,
            or ``logit_normal``, the sigmoid of a standard normal number (Esser et al. 2024), as code for flows does.
        draws: noise levels, each with a noise of its own, for every row: the columns of its table.
        target: whose error counts: ``native``, what the model was trained to say, or another parametrisation, which weighs noise
            levels otherwise (``epsilon`` on a flow at level s: ``(1 - s)^2`` times the velocity's). Under EDM's preconditioning
            (Karras et al. 2022) the native one is the raw network's, ``F``, whose error their loss weighs alike at all levels.
        noise: ``group``, the rows of a group (of a pair) share their levels and their noise, so that what differs is theirs; ``row``,
            every row has its own, as online methods for single rows have it.
        guided: whether rows are sampled with the guidance of ``of``. Predictions never have it, so that such rows are another policy's,
            which some methods take (AWM, DGPO, CRD) and others do not (DiffusionNFT, RAM).
        edits: prompts -> prompts that do not fit, what the contrast ``mismatched`` shows rows under (`mmalign list data`: ``edited``); by
            default the next row's prompt that differs.
        mask: (outputs, prompts) -> what each pixel counts, ``[B, 1, H, W]``, of videos ``[B, F, 1, H, W]``, 0 and more (``masked``,
            ``frames``). Errors are then means, or sums, under these weights, which are scaled to the mean 1 over a row's latent.

    Errors: UserError for a scheduler without a training schedule that is known here, an unknown ``times``, ``target`` or ``noise``, or no
    draws; and of rows for a mask of another shape, of numbers below 0, or of nothing.
    """
    return ForwardPolicy(of, times=times, draws=draws, target=target, noise=noise, guided=guided, edits=edits, mask=mask)


@dataclass(frozen=True)
class Noised:
    """Given rows, and what is drawn for each of their G groups, or of G rows apart.

    clean: ``[B, ...]`` latents. noise: ``[G, draws, ...]``. places: ``[G, draws]`` on the training schedule. which: ``[B]`` the group of
    each row. others: B prompts that do not fit, see ``forward``. refs: name -> ``[B, draws]`` bounds.
    predicted: name -> ``[B, draws, ...]`` float32 on the CPU, what was predicted under each of them, in the target's parametrisation.
    weight: ``[B, ...]``, what each number of a latent counts; None: all alike.
    """

    clean: Tensor
    noise: Tensor
    places: Tensor
    which: Tensor
    others: list[str | None]
    refs: dict[str, Tensor] = field(default_factory=dict)
    predicted: dict[str, Tensor] = field(default_factory=dict)
    weight: Tensor | None = None

    def take(self, rows: Tensor) -> Noised:
        others = [self.others[row] for row in rows.tolist()]
        refs, predicted = ({name: table[rows] for name, table in tables.items()} for tables in (self.refs, self.predicted))
        weight = None if self.weight is None else self.weight[rows]
        return replace(self, clean=self.clean[rows], which=self.which[rows], others=others, refs=refs, predicted=predicted, weight=weight)

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
        )


class Seen(NamedTuple):
    """Rows at one draw. bound: ``[rows]`` float64 on the CPU, ``-|target - prediction|^2 / 2``. predicted, target: ``[rows, ...]``."""

    bound: Tensor
    predicted: Tensor
    target: Tensor


class ForwardPolicy:
    """See ``forward``. ``generate``, parameters and their sets are those of the policy inside."""

    kind = ADAPTER.kind

    def __init__(
        self, of: DiffusersPolicy, *, times: Times, draws: int, target: Target, noise: Noise = "group", guided: bool = False,
        edits: Edits | None = None, mask: Mask | None = None,
    ):  # fmt: skip
        if times not in ("uniform", "logit_normal"):
            raise UserError(f"policy.times: got {times!r}, takes 'uniform' or 'logit_normal'")
        if target not in get_args(Target):
            raise UserError(f"policy.target: got {target!r}, takes {', '.join(get_args(Target))}")
        if draws < 1:
            raise UserError(f"policy.draws: got {draws}, takes 1 or more")
        if why := without_probe(type(of.pipe).__name__):
            raise UserError(f"policy.of: {type(of.pipe).__name__} has no denoising error to train on: {why}")
        self.of, self.times, self.draws, self.noise, self.guided, self.sets = of, times, draws, noise, guided, of.sets
        self.edits, self.mask = edits, mask
        self.gives = ADAPTER.gives - {"unguided"} if guided else ADAPTER.gives
        self.schedule = training_schedule(of.pipe.scheduler)
        self.together: dict[type, bool] = {}  # whether a class of pipelines takes a time for each row; not known before it is tried
        self.target, self.sigma_data = (parametrisation(of.pipe.scheduler) if target == "native" else target), 0.0
        if target == "native" and type(of.pipe.scheduler).__name__ in PRECONDITIONED:
            self.target, self.sigma_data = "preconditioned", float(of.pipe.scheduler.config.sigma_data)

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        return self.of.parameters()

    def using(self, name: str) -> AbstractContextManager[None]:
        return self.of.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Makes a name stand for another pipeline: how well it denoises the same latents, with the same noise, at the same levels."""
        key = f"references.{name}.policy"
        if not isinstance(other, ForwardPolicy):
            raise UserError(f"{key}: got a {type(other).__name__}, takes one that forward makes, as the policy is")
        for word in ("times", "draws", "target", "sigma_data"):
            if (there := vars(other)[word]) != (here := vars(self)[word]):
                raise UserError(f"{key}.{word}: is {there!r}, and the policy's {here!r}; takes the same, as both errors are compared")
        reference_models.refuse_times(f"{key}.of", self.schedule[:2], other.schedule[:2])
        self.of.stand_for(name, other.of, self.of.first(examples), other.of.first(examples))

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the pipeline's call refuses."""
        return self.of.refusals(prompts)

    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs as a user gets them, one seed for each prompt."""
        return self.of.generate(prompts, seeds, **call)

    def generated(self, prompts: list[str], seeds: list[int], **call: Any) -> tuple[Tensor, Tensor]:
        """The same, and their latents."""
        return self.of.generated(prompts, seeds, **call)

    def latents(self, rollout: Rollout) -> Tensor:
        """The clean latents of a rollout, ``[B, ...]``: those of its samples where nothing was decoded, encoded ones elsewhere."""
        return rollout.held.clean  # type: ignore[no-any-return]

    @torch.no_grad()
    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, part: slice = EVERY, decode: bool = True
    ) -> Rollout:
        """The pipeline's own samples, ``group_size`` of each prompt, encoded: what goes through a VAE comes back changed.
        decode: False, where nobody looks at outputs: the latents are taken as they are, and nothing goes through the VAE."""
        rows, group = [prompt for prompt in prompts for _ in range(group_size)], torch.arange(len(prompts)).repeat_interleave(group_size)
        seeds, here = torch.randint(2**62, (len(rows),), generator=rng).tolist(), torch.isin(group, torch.arange(len(prompts))[part])
        places = torch.nonzero(here).flatten().tolist()
        call: dict[str, Any] = {} if self.guided else unguided(self.of.caller.accepts, len(self.of.denoisers))
        asked: Any = ([rows[place] for place in places], [seeds[place] for place in places])
        part = slice(places[0], places[-1] + 1)
        outputs, last = (self.of.generate(*asked, **call), None) if decode else self.of.generated(*asked, decode=False, **call)
        return self._noised(rows, outputs, latents(self.of, outputs) if last is None else last.float(), group, rng, part)

    @torch.no_grad()
    def encode(self, prompts: list[str], outputs: Any, group: Tensor, rng: torch.Generator, *, part: slice = EVERY) -> Rollout:
        """Given images as a rollout; rows of one group share their noise levels and their noise.

        outputs: ``[B, C, H, W]`` in 0..1 (``[B, F, C, H, W]``: videos), in the size that the pipeline's call is set to. group:
        ``[B]`` int64. rng: draws the levels and the noise, here and once, for policy and references alike; the VAE's mode is
        taken, so that nothing else is random. ``log_probs`` are NaN: nobody sampled these rows. part: the rows that are encoded.
        """
        outputs = torch.stack(list(outputs[part]))
        return self._noised(prompts, outputs, latents(self.of, outputs), group, rng, part)

    def _noised(self, prompts: list[str], outputs: Any, clean: Tensor, group: Tensor, rng: torch.Generator, part: slice) -> Rollout:
        """Rows ``part`` of all ``prompts`` and ``group``, of which ``outputs`` and their latents ``clean`` are."""
        names, which = (group if self.noise == "group" else torch.arange(len(group))).unique(return_inverse=True)
        places = torch.rand((len(names), self.draws), generator=rng)
        if self.times == "logit_normal":
            places = torch.randn((len(names), self.draws), generator=rng).sigmoid()
        count = len(self.schedule.timesteps)
        noise = torch.randn((len(names), self.draws, *clean.shape[1:]), generator=rng)
        shape = (len(clean), self.draws)
        others: list[str | None] = [*(following(prompts) if self.edits is None else self.edits(list(prompts)))][part]
        weight = None if self.mask is None else weights_of(self.of, self.mask(outputs, list(prompts[part])), outputs, clean)
        return Rollout(
            prompts=list(prompts[part]),
            outputs=outputs,
            log_probs=torch.full(shape, float("nan"), dtype=torch.float64),
            mask=torch.ones(shape, dtype=torch.bool),
            group=group[part],
            held=Noised(clean, noise, (places * count).long().clamp(max=count - 1), which[part], others, weight=weight),
        )

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
                    for column in range(self.draws):
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
        which = noised.which[rows]
        places = noised.places[which, column]
        clean = noised.clean[rows]
        noise = noised.noise[which, column].to(clean)
        timesteps = self.schedule.timesteps[places].to(clean.device)
        levels = Level(*(value[places].to(clean) for value in self.schedule.levels))
        wide = Level(*(value.view(-1, *(1,) * (clean.ndim - 1)) for value in levels))
        prompts = [rollout.prompts[row] for row in rows.tolist()] if prompts is None else prompts
        predicted = self._predicted(prompts, wide.signal * clean + wide.noise * noise, timesteps, levels)
        own, target = self._in_target(predicted, wide), self._in_target(Prediction(clean, noise), wide)
        return Seen(-_halved(own, target, None if noised.weight is None else noised.weight[rows]), own, target)

    def _predicted(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level) -> Prediction:
        """One call for all rows, or, for a pipeline whose call wants one time (``if t >= boundary``), one for each: found once."""
        kind = type(self.of.pipe)
        if self.together.get(kind, True):
            try:
                prediction = self.of.probe(prompts, x, timesteps, levels)
                self.together[kind] = True
                return prediction
            except (RuntimeError, ValueError, TypeError) as error:
                if kind in self.together or len(prompts) == 1 or isinstance(error, torch.OutOfMemoryError):
                    raise
        rows = [slice(row, row + 1) for row in range(len(prompts))]
        parts = [self.of.probe(prompts[row], x[row], timesteps[row], Level(*(value[row] for value in levels))) for row in rows]
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
