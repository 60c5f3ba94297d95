"""A run rehearsed: a tiny twin of a config goes through every phase on the CPU, before a GPU is rented.

What is real: the config's method, recipe, prompts, kernel, window, call arguments, pipeline class, wrappers, worlds. What is tiny:
weights (random), pictures, batches, LoRA ranks, steps. So what is not rehearsed: memory, speed, half precision, the weights'
own behaviour, rewards that need weights (their interface is).
"""

from __future__ import annotations

import contextlib
import io
import math
import shutil
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mmalign.commands._rehearsal_config import RehearsalConfig, rehearsal_config
from mmalign.commands.export import export
from mmalign.config import build, build_part, check
from mmalign.records import outputs_of
from mmalign.runs import checkpoint
from mmalign.training.rollouts.feedback import scored_by
from mmalign.types import UserError

KEYS = {
    "check": "use", "twin": "policy", "rollout": "policy", "reward": "rewards", "update": "method", "resume": "checkpoint_every",
    "export": "policy",
}  # fmt: skip


class Phase(NamedTuple):
    """One phase of a rehearsal: what happened, in words, further lines, seconds; ``failed`` where it ended the rehearsal."""

    name: str
    what: str
    seconds: float
    notes: tuple[str, ...] = ()
    failed: bool = False


def rehearse(
    config: Mapping[str, Any], *, kind: str | None = None, keep: str | Path | None = None, say: Callable[[Phase], None] = lambda phase: None
) -> list[Phase]:
    """Goes through every phase of a config's run with a tiny twin of its policy; the last phase is the one that failed, if one did.

    Args:
        config: as ``mmalign.config.load`` gives it.
        kind: the pipeline's class, where neither a folder, the hub nor mmalign's table tells it.
        keep: a folder that keeps the rehearsal's runs; by default they are removed.
        say: told of each phase as it ends.

    The phases: ``check`` (the config's mistakes), ``twin``, ``rollout`` (or the first outputs, for given records), ``reward`` (rewards,
    judges and metrics, each asked once), ``update`` (two steps with preflight, evaluations, checkpoints and the report), ``resume``
    (a run stopped after one step and continued has to equal the uninterrupted one bit for bit), ``export`` (written, loaded, compared).
    Errors: UserError where ``keep`` is not empty. A phase that fails says so, and which key of the config it is about.
    """
    folder = Path(keep) if keep is not None else Path(tempfile.mkdtemp(prefix="rehearsal-"))
    if keep is not None and folder.exists() and any(folder.iterdir()):
        raise UserError(f"--keep: {folder} is not empty, takes a new folder")
    phases: list[Phase] = []
    state: dict[str, Any] = {"config": config, "kind": kind, "folder": folder}
    try:
        for name, run in PHASES.items():
            began = time.monotonic()
            try:
                with _quiet():
                    what, *notes = run(state)
                phase = Phase(name, what, time.monotonic() - began, tuple(notes))
            except Exception as error:  # whatever a model, a reward or a recipe raises
                phase = Phase(name, _named(error, name), time.monotonic() - began, failed=True)
            phases.append(phase)
            say(phase)
            if phase.failed:
                break
    finally:
        if keep is None:
            shutil.rmtree(folder, ignore_errors=True)
    return phases


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the lines of the runs inside and the remarks of libraries."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


def _named(error: BaseException, phase: str) -> str:
    """One line that begins with the config's key."""
    line = " ".join(str(error).split())
    if isinstance(error, UserError):
        return line
    return f"{KEYS[phase]}: {type(error).__name__}: {line[:300]}"


# ---- the phases: each gives what happened, and notes


def _check(state: dict[str, Any]) -> list[str]:
    if lines := check(state["config"], trust=True):
        raise UserError("; ".join(lines))
    if not isinstance(state["config"].get("policy"), Mapping):
        raise UserError("policy: missing, a rehearsal takes a config with a policy")
    return ["no mistakes found"]


def _twin(state: dict[str, Any]) -> list[str]:
    rehearsed: RehearsalConfig = rehearsal_config(state["config"], kind=state["kind"])
    rehearsed.node["run"] |= {"name": "rehearsal", "folder": str(state["folder"] / "whole")}
    state.update(made=rehearsed, policy=build_part(rehearsed.node, "policy"))
    count = sum(p.numel() for p in state["policy"].parameters().values())
    first, *others = rehearsed.notes
    return [f"{first}; {count:,} trained parameters", *others]


def _rollout(state: dict[str, Any]) -> list[str]:
    node, policy = state["made"].node, state["policy"]
    prompts: Any = (node.get("evaluation") or {}).get("prompts")
    if "prompts" not in node:  # given records
        records: Any = build_part(node, "records")
        stream = iter(records) if isinstance(records, list) else records.stream(seed=0)
        if policy.kind == "score":  # makes no outputs of its own
            rows = [(record.prompt, output) for record in (next(stream), next(stream)) for output in outputs_of(record)]
            state["prompts"], state["outputs"] = map(list, zip(*rows, strict=True))
            return [f"{len(rows)} outputs of two records to read; a reward model makes none"]
        state["prompts"] = prompts = list(prompts or [next(stream).prompt for _ in range(2)])
        state["outputs"] = policy.generate(prompts, list(range(len(prompts))))
        return [f"{_shape(state['outputs'])} from the pipeline's own sampler; records give {len(prompts)} prompts"]
    rollout = policy.sample(list(prompts)[:1], node["batch"]["group"], torch.Generator().manual_seed(0))
    state.update(prompts=list(rollout.prompts), outputs=rollout.outputs)
    state["latents"] = policy.latents(rollout) if "latents" in policy.gives else None
    steps = int(rollout.mask.sum(1).max())
    if build_part(node, "method").reward_gradient is not None:
        return [f"{_shape(rollout.outputs)}, {rollout.mask.shape[1]} steps, which rewards' gradients go back through"]
    if steps == 0:
        raise UserError("policy.schedule.window: no step of the rollout is random, so there is nothing to train")
    turns = rollout.metrics.get("turns")
    talk = "" if turns is None else f", {turns:.1f} turns on average, with an environment's replies between them"
    return [f"{_shape(rollout.outputs)}, {rollout.mask.shape[1]} steps, {steps} of them random and trained{talk}"]


def _reward(state: dict[str, Any]) -> list[str]:
    node, made, real = state["made"].node, state["made"], []
    for key, home in (("rewards", node), ("judges", node.get("evaluation") or {})):
        for name, reward in (build_part(home, key) or {}).items():
            scores = reward(scored_by("reward", name, reward, state["outputs"], state.get("latents")), state["prompts"])
            for part, values in scores.items() if isinstance(scores, Mapping) else [(name, scores)]:
                values = torch.as_tensor(values)
                if values.shape != (len(state["prompts"]),):
                    raise UserError(
                        f"{key}.{name}: {part} gives {list(values.shape)}, takes one number for each of {len(state['prompts'])}"
                    )
            if not any(f"{path.removeprefix('evaluation.')}.".startswith(f"{key}.{name}.") for path in made.stand_ins):
                real.append(name)
    stand_ins = [f"stand-in for {path}: {what}" for path, what in made.stand_ins.items()]
    return [f"asked for real: {', '.join(real) or 'none'}; stand-ins: {len(stand_ins)}", *stand_ins]


def _update(state: dict[str, Any]) -> list[str]:
    run = build(state["made"].node)
    state["run"] = run
    apart = run.summary.get("preflight_difference")
    replay = "no preflight, as no group says anything" if apart is None else f"scored again {apart:.1g} nats apart"
    if apart is not None and math.isnan(apart):
        replay = "scored again, of rows that nobody's density has drawn"
    if state["policy"].kind == "score":
        replay = "no preflight, as nothing is sampled"
    numbers = [key.removesuffix("_after") for key in run.summary if key.endswith("_after") and not key.endswith("_se_after")]
    moved = _moved(_saved(run.path), build_part(state["made"].node, "policy").sets.tables())
    if not moved:
        raise UserError("method: two updates changed no parameter (the learning rate is 0, or no row has a signal)")
    return [
        f"{run.summary['steps']} steps, {replay}; {moved} tensors moved; evaluated {', '.join(numbers) or 'nothing'}; checkpoint, report"
    ]


def _resume(state: dict[str, Any]) -> list[str]:
    node = {**state["made"].node}
    node["run"] = {**node["run"], "folder": str(state["folder"] / "halves")}
    half = build({**node, "steps": 1})
    written = half.path / "checkpoints" / "step_000001" / "state.json"
    when = written.stat().st_mtime_ns
    run = build(node, resume=True)
    if written.stat().st_mtime_ns != when:
        raise UserError("run.checkpoint_every: the run began anew in place of resuming from its checkpoint")
    tensors = [_saved(state["run"].path), _saved(run.path)]
    for group, table in tensors[0].items():
        for name, value in table.items():
            if not torch.equal(value, tensors[1][group][name]):
                raise UserError(f"run.checkpoint_every: a resumed run differs from an uninterrupted one in {group}: {name}")
    return [
        f"stopped after 1 step and resumed: all {sum(map(len, tensors[0].values()))} tensors equal, bit for bit ({', '.join(tensors[0])})"
    ]


def _export(state: dict[str, Any]) -> list[str]:
    if not _has_model(state["made"].node["policy"]):
        return ["left out: export takes a diffusers pipeline or a language model"]
    made = export(state["run"].path, trust=True)
    return [f"written, loaded again and equal: {', '.join(made.forms)} (parameters: {made.parameters})"]


PHASES: dict[str, Callable[[dict[str, Any]], list[str]]] = {
    "check": _check, "twin": _twin, "rollout": _rollout, "reward": _reward, "update": _update, "resume": _resume, "export": _export,
}  # fmt: skip


def _has_model(node: Any) -> bool:
    return isinstance(node, Mapping) and ("pipeline" in node or "model" in node or _has_model(node.get("of")))


def _saved(run: Path) -> dict[str, dict[str, Tensor]]:
    newest, _ = checkpoint.newest(run / "checkpoints")
    if newest is None:
        raise UserError("checkpoint_every: the run left no checkpoint")
    return checkpoint.load(newest)[0]


def _moved(tensors: Mapping[str, Mapping[str, Tensor]], before: Mapping[str, Mapping[str, Tensor]]) -> int:
    return sum(not torch.equal(value, before["trained"][name]) for name, value in tensors["trained"].items())


def _shape(outputs: Any) -> str:
    return f"outputs {list(outputs.shape)}" if isinstance(outputs, Tensor) else f"{len(outputs)} outputs"
