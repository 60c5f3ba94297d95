"""The folder of a run: what is in it, how it is opened, and how files are put there without ever being half there.

::

    runs/<name>/
        config.yaml         the resolved config
        versions.json       what it ran with
        metrics.jsonl       an object per line: {"step": 12, "phase": "train" or "eval", "seconds": 3.2, "reward": 0.5, ...}
        answers/            step_000040.jsonl and images/, where outputs are words (see answers.py)
        samples/            prompts.json, step_000040.png (a row per prompt, a column per seed; videos are animated), step_000040.json
                            (what each reward and judge said of them), real.png (optional)
        checkpoints/        step_000040/ (see checkpoint.py)
        summary.json  report.html  tensorboard/
        .lock               held by the process that trains here
"""

from __future__ import annotations

import functools
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.arguments.places import by_name, is_same
from mmalign.files import flat, plain, write_json, write_text
from mmalign.runs import checkpoint as checkpoints
from mmalign.runs.metrics import read_metrics, truncate_metrics
from mmalign.runs.pictures import grid, write_png
from mmalign.types import UserError

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch", "safetensors", "numpy")
LOCK = ".lock"
STRAY = re.compile(r"\..+\.\d+\.tmp")  # what files are called until they are whole


@dataclass(frozen=True)
class RunFolder:
    """An opened run. ``checkpoint``: where to continue from, None for a fresh start. ``notes``: lines worth telling the user."""

    path: Path
    checkpoint: Path | None = None
    notes: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        return self.path.name

    @property
    def config(self) -> Path:
        return self.path / "config.yaml"

    @property
    def metrics(self) -> Path:
        return self.path / "metrics.jsonl"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    @property
    def summary(self) -> Path:
        return self.path / "summary.json"

    def write_prompts(self, prompts: Sequence[str], seeds: Sequence[int]) -> None:
        """``samples/prompts.json``: the words beside the rows of every grid, and the seeds above its columns."""
        write_json(self.samples / "prompts.json", {"prompts": list(prompts), "seeds": list(seeds)})

    def write_samples(self, step: int, images: Tensor) -> Path:
        """``samples/step_000040.png`` from ``images [prompts, seeds, C, H, W]`` (F, C, H, W: videos) in 0..1, C 1 or 3."""
        return write_png(self.samples / f"step_{step:06d}.png", grid(images))

    def write_scores(self, step: int, scores: Mapping[str, Tensor]) -> Path:
        """``samples/step_000040.json``: name -> ``[prompts, seeds]``, what each reward and judge said of the samples of that grid."""
        return write_json(self.samples / f"step_{step:06d}.json", {name: of_cells.tolist() for name, of_cells in scores.items()})

    def write_real(self, images: Tensor) -> Path:
        """``samples/real.png``: real data in the layout of the samples, ``[prompts, columns, (F,) C, H, W]`` in 0..1."""
        return write_png(self.samples / "real.png", grid(images))


def found(name: str | Path) -> Path | None:
    """The folder of a run, by its path or by its name under ``runs/``; None where neither is one."""
    return next((place for place in (Path(name), Path("runs") / name) if (place / "config.yaml").is_file()), None)


@contextmanager
def opened(root: str | Path, name: str, *, config: Mapping[str, Any], resume: bool = False, **how: Any) -> Iterator[RunFolder]:
    """``open_run``, and no other process trains in that folder until the block ends. how: its other keywords.

    Errors: UserError of ``open_run``, and where another process has the folder.
    """
    path = refuse(root, name, resume=resume)
    with held(path, "trains", takes="give this run another name (run.name=...)"):
        try:
            run = open_run(root, name, config=config, resume=resume, **how)
        except OSError as error:  # no room, no right to write, a folder in place of a file
            raise UserError(f"{path}: cannot be opened: {error}") from error
        yield run


@contextmanager
def held(path: Path, does: str, *, takes: str = "give another --out") -> Iterator[None]:
    """Makes a folder, in which no other process ``does`` the same until the block ends. Errors: UserError where one has it; ``takes``
    says what to do then."""
    from filelock import FileLock, Timeout

    lock = FileLock(path / LOCK, timeout=0)
    try:
        path.mkdir(parents=True, exist_ok=True)
        lock.acquire()
    except Timeout as error:
        raise UserError(f"{path}: another process {does} there; wait until it ends, or {takes}") from error
    except OSError as error:  # a file in its way, no right to write
        raise UserError(f"{path}: cannot be made: {error}; {takes}") from error
    try:
        yield
    finally:
        lock.release()


def open_run(
    root: str | Path,
    name: str,
    *,
    config: Mapping[str, Any],
    resume: bool = False,
    may_grow: Sequence[str] = ("steps",),
    may_differ: Sequence[str] = (),
) -> RunFolder:
    """Makes ``root/name``, or opens it to continue from its newest sound checkpoint.

    On resume, whatever was logged or drawn after that checkpoint's step is cut off, because the run will do it again: the log
    ends up equal to that of an uninterrupted run (times aside). So a recipe saves the checkpoint of a step after it has logged
    that step. What a killed process left half written is removed. A folder whose making was interrupted is made anew, with
    ``resume`` and without.

    config: the resolved config; ``may_grow`` names dotted keys that may be larger on resume (never smaller), and
    ``may_differ`` patterns of those that change no number of the run but by rounding (trackers, rows at once).

    Errors: UserError where a run exists and ``resume`` is False, where there is nothing to resume, where the configs differ, and where
    there were checkpoints and none can be read.
    """
    path = refuse(root, name, resume=resume)
    kept = plain(config)
    if not (path / "config.yaml").is_file():
        again = path.is_dir() and any(file.name != LOCK for file in path.iterdir())
        _sweep(path)
        run = RunFolder(path, notes=(f"{path}: its making was interrupted, starting from the beginning",) if resume or again else ())
        _write_identity(run, kept)
        return run
    differing = refuse_other_config(path, read_config(path), kept, may_grow, may_differ)
    _sweep(path)
    newest, damaged = checkpoints.newest(path / "checkpoints")
    if newest is None and damaged:
        why = "; ".join(line.removeprefix(f"{path / 'checkpoints'}/").removesuffix(", skipped") for line in damaged)
        raise UserError(
            f"{path}: no checkpoint can be read, so there is nothing to resume ({why}); give the run another name (run.name=...)"
        )
    if newest is None:
        _refuse_lost(path, flat(kept).get("run.checkpoint_every"))
    step = -1 if newest is None else checkpoints.step_of(newest)
    every = flat(kept).get("run.checkpoint_every")
    checkpoints.prune(path / "checkpoints", step, every=every if isinstance(every, int) else 1)  # which a kill may have come before
    notes = [*differing, *damaged, *([] if newest else [f"{path}: no checkpoint yet, starting again from the beginning"])]
    run = RunFolder(path, newest, tuple(notes + truncate_metrics(path / "metrics.jsonl", step)))
    for shown in (*run.samples.glob("step_*.png"), *run.samples.glob("step_*.json"), *run.path.glob("answers/step_*.jsonl")):
        if _step_of_sample(shown) > step:
            shown.unlink()
    _write_identity(run, kept)
    return run


def _path(root: str | Path, name: str) -> Path:
    if not name or name in (".", "..") or Path(name).name != name:
        raise UserError(f"name: got {name!r}, takes the name of one folder")
    return Path(root) / name


def refuse(root: str | Path, name: str, *, resume: bool) -> Path:
    """The folder of a run. Errors: UserError where a fresh run would meet another one, or where there is none to resume."""
    path = _path(root, name)
    if resume and not (path / "config.yaml").is_file() and not (path.is_dir() and _unmade(path)):
        raise UserError(f"{path}: got --resume (in Python resume=True), but there is no run here (no config.yaml)")
    if not resume and path.exists() and not _unmade(path):
        raise UserError(f"{path} exists: resume it (--resume; in Python resume=True), or give this run another name (run.name=...)")
    return path


def _unmade(path: Path) -> bool:
    """Whether the making of a run there was interrupted, or never began; ``config.yaml`` is written last."""
    if not path.is_dir():
        return False
    entries = [entry for entry in path.iterdir() if entry.name != LOCK and not STRAY.fullmatch(entry.name)]
    inside = [item for entry in entries if entry.is_dir() for item in entry.iterdir()]
    full = [entry for entry in entries if entry.name == "metrics.jsonl" and (entry.is_symlink() or entry.stat().st_size)]
    return {entry.name for entry in entries} <= {"samples", "checkpoints", "versions.json", "metrics.jsonl"} and not inside and not full


def _sweep(path: Path) -> None:
    """Removes what a killed process left half written."""
    checkpoints.sweep(path / "checkpoints")
    for folder in (path, path / "samples", path / "answers", path / "answers" / "images"):
        for file in folder.glob(".*.tmp"):
            if STRAY.fullmatch(file.name) and file.is_file():
                file.unlink()


def _refuse_lost(path: Path, checkpoint_every: Any) -> None:
    """Errors: UserError where the run has come so far that it had a checkpoint, and has none: starting again would write over its log."""
    steps = [row["step"] for row in read_metrics(path / "metrics.jsonl")[0] if row["phase"] == "train"]
    if (path / "summary.json").exists() or (isinstance(checkpoint_every, int) and max(steps, default=0) > checkpoint_every):
        raise UserError(
            f"{path}: its checkpoints are gone (its log goes to step {max(steps, default=0)}), so there is nothing to resume; "
            "give the run another name (run.name=...)"
        )


def _write_identity(run: RunFolder, config: Any) -> None:
    for folder in (run.samples, run.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    run.metrics.touch()
    write_identity(run.path, config)


def write_identity(path: Path, config: Any) -> None:
    """What a run is: what it ran with, and its config, last: with it there is a run."""
    import yaml

    write_json(path / "versions.json", versions())
    write_text(path / "config.yaml", yaml.safe_dump(config, sort_keys=False, allow_unicode=True))


def _step_of_sample(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdecimal() else -1


def read_config(path: Path) -> dict[str, Any]:
    """The config of the run at ``path``. Errors: UserError where it cannot be read."""
    import yaml

    try:
        config = yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise UserError(f"{path / 'config.yaml'}: cannot be read ({' '.join(str(error).split())})") from error
    if not isinstance(config, dict):
        raise UserError(f"{path / 'config.yaml'}: holds no mapping, takes the config that the run was made with")
    return config


def refuse_other_config(path: Path, old: Any, new: Any, may_grow: Sequence[str], may_differ: Sequence[str]) -> list[str]:
    """A line for each difference of rounding, or of where mmalign is. Errors: UserError for others."""
    missing = "(absent)"
    before, after = flat(old), flat(new)
    wrong, allowed = list[str](), list[str]()
    for key in sorted(set(before) | set(after)):
        was, now = before.get(key, missing), after.get(key, missing)
        grows = key in may_grow and isinstance(was, (int, float)) and isinstance(now, (int, float)) and now >= was
        if was == now or grows or by_name(was) == now:
            continue
        harmless = is_same(was, now) or any(fnmatchcase(key, pattern) for pattern in may_differ)
        (allowed if harmless else wrong).append(f"{key} was {was!r}, is {now!r}")
    if wrong:
        raise UserError(
            f"{path}: cannot resume with another config: {'; '.join(wrong)}; undo that, or give the run another name (run.name=...)"
            f"{_warm_start(path, before, [line.partition(' ')[0] for line in wrong])}"
        )
    return [f"{path}: goes on although {change}" for change in allowed]


def refuse_other_numbers(path: Path, node: Any, may_differ: Sequence[str], *, may_grow: Sequence[str] = ("steps",)) -> None:
    """``refuse_other_config`` of the numbers alone that a config says as it is written, before anything is built from it.

    Words may stand for more than they say, and keys that are left out for their defaults; numbers under one key do not.
    Errors: UserError for one that is another than the run was made with; nothing where there is no config of a run at ``path``.
    """
    if not (path / "config.yaml").is_file():
        return
    old, new = flat(read_config(path)), flat(plain(node))
    both = [key for key, value in new.items() if type(value) in (int, float) and type(old.get(key)) in (int, float)]
    refuse_other_config(path, {key: old[key] for key in both}, {key: new[key] for key in both}, may_grow, may_differ)


def _warm_start(path: Path, config: Mapping[str, Any], keys: Sequence[str]) -> str:
    """How to go on from a run's weights under another optimiser, or other steps; empty where something else differs. config: flat."""
    if not all(key == "steps" or key.startswith("optimizer") for key in keys):
        return ""
    node = "policy.of" if any(key.startswith("policy.of.") for key in config) else "policy"
    has_lora = any(key.startswith(f"{node}.lora.") for key in config)
    start = f"{node}.lora: {{from: {path}}}" if has_lora else f"{node}.start: {path}"
    return f" and start from its weights, {start}"


@functools.cache
def versions() -> Mapping[str, Any]:
    """Python, platform, packages and the git commit of the source, if it lies in a checkout. No host, no user, no environment.

    Asked once: what runs is what was imported, whatever becomes of the files, and git alone takes longer than a step of a small model.
    """
    from importlib.metadata import PackageNotFoundError, version

    from mmalign import __version__

    installed: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "mmalign": __version__,
    }
    for package in PACKAGES:
        try:
            installed[package] = version(package)
        except PackageNotFoundError:
            installed[package] = None
    installed["git_commit"], installed["git_changed"] = _git()
    return installed


def _git() -> tuple[str | None, bool | None]:
    # asks about a tracked file of ours, so that an installation inside somebody else's checkout does not report that one's commit
    here = Path(__file__)

    def ask(*words: str) -> str | None:
        try:
            done = subprocess.run(["git", "-C", str(here.parent), *words], capture_output=True, text=True, timeout=10, check=False)
        except (OSError, subprocess.TimeoutExpired):
            return None
        return done.stdout.strip() if done.returncode == 0 else None

    if ask("ls-files", "--error-unmatch", here.name) is None:
        return None, None
    changed = ask("status", "--porcelain", "--untracked-files=no")
    return ask("rev-parse", "HEAD"), None if changed is None else bool(changed)
