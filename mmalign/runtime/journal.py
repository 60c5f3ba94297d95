"""What a training run keeps while it goes: its folder, log, evaluations, checkpoints, and how it ended."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

from mmalign.runtime import checkpoint
from mmalign.runtime.evaluation import evaluate
from mmalign.runtime.folder import open_run, write_json
from mmalign.runtime.learner import Learner
from mmalign.runtime.log import Log
from mmalign.runtime.progress import Interrupt, Progress, clock
from mmalign.types import Policy, UserError

EARLY_STOP = {"judge", "patience"}


@dataclass(frozen=True)
class Report:
    """The page of a run."""

    path: Path

    def open(self) -> None:
        """Shows it in the default browser."""
        import webbrowser

        webbrowser.open(self.path.resolve().as_uri())


@dataclass(frozen=True)
class Run:
    """A run that has ended: its folder, its numbers (``summary.json``), the policy as it is now."""

    path: Path
    summary: dict[str, Any]
    policy: Any

    @property
    def report(self) -> Report:
        return Report(self.path / "report.html")


@dataclass
class Evaluated:
    """How a run is evaluated: every ``every`` steps, ``samples`` of each of ``prompts``, at fixed seeds.

    columns: how many of them the grid shows. call: arguments of the sampler, such as ``num_inference_steps``.
    """

    prompts: list[str]
    every: int = 20
    samples: int = 16
    columns: int = 8
    call: dict[str, Any] = field(default_factory=dict)


class Journal:
    """``with Journal(...) as journal: for step in journal.steps(): ...; journal.trained(row)``. See the recipes."""

    def __init__(
        self, learner: Learner, *, name: str, runs: str, seed: int, steps: int, config: Mapping[str, Any], resume: bool, trackers: Sequence[str],
        rewards: Mapping[str, Callable[..., Any]], judges: Mapping[str, Callable[..., Any]], metrics: Mapping[str, Callable[..., Any]],
        evaluated: Evaluated, early_stop: Mapping[str, Any] | None, checkpoint_every: int,
    ):  # fmt: skip
        if early_stop is not None and (set(early_stop) != EARLY_STOP or early_stop["judge"] not in {*rewards, *judges}):
            raise UserError(f"early_stop: got {dict(early_stop)}, takes judge (one of {', '.join([*rewards, *judges])}) and patience (evaluations)")
        self.learner, self.seed, self.total = learner, seed, steps
        self.rewards, self.judges, self.metrics, self.evaluated = rewards, judges, metrics, evaluated
        self.early_stop, self.checkpoint_every, self.trackers = early_stop, checkpoint_every, trackers
        self.folder = open_run(runs, name, config=config, resume=resume, may_grow=("steps",), may_differ=("resume", "trackers", "runs"))
        self.state: dict[str, Any] = {"step": 0, "train_seconds": 0.0, "kl": 0.0, "evaluations": []}
        self.over = ""
        if self.folder.checkpoint is not None:
            tensors, self.state = checkpoint.load(self.folder.checkpoint)
            learner.load(tensors, self.state["learner"])

    def __enter__(self) -> Journal:
        self._stack = ExitStack()
        self.log = self._stack.enter_context(Log(self.folder.path, self.trackers, config=None))
        self.progress = self._stack.enter_context(Progress(self.total, start=self.state["step"]))
        self.interrupt = self._stack.enter_context(Interrupt())
        for note in self.folder.notes:
            self.progress.say(note)
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def steps(self) -> Iterator[int]:
        """The steps left, after an evaluation before the first; ends early where the run is interrupted or stopped."""
        if self.state["step"] == 0:
            self._evaluate(0)
        for step in range(self.state["step"], self.total):
            self._began = time.monotonic()
            yield step
            if self.over:
                return
        self.over = self.over or "finished"

    def fact(self, name: str, value: Callable[[], float]) -> None:
        """A number of the run that is found once, and kept."""
        if name not in self.state:
            self.state[name] = value()

    def trained(self, row: Mapping[str, float]) -> None:
        """A step is done: logs it, evaluates and saves where it is time to."""
        step = self.state["step"] + 1
        self.state.update(step=step, kl=row.get("kl", 0.0), train_seconds=self.state["train_seconds"] + time.monotonic() - self._began)
        self.log.log(step, "train", row)
        self.progress.update(step, row)
        last = step == self.total
        if last or step % self.evaluated.every == 0:
            self._evaluate(step)
        if self.interrupt.interrupted:
            self.over = "interrupted"
        if last or self.over or step % self.checkpoint_every == 0:
            state = {**self.state, "learner": self.learner.state()}
            checkpoint.save(self.folder.checkpoints, step, tensors=self.learner.tensors(), state=state)

    def _evaluate(self, step: int) -> None:
        plan, policy = self.evaluated, self.learner.policy
        found = evaluate(
            policy, plan.prompts, samples=plan.samples, columns=plan.columns, call=plan.call, asked={**self.rewards, **self.judges},
            metrics=self.metrics, using="ema" if self.learner.ema is not None else "current",
        )  # fmt: skip
        if found.grid is not None:
            self.folder.write_prompts(plan.prompts, list(range(found.grid.shape[1])))
            self.folder.write_samples(step, found.grid)
        row = {**found.metrics, "kl": self.state["kl"]}
        self.log.log(step, "eval", row)
        self.state["evaluations"].append({"step": step, **row})
        self.progress.say(f"step {step:>4}  " + "  ".join(f"{key} {row[key]:.3f}" for key in row if not key.endswith(("_se", "kl"))))
        self._stop_early(policy)

    def _stop_early(self, policy: Policy) -> None:
        """Keeps the best parameters as the set ``best``, and ends the run once its judge has not improved for long enough."""
        if self.early_stop is None:
            return
        judge, patience = self.early_stop["judge"], int(self.early_stop["patience"])
        scores = [row[judge] for row in self.state["evaluations"]]
        best = max(range(len(scores)), key=scores.__getitem__)
        if best == len(scores) - 1:
            with policy.using("ema" if self.learner.ema is not None else "current"):
                policy.sets.keep("best")
        elif len(scores) - 1 - best >= patience:
            self.over = "stopped early"
            self.state["best_step"] = self.state["evaluations"][best]["step"]

    def conclude(self) -> Run:
        """Writes the summary and the report, says where they are, and returns the run."""
        from mmalign.report import build

        rows = self.state["evaluations"]
        last = next((row for row in rows if row["step"] == self.state.get("best_step")), rows[-1])
        summary: dict[str, Any] = {
            "seed": self.seed, "status": self.over, "steps": self.state["step"], "rewards": list(self.rewards), "judges": list(self.judges),
            **{f"{key}_{when}": row[key] for when, row in (("before", rows[0]), ("after", last)) for key in row if key not in ("step", "kl")},
            "kl": last["kl"], "train_seconds": round(self.state["train_seconds"], 2),
            **{key: value for key, value in self.state.items() if key not in ("step", "train_seconds", "kl", "evaluations", "learner")},
        }  # fmt: skip
        if "spread_ratio" in last:
            summary["spread_ratio"] = last["spread_ratio"]
        write_json(self.folder.summary, summary)
        build(self.folder.path)
        if self.over == "interrupted":
            print(f"interrupted after step {self.state['step']} and saved; continue with --resume (in Python: resume=True)")
        else:
            print(f"{self.over} after {self.state['step']} steps, {clock(self.state['train_seconds'])} of training")
        return Run(self.folder.path, summary, self.learner.policy)
