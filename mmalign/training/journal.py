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
from types import TracebackType
from typing import Any, NamedTuple

from torch import Tensor

from mmalign.arguments import calls
from mmalign.arguments.signatures import nearest
from mmalign.distributed.folder import refuse_elsewhere
from mmalign.distributed.team import ALONE
from mmalign.files import plain, write_json
from mmalign.runs import answers, checkpoint, overoptimisation, pixels
from mmalign.runs.broken import Broken
from mmalign.runs.folder import RunFolder, opened
from mmalign.runs.log import Log, Phase
from mmalign.runs.profile import Profile, of_all
from mmalign.runs.progress import Interrupt, Progress, clock
from mmalign.training.evaluations.evaluation import EvaluationPlan, evaluate
from mmalign.training.evaluations.held_out import NAME
from mmalign.training.evaluations.summary import best_of, known, read_by_people, summarise
from mmalign.training.rollouts import dead_steps
from mmalign.training.settings import RunSettings, Stop
from mmalign.training.updates import not_finite
from mmalign.training.updates.learner import Learner
from mmalign.training.updates.recovery import Snapshot, out_of_memory, out_of_room, snapshot
from mmalign.types import UserError, columns_of, contents

MAY_DIFFER = (
    "run.trackers",
    "run.folder",
    "batch.micro_rows",
    "batch.micro_steps",
    "devices.*",
    "batch.missing",
    "batch.reference_memory",
    "policy.engine.*",
    "batch.overlap",
    "evaluation.overlap",
    "run.dead_steps",
    "run.non_finite",
    "run.non_finite_steps",
    "run.profile",
    "run.gradients",
    "policy.memory.*",
    "policy.of.memory.*",
    "references.*.memory.*",
    *(f"{key}.*.{part}" for key in ("rewards", "evaluation.judges") for part in ("url", "start.*", "asking.*")),
)
"""What a resumed run may have another of: these change no number but by rounding, or say what becomes of steps that failed."""


class Ended(NamedTuple):
    """A run that has ended: its folder, and its numbers (``summary.json``)."""

    path: Path
    summary: dict[str, Any]


class Journal:
    """``with Journal(...) as journal: for step in journal.steps(): ...; journal.trained(row)``. See the recipes.

    Entering it makes the run's folder, or opens it and puts everything back that its newest checkpoint holds; no other process trains
    there meanwhile. Of several processes (``learner.team``) the main one alone writes, and each of them has a journal, which keeps the same
    state. A fresh folder is removed again where an exception ends the run before its first step is done, so that the next try
    finds the name free. Where one ends it later, what was whole before the step that failed is saved.

    stop: when to end early. states: name -> what else has state (``dump``, ``load``) that a checkpoint keeps, or None. state: what it
    keeps as JSON. over: how the run ended, "" while it goes.
    """

    def __init__(
        self, learner: Learner, plan: EvaluationPlan, settings: RunSettings, *, steps: int, resume: bool, stop: Stop | None = None,
        states: Mapping[str, Any] | None = None, prompts: Sequence[Any] = (),
    ):  # fmt: skip
        self.learner, self.evaluation, self.settings, self.stop, self.team = learner, plan, settings, stop, learner.team
        self.total, self.resume, self.config = steps, resume, calls.described()
        self.state: dict[str, Any] = {
            "step": 0,
            "train_seconds": 0.0,
            "kl": 0.0,
            "evaluations": [],
            "facts": {},
            "dead": {},
            "dead_in_a_row": 0,
        }
        self.prompts = hashed(prompts)
        self.states = {name: held for name, held in (states or {}).items() if held is not None}
        self.over, self.doing = "", "step 1"
        self.profile = learner.profile = Profile(settings.profile)
        learner.kl_every = plan.every
        self.snapshot: Snapshot | None = None
        _refuse_stop(stop, [*plan.rewards, *plan.judges, *([NAME] if plan.held_out is not None else [])])

    def __enter__(self) -> Journal:
        try:
            return self._enter()
        except Exception as error:
            self.team.fail(error)
            raise

    def _enter(self) -> Journal:
        with ExitStack() as stack:
            self.team.agree("config", plain(self.config))
            self.team.agree("prompts", self.prompts)
            if self.team.main:
                self.folder = stack.enter_context(
                    opened(self.settings.folder, self.settings.name, config=self.config, resume=self.resume, may_differ=MAY_DIFFER)
                )
                stack.push(self._leave_no_trace)
                self.team.tell([str(self.folder.path), self.folder.checkpoint and str(self.folder.checkpoint)])
            else:
                path, newest = self.team.tell(None)[0]
                self.folder = RunFolder(Path(path), newest and Path(newest))
            refuse_elsewhere(self.team, self.folder.path, "run.folder")
            if self.folder.checkpoint is not None:
                tensors, self.state = checkpoint.load_parts(self.folder.checkpoint, self.learner.read, self.team)
                self.learner.load(tensors, self.state.pop("learner"))
                if self.state.pop("prompts", self.prompts) != self.prompts:
                    raise UserError("prompts: are others than those that this run began with; undo that, or give the run another name")
                for name, kept in self.state.pop("states", {}).items():
                    self.states[name].load(kept)
            self.broken = Broken(self.folder.path)
            self.progress = Progress(self.total, start=self.state["step"], quiet=not self.team.main)
            if self.team.main:
                self.log = stack.enter_context(Log(self.folder.path, self.settings.trackers, config=self.config, tell=self.say))
            stack.enter_context(self.progress)
            self.interrupt = stack.enter_context(Interrupt(quiet=not self.team.main))
            for note in (*self.folder.notes, *self._grown(self.state.pop("total", self.total))):
                self.say(note)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        lost = None if error is None else self.team.fail(error)
        if not isinstance(error, Exception):
            self._stack.__exit__(kind, error, trace)
            return
        with self._stack:
            self._rescue()
            if out_of_memory(error):
                why = ", ".join([" ".join(str(error).split())[:200], *getattr(error, "__notes__", [])])
                takes = "a smaller batch.micro_rows (a run may be resumed with another), policy.memory, or fewer evaluation.samples"
                raise UserError(f"{self.doing}: out of memory ({why}); takes {takes}") from error
            if out_of_room(error):
                raise UserError(f"{self.doing}: {self.folder.path} cannot be written ({error}); takes room on the disk") from error
            raise error if lost is None or not isinstance(error, RuntimeError) else lost

    def _grown(self, before: int) -> list[str]:
        """A line where the run is to be longer than it was ``before``, and the rates of its steps are no longer those that they were."""
        decay = self.learner.settings
        if self.total == before or not decay.follows_steps:
            return []
        step = min(self.state["step"], before)
        rates = f"{decay.rate_at(step, before):.3g} of {before} steps, {decay.rate_at(step, self.total):.3g} of {self.total}"
        own = f"{{shape: {decay.decay}, steps: {self.total}}}"
        return [f"steps: {before} before, {self.total} now, and the rate follows them: after step {step} it is {rates}; "
                f"a run that is to equal an uninterrupted one says optimizer.decay: {own} from its start"]  # fmt: skip

    def _rescue(self) -> None:
        """Saves the state before the step that failed, where all of it is still there, and says where the run may go on."""
        if not self.team.main:
            return
        step, saved = self.state["step"], checkpoint.newest_step(self.folder.checkpoints)
        shards = self.learner.shards is not None  # which would take all processes, and one of them has failed
        if self.snapshot is not None and step > saved and step and self.snapshot.whole(self.learner) and not shards:
            try:
                self._save()
                saved = step
            except OSError as error:  # no room on the disk, which may be what failed before
                self.say(f"step {step} could not be saved: {error}")
        if saved >= 0:
            self.say(f"stopped in {self.doing}; step {saved} is saved, continue with --resume (in Python: resume=True) once this is mended")

    def _leave_no_trace(self, kind: type[BaseException] | None, *_: Any) -> None:
        if kind is not None and not self.resume and self.state["step"] == 0:
            shutil.rmtree(self.folder.path)

    def steps(self) -> Iterator[int]:
        """The steps left, after an evaluation before the first; ends early where the run is interrupted or stopped."""
        owed = self.state.pop("owed", False)  # an evaluation that a run was stopped before, or in
        if self.state["step"] == 0 or owed:
            self._evaluate(self.state["step"])
        self._remember()
        if owed and self._saves():
            self._save()
        for step in range(self.state["step"], self.total):
            if self.over:
                return
            self._began, self.doing = time.monotonic(), f"step {step + 1}"
            if self.snapshot is not None:
                self.snapshot.begun = True
            self.profile.begin()
            with self.team.watched(self.profile.part):
                yield step
            self._profiled(step + 1)
        self.over = self.over or "finished"

    def _profiled(self, step: int) -> None:
        """Logs where the time of a step went, that of its evaluation and checkpoint included."""
        if self.settings.profile and (row := of_all(self.team.tell(self.profile.end()))):
            self._write(step, "profile", row)

    def once(self, name: str, find: Callable[[], Mapping[str, float] | None]) -> None:
        """Numbers of the run, ``name`` among them, that are found once and kept in its summary; None says: to be asked again."""
        if name not in self.state["facts"] and (facts := find()) is not None:
            self.state["facts"].update(facts)

    def say(self, line: str) -> None:
        """A line for the user."""
        self.progress.say(line)

    def put_aside(self, broken: Mapping[str, str], kind: str = "records") -> None:
        """Records that could not be read, or prompts, id -> why: written to ``broken.jsonl``, each once, and the first few told."""
        if not self.team.main:
            return
        before = len(self.broken.why)
        for name, why in list(self.broken.add(broken).items())[: max(0, 3 - before)]:
            which = f"id {name}" if kind == "records" else name  # an id that is a number would read as how many
            self.say(f"{kind}: {which} left out: {why} (all of them are in {self.broken.path.name})")

    def trained(self, row: Mapping[str, float]) -> None:
        """A step is done: logs it, evaluates and saves where it is time to."""
        step = self.state["step"] + 1
        unmoved = not row.get("updates", 1.0)  # then the KL is what it was; without a measurement of a step that moved it is not known
        interrupted = self._interrupted()
        row = {**row, **self.learner.non_finite.row()}
        self._write(step, "train", row)
        self.state.update(step=step, kl=row.get("kl", self.state["kl"] if unmoved else math.nan))
        self.state["train_seconds"] += time.monotonic() - self._began
        self.progress.update(step, row)
        self._count_not_finite(step)
        self._count_dead(step, row)
        last = step == self.total
        due = last or step % self.evaluation.every == 0
        self._remember(owed=due)
        if due and (last or not interrupted):  # a resumed run evaluates what this one has no time for
            with self.profile.part("evaluation"):
                self._evaluate(step)
            self._remember()
        if interrupted and not last:
            self.over = self.over or "interrupted"
        if self._saves():
            with self.profile.part("checkpoint"):
                self._save()

    def _remember(self, *, owed: bool = False) -> None:
        """The state as it is now is whole, but for an evaluation that is owed."""
        state = {**self.state, "prompts": self.prompts, "total": self.total, **({"owed": True} if owed else {})}
        self.snapshot = snapshot(self.learner, state, self.states)

    def _interrupted(self) -> bool:
        """Whether a signal has come, to whichever process: all of them end after the same step."""
        names = [name for name in self.team.everyone(self.interrupt.name) if name]
        self.interrupt.name = names[0] if names else ""
        return bool(names)

    def _write(self, step: int, phase: Phase, row: Mapping[str, float]) -> None:
        if self.team.main:
            self.log.log(step, phase, row)

    def _saves(self) -> bool:
        """Whether a checkpoint of the step that is done is due."""
        return self.over != "" or self.state["step"] == self.total or self.state["step"] % self.settings.checkpoint_every == 0

    def _save(self) -> None:
        team = ALONE if self.learner.shards is None else self.team
        if self.snapshot is not None and (self.team.main or team is self.team):
            state, every = self.snapshot.checkpoint(self.learner), self.settings.checkpoint_every
            tensors = self.learner.tensors()
            checkpoint.save(self.folder.checkpoints, self.snapshot.step, tensors=tensors, state=state, every=every, team=team)

    def _count_not_finite(self, step: int) -> None:
        """Says when updates begin to have numbers that are not finite, and ends a run after too many such steps in a row."""
        if words := self.learner.non_finite.counted(self.state):
            self.say(f"step {step:>4}  {words}")
        most = self.settings.non_finite_steps
        if most is not None and self.state["not_finite_in_a_row"] >= most and step < self.total:
            self.over = "not finite"

    def _count_dead(self, step: int, row: Mapping[str, float]) -> None:
        """Says when steps begin to teach nothing, and ends a run of which none did, or too many in a row."""
        why, most = dead_steps.counted(self.state, row), self.settings.dead_steps
        if self.state["dead_in_a_row"] == 1:
            self.say(f"step {step:>4}  taught nothing: {why}")
        if most is not None and self.state["dead_in_a_row"] >= most and step < self.total:
            self.over = "stopped learning"
        if (self.over or step == self.total) and sum(self.state["dead"].values()) == step:
            self.over = "learned nothing"

    def _evaluate(self, step: int) -> None:
        self.doing = f"the evaluation after step {step}"
        results = evaluate(self.learner.policy, self.evaluation, using=self.learner.shown, team=self.team)
        if results.grid is not None and self.team.main:
            self.folder.write_prompts(contents(self.evaluation.prompts), list(range(results.grid.shape[1])))
            self.folder.write_samples(step, results.grid)
            self.folder.write_scores(step, results.scores)
            self.log.show(step, results.grid)
            if step == 0 and self.evaluation.real is not None:
                self.folder.write_real(self.evaluation.real(contents(self.evaluation.prompts), results.grid.shape[1]))
        if results.answers is not None and self.team.main:
            prompts, outputs, marks, credits = results.answers
            answers.write(self.folder.path, step, prompts, outputs, marks, results.scores, credits)
            self.log.tabulate(step, *answers.table(prompts, outputs, results.scores))
        row = {"kl": self.state["kl"], **self.team.tell(results.metrics)[0]}  # the main one's: metrics of one's own may be random
        self._write(step, "eval", row)
        self.state["evaluations"].append({"step": step, **row})
        if numbers := [f"{key} {row[key]:.3f}" for key in read_by_people(row) if not key.endswith("_se")]:
            self.say(f"step {step:>4}  " + "  ".join(numbers))
        known = {"rewards": list(self.evaluation.rewards), "judges": list(self.evaluation.judges)}
        for finding in overoptimisation.begun(self.state["evaluations"], **known):
            self.say(f"step {step:>4}  over-optimised: {overoptimisation.in_words(finding)}")
        for shift in pixels.shifts(self.state["evaluations"]):
            if shift.step == step:
                self.say(f"step {step:>4}  {pixels.in_words(shift)}: see whether a reward is won by it")
        self._stop_early()

    def _stop_early(self) -> None:
        """Keeps the best parameters as the set ``best``, and ends the run once its judge has not improved for long enough."""
        if self.stop is None:
            return
        judge, rows = self.stop.judge, self.state["evaluations"]
        if len(rows) == 1 and judge not in rows[0]:
            raise UserError(
                f"evaluation.stop.judge: got {judge!r}, takes one number of {', '.join(sorted(set(rows[-1]) - {'step', 'kl'}))}"
            )
        best = best_of([self.stop.merit(row) for row in rows])
        self.state["best_step"] = rows[best]["step"]
        if best == len(rows) - 1:
            with self.learner.policy.using(self.learner.shown):
                self.learner.policy.sets.keep("best")
        elif len(rows) - 1 - best >= self.stop.patience:
            self.over = "stopped early"

    def conclude(self) -> Ended:
        """Writes the summary, says how the run ended, and returns it; a summary that cannot be written costs a line."""
        summary = summarise(self.state, seed=self.settings.seed, status=self.over, plan=self.evaluation)
        if self.over == "interrupted":
            summary["interrupted_by"] = self.interrupt.name
        if not self.team.main:
            return Ended(self.folder.path, summary)
        try:
            write_json(self.folder.summary, summary)
        except OSError as error:
            self.say(f"summary: {self.folder.summary} could not be written: {error}")
        if self.over == "interrupted":
            self.say(f"interrupted after step {self.state['step']} and saved; continue with --resume (in Python: resume=True)")
        else:
            self.say(f"{self.over} after {self.state['step']} steps, {clock(self.state['train_seconds'])} of training")
            if dead := summary.get("dead_steps"):
                self.say(f"{dead} of {self.state['step']} steps taught nothing: {summary['dead_because']}")
            if "not_finite" in summary:
                self.say(f"{not_finite.in_words(summary)}: {summary['not_finite']} not finite")
            names = [key.removesuffix("_before") for key in summary if key.endswith("_before") and not key.endswith("_se_before")]
            self.say("  ".join(f"{name} {known(summary[f'{name}_before'])} -> {known(summary[f'{name}_after'])}" for name in names))
        return Ended(self.folder.path, summary)


def hashed(prompts: Sequence[Any]) -> str:
    """What prompts and their columns are told apart by: a changed file is another run's. Media count by what their paths are called."""
    text = json.dumps([contents(prompts), columns_of(prompts)], default=canonical, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def canonical(value: Any) -> str:
    """Anything that JSON has no word for."""
    if isinstance(value, Tensor):
        return hashlib.sha256(value.detach().float().cpu().contiguous().numpy().tobytes()).hexdigest()[:16]
    return str(value) if isinstance(value, Path) else type(value).__name__


def _refuse_stop(stop: Stop | None, judges: Sequence[str]) -> None:
    if stop is not None and stop.judge.partition("/")[0] not in judges:
        raise UserError(f"evaluation.stop.judge: got {stop.judge!r}, takes one of {', '.join(judges)}{nearest(stop.judge, judges)}")
