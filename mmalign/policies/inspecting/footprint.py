"""The memory of a config's run, in bytes by part, before anything is loaded: its own modules and its own calls, run without numbers.

A pipeline's call runs with latents of zeros; its denoisers, encoders and autoencoder have no weights and answer zeros of the right shape.
What a pass of a denoiser holds is counted tensor by tensor, forward and backward (``ledger.py``), so that no formula has to know a model.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves, tree_map

from mmalign.policies.adapters import add_lora, in_four_bits
from mmalign.policies.inspecting.ledger import Fake, size_of, zeros
from mmalign.policies.inspecting.weightless import pipeline
from mmalign.policies.pipelines.calls.calling import GUIDANCE, Caller, one_line, quiet
from mmalign.policies.pipelines.loading import memory as fitting
from mmalign.policies.settings import Lora, Memory, Schedule, type_of
from mmalign.samplers.windows import all_but_last
from mmalign.types import UserError

ENCODE, DENOISE, DECODE, UPDATE, SAMPLE = "encoding prompts", "denoising", "decoding", "an update", "sampling"
ALWAYS = "always"


class Part(NamedTuple):
    """A part of the memory: its name, bytes, and the phases that it is there in (``ALWAYS``: all of them)."""

    name: str
    size: int
    phases: tuple[str, ...] = (ALWAYS,)


@dataclass(frozen=True)
class Rows:
    """What a step makes and learns from.

    rows: of a rollout. group: rows of a prompt. micro_rows, micro_steps: of a backward pass. references: how many sets or models score
    every row. numbers: what a method asks of whole distributions of tokens. together: how many processes compute each row.
    """

    rows: int
    group: int
    micro_rows: int
    micro_steps: int | None = None
    references: Sequence[str] = ()
    numbers: frozenset[Any] = frozenset()
    together: int = 1


class Measured(NamedTuple):
    """A policy's own parts. trained: the parameters that an optimiser gets, in fake mode. copies_away: whether copies of them wait on the
    CPU."""

    parts: list[Part]
    trained: list[nn.Parameter]
    copies_away: bool
    fake: Fake


class Pass(NamedTuple):
    """Bytes of one pass with a graph: kept for the backward pass, and at its highest, forward and backward, gradients included."""

    saved: int
    peak: int


def backward_pass(fake: Fake, forward: Callable[[], Tensor], trained: Sequence[nn.Parameter]) -> Pass:
    """One forward and backward pass, counted; the gradients of the trained parameters are there before it, as of a pass before."""
    with fake:
        for parameter in trained:
            parameter.grad = torch.zeros_like(parameter)
        before = fake.ledger.live
        fake.ledger.peak = before
        output = forward()
        saved = fake.ledger.live - before
        fake.ledger.summed = {(parameter.shape, parameter.dtype) for parameter in trained}
        output.float().sum().backward()
        fake.ledger.summed = set()
        peak = fake.ledger.peak - before
        del output
        for parameter in trained:
            parameter.grad = None
    return Pass(saved, peak)


class Calls:
    """A pipeline whose modules run in fake mode, each kind of call once. work: what a part takes for a kind of call.

    inputs: the arguments of a denoiser's first call, by name. order: of each call of the pipeline, the calls of its parts as they came: a
    part's name, and the kind.
    """

    def __init__(self, pipe: Any, fake: Fake, denoisers: Mapping[str, nn.Module]):
        self.fake, self.denoisers = fake, denoisers
        self.work: dict[Any, int] = {}
        self.order: list[list[tuple[str, Any]]] = [[]]
        self.inputs: dict[str, tuple[Any, Any]] = {}
        self._answers: dict[Any, Any] = {}
        for name, part in pipe.components.items():
            if isinstance(part, nn.Module):
                fake.weights(part)
                for method in ("forward", "encode", "decode"):
                    own = getattr(part, method, None)
                    if callable(own):
                        part.__dict__[method] = self._instead(name, f"{name}.{method}", own)

    def _instead(self, name: str, label: str, own: Callable[..., Any]) -> Callable[..., Any]:
        inside = False

        def call(*args: Any, **kwargs: Any) -> Any:
            nonlocal inside
            if inside:
                return own(*args, **kwargs)
            shapes = [(tuple(leaf.shape), leaf.dtype) for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
            key = (label, str(shapes))
            self.order[-1].append((name, key))
            if name in self.denoisers:
                self.inputs.setdefault(name, (args, kwargs))
            if key not in self._answers:
                inside = True
                try:
                    with torch.no_grad():
                        self._answers[key] = zeros(self._counted(key, own, *self.fake.of((args, kwargs))))
                finally:
                    inside = False
            return tree_map(lambda value: value.clone() if isinstance(value, Tensor) else value, self._answers[key])

        return call

    def _counted(self, key: Any, own: Callable[..., Any], args: Any, kwargs: Any) -> Any:
        with self.fake:
            before = self.fake.ledger.live
            self.fake.ledger.peak = before
            answer = own(*args, **kwargs)
            self.work[key] = self.fake.ledger.peak - before
        return answer

    def phases(self) -> dict[str, dict[str, int]]:
        """Part -> phase -> the most that it takes for a call there. What is called before the first denoiser encodes, what is called after
        the last one decodes, and what is called between them (a ControlNet, which comes before the first one too) belongs to denoising.
        """
        phases: dict[str, dict[str, int]] = {}
        for order in self.order:
            denoising = [place for place, (name, _) in enumerate(order) if name in self.denoisers] or [len(order)]
            between = {key for _, key in order[denoising[0] : denoising[-1]]}
            for place, (name, key) in enumerate(order):
                phase = ENCODE if place < denoising[0] and key not in between else DENOISE
                phase = DECODE if place > denoising[-1] else phase
                of_part = phases.setdefault(name, {})
                of_part[phase] = max(of_part.get(phase, 0), self.work[key])
        return phases


@dataclass(frozen=True)
class Diffusion:
    """The keywords of ``policies.diffusers``, which loads nothing here."""

    pipeline: Any
    schedule: Schedule
    lora: Lora | None
    memory: Memory
    call: dict[str, Any]
    dtype: str | None
    draws: int = 0

    @quiet()
    def measure(self, rows: Rows, *, kind: str | None = None) -> Measured:
        """Its parts. Errors: UserError where a shape is not known, and where the pipeline's call does not run without numbers."""
        pipe, fake = pipeline(self.pipeline, kind=kind, dtype=type_of(self.dtype)), Fake()
        caller = Caller(pipe, {"num_inference_steps": 2, **self._guided, **self.call})
        nets = caller.denoisers
        for part in pipe.components.values():
            if isinstance(part, nn.Module):
                part.eval().requires_grad_(False)
        for net in nets.values():
            if self.lora is None:
                net.requires_grad_(True)
            else:
                add_lora(net, self.lora)
        if self.memory.storage == "float8":
            self._stored(nets)
        if self.memory.gradient_checkpointing:
            fitting.checkpoint(nets)
        if self.memory.slice_vae:
            fitting.slice_vae(pipe, nets)
        if self.memory.tile_vae:
            fitting.tile_vae(pipe, nets)
        calls = Calls(pipe, fake, nets)
        at_once = min(self.memory.rows_at_once, rows.rows)
        together = self._asked(caller, calls, at_once)
        latent = together[0]
        trained = [p for net in nets.values() for p in net.parameters() if p.requires_grad]
        parts = [*self._weights(pipe, nets, calls), *self._rollout(rows, latent), *self._passes(caller, calls, rows, trained, latent)]
        away = "references" in self._offloaded
        return Measured(parts, trained, away, fake)

    @property
    def _guided(self) -> dict[str, Any]:
        return {} if self.schedule.guidance is None else {"guidance_scale": self.schedule.guidance}

    @property
    def _offloaded(self) -> set[str]:
        return {self.memory.offload} if isinstance(self.memory.offload, str) else set(self.memory.offload)

    def _asked(self, caller: Caller, calls: Calls, rows: int, **call: Any) -> Tensor:
        """Latents of a whole call of so many rows."""
        try:
            with torch.no_grad():
                latents = caller(["a"] * rows, [0] * rows, None, ["a"], output_type="latent", return_dict=False, **call)
                if not call:
                    calls.order.append([])
                    caller(["a"] * rows, [0] * rows, None, ["a"], output_type="pt", return_dict=False)
        except UserError:
            raise
        except Exception as error:  # whatever a pipeline, a tokenizer or a scheduler raises where it gets zeros
            kind = type(caller.pipe).__name__
            raise UserError(f"policy.pipeline: the call of {kind} does not run without weights: {one_line(error)}") from error
        return next(leaf for leaf in tree_leaves(tuple(latents)) if isinstance(leaf, Tensor))

    def _stored(self, nets: Mapping[str, nn.Module]) -> None:
        for layer in fitting.stored_layers(nets, "float8").values():
            layer.register_buffer("weight_scale", torch.empty(layer.weight.shape[0], 1, device="meta"), persistent=False)
            layer.weight = nn.Parameter(torch.empty_like(layer.weight, dtype=fitting.FLOAT8), requires_grad=False)
            layer.__dict__["forward"] = lambda x, layer=layer: fitting._upcast_linear(layer, x)

    def _weights(self, pipe: Any, nets: Mapping[str, nn.Module], calls: Calls) -> list[Part]:
        """Each part's, and what it works with. One that is offloaded comes for its own work: while the pipeline denoises, it is there in
        an update too, whose activations are those of the same calls; one that is never called waits on the CPU."""
        parts, phases = [], calls.phases()
        for name, part in pipe.components.items():
            if not isinstance(part, nn.Module):
                continue
            held = [*part.parameters(), *part.buffers()]
            away = name not in nets and ("frozen" in self._offloaded or name in self._offloaded)
            work = phases.get(name, {})
            there = (*work, UPDATE) if DENOISE in work else tuple(work)
            label = f"weights: {name} ({str(next(part.parameters()).dtype).removeprefix('torch.')})"
            lora = [p for p in part.parameters() if p.requires_grad and self.lora is not None]
            rounded = fitting.stored_layers({name: part}, "nf4").values() if name in nets and self.memory.storage == "nf4" else ()
            saved = sum(size_of([layer.weight]) - in_four_bits(layer) for layer in rounded)
            parts.append(Part(label, size_of(held) - size_of(lora) - saved, there if away else (ALWAYS,)))
            if lora:
                parts.append(Part(f"LoRA: {name}", size_of(lora)))
            parts.extend(Part(f"working memory: {name}", size, (phase,)) for phase, size in work.items())
        return parts

    def _rollout(self, rows: Rows, latent: Tensor) -> list[Part]:
        """Of given images, them and their noise; the latents of a rollout wait on the CPU."""
        held = 4 * latent.numel() * (1 + self.draws) if self.draws else 0
        return [Part(f"rollout: latents of {rows.rows} rows", rows.rows * held)] if held else []

    def _passes(self, caller: Caller, calls: Calls, rows: Rows, trained: Sequence[nn.Parameter], latent: Tensor) -> list[Part]:
        """What an update keeps for its backward pass, and works with."""
        micro = min(rows.micro_rows, rows.rows)
        at_once = min(micro, self.memory.rows_at_once)
        calls.inputs.clear()
        guidance = {name: 1.0 for name in GUIDANCE if self.draws and name in caller.accepts and not name.endswith("_2")}
        self._asked(caller, calls, at_once, **guidance)
        passes = dict[str, Pass]()
        for name, (args, kwargs) in calls.inputs.items():
            net: Any = calls.denoisers[name]
            args, kwargs = calls.fake.of((args, kwargs))
            own = type(net).forward
            passes[name] = backward_pass(calls.fake, lambda: _first(own(net, *args, **kwargs)), trained)  # noqa: B023
        largest = max(passes.values(), key=lambda one: one.saved)
        columns = self.draws or int(self._random().sum())
        columns = min(columns, rows.micro_steps or columns)
        count = math.ceil(micro / at_once) * columns
        kernel = 4 * 8 * latent.numel() * micro * columns  # means and errors in float64
        own, shared = largest.saved // rows.together, "" if rows.together == 1 else f", of {rows.together} processes"
        return [
            Part(f"activations kept for the backward pass: {count} passes of {at_once} rows{shared}", count * own + kernel, (UPDATE,)),
            Part("working memory of a backward pass", largest.peak - largest.saved, (UPDATE,)),
        ]

    def _random(self) -> Tensor:
        return (self.schedule.window or all_but_last())(self.schedule.steps, 0, torch.Generator().manual_seed(0))


def _first(output: Any) -> Tensor:
    return next(leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor) and leaf.requires_grad)


def diffusers(  # the keywords of the policy of that name
    pipeline: Any, *, schedule: Schedule = Schedule(), lora: Lora | None = None, start: str | None = None,  # noqa: B008
    memory: Memory = Memory(), call: dict[str, Any] | None = None, conditions: Any = None, dtype: Any = None,  # noqa: B008
    device: str | None = None,
) -> Diffusion:  # fmt: skip
    """What ``policies.diffusers`` is asked for, with nothing loaded."""
    if conditions is not None:
        raise UserError("policy.conditions: what differs by row is not counted; takes a config without them")
    return Diffusion(pipeline, schedule, lora, memory, dict(call or {}), dtype)
