"""The folder of a run: what is in it, how it is opened, and how files are put there without ever being half there.

::

    runs/<name>/
        config.yaml         the resolved config
        versions.json       what it ran with
        metrics.jsonl       an object per line: {"step": 12, "phase": "train" or "eval", "seconds": 3.2, "reward": 0.5, ...}
        answers/            step_000040.jsonl and images/, where outputs are words (see answers.py)
        samples/            prompts.json, step_000040.png (a row per prompt, a column per seed; videos are animated), real.png (optional)
        checkpoints/        step_000040/ (see checkpoint.py)
        summary.json  report.html  tensorboard/
"""

from __future__ import annotations

import platform
import subprocess
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from mmalign.files import flat, plain, write_json, write_text
from mmalign.runs import checkpoint as checkpoints
from mmalign.runs.metrics import truncate_metrics
from mmalign.runs.pictures import grid, write_png
from mmalign.types import UserError

PACKAGES = ("torch", "torchvision", "diffusers", "transformers", "accelerate", "peft", "open_clip_torch", "safetensors", "numpy")


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

    def write_real(self, images: Tensor) -> Path:
        """``samples/real.png``: real data in the layout of the samples, ``[prompts, columns, (F,) C, H, W]`` in 0..1."""
        return write_png(self.samples / "real.png", grid(images))


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
    that step.

    config: the resolved config; ``may_grow`` names dotted keys that may be larger on resume (never smaller), and
    ``may_differ`` those that change no number of the run (trackers, where to print).

    Raises UserError where a run exists and ``resume`` is False, where there is nothing to resume, and where the configs differ.
    """
    if not name or name in (".", "..") or Path(name).name != name:
        raise UserError(f"name: got {name!r}, takes the name of one folder")
    path = Path(root) / name
    kept = plain(config)
    if not resume:
        if path.exists() and (not path.is_dir() or any(path.iterdir())):
            raise UserError(f"{path} exists: resume it (resume=true), or give this run another name (name=...)")
        run = RunFolder(path)
        _write_identity(run, kept)
        return run
    if not (path / "config.yaml").is_file():
        raise UserError(f"{path}: got resume=true, but there is no run here (no config.yaml)")
    _refuse_other_config(path, read_config(path), kept, may_grow, may_differ)
    found, notes = checkpoints.newest(path / "checkpoints")
    step = -1 if found is None else checkpoints.step_of(found)
    if found is None:
        notes.append(f"{path}: no checkpoint yet, starting again from the beginning")
    run = RunFolder(path, found, tuple(notes + truncate_metrics(path / "metrics.jsonl", step)))
    for shown in (*run.samples.glob("step_*.png"), *run.path.glob("answers/step_*.jsonl")):
        if _step_of_sample(shown) > step:
            shown.unlink()
    _write_identity(run, kept)
    return run


def _write_identity(run: RunFolder, config: Any) -> None:
    import yaml

    for folder in (run.samples, run.checkpoints):
        folder.mkdir(parents=True, exist_ok=True)
    write_text(run.config, yaml.safe_dump(config, sort_keys=False, allow_unicode=True))
    write_json(run.path / "versions.json", versions())
    run.metrics.touch()


def _step_of_sample(path: Path) -> int:
    digits = path.stem.removeprefix("step_")
    return int(digits) if digits.isdigit() else -1


def read_config(path: Path) -> Any:
    """The config of the run at ``path``."""
    import yaml

    return yaml.safe_load((path / "config.yaml").read_text(encoding="utf-8"))


def _refuse_other_config(path: Path, old: Any, new: Any, may_grow: Sequence[str], may_differ: Sequence[str]) -> None:
    missing = "(absent)"
    before, after = flat(old), flat(new)
    wrong = []
    for key in sorted(set(before) | set(after)):
        was, now = before.get(key, missing), after.get(key, missing)
        grows = key in may_grow and isinstance(was, (int, float)) and isinstance(now, (int, float)) and now >= was
        if was != now and not grows and key not in may_differ:
            wrong.append(f"{key} was {was!r}, is {now!r}")
    if wrong:
        raise UserError(
            f"{path}: cannot resume with another config: {'; '.join(wrong)}; undo that, or give the run another name (name=...)"
        )


# ---- atomic writers: a file in the same folder, flushed to disk, then renamed over the old one


# ---- metrics


# ---- versions


def versions() -> dict[str, Any]:
    """Python, platform, packages and the git commit of the source, if it lies in a checkout. No host, no user, no environment."""
    from importlib.metadata import PackageNotFoundError, version

    from mmalign import __version__

    found: dict[str, Any] = {
        "python": platform.python_version(),
        "platform": f"{platform.system()} {platform.machine()}",
        "mmalign": __version__,
    }
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = None
    found["git_commit"], found["git_changed"] = _git()
    return found


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
