"""What a config's run takes of a GPU's memory, predicted by counting: nothing is loaded, and no GPU is needed."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

import torch

from mmalign.arguments.signatures import nearest
from mmalign.config import build_part
from mmalign.policies.inspecting.footprint import ALWAYS, DECODE, DENOISE, ENCODE, SAMPLE, UPDATE, Measured, Part, Rows
from mmalign.policies.inspecting.ledger import size_of
from mmalign.training.optimizers import adamw
from mmalign.training.references import references
from mmalign.training.settings import Batch, Devices, RecordBatch
from mmalign.types import UserError

GIB = 2**30
CARDS = {
    "t4": 14.6, "4090": 23.5, "a10": 22.5, "l4": 22.0, "5090": 31.4, "a100-40": 39.4, "l40s": 44.4, "a6000": 47.5, "a100": 79.3,
    "h100": 79.2, "h200": 139.8, "b200": 178.0,
}  # fmt: skip
"""GiB that a card shows."""
CONTEXT, SLACK = 0.8, 0.05
"""GiB that the driver and its kernels take, and the part of the rest that an allocator loses between blocks."""
WHOLE = ("entropy", "collision", "kls", "reverse_kls")  # needs that are of a whole distribution of tokens
PEER = {"diffusers": "policies.inspecting.footprint.diffusers", "transformers": "policies.inspecting.footprint_language.transformers"}


class Footprint(NamedTuple):
    """parts: the largest first. peaks: phase -> bytes. card: its name, room: bytes that a run may have there; None where none was given."""

    parts: list[Part]
    peaks: dict[str, int]
    card: str | None
    room: int | None
    changes: list[str]

    @property
    def peak(self) -> tuple[str, int]:
        """The phase that takes the most, and its bytes."""
        return max(self.peaks.items(), key=lambda item: item[1])

    @property
    def fits(self) -> bool:
        """Whether all phases have room."""
        return self.room is None or self.peak[1] <= self.room

    @property
    def lines(self) -> list[str]:
        """A table, a line for each phase, and the verdict."""
        lines = [f"{part.size / GIB:8.2f} GiB  {part.name}{_during(part)}" for part in self.parts if part.size >= GIB / 200]
        lines += [f"{size / GIB:8.2f} GiB  at most in {phase}" for phase, size in self.peaks.items()]
        phase, size = self.peak
        if self.room is None:
            return [*lines, f"the peak is {size / GIB:.1f} GiB, in {phase}, beside some {CONTEXT} GiB of the driver"]
        verdict = "fits" if self.fits else f"does not fit, by {(size - self.room) / GIB:.1f} GiB"
        lines.append(f"{self.card}: {verdict}: {size / GIB:.1f} GiB in {phase}, and {self.room / GIB:.1f} GiB are there for it")
        return lines if self.fits else [*lines, f"to change: {'; '.join(self.changes)}"]


def footprint(config: Mapping[str, Any], *, card: str | None = None, kind: str | None = None) -> Footprint:
    """The memory of a config's run, by part, in each process.

    card: a name of ``CARDS``, or a size, ``24GB``. kind: the model's class, where nothing else tells it. Weights, gradients, states of the
    optimiser and sets of parameters are counted as they are kept; what a pass holds for its backward pass, and works with, is counted
    tensor by tensor of the model's own code. Not counted: rewards and judges, other models that are references, images and videos of
    prompts, what ``torch.compile`` saves, and shards, of which each process has its part (``devices.place``). Where several processes
    compute each row together, a language model runs in parts as they do (``devices.tensor``); of what a denoiser keeps for its backward
    pass each has a part (``devices.sequence``), and what it works with is counted whole.

    Errors: UserError by the config's key, and for an unknown card.
    """
    room = None if card is None else _room(card)
    node = config.get("policy")
    node = node if isinstance(node, Mapping) else {}
    inner, draws = (node["of"], int(node.get("draws", 1))) if node.get("use") == "forward" else (node, 0)
    if not isinstance(inner, Mapping) or inner.get("use") not in PEER:
        got = inner.get("use") if isinstance(inner, Mapping) else inner
        raise UserError(f"policy.use: got {got!r}; --memory counts {' and '.join(PEER)}, and forward around one")
    shape = build_part({"policy": {**inner, "use": PEER[inner["use"]]}}, "policy")
    shape = replace(shape, draws=draws) if draws else shape
    method = build_part(config, "method")
    rows = replace(_rows(config, method), together=_together(config, inner["use"]))
    measured = shape.measure(rows, kind=kind)
    parts = [*measured.parts, *_trained(config, measured, rows)]
    phases = (SAMPLE, UPDATE) if inner["use"] == "transformers" else (ENCODE, DENOISE, DECODE, UPDATE)
    peaks = {phase: sum(part.size for part in parts if {phase, ALWAYS} & {*part.phases}) for phase in phases}
    footprint = Footprint(sorted(parts, key=lambda part: -part.size), peaks, card, room, [])
    return footprint._replace(changes=_changes(config, inner, footprint))


def _during(part: Part) -> str:
    """When a part is there, where that is not always."""
    if ALWAYS in part.phases:
        return ""
    return f" (in {' and '.join(part.phases)})" if part.phases else " (waits on the CPU)"


def _room(card: str) -> int:
    size = re.fullmatch(r"(\d+(?:\.\d+)?)\s*(?:gi?b)?", card.lower()) if card.lower() not in CARDS else None
    if size is None and card.lower() not in CARDS:
        raise UserError(f"--card: got {card!r}, takes {', '.join(CARDS)}, or a size such as 24GB{nearest(card.lower(), CARDS)}")
    gib = float(size[1]) * 1e9 / GIB if size is not None else CARDS[card.lower()]
    return int((gib - CONTEXT) * (1 - SLACK) * GIB)


def _rows(config: Mapping[str, Any], method: Any) -> Rows:
    given = config.get("batch") or {}
    names = references(method, method.needs)
    numbers = frozenset(need for need in method.needs if need.kind in WHOLE)
    if "records" in config and "prompts" not in config:
        records = RecordBatch(**given)
        return Rows(2 * records.records, 2, records.micro_rows, None, names, numbers)
    batch = Batch(**given)
    alone = (config.get("policy") or {}).get("use") == "diffusers" and method.unit == "cell"  # as ``training.updates.units.steps_at_once``
    micro_steps = batch.micro_steps or (1 if alone else None)
    return Rows(batch.prompts * batch.group, batch.group, batch.micro_rows, micro_steps, names, numbers)


def _together(config: Mapping[str, Any], policy: str) -> int:
    """How many processes compute each row. Errors: UserError for a key that this kind of policy does not have."""
    key, count = Devices(**(config.get("devices") or {})).together
    own = {"diffusers": "sequence", "transformers": "tensor"}[policy]
    if count > 1 and key != own:
        raise UserError(f"devices.{key}: got {count}, and policy.use is {policy}; takes 1, or devices.{own}")
    return count


def _trained(config: Mapping[str, Any], measured: Measured, rows: Rows) -> list[Part]:
    """What belongs to the trained parameters: gradients, an optimiser's states, sets of parameters."""
    own = size_of(measured.trained)
    optimizer = build_part(config, "optimizer") or adamw()
    name = str((config.get("optimizer") or {}).get("use", "adamw"))
    mean = (config.get("optimizer") or {}).get("beta1") is not None
    parts = [Part("gradients", own, (UPDATE,)), Part(f"states of {name}", states(optimizer, name, measured, mean=mean))]
    if optimizer.ema is not None:
        parts.append(Part("EMA", 0 if measured.copies_away else sum(4 * p.numel() for p in measured.trained)))
    low_rank = own == sum(part.size for part in measured.parts if part.name.startswith("LoRA"))
    made = {name for name in (*rows.references, *(config.get("references") or {})) if name != "ref"}
    made |= {"best"} if ((config.get("evaluation") or {}).get("stop")) else set()
    made |= {"ref"} if not low_rank or "ref" in (config.get("references") or {}) else set()
    return parts + [Part(f"set of parameters: {name}", 0 if measured.copies_away else own) for name in sorted(made)]


def states(optimizer: Any, name: str, measured: Measured, *, mean: bool = False) -> int:
    """Bytes of an optimiser's states after its first step. mean: whether Adafactor keeps one of its updates.

    Those whose step looks at numbers are counted as their docstrings say: two means in 8 bits with a scale for each block of 256, where a
    parameter has whole ones; a row and a column of squares.
    """
    trained = measured.trained
    if name == "adamw_8bit":
        sizes = [(p.numel(), p.element_size()) for p in trained]
        return sum(2 * (n + n // 64) if n >= 4096 and n % 256 == 0 else 2 * n * wide for n, wide in sizes)
    if name == "adafactor":
        squares = sum(p.numel() // p.shape[-1] + p.numel() // p.shape[-2] if p.ndim > 1 else p.numel() for p in trained)
        return 4 * (squares + (sum(p.numel() for p in trained) if mean else 0))
    with measured.fake:
        made = optimizer.make(measured.trained)
        for p in measured.trained:
            p.grad = torch.zeros_like(p)
        made.step()
        for p in measured.trained:
            p.grad = None
    return size_of(value for state in made.state.values() for value in state.values() if isinstance(value, torch.Tensor))


def _changes(config: Mapping[str, Any], policy: Mapping[str, Any], footprint: Footprint) -> list[str]:
    """What would make the peak smaller, what costs least first."""
    memory, batch, phase = policy.get("memory") or {}, config.get("batch") or {}, footprint.peak[0]
    largest = next(part.name for part in footprint.parts if {phase, ALWAYS} & {*part.phases})
    changes = []
    if phase == UPDATE and not memory.get("gradient_checkpointing"):
        changes.append("policy.memory.gradient_checkpointing: true")
    if phase == UPDATE and largest.startswith("activations"):
        changes.append(f"batch.micro_rows below {batch.get('micro_rows', Batch().micro_rows)}")
        changes += ["batch.micro_steps: 1"] if batch.get("micro_steps", 1) > 1 else []
    if phase != UPDATE and not largest.startswith("weights"):
        changes.append(f"policy.memory.rows_at_once below {memory.get('rows_at_once', 64)}")
    if phase == DECODE:
        changes += [f"policy.memory.{key}: true" for key in ("slice_vae", "tile_vae") if not memory.get(key)]
    offload = memory.get("offload") or []
    if policy["use"] == "diffusers" and "frozen" not in ([offload] if isinstance(offload, str) else offload):
        changes.append("policy.memory.offload: frozen")
    if not policy.get("lora") and not policy.get("train"):
        changes += ["policy.lora", "optimizer: {use: adamw_8bit}"]
    elif policy["use"] == "diffusers" and not memory.get("storage"):
        changes.append("policy.memory.storage: float8")
    return changes or ["a smaller model, or a larger card"]
