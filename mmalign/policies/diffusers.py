"""Any diffusers pipeline as a policy: its scheduler is swapped and its own ``__call__`` runs. No per-model code.

A rollout is one call in which the scheduler answers with a kernel's ``mean + std * noise`` and records what it answered. A
replay of step ``i`` is the same call with the same seeds and without its ``no_grad``: through the steps before ``i`` the
denoiser stands still and the scheduler repeats what it answered; at ``i`` the denoiser runs, the scheduler receives its output
with its graph, and the call is left. So whatever happens inside the call (noise of images, masks that are blended in, guidance
that depends on the step, a schedule that starts late) happens again. A probe is a call at a vector of times, one for each row,
that is left at its first step, with given latents in place of those that the pipeline makes.

Latents are recorded in the type the pipeline keeps them in, and the log-probability is that of the recorded (rounded)
latent: with bf16 models both sides see the same numbers, and the ratio is 1 before the first update.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable, Sequence
from contextlib import AbstractContextManager
from typing import Any

import torch
from torch import Tensor

from mmalign.distributed.shards import digest
from mmalign.needs import kinds
from mmalign.policies.parameters import Other, ParameterSets, frozen
from mmalign.policies.pipelines.calls import mixing, sequences
from mmalign.policies.pipelines.calls.calling import Caller, load, noting, refuse_other
from mmalign.policies.pipelines.denoising import adjoints, score_differences
from mmalign.policies.pipelines.denoising.classifying import Classifying
from mmalign.policies.pipelines.denoising.denoising_errors import DenoisingErrors
from mmalign.policies.pipelines.loading import memory as fitting
from mmalign.policies.pipelines.loading.arguments import call_arguments_of, random_steps_of
from mmalign.policies.pipelines.rollouts import branching, probing, recording, reference_models
from mmalign.policies.pipelines.rollouts.probing import Places
from mmalign.policies.pipelines.rollouts.recording import How, Rows, Tape
from mmalign.policies.pipelines.rollouts.reference_models import First
from mmalign.policies.pipelines.rollouts.refusals import refusals
from mmalign.policies.pipelines.rollouts.replay import transition
from mmalign.policies.pipelines.rollouts.trajectories import Behind, Remembered, Trajectories, Transition, spread
from mmalign.policies.settings import Dtype, Lora, Memory, Schedule, type_of
from mmalign.samplers import kernels, structure
from mmalign.samplers.adjoints import RewardGradient
from mmalign.samplers.assignment import assignment, drawn_by
from mmalign.samplers.branches import Tree
from mmalign.samplers.windows import all_but_last
from mmalign.types import EVERY, Adapter, Behavior, Level, Method, Need, Prediction, Rollout, Steps, UserError

__all__ = ["DiffusersPolicy", "diffusers"]

GIVES = frozenset({"old", "refs", "kls", "std", "slope", "dt", "drift", "adjoint", "adjoint_size", "score", "behaviors", "latents"})
ADAPTER = Adapter("transition", GIVES, call=call_arguments_of, random_steps=random_steps_of)


def diffusers(  # one keyword for each thing that a user may set
    pipeline: Any,
    *,
    schedule: Schedule = Schedule(),  # noqa: B008 (records are frozen)
    lora: Lora | None = None,
    start: str | None = None,
    memory: Memory = Memory(),  # noqa: B008
    call: dict[str, Any] | None = None,
    conditions: Callable[[list[str]], dict[str, Any]] | None = None,
    dtype: Dtype | None = None,
    device: str | None = None,
) -> DiffusersPolicy:
    """A policy around a diffusers pipeline.

    Args:
        pipeline: a pipeline, or the hub id or folder of one.
        schedule: steps, guidance, kernel, and which steps are trained.
        lora: rank, alpha, targets; None trains all of the denoiser.
        start: a run, or whole weights on disk, that the trained parameters start as, where they are no LoRA (``lora: {from: ...}``).
        memory: what makes it fit, and run faster.
        call: further arguments of the pipeline's call (height, width, num_frames, image, strength, ...), the same for all rows.
        conditions: prompts -> arguments of the call that differ by row (an image for each prompt); asked again at replay.
        dtype: of the whole pipeline; as it is by default. LoRA is float32 in any.
        device: where to put the pipeline; a GPU if there is one.

    Errors: UserError for a pipeline without a denoiser, without an argument that was given, or among ``unfit.UNFIT``.
    """
    target, kind = fitting.device_of(device), type_of(dtype)
    fitting.refuse(memory, lora)
    offloaded = {memory.offload} if isinstance(memory.offload, str) else set(memory.offload)
    if isinstance(pipeline, str):
        pipeline = load(pipeline, dtype=dtype)
    refuse_other(pipeline)
    if kind not in (None, pipeline.dtype):
        pipeline.to(kind)
    pipeline.set_progress_bar_config(disable=True)
    home = torch.device("cpu") if "references" in offloaded else target
    policy = DiffusersPolicy(
        pipeline, schedule, lora=lora, start=start, rows_at_once=memory.rows_at_once, call=call, conditions=conditions, home=home,
        cut_to=target if memory.storage is None and memory.compile is False else None,
    )  # fmt: skip
    nets, acts = policy.denoisers, policy.acts_on
    if memory.storage is not None:
        acts["storage"] = fitting.store(nets, memory.storage)
    policy.caller.away = fitting.place(pipeline, target, offload=offloaded, working=policy.caller.still)
    acts["offload"] = policy.caller.away.names if policy.caller.away else []
    acts["gradient_checkpointing"] = fitting.checkpoint(nets) if memory.gradient_checkpointing else []
    acts["slice_vae"] = fitting.slice_vae(pipeline, nets) if memory.slice_vae else []
    acts["tile_vae"] = fitting.tile_vae(pipeline, nets) if memory.tile_vae else []
    acts["compile"] = fitting.compile_blocks(nets, memory.compile) if memory.compile is not False else []
    return policy


class DiffusersPolicy:
    """See ``diffusers``. ``acts_on``: which parts each of its options for memory and speed has found."""

    kind, gives, spreads = ADAPTER.kind, ADAPTER.gives, "sequence"

    def __init__(  # what `diffusers` was given, and where it goes
        self, pipe: Any, schedule: Schedule, *, lora: Lora | None = None, rows_at_once: int = 64, call: dict[str, Any] | None = None,
        conditions: Callable[[list[str]], dict[str, Any]] | None = None, home: torch.device | None = None, start: str | None = None,
        cut_to: torch.device | None = None,
    ):  # fmt: skip
        self.pipe, self.settings, self.kernel = pipe, schedule, schedule.kernel or kernels.flow_sde(noise_level=0.7)
        self.window, self.same_noise, self.rows_at_once = schedule.window or all_but_last(), schedule.same_noise, rows_at_once
        guided = {} if schedule.guidance is None else {"guidance_scale": schedule.guidance}
        self.caller = Caller(pipe, {"num_inference_steps": schedule.steps, **guided, **(call or {})}, conditions)
        self.denoisers = self.caller.denoisers
        for module in pipe.components.values():
            if isinstance(module, torch.nn.Module):
                module.eval().requires_grad_(False)
        self.denoiser = next(iter(self.denoisers.values())) if len(self.denoisers) == 1 else torch.nn.ModuleDict(self.denoisers)
        self.sets = ParameterSets(self.denoiser, lora=lora, home=home, start=start, cut_to=cut_to)
        self.acts_on: dict[str, list[str]] = {}
        self.branches = schedule.branches
        self.order: int = schedule.order
        self._places: Places = {}
        self._example = self.caller.example  # a prompt for calls that only ask for the schedule

    # Parameters

    def parameters(self) -> dict[str, torch.nn.Parameter]:
        """Trained parameters by name."""
        return self.sets.trained

    def compute_together(self, count: int, world: int, place: int, ring: int = 1) -> None:
        sequences.compute_together(self.denoisers, count, world, place, ring)

    def using(self, name: str) -> AbstractContextManager[None]:
        """A named parameter set, or another pipeline, in place of the current one: ``ref``, ``ema``, ``previous``, ..."""
        return self.sets.using(name)

    def refer(self, name: str, other: Any, examples: Sequence[Any] = ()) -> None:
        """Makes a name stand for another pipeline: what it says of each recorded step, under this policy's kernel."""
        key = f"references.{name}.policy"
        if not isinstance(other, DiffusersPolicy):
            raise UserError(f"{key}: got a {type(other).__name__}, takes one that diffusers makes, as the policy is")
        own, theirs = self.first(examples), reference_models.asked(key, other, examples)
        reference_models.refuse_times(key, own[:2], theirs[:2])
        reference_models.refuse_sampling(key, (self.kernel, self.window), other.settings, own)
        self.stand_for(name, other, own, theirs)

    def stand_for(self, name: str, other: DiffusersPolicy, own: First, theirs: First) -> None:
        """The same, where times have been compared. Errors: UserError for other latents."""
        key = f"references.{name}.policy"
        reference_models.refuse_latents(key, self.pipe, other.pipe, own, theirs)
        frozen(key, self.sets, other.sets)
        modules = {part: module for part, module in other.pipe.components.items() if isinstance(module, torch.nn.Module)}
        parts = {part: vars(other)[part] for part in ("pipe", "caller", "denoisers", "denoiser", "_places")}
        self.sets.lend(name, self, Other(parts, digest(modules), tuple(other.denoisers.values()), other.sets.shards))

    # Rollout

    @torch.no_grad()
    def sample(
        self, prompts: list[str], group_size: int, rng: torch.Generator, *, step: int = 0, behaviors: Sequence[Behavior] = (),
        part: slice = EVERY, decode: bool = True, drift: bool = False,
    ) -> Rollout:  # fmt: skip
        """``group_size`` outputs of each prompt under the kernel; rows of a group stand side by side.

        ``rng`` seeds one generator for each row, so that a row does not depend on ``rows_at_once``. ``step``: the number of
        the training step, for windows that move. A mixture of ``behaviors`` is one of distributions, step by step (``mixing.py``); a
        greedy row has no random step. part: all prompts are encoded, but only these are sampled. decode: False: nobody looks at outputs.
        drift: keep the means of the trained steps, which that term is measured from.
        """
        who = assignment(group_size, behaviors)
        seeds = torch.randint(2**62, (len(prompts), len(who)), generator=rng)
        starts = (seeds[:, :1].expand_as(seeds) if self.same_noise else seeds)[part].flatten()
        window_rng = torch.Generator().manual_seed(int(torch.randint(2**62, (), generator=rng)))
        group = torch.arange(len(prompts))[part].repeat_interleave(len(who))
        rows, seeds, who = [prompts[place] for place in group.tolist()], seeds[part].flatten(), who.repeat(len(prompts[part]))
        self.caller.tell_branches(list(dict.fromkeys(prompts)), self.settings.guidance_gradient)
        self._example, tree = rows[0], None
        if self.branches is not None:
            trees = self._trees(len(prompts), group_size, step, window_rng)
            tree = Tree.of_groups(trees[part], torch.arange(len(prompts))[part].tolist())
            starts = starts[tree.first]
        call = Rows(rows, starts.tolist(), seeds.tolist(), list(dict.fromkeys(prompts)))
        how = How(recording.trained_steps if drift else recording.none_of, decode)
        if tree is None:
            tapes, places = self._drawn(call, who, behaviors, lambda left: self._window(left, step, window_rng.get_state()), how)
        else:
            tapes, places = branching.grown(self, call, tree, how)
        held, log_probs, trained, outputs, facts = recording.joined(tapes, torch.cat(places), call, drift=drift)
        greedy = torch.tensor([False, *(behavior.greedy for behavior in behaviors)])[who]
        rollout = Rollout(
            prompts=rows, outputs=outputs, log_probs=log_probs, mask=trained & ~greedy.unsqueeze(1), group=group, held=held,
            drawn=drawn_by(who, behaviors), branch=None if tree is None else tree.branch, facts=facts,
            columns={} if tree is None else branching.told(tree, held, self._levels),
        )  # fmt: skip
        self._score(rollout, torch.nonzero((who > 0) & rollout.mask.any(1)).flatten())
        return rollout

    def refuse_structure(self, method: Method, group_size: int, steps: int) -> None:
        """See ``arguments.facts.Structured``."""
        call = self.caller.call
        num_steps = next((len(call[name]) for name in ("sigmas", "timesteps") if call.get(name) is not None), self.settings.steps)
        of_rows = {"num_steps": num_steps, "group_size": group_size, "steps": steps}
        structure.refuse(method, self.window, self.settings.random, self.branches, **of_rows, order=self.order)

    def _trees(self, count: int, group_size: int, step: int, rng: torch.Generator) -> list[Tree]:
        """The structure of each of so many groups."""
        assert self.branches is not None
        random, trained = self._window(len(self._levels.noise) - 1, step, rng.get_state())
        return [self.branches(trained, random, group_size, rng) for _ in range(count)]

    def _window(self, left: int, step: int, state: Tensor) -> tuple[Tensor, Tensor]:
        """Which of so many steps take noise, and which are trained, ``[left]`` bool each."""
        return structure.masks(self.window, self.settings.random, left, step, recording.generator_at(state))

    def _drawn(
        self, call: Rows, who: Tensor, behaviors: Sequence[Behavior], window: Callable[[int], tuple[Tensor, Tensor]],
        how: How,
    ) -> tuple[list[Tape], list[Tensor]]:  # fmt: skip
        """What was recorded of rows by themselves, and the places of the rows of each tape. who: as of ``assignment``."""
        tapes, places = [], []
        for number, behavior in enumerate([Behavior("current", {"current": 1.0}), *behaviors]):
            for at in torch.nonzero(who == number).flatten().split(self.rows_at_once):
                drawn = functools.partial(recording.of_rows, window, len(at), greedy=behavior.greedy)
                with mixing.drawing(self.denoisers.values(), behavior.shares, self.using):
                    tapes.append(recording.record(self, call.take(at), drawn, how))
                places.append(at)
        return tapes, places

    def _score(self, rollout: Rollout, rows: Tensor) -> None:
        """Puts into ``log_probs`` and ``means`` what the current parameters say of rows that others drew."""
        means = rollout.held.means
        for number, column in enumerate(rollout.held.columns.tolist() if len(rows) else ()):
            step = transition(self, rollout, rows, column)
            rollout.log_probs[rows, column] = step.log_probs.cpu()
            if means is not None:
                means[number, rows] = step.mean.float().cpu()

    @torch.no_grad()
    def generate(self, prompts: list[str], seeds: list[int], **call: Any) -> Tensor:
        """Outputs ``[B, ...]`` in 0..1 as a user gets them: the pipeline with its own scheduler, one seed for each prompt."""
        images = []
        for at in (slice(chunk, chunk + self.rows_at_once) for chunk in range(0, len(prompts), self.rows_at_once)):
            images.append(self.caller.images(prompts[at], seeds[at], None, prompts[at], **call))
        return torch.cat(images)

    def generated(self, prompts: list[str], seeds: list[int], *, decode: bool = True, **call: Any) -> tuple[Tensor, Tensor]:
        """The same, and the latents ``[B, ...]`` that they are decoded from. decode: as of ``sample``."""
        last = list[Tensor]()
        outputs = self.generate(prompts, seeds, decode=decode, **noting(self.pipe, last), **call)
        return outputs, self.shown(torch.cat(last), prompts)

    def shown(self, latents: Tensor, examples: Sequence[Any] = ()) -> Tensor:
        """What the scheduler is shown of latents ``[B, ...]`` as the pipeline has them: all, or what is not given, as a first frame is.
        examples: prompts, the first of which is asked where nobody has been."""
        if 0 not in self._places:
            self.first(examples)
        part = None if (place := self._places[0]) is None else place.part
        return latents if part is None or latents[0].numel() != part.size else part.of(latents)

    def latents(self, rollout: Rollout) -> Tensor:
        """Those that a rollout's outputs are decoded from, ``[B, ...]``."""
        recording.refuse_parts(self.pipe, rollout.held)
        return rollout.held.x_next[-1]  # type: ignore[no-any-return]

    def refusals(self, prompts: Sequence[Any]) -> dict[int, str]:
        """Place -> why, of prompts that the pipeline's call refuses; it is left before its denoiser runs (``rollouts.refusals``)."""
        return refusals(self.caller, prompts, self.rows_at_once)

    def random_steps(self, prompts: Sequence[Any]) -> Tensor:
        """Which steps of a first rollout are random, ``[T]`` bool. Errors: UserError for what no rollout could be made of."""
        self.caller.tell_branches(prompts, self.settings.guidance_gradient)
        return recording.random_steps(self.caller, self.window, self.kernel, prompts[0])

    # Replay

    def remember(self, rollout: Rollout, names: Iterable[str], rows_at_once: int) -> None:
        """Means and log-probabilities of a rollout under named parameter sets, without gradient, kept in the rollout."""
        trajectories: Trajectories = rollout.held
        for name in names:
            if name in trajectories.refs:
                continue
            log_probs, means = torch.zeros_like(rollout.log_probs), torch.zeros_like(trajectories.x_next, dtype=torch.float32)
            with torch.no_grad(), self.using(name):
                for column in trajectories.columns.tolist():
                    for rows in torch.nonzero(rollout.mask[:, column]).flatten().split(rows_at_once):
                        step = transition(self, rollout, rows, column)
                        log_probs[rows, column], means[column][rows] = step.log_probs.cpu(), step.mean.float().cpu()
            trajectories.refs[name] = Remembered(log_probs, means)

    def steps(self, rollout: Rollout, rows: Tensor, columns: Tensor | None = None, needs: frozenset[Need] = frozenset()) -> Steps:
        """The table of some rows, and of some columns (all that are trained, by default), with gradient.

        Each column is one call of the pipeline on the rows that it counts in, the same in shape as those of ``sample`` where these are.
        ``needs`` of ``refs``, ``kls``, ``std``, ``slope``, ``dt``, ``drift``, ``adjoint`` fill those tables; references are those of
        ``remember``, and ``drift`` is that of a rollout whose means were kept.
        """
        trajectories: Trajectories = rollout.held
        columns = trajectories.columns if columns is None else columns
        need_kinds, refs = kinds(needs), trajectories.refs
        found = list[tuple[Tensor, dict[str, Tensor]]]()
        for column in columns.tolist():
            live = torch.nonzero(rollout.mask[rows, column]).flatten()
            found.append((live, self._scored(rollout, rows[live], column, need_kinds) if len(live) else {}))
        names = dict.fromkeys(name for _, scored in found for name in scored)
        tables = {name: torch.stack([spread(scored.get(name), live, len(rows)) for live, scored in found], 1) for name in names}
        cells = (rows[:, None], columns[None, :])
        facts = {name: table[cells] for name, table in {**rollout.facts, "dt": trajectories.dt}.items() if name in need_kinds}
        return Steps(
            log_probs=tables.pop("log_probs", rollout.log_probs.new_zeros(len(rows), len(columns))),
            mask=rollout.mask[cells],
            old=rollout.log_probs[cells],
            refs={name: table.log_probs[cells] for name, table in refs.items()} if "refs" in need_kinds else {},
            terms={name: tables.pop(name) for name in ("drift", "adjoint") if name in tables},
            kls=tables,
            facts=facts,
            event_size=trajectories.event_size,
            kind="transition",
        )

    def _scored(self, rollout: Rollout, rows: Tensor, column: int, need_kinds: set[str]) -> dict[str, Tensor]:
        """A step of rows that it counts in: ``log_probs``, the terms that are asked for, and the KL to each reference by its name."""
        held: Trajectories = rollout.held
        step = transition(self, rollout, rows, column)
        scored = {}
        if "kls" in need_kinds and held.noisy:
            scored = {name: _kl(step, ref.means[column][rows]) for name, ref in held.refs.items()}
        if "drift" in need_kinds:
            if held.means is None:
                raise UserError("drift: this rollout keeps no means of its steps; takes one of policy.sample(..., drift=True)")
            scored["drift"] = _kl(step, held.means[int(held.trained[:column].sum())][rows])
        if "adjoint" in need_kinds:
            scored["adjoint"] = adjoints.grown(self, rollout, rows, column, step)
        return {**scored, "log_probs": step.log_probs}

    def adjoints(  # all that a gradient depends on
        self, rollout: Rollout, how: RewardGradient, utility: Callable[..., Tensor], rng: torch.Generator,
        *, rows_at_once: int, seeds: Tensor | None = None, latents: bool = False, decode: bool = True,
    ) -> Rollout:  # fmt: skip
        """See ``abilities.Differentiable``."""
        most = min(rows_at_once, self.rows_at_once)
        return adjoints.adjoints(self, rollout, how, utility, rng, rows_at_once=most, seeds=seeds, latents=latents, decode=decode)

    @functools.cached_property
    def errors(self) -> DenoisingErrors:
        """How well it denoises given latents."""
        return DenoisingErrors(self, with_classifier=Classifying)

    def noised(self, *args: Any, rows_at_once: int, given: tuple[list[str], Tensor] | None = None) -> tuple[Any, Rollout]:
        """See ``abilities.Differentiable``."""
        return self.errors, score_differences.noised(self, *args, rows_at_once=min(rows_at_once, self.rows_at_once), given=given)

    def probe(self, prompts: list[str], x: Tensor, timesteps: Tensor, levels: Level, behind: Behind | None = None) -> Prediction:
        """What the denoiser says of ``x [B, ...]`` at ``timesteps [B]`` (in its own units) with noise ``levels`` (each ``[B]``).

        With gradient. Calls of the pipeline without classifier-free guidance, of ``rows_at_once`` rows each. behind: the chunks of a video
        before that of ``x``.
        """
        parts, self._example = list[Prediction](), prompts[0]
        for at in torch.arange(len(prompts)).split(self.rows_at_once):
            level = Level(*(value[at.to(value.device)] for value in levels))
            some, before = [prompts[row] for row in at.tolist()], None if behind is None else behind.take(at)
            times = timesteps[at.to(timesteps.device)]
            parts.append(probing.probed(self.caller, self._places, some, x[at.to(x.device)], times, level, before))
        return Prediction(*(torch.cat(values) for values in zip(*parts, strict=True)))

    @functools.cached_property
    def cut(self) -> probing.Cut:
        """Where the chunks of a video lie in the whole of it."""
        return probing.cut(self.caller, self._example)

    @functools.cached_property
    def _levels(self) -> Level:
        """The levels of ``schedule``, asked once."""
        return self.schedule()[1]

    def schedule(self) -> tuple[Tensor, Level]:
        """Timesteps ``[T]`` and levels ``[T + 1]`` that the pipeline's own call uses, from the step that it starts with."""
        return self.first()[:2]

    def first(self, examples: Sequence[Any] = ()) -> First:
        """The same, and what the first latent is. examples: prompts, the first of which is asked."""
        self._example = examples[0] if examples else self._example
        return probing.first(self.caller, self._places, self._example)


def _kl(step: Transition, mean: Tensor) -> Tensor:
    return kernels.kl(step.mean, step.std, mean.to(step.mean), step.std)
