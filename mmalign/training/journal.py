"""What a training run keeps while it goes: its folder, log, evaluations and checkpoints; and how it ended."""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, NamedTuple

from torch import Tensor

from mmalign import calls
from mmalign.files import write_json
from mmalign.runs import answers, checkpoint
from mmalign.runs.folder import open_run
from mmalign.runs.log import Log
from mmalign.runs.progress import Interrupt, Progress, clock
from mmalign.signatures import nearest
from mmalign.training.evaluation import Exam, evaluate
from mmalign.training.learner import Learner
from mmalign.training.settings import RunSettings, Stop
from mmalign.types import UserError, columns_of, contents


class Ended(NamedTuple):
    """A run that has ended: its folder, and its numbers (``summary.json``)."""

    path: Path
    summary: dict[str, Any]


class Journal:
    """``with Journal(...) as journal: for step in journal.steps(): ...; journal.trained(row)``. See the recipes.

    Entering it makes the run's folder, or opens it and puts everything back that its newest checkpoint holds. A fresh folder is
    removed again where an exception ends the run before its first step is done, so that the next try finds the name free.

    stop: when to end early. states: name -> what else has state (``dump``, ``load``) that a checkpoint keeps, or None. state: what it
    keeps as JSON. over: how the run ended, "" while it goes.
    """

    def __init__(
        self, learner: Learner, exam: Exam, settings: RunSettings, *, steps: int, resume: bool, stop: Stop | None = None,
        states: Mapping[str, Any] | None = None, prompts: Sequence[Any] = (),
    ):  # fmt: skip
        self.learner, self.exam, self.settings, self.stop = learner, exam, settings, stop
        self.total, self.resume, self.config = steps, resume, calls.described()
        self.state: dict[str, Any] = {"step": 0, "train_seconds": 0.0, "kl": 0.0, "evaluations": [], "facts": {}}
        self.prompts = hashed(prompts)
        self.states = {name: held for name, held in (states or {}).items() if held is not None}
        self.over = ""
        _refuse_stop(stop, [*exam.rewards, *exam.judges])

    def __enter__(self) -> Journal:
        where, name = self.settings.folder, self.settings.name
        self.folder = open_run(where, name, config=self.config, resume=self.resume, may_differ=("run.trackers", "run.folder"))
        with ExitStack() as stack:
            stack.push(self._leave_no_trace)
            if self.folder.checkpoint is not None:
                tensors, self.state = checkpoint.load(self.folder.checkpoint)
                self.learner.load(tensors, self.state.pop("learner"))
                if self.state.get("prompts", self.prompts) != self.prompts:
                    raise UserError("prompts: are others than those that this run began with; undo that, or give the run another name")
                for name, kept in self.state.pop("states", {}).items():
                    self.states[name].load(kept)
            self.log = stack.enter_context(Log(self.folder.path, self.settings.trackers, config=self.config))
            self.progress = stack.enter_context(Progress(self.total, start=self.state["step"]))
            self.interrupt = stack.enter_context(Interrupt())
            for note in self.folder.notes:
                self.say(note)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *exception: Any) -> None:
        self._stack.__exit__(*exception)

    def _leave_no_trace(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and not self.resume and self.state["step"] == 0:
            shutil.rmtree(self.folder.path)

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

    def once(self, name: str, find: Callable[[], float | None]) -> None:
        """A number of the run that is found once and kept in its summary; None says that it is to be asked again."""
        if name not in self.state["facts"] and (value := find()) is not None:
            self.state["facts"][name] = value

    def say(self, line: str) -> None:
        """A line for the user."""
        self.progress.say(line)

    def trained(self, row: Mapping[str, float]) -> None:
        """A step is done: logs it, evaluates and saves where it is time to."""
        step = self.state["step"] + 1
        unmoved = not row.get("updates", 1.0)  # then the KL is what it was; without a measurement of a step that moved it is not known
        self.state.update(step=step, kl=row.get("kl", self.state["kl"] if unmoved else math.nan))
        self.state["train_seconds"] += time.monotonic() - self._began
        self.log.log(step, "train", row)
        self.progress.update(step, row)
        last = step == self.total
        if last or step % self.exam.every == 0:
            self._evaluate(step)
        if self.interrupt.interrupted and not last:
            self.over = self.over or "interrupted"
        if last or self.over or step % self.settings.checkpoint_every == 0:
            held = {name: held.dump() for name, held in self.states.items()}
            state = {**self.state, "prompts": self.prompts, "learner": self.learner.state(), **({"states": held} if held else {})}
            checkpoint.save(self.folder.checkpoints, step, tensors=self.learner.tensors(), state=state)

    def _evaluate(self, step: int) -> None:
        found = evaluate(self.learner.policy, self.exam, using=self.learner.shown)
        if found.grid is not None:
            self.folder.write_prompts(contents(self.exam.prompts), list(range(found.grid.shape[1])))
            self.folder.write_samples(step, found.grid)
            if step == 0 and self.exam.real is not None:
                self.folder.write_real(self.exam.real(contents(self.exam.prompts), found.grid.shape[1]))
        if found.answers is not None:
            answers.write(self.folder.path, step, found.answers.prompts, found.answers.outputs, found.answers.marks)
        row = {**found.metrics, "kl": self.state["kl"]}
        self.log.log(step, "eval", row)
        self.state["evaluations"].append({"step": step, **row})
        self.say(f"step {step:>4}  " + "  ".join(f"{key} {row[key]:.3f}" for key in row if key != "kl" and not key.endswith("_se")))
        self._stop_early()

    def _stop_early(self) -> None:
        """Keeps the best parameters as the set ``best``, and ends the run once its judge has not improved for long enough."""
        if self.stop is None:
            return
        judge, rows = self.stop.judge, self.state["evaluations"]
        if judge not in rows[-1]:
            raise UserError(
                f"evaluation.stop.judge: got {judge!r}, takes one number of {', '.join(sorted(set(rows[-1]) - {'step', 'kl'}))}"
            )
        best = best_of([row[judge] for row in rows])
        self.state["best_step"] = rows[best]["step"]
        if best == len(rows) - 1:
            with self.learner.policy.using(self.learner.shown):
                self.learner.policy.sets.keep("best")
        elif len(rows) - 1 - best >= self.stop.patience:
            self.over = "stopped early"

    def conclude(self) -> Ended:
        """Writes the summary, says how the run ended, and returns it."""
        summary = summarise(self.state, seed=self.settings.seed, status=self.over, exam=self.exam)
        write_json(self.folder.summary, summary)
        if self.over == "interrupted":
            print(f"interrupted after step {self.state['step']} and saved; continue with --resume (in Python: resume=True)")
        else:
            print(f"{self.over} after {self.state['step']} steps, {clock(self.state['train_seconds'])} of training")
            changes = [key.removesuffix("_before") for key in summary if key.endswith("_before") and not key.endswith("_se_before")]
            print("  ".join(f"{key} {summary[f'{key}_before']:.3f} -> {summary[f'{key}_after']:.3f}" for key in changes))
        return Ended(self.folder.path, summary)


def summarise(state: Mapping[str, Any], *, seed: int, status: str, exam: Exam) -> dict[str, Any]:
    """A run in a few numbers: every evaluated one before training and after it, and what it cost.

    After: the last evaluation, or the best one where the run kept it.
    """
    rows = state["evaluations"]
    before, after = rows[0], next((row for row in rows if row["step"] == state.get("best_step")), rows[-1])
    found = {"before": before, "after": after}
    numbers = {f"{key}_{when}": row[key] for when, row in found.items() for key in row if key not in ("step", "kl")}
    best = {"best_step": state["best_step"]} if "best_step" in state else {}
    spread = {"spread_ratio": after["spread_ratio"]} if "spread_ratio" in after else {}
    return {
        "seed": seed, "status": status, "steps": state["step"], "rewards": list(exam.rewards), "judges": list(exam.judges), **numbers,
        "kl": after["kl"], "train_seconds": round(state["train_seconds"], 2), **state["facts"], **best, **spread,
    }  # fmt: skip


def hashed(prompts: Sequence[Any]) -> str:
    """What prompts and their columns are told apart by: a changed file is another run's. Media count by what their paths are called."""
    text = json.dumps([contents(prompts), columns_of(prompts)], default=canonical, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """Anything that JSON has no word for."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return str(value) if isinstance(value, Path) else type(value).__name__


def best_of(scores: Sequence[float]) -> int:
    """The place of the first highest score; NaN is lower than any number."""
    return max(range(len(scores)), key=lambda place: -math.inf if math.isnan(scores[place]) else scores[place])


def _refuse_stop(stop: Stop | None, judges: Sequence[str]) -> None:
    if stop is not None and stop.judge.partition("/")[0] not in judges:
        raise UserError(f"evaluation.stop.judge: got {stop.judge!r}, takes one of {', '.join(judges)}{nearest(stop.judge, judges)}")
