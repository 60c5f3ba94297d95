"""Every pipeline class of the installed diffusers as a policy: a tiny twin, a rollout, its replay, a gradient, a probe, LoRA.

python scripts/conformance.py                  # all classes, writes CONFORMANCE.md and conformance.json in mmalign/policies/pipelines
python scripts/conformance.py "Flux*"          # some of them; what the files hold of the others stays
python scripts/conformance.py "Flux*" --show   # some, to the screen, with tracebacks; writes nothing
"""

from __future__ import annotations

import argparse
import fnmatch
import inspect
import json
import logging
import multiprocessing
import multiprocessing.connection
import os
import resource
import signal
import time
import traceback
import warnings
from collections.abc import Iterator
from multiprocessing.connection import Connection
from multiprocessing.context import ForkProcess
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor

from mmalign.policies.settings import Lora, Memory, Schedule
from mmalign.types import Level, Prediction

os.environ.update(HF_HUB_OFFLINE="1", TOKENIZERS_PARALLELISM="false")  # twins download nothing
HERE = Path(__file__).resolve().parents[1] / "mmalign" / "policies"
NUMBERS = HERE / "pipelines" / "conformance.json"
LABELS = {"probe": "times", "own": "own", "lora": "LoRA"}
LIMIT = 120  # seconds of processor time for one class
WORDS = ["a red fox", "two blue birds"]


def classes() -> list[str]:
    """Names of all pipeline classes that can be made here."""
    import diffusers

    names = [name for name in dir(diffusers) if name.endswith("Pipeline") or "Pipeline" in name]
    pipelines = []
    for name in names:
        kind = getattr(diffusers, name, None)
        if inspect.isclass(kind) and issubclass(kind, diffusers.DiffusionPipeline) and "__call__" in vars(kind):
            pipelines.append(name)
    return pipelines


def prompts(name: str) -> list[str]:
    """Two prompts that a class takes."""
    from mmalign.policies.twins import pipeline_facts

    return list(pipeline_facts.PROMPTS.get(name, WORDS))


def check(name: str) -> dict[str, Any]:
    """What one class can do. Keys: rows (in one call), replay, gradient, probe, lora (a number or a reason), seconds."""
    from mmalign.policies.diffusers import diffusers as make
    from mmalign.policies.pipelines.loading import unfit
    from mmalign.policies.twins import pipelines

    if unfit.reason(name):
        return {"name": name, "unfit": unfit.reason(name)}
    began = time.process_time()
    row: dict[str, Any] = {"name": name}
    pipe = pipelines.twin(name)
    call = pipelines.call_arguments(pipe)
    policy, words = make(pipe, call=call, device="cpu", schedule=Schedule(steps=4)), prompts(name)
    try:
        rollout = policy.sample(words, 1, torch.Generator().manual_seed(0))
    except Exception:  # some pipelines take one image, or one prompt, at a time
        policy.rows_at_once = 1
        rollout = policy.sample(words, 1, torch.Generator().manual_seed(0))
    row["rows"] = min(2, policy.rows_at_once)
    steps = policy.steps(rollout, torch.arange(2))
    assert steps.old is not None  # a pipeline scores its own rollouts
    row["replay"] = float((steps.log_probs.detach() - steps.old).abs().max())
    row["steps"], row["event"] = rollout.log_probs.shape[1], steps.event_size
    row["trained"] = int(rollout.mask[0].sum())
    steps.log_probs.sum().backward()
    norms = [float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None]
    row["gradient"] = max(norms, default=0.0)
    row["scheduler"] = type(pipe.scheduler).__name__
    row["modules"] = list(policy.denoisers)
    row["probe"] = _reason(lambda: probe(policy, rollout))
    row["alone"] = isinstance(row["probe"], str)
    if row["alone"]:  # as the forward policy does, which then asks for one time after another
        row["together"] = row["probe"]
        row["probe"] = _reason(lambda: probe_alone(policy, rollout))
    row["own"] = _reason(lambda: own(pipe, call, policy.rows_at_once))
    row["lora"] = _reason(lambda: lora(name, call, policy.rows_at_once))
    row["targets"] = "default"
    if isinstance(row["lora"], str) and "lora.targets" in row["lora"]:
        row["lora"], row["targets"] = _reason(lambda: lora(name, call, policy.rows_at_once, targets="all-linear")), "all-linear"
    row["seconds"] = time.process_time() - began  # of the processor, so that other work beside it does not count
    return row


def probe(policy: Any, rollout: Any) -> float:
    """The greatest difference between a vector of two times and one time after another."""

    times, levels = policy.schedule()
    columns = torch.tensor([0, min(2, len(times) - 1)])
    x = torch.stack([rollout.held.x[c][row] for row, c in enumerate(columns.tolist())])
    level = Level(levels.signal[columns], levels.noise[columns])
    together = policy.probe(rollout.prompts, x, times[columns], level).clean
    if not together.requires_grad:
        raise RuntimeError("the probe has no gradient")
    worst = 0.0
    for row in range(2):
        one = slice(row, row + 1)
        alone = policy.probe(rollout.prompts[one], x[one], times[columns][one], Level(level.signal[one], level.noise[one])).clean
        worst = max(worst, float((alone[0] - together[row]).abs().max() / (1 + alone.abs().max())))
    return worst


def probe_alone(policy: Any, rollout: Any) -> float:
    """Two times, each in a call of its own: 0.0 where both work and have a gradient."""

    times, levels = policy.schedule()
    for row, column in enumerate((0, min(2, len(times) - 1))):
        at = slice(column, column + 1)
        x = rollout.held.x[column][row : row + 1]
        if not policy.probe(rollout.prompts[row : row + 1], x, times[at], Level(levels.signal[at], levels.noise[at])).clean.requires_grad:
            raise RuntimeError("the probe has no gradient")
    return 0.0


def own(pipe: Any, call: dict[str, Any], rows: int) -> float:
    """The greatest difference between a probe and the pipeline's own step at the same latent and time, guidance off, relative."""
    from mmalign.policies.diffusers import diffusers as make
    from mmalign.policies.pipelines.calls.calling import unguided

    words = prompts(type(pipe).__name__)[:1]
    takes = inspect.signature(inspect.unwrap(type(pipe).__call__)).parameters
    off = unguided(takes, 1 if pipe.components.get("transformer_2") is None else 2)
    policy = make(pipe, call={**call, **off}, device="cpu", schedule=Schedule(steps=4), memory=Memory(rows_at_once=rows))
    rollout = policy.sample(words, 1, torch.Generator().manual_seed(0))
    times, levels = policy.schedule()
    predictions: list[Any] = []
    kernel = policy.kernel

    def recorded(prediction: Prediction, x: Tensor, t: Level, t_next: Level) -> tuple[Tensor, Tensor]:
        predictions.append(prediction)
        return kernel(prediction, x, t, t_next)

    policy.kernel, worst = recorded, 0.0
    for column in (0, min(2, len(times) - 1)):
        policy.steps(rollout, torch.arange(1), columns=torch.tensor([column]))
        at = slice(column, column + 1)
        clean = policy.probe(words, rollout.held.x[column], times[at], Level(levels.signal[at], levels.noise[at])).clean
        worst = max(worst, float((clean - predictions[-1].clean).detach().abs().max() / (1 + clean.abs().max())))
    return worst


def lora(name: str, call: dict[str, Any], rows: int, targets: Any = None) -> float:
    """The norm of the adapter's gradient, with targets as they are by default."""
    from mmalign.policies.diffusers import diffusers as make
    from mmalign.policies.twins import pipelines

    policy = make(
        pipelines.twin(name),
        call=call,
        lora=Lora(rank=2, targets=targets),
        device="cpu",
        schedule=Schedule(steps=4),
        memory=Memory(rows_at_once=rows),
    )
    rollout = policy.sample(prompts(name), 1, torch.Generator().manual_seed(0))
    policy.steps(rollout, torch.arange(2), columns=rollout.held.columns[:1]).log_probs.sum().backward()
    return max(float(p.grad.norm()) for p in policy.parameters().values() if p.grad is not None)


def _too_long(*_: Any) -> None:
    raise TimeoutError(f"more than {LIMIT} seconds of processor time")


def _reason(act: Any) -> Any:
    try:
        return act()
    except Exception as error:  # a class that breaks is a line in the table
        return _line(error, 160)


def _line(error: Exception, most: int) -> str:
    """An error's class and, where it has any, the first line of its words."""
    return ": ".join([type(error).__name__, *str(error).splitlines()[:1]])[:most]


def guarded(name: str, answer: Connection) -> None:
    """Sends what ``check`` finds, or the error: a class that breaks is a line in the table."""
    warnings.filterwarnings("ignore")
    logging.disable(logging.WARNING)
    torch.set_num_threads(1)
    resource.setrlimit(resource.RLIMIT_AS, (12 << 30, 12 << 30))
    signal.signal(signal.SIGPROF, _too_long)
    signal.setitimer(signal.ITIMER_PROF, LIMIT)
    try:
        answer.send(check(name))
    except Exception as error:
        answer.send({"name": name, "error": _line(error, 220), "trace": "".join(traceback.format_exception(error)[-4:])})


def each(names: list[str], jobs: int) -> Iterator[dict[str, Any]]:
    """Results as they come, from one forked process for each class: one that is killed stops no other."""
    fork, waiting = multiprocessing.get_context("fork"), list(names)
    running: dict[Any, tuple[str, ForkProcess]] = {}
    began: dict[ForkProcess, float] = {}
    while waiting or running:
        while waiting and len(running) < jobs:
            name = waiting.pop(0)
            here, there = fork.Pipe(duplex=False)
            process = fork.Process(target=guarded, args=(name, there))
            process.start()
            there.close()
            running[here], began[process] = (name, process), time.monotonic()
        for _, process in running.values():
            if time.monotonic() - began[process] > 10 * LIMIT:  # asleep: processor time has its own limit
                process.kill()
        for ready in multiprocessing.connection.wait(list(running), timeout=10):
            name, process = running.pop(ready)
            try:
                yield cast("Connection[Any, Any]", ready).recv()
            except EOFError:
                process.join()
                yield {"name": name, "error": f"its process was killed (exit code {process.exitcode}), by want of memory or from outside"}
            process.join()


def cell(row: dict[str, Any], key: str) -> str:
    """A number, or ``-`` for what does not work (its reason stands below the table)."""
    value = row.get(key)
    if isinstance(value, (int, float)):
        marks = " *" if key == "lora" and row.get("targets") == "all-linear" else ""
        return "one by one" if key == "probe" and row.get("alone") else f"{value:.1e}{marks}".replace("0.0e+00", "0.0")
    return "-"


def page(rows: list[dict[str, Any]], version: str) -> str:
    """The table, and a line for each pipeline that is missing from it or lacks something."""
    from mmalign.policies.pipelines.loading import unfit

    good = [row for row in rows if "replay" in row]
    exact = [row for row in good if row["replay"] == 0.0]
    named = [row for row in rows if "unfit" in row]
    broken = [(row, unfit.without_twin(row["name"]) or row["error"]) for row in rows if "error" in row]
    lines = [
        "# Conformance",
        "",
        f"Made by `scripts/conformance.py` with diffusers {version}: each pipeline class as a tiny twin with random weights, on the CPU "
        "in float32.",
        f"{len(rows)} classes: {len(exact)} replay with difference 0.0, {len(good) - len(exact)} with another, {len(named)} are no "
        "policies for a named reason,",
        f"{len(broken)} have no twin that runs yet.",
        "",
        "- rows: how many prompts the pipeline was given at once (1: it takes one at a time with these arguments).",
        "- replay: greatest difference of a log-probability (nats) between rollout and replay. gradient: greatest norm of a parameter's.",
        "- times: a probe with two timesteps in one call against two calls, relative; one by one: its call takes one time alone, so that "
        "each row is a call.",
        "- own: a probe against the pipeline's own step at the same latent and time, guidance off, relative.",
        "- LoRA: the norm that reaches the adapter at its default targets (*: at all linear layers, for want of those).",
        "- `-`: does not work, for the reason below the table. steps: in the table of 4 asked for (fewer where strength is below 1).",
        "",
        "| pipeline | scheduler | trained modules | rows | steps | replay | gradient | times | own | LoRA | seconds |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    for row in good:
        values = [row["name"], row["scheduler"], ", ".join(row["modules"]), str(row["rows"]), str(row["steps"])]
        values += [
            cell(row, "replay"),
            cell(row, "gradient"),
            cell(row, "probe"),
            cell(row, "own"),
            cell(row, "lora"),
            f"{row['seconds']:.1f}",
        ]
        lines.append(f"| {' | '.join(values)} |")
    lines += ["", "## No policies, by `unfit.UNFIT`", "", *(f"- {row['name']}: {row['unfit']}" for row in named)]
    lines += ["", "## No twin that runs yet", "", *(f"- {row['name']}: {why}" for row, why in broken)]
    partly = [(row["name"], label, row[key]) for row in good for key, label in LABELS.items() if isinstance(row.get(key), str)]
    for row in good:
        if isinstance(row.get("own"), float) and row["own"] > 1e-3:
            partly.append((row["name"], "own", unfit.probe_differs(row["name"]) or "a probe is not the pipeline's own step"))
    partly.sort()
    lines += ["", "## What is missing in the table", "", *(f"- {name}, {label}: {why}" for name, label, why in partly), ""]
    return "\n".join(lines)


def known_rows() -> dict[str, dict[str, Any]]:
    """Rows of earlier runs by name."""
    return {row["name"]: row for row in json.loads(NUMBERS.read_text())} if NUMBERS.exists() else {}


def save(row: dict[str, Any]) -> None:
    """Puts a row beside those of other runs, which may go on at the same time."""
    rows = {**known_rows(), row["name"]: row}
    part = NUMBERS.with_suffix(".part")
    part.write_text("[\n" + ",\n".join(json.dumps(rows[name]) for name in sorted(rows)) + "\n]\n")
    part.replace(NUMBERS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("names", nargs="*", default=["*"], help="patterns of class names; results of others are kept")
    parser.add_argument("--show", action="store_true", help="results to the screen, with tracebacks; nothing is written")
    parser.add_argument("--jobs", type=int, default=1, help="processes")
    args = parser.parse_args()
    import diffusers
    import transformers  # noqa: F401  (before the forks, once)
    from tqdm import tqdm

    from mmalign.policies import diffusers as _policies  # noqa: F401

    known = classes()
    if odd := [pattern for pattern in args.names if not fnmatch.filter(known, pattern)]:
        parser.error(f"names: got {', '.join(odd)}, which no pipeline class of diffusers {diffusers.__version__} is called")
    names = list(dict.fromkeys(name for pattern in args.names for name in known if fnmatch.fnmatchcase(name, pattern)))
    for row in tqdm(each(names, args.jobs), total=len(names), disable=None):
        trace = row.pop("trace", "")
        if args.show:
            print(row, trace[-1500:], sep="\n", flush=True)
        else:
            save(row)
    if args.show:
        return
    results = known_rows()
    rows = [results.get(name, {"name": name, "error": "not run for this table, for want of time"}) for name in known]
    (HERE / "pipelines" / "CONFORMANCE.md").write_text(page(rows, diffusers.__version__))
    print(f"{len(rows)} classes, {sum(row.get('replay') == 0.0 for row in rows)} replayed with difference 0.0")


if __name__ == "__main__":
    main()
