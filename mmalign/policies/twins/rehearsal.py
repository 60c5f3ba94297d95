"""Policies made tiny for a rehearsal: a function of a policy's own name takes its config's node and gives a small one.

By convention, not by registry: ``policies.diffusers`` is made tiny by ``diffusers`` here, and a policy outside of mmalign by the
function ``rehearsal`` in its own module. A policy without such a function (a wrapper, such as ``forward``) stays as it is, and what
it wraps is made tiny.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from typing import Any, NamedTuple

from mmalign.arguments.ranges import Seed
from mmalign.policies.pipelines.calls.calling import MEDIA, quiet
from mmalign.policies.pipelines.loading.model_index import read_index
from mmalign.policies.twins import pipeline_facts, pipelines, texts, visions
from mmalign.types import UserError

STEPS, RANK, ROWS = 6, 4, 4  # at most
SIDES, FRAMES = ("height", "width"), ("num_frames", "video_length")


class TwinPolicy(NamedTuple):
    """The node of a policy's twin; the keywords of its calls while evaluating; remarks for the user; and what its outputs look like.

    size: height and width that pictures are scaled to. shape: of one output, None where it is not known before it is made.
    """

    node: dict[str, Any]
    remarks: list[str]
    size: tuple[int, int] | None = None
    shape: tuple[int, ...] | None = None
    call: Mapping[str, Any] = {}


@quiet()
def diffusers(node: Mapping[str, Any], *, kind: str | None = None) -> TwinPolicy:
    """The node of ``policies.diffusers`` with a twin in place of its pipeline; a pipeline of mmalign's own worlds is kept.

    kind: the pipeline's class, where nothing else tells it. Errors: UserError by the config's key, for an unknown class, an argument
    that its call does not take, LoRA targets that match nothing.
    """
    memory, schedule = dict(node.get("memory") or {}), dict(node.get("schedule") or {})
    slow = {"storage", "compile"}  # what a CPU has none of, or takes long to do
    small = {**node, "memory": {key: value for key, value in memory.items() if key not in slow}, "device": "cpu"}
    small.pop("dtype", None)
    if isinstance(node["pipeline"], Mapping):
        return TwinPolicy(small, [f"the real pipeline: {node['pipeline'].get('use')}"])
    small["memory"] |= {"rows_at_once": min(memory.get("rows_at_once", 64), ROWS)}
    index = read_index(node["pipeline"], kind=kind)
    small["pipeline"] = {
        "use": "policies.twins.rehearsal.twin",
        "kind": index.kind,
        "without": list(index.without),
        "scheduler": index.scheduler,
    }
    pipe = twin(index.kind, list(index.without), index.scheduler)
    scheduler = f"{type(pipe.scheduler).__name__}{'' if index.scheduler else ', the usual one of its class'}"
    remarks = [f"a twin of {index.kind} (known from {index.source}), scheduler {scheduler}"]
    accepts = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
    call = {**(node.get("call") or {}), **({"guidance_scale": 0} if schedule.get("guidance") is not None else {})}
    for name in call:
        if name not in accepts:
            raise UserError(f"policy.call.{name}: {index.kind} takes no such argument; it takes {', '.join(list(accepts)[1:])}")
    small["call"] = _call(pipe, node.get("call") or {})
    for name in SIDES:
        if (real := call.get(name, 0)) % 8:
            remarks.append(f"policy.call.{name}: {real} is no multiple of 8, and is rehearsed as {small['call'].get(name)}")
    if "size" not in (schedule.get("window") or {}):  # a window of so many steps lies in a part of all of them
        small["schedule"] = {**schedule, "steps": min(schedule.get("steps", 10), STEPS)}
    if node.get("dtype") not in (None, "float32"):
        remarks.append(f"float32 in place of {node['dtype']}")
    if node.get("lora") is not None:
        small["lora"], lines = _lora(pipe, dict(node["lora"]))
        remarks.extend(lines)
    size = (small["call"].get("height", 32), small["call"].get("width", 32))
    frames = next((small["call"][key] for key in ("num_frames", "video_length") if key in small["call"]), None)
    if isinstance(small.get("conditions"), Mapping) and "size" in small["conditions"]:
        small["conditions"] = {**small["conditions"], "size": list(size)}
    return TwinPolicy(small, remarks, size, (3, *size) if frames is None else (frames, 3, *size), small["call"])


def transformers(node: Mapping[str, Any], *, kind: str | None = None) -> TwinPolicy:
    """The node of ``policies.transformers``, as ``twins.texts.small`` has it."""
    return TwinPolicy(*texts.small(node, kind=kind))


def image_tokens(node: Mapping[str, Any], *, kind: str | None = None) -> TwinPolicy:
    """The node of ``policies.image_tokens`` around a twin, which makes images of one size. kind: the class of its model."""
    if isinstance(node["of"].get("model"), Mapping):
        return TwinPolicy({**node, "of": transformers(node["of"], kind=kind).node}, [f"the real model: {node['of']['model'].get('use')}"])
    inner = transformers(node["of"], kind=kind)
    small = {**node, "of": inner.node, **({} if node.get("size") is None else {"size": [visions.SIDE, visions.SIDE]})}
    return TwinPolicy(small, inner.remarks, (visions.SIDE, visions.SIDE), (3, visions.SIDE, visions.SIDE))


def twin(kind: str, without: list[str], scheduler: dict[str, Any] | None, other: Seed = 0) -> Any:
    """The twin that a rehearsal's config names. without: parts that the model does not have. scheduler: its config, class included.
    other: another number is another denoiser in the same latents."""
    import diffusers as library

    real = None
    if scheduler is not None:
        home = getattr(library, name := str(scheduler.get("_class_name")), None)
        if home is None:
            raise UserError(f"policy.pipeline: its scheduler is a {name}, which diffusers {library.__version__} does not have")
        real = home.from_config(scheduler)
    pipe = pipelines.twin(kind, scheduler=real, other=other)
    for name in without:
        if name in pipe.components:
            pipe.register_modules(**{name: None})
        elif name in pipe.config:
            pipe.register_to_config(**{name: None})
    return pipe


def _call(pipe: Any, real: Mapping[str, Any]) -> dict[str, Any]:
    """The call's arguments with small sizes; a size that does not divide as the real one should stays one that does not."""
    own = pipelines.call_arguments(pipe)
    special = pipeline_facts.calls(type(pipe).__name__)
    small = dict(real)
    for name, value in own.items():
        if name in SIDES:
            small[name] = value + (real.get(name, 0) % 8 != 0)  # every VAE here halves a side three times or more, a twin's once
        elif name in FRAMES:
            small[name] = value + (real.get(name, value) - value) % 4
        elif name not in MEDIA and (name in special or name.startswith("max_")):
            small[name] = value
    if "max_area" in small:
        small["max_area"] = small.get("height", 32) * small.get("width", 32)
    return small


def _lora(pipe: Any, lora: dict[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """A smaller rank with the same scale, and a line for each target that no layer's name ends in."""
    from torch import nn

    rank = lora.get("rank", 32)
    small = {**lora, "rank": min(rank, RANK)}
    if lora.get("alpha") is not None:
        small["alpha"] = lora["alpha"] * small["rank"] / rank
    parts = pipe.components.items()
    modules = [part for name, part in parts if name.startswith(("transformer", "unet", "prior", "decoder")) and isinstance(part, nn.Module)]
    names = [name for module in modules for name, layer in module.named_modules() if isinstance(layer, nn.Linear)]
    targets = lora.get("targets")
    if targets is None or targets == "all-linear":
        return small, []
    endings = [targets] if isinstance(targets, str) else targets
    missing = [target for target in endings if not any(name == target or name.endswith("." + target) for name in names)]
    if len(missing) == len(endings):
        ends = sorted({[part for part in name.split(".") if not part.isdigit()][-1] for name in names})
        raise UserError(f"policy.lora.targets: got {endings}, which matches no linear layer of the denoiser; it has {', '.join(ends[:12])}")
    return small, [f"policy.lora.targets: {target} matches no layer of the denoiser" for target in missing]
