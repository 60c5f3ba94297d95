"""What a pipeline is to mmalign, found by trying: how it is guided, what is trained, whether replay is exact, what a step costs.

A few steps are sampled, replayed, differentiated and probed, with LoRA where its default targets are found, so that no second copy
of the weights is needed. Whatever fails is a row that says why.
"""

from __future__ import annotations

import inspect
import time
from collections import Counter
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from mmalign.policies.adapters import ATTENTION
from mmalign.policies.diffusers import DiffusersPolicy, diffusers
from mmalign.policies.inspecting.starter_config import defaults_of, starting_yaml
from mmalign.policies.pipelines.calls import scheduler_paths
from mmalign.policies.pipelines.calls.calling import GUIDANCE, one_line, quiet
from mmalign.policies.pipelines.calls.interception import Finished
from mmalign.policies.pipelines.calls.scheduler import Moment, Player
from mmalign.policies.pipelines.loading.memory import DENOISERS
from mmalign.policies.settings import Lora, Schedule
from mmalign.types import Level, Rollout, UserError

__all__: list[str] = []  # no policy

PROMPTS = ["three red foxes", "two blue birds"]  # a number in each: the digits world takes nothing else
CLASSES = ["3", "2"]
STEPS = 4


class InspectionRow(NamedTuple):
    """One finding in words; ``failed`` where it could not be found, and ``value`` says why."""

    name: str
    value: str
    failed: bool = False


@dataclass(frozen=True)
class Inspection:
    """All that was found. ``start``: the YAML of a run to start from."""

    pipeline: str
    rows: tuple[InspectionRow, ...]
    start: str

    def __getitem__(self, name: str) -> str:
        return next(row.value for row in self.rows if row.name == name)


@quiet()
def inspection(
    pipe: Any,
    *,
    call: Mapping[str, Any] | None = None,
    trial_arguments: Mapping[str, Any] | None = None,
    node: Any = "",
    device: str | None = None,
) -> Inspection:
    """Looks at a pipeline; it gets a LoRA on the way, and is of no other use afterwards.

    call: arguments of its call. trial_arguments: further ones for the trial alone, such as an image.
    node: how a config names it. device: where to try; a GPU if there is one.
    Errors: UserError for a pipeline that has no denoiser, is none of mmalign's (``unfit.UNFIT``) or lacks an argument of ``call``.
    """
    arguments = {**(trial_arguments or {}), **(call or {})}
    steps = arguments.pop("num_inference_steps", defaults_of(pipe).get("num_inference_steps"))
    rows = [InspectionRow("pipeline", type(pipe).__name__)]
    adapted = bool(lora_targets(pipe)[0])
    policy = diffusers(
        pipe,
        schedule=Schedule(steps=min(STEPS, int(steps or STEPS))),
        call=arguments,
        device=device,
        lora=Lora(rank=4, targets=None if adapted else "all-linear"),
    )

    def tell(name: str, find: Callable[[], str]) -> str | None:
        try:
            rows.append(InspectionRow(name, text := find()))
            return text
        except Exception as error:  # whatever a pipeline raises is a row
            rows.append(InspectionRow(name, one_line(error), failed=True))
            return None

    tell("denoisers", lambda: ", ".join(f"{n} ({type(m).__name__}, {_count(_own_size(m))})" for n, m in policy.denoisers.items()))
    tell("frozen", lambda: _frozen(policy))
    tell("LoRA targets", lambda: _targets_in_words(policy))
    tell("prediction", lambda: scheduler_paths.parametrisation(pipe.scheduler))
    tell("scheduler", lambda: _scheduler_in_words(pipe.scheduler))
    path = tell("path", lambda: _path(policy.schedule()[1]))
    tell("guidance", lambda: _guidance(policy))
    tell("default steps", lambda: str(steps or "the call takes none"))
    rollouts: list[Rollout] = []
    if tell("latent", lambda: _latent(policy, rollouts)) is not None:
        rollout = rollouts[0]
        tell("clip 1e-4 per scalar", lambda: f"{1e-4 * rollout.held.event_size:.3g} nats for the whole latent")
        tell("replay", lambda: _replay(policy, rollout))
        tell("vector timesteps", lambda: _probe(policy, rollout))
        tell("gradient", lambda: _gradient(policy, rollout))
        tell("seconds per step", lambda: _seconds(policy, rollout))
        tell("memory per sample", lambda: _memory(policy, rollout))
    return Inspection(
        type(pipe).__name__,
        tuple(rows),
        starting_yaml(pipe, node=node, call=call or {}, trial_arguments=trial_arguments or {}, path=path, adapted=adapted),
    )


# ---- what it is


def _frozen(policy: DiffusersPolicy) -> str:
    frozen = [n for n, m in policy.pipe.components.items() if isinstance(m, nn.Module) and n not in policy.denoisers]
    return ", ".join(f"{name} ({_count(_own_size(policy.pipe.components[name]))})" for name in frozen) or "nothing"


def _own_size(module: nn.Module) -> int:
    return sum(p.numel() for name, p in module.named_parameters() if "lora_" not in name)


def lora_targets(pipe: Any) -> tuple[Counter[str], Counter[str]]:
    """How linear layers of the denoisers end, with counts: those that are LoRA targets by default, and all others."""
    defaults, others = Counter[str](), Counter[str]()
    for part in (pipe.components.get(name) for name in DENOISERS):
        for name, layer in part.named_modules() if isinstance(part, nn.Module) else ():
            if isinstance(layer, nn.Linear):
                end = _ending(name.replace(".base_layer", "")) if ".lora_" not in name else None
                if end is not None:
                    (defaults if end in ATTENTION else others)[end] += 1
    return defaults, others


def _ending(name: str) -> str:
    """``to_q`` of ``blocks.0.attn.to_q``; ``to_out.0`` where the last part is a number."""
    parts = name.split(".")
    return ".".join(parts[-2:] if parts[-1].isdigit() else parts[-1:])


def _targets_in_words(policy: DiffusersPolicy) -> str:
    defaults, others = lora_targets(policy.pipe)
    rest = ", ".join(f"{end} {count}" for end, count in others.most_common(8))
    if not defaults:
        raise UserError(f"none of the default ones; take all-linear, or of these: {rest}")
    return ", ".join(f"{end} {count}" for end, count in defaults.most_common()) + (f"; others: {rest}" if rest else "")


def _scheduler_in_words(own: Any) -> str:
    name = type(own).__name__
    sibling = scheduler_paths.FIRST_ORDER.get(name)
    return f"{name}, replaced by {sibling} while training" if sibling else f"{name}, kept"


def _path(levels: Level) -> str:
    """The kind of Gaussian path, from its levels."""
    signal, noise = levels.signal.double(), levels.noise.double()
    if bool((signal + noise - 1).abs().max() < 1e-4):
        return "flow (signal + noise = 1)"
    if bool((signal**2 + noise**2 - 1).abs().max() < 1e-4):
        return "variance preserving (signal² + noise² = 1)"
    return f"variance exploding (signal 1, noise up to {float(noise.max()):.3g})"


# ---- how it is guided


def _guidance(policy: DiffusersPolicy) -> str:
    """By counting the denoisers' calls, and rows in each, of one step of one sample."""
    names = [name for name in GUIDANCE if name in policy.caller.accepts and name != "guidance_scale_2"]  # a second expert has no first step
    if not names:
        return "none: the call takes no guidance"
    off = _denoiser_calls(policy, dict.fromkeys(names, 1.0))
    lines = []
    for name in names:
        more = {"negative_prompt": " "} if name == "true_cfg_scale" and "negative_prompt" in policy.caller.accepts else {}
        on = _denoiser_calls(policy, {**dict.fromkeys(names, 1.0), name: 4.0, **more})
        lines.append(f"{name}: {_compared(off, on)}")
    return "; ".join(lines)


def _denoiser_calls(policy: DiffusersPolicy, arguments: Mapping[str, Any]) -> list[tuple[int, dict[str, Any]]]:
    """(rows, arguments) of the calls of the denoisers until the scheduler is asked for the first time."""
    calls: list[tuple[int, dict[str, Any]]] = []

    def hook(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        inputs = inspect.signature(module.forward).bind_partial(*args, **kwargs).arguments
        first = next(iter(inputs.values()))
        rows = len(first) if isinstance(first, (list, tuple, Tensor)) else 1
        calls.append((rows, {key: value.clone() for key, value in inputs.items() if isinstance(value, Tensor)}))

    def answer(moment: Moment) -> Tensor:
        raise Finished

    with ExitStack() as hooks, torch.no_grad():
        for module in policy.denoisers.values():
            hooks.enter_context(module.register_forward_pre_hook(hook, with_kwargs=True))
        first = _prompts(policy)[:1]
        policy.caller.until_finished(first, [0], Player(answer), first, **arguments)
    return calls


def _compared(off: list[tuple[int, dict[str, Any]]], on: list[tuple[int, dict[str, Any]]]) -> str:
    if len(on) > len(off):
        return f"{len(on)} calls a step" if len(on) != 2 else "two calls a step"
    if on[0][0] > off[0][0]:
        return "one doubled batch" if on[0][0] == 2 * off[0][0] else f"one batch of {on[0][0]} rows for {off[0][0]}"
    before, after = off[0][1], on[0][1]
    differ = [
        key for key in after if key not in before or before[key].shape != after[key].shape or not torch.equal(before[key], after[key])
    ]
    return f"embedded ({', '.join(differ)})" if differ else "none (it changes nothing)"


# ---- how it is trained


def _prompts(policy: DiffusersPolicy) -> list[str]:
    """Two that its call takes: words, or numbers of classes."""
    return CLASSES if policy.caller.example else PROMPTS


def _latent(policy: DiffusersPolicy, rollouts: list[Rollout]) -> str:
    """Samples two rows, or one after the other where the pipeline takes one at a time."""
    try:
        rollouts.append(policy.sample(_prompts(policy), 1, torch.Generator().manual_seed(0)))
    except Exception:  # some pipelines take one prompt or one image at a time
        policy.rows_at_once = 1
        rollouts.append(policy.sample(_prompts(policy), 1, torch.Generator().manual_seed(0)))
    x = rollouts[0].held.x[0, 0]
    alone = "" if policy.rows_at_once > 1 else ", one sample in a call (rows_at_once: 1)"
    return f"{' x '.join(map(str, x.shape))}, event_size {x.numel()}{alone}"


@torch.no_grad()
def _replay(policy: DiffusersPolicy, rollout: Rollout) -> str:
    steps = policy.steps(rollout, torch.arange(len(rollout.prompts)))
    worst = float((steps.log_probs - steps.old).abs().max())  # type: ignore[operator]
    return "exact (difference 0.0)" if worst == 0 else f"not exact: log-probabilities differ by {worst:.2g} nats"


def _probe(policy: DiffusersPolicy, rollout: Rollout) -> str:
    """A vector of two times in one call, against one after the other."""
    times, levels = policy.schedule()
    columns = torch.tensor([0, min(2, len(times) - 1)])
    x = torch.stack([rollout.held.x[column][row] for row, column in enumerate(columns.tolist())]).to(policy.pipe._execution_device)
    level = Level(levels.signal[columns], levels.noise[columns])
    with torch.no_grad():
        prompts, one = _prompts(policy), (slice(0, 1), slice(1, 2))
        together = policy.probe(prompts, x, times[columns], level).clean
        alone = [policy.probe(prompts[at], x[at], times[columns][at], Level(*(value[at] for value in level))).clean for at in one]
    worst = max(float((a[0] - b).abs().max() / (1 + a.abs().max())) for a, b in zip(alone, together, strict=True))
    return f"work (difference to single ones {worst:.1g})" if worst < 1e-3 else f"do not work: they differ from single ones by {worst:.2g}"


def _one_step(policy: DiffusersPolicy, rollout: Rollout) -> Tensor:
    """The log-probability of the first trained step of one sample."""
    column = rollout.held.columns[:1]
    return policy.steps(rollout, torch.arange(1), columns=column).log_probs.sum()


def _gradient(policy: DiffusersPolicy, rollout: Rollout) -> str:
    _one_step(policy, rollout).backward()
    live = {name: p.grad for name, p in policy.parameters().items() if "lora_A" not in name}  # B is zero at first, so A has none
    norms = [float(grad.norm()) for grad in live.values() if grad is not None]
    for p in policy.parameters().values():
        p.grad = None
    reached = sum(norm > 0 for norm in norms)
    if not reached:
        raise UserError("reaches nothing that is trained")
    finite = "" if all(norm < float("inf") for norm in norms) else ", some of it not finite"
    return f"reaches {reached} of {len(live)} {'LoRA layers' if policy.sets.lora else 'parameters'}{finite}"


def _seconds(policy: DiffusersPolicy, rollout: Rollout) -> str:
    def timed(act: Callable[[], Any]) -> float:
        _wait()
        began = time.perf_counter()
        act()
        _wait()
        return time.perf_counter() - began

    with torch.no_grad():
        forward = min(timed(lambda: _one_step(policy, rollout)) for _ in range(2))
    both = min(timed(lambda: _one_step(policy, rollout).backward()) for _ in range(2))
    device = next(iter(policy.parameters().values())).device
    name = torch.cuda.get_device_name(device) if device.type == "cuda" else str(device)
    return f"{forward:.3g} for one sample, {both:.3g} with its gradient ({name}, guided as in the call)"


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _memory(policy: DiffusersPolicy, rollout: Rollout) -> str:
    device = next(iter(policy.parameters().values())).device
    for p in policy.parameters().values():
        p.grad = None
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        _one_step(policy, rollout).backward()
        peak = torch.cuda.max_memory_allocated(device)
        return f"{_bytes(peak - before)} at the peak of one step, over {_bytes(before)} that lie there"
    sizes: dict[int, int] = {}
    own = {p.untyped_storage().data_ptr() for module in policy.denoisers.values() for p in module.parameters()}

    def pack(value: Tensor) -> Tensor:
        sizes[value.untyped_storage().data_ptr()] = value.untyped_storage().nbytes()
        return value

    with saved_tensors_hooks(pack, lambda value: value):
        kept_alive = _one_step(policy, rollout)  # as long as the graph lives, no address is used twice
    total = sum(size for place, size in sizes.items() if place not in own)
    del kept_alive
    return f"about {_bytes(total)} kept for the backward pass of one step (estimated on the CPU, without gradient checkpointing)"


# ---- words


def _count(number: float) -> str:
    return next((f"{number / size:.3g} {unit}" for size, unit in ((1e9, "B"), (1e6, "M"), (1e3, "k")) if number >= size), str(int(number)))


def _bytes(number: float) -> str:
    return next(
        (f"{number / 1024**power:.3g} {unit}iB" for power, unit in ((3, "G"), (2, "M")) if number >= 1024**power),
        f"{number / 1024:.3g} KiB",
    )
