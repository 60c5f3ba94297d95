"""What a run folder holds, read for its page. Whatever is missing is empty, and a note says what could not be read."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from mmalign.runs import answers
from mmalign.runs.log import TRACKERS
from mmalign.runs.metrics import is_number, read_benchmarks, read_metrics
from mmalign.runs.showing import WEB
from mmalign.types import UserError

FRAME = re.compile(r"step_(\d{1,12})\.png", re.ASCII)
SIZES = ("num_frames", "height", "width")  # of a call of a pipeline
VIDEOS = (".mp4", ".webm", ".gif", ".mov")


@dataclass(frozen=True)
class RunData:
    """A run as its folder tells it. ``frames``: (step, path) of each sample grid, in order of steps; ``scores``: step -> name
    -> a number for each cell of its grid, or None; ``answers``: (step, lines); ``benchmarks``: see ``runs.metrics``;
    ``trackers``: name -> the address of its page there."""

    path: Path
    config: dict[str, Any] = field(default_factory=dict)
    config_text: str = ""
    versions: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    train: list[dict[str, Any]] = field(default_factory=list)
    evals: list[dict[str, Any]] = field(default_factory=list)
    prompts: list[str] = field(default_factory=list)
    seeds: list[Any] = field(default_factory=list)
    frames: list[tuple[int, Path]] = field(default_factory=list)
    scores: dict[int, dict[str, list[list[float | None]]]] = field(default_factory=dict)
    benchmarks: list[tuple[str, dict[str, tuple[float, ...]]]] = field(default_factory=list)
    real: Path | None = None
    videos: int = 0
    notes: list[str] = field(default_factory=list)
    answers: list[tuple[int, list[dict[str, Any]]]] = field(default_factory=list)
    profile: list[dict[str, Any]] = field(default_factory=list)
    trackers: dict[str, str] = field(default_factory=dict)

    @property
    def rewards(self) -> list[str]:
        """The evaluated numbers that the run was trained on."""
        return self._columns("rewards", fallback="proxy")

    @property
    def judges(self) -> list[str]:
        """The evaluated numbers that only judge."""
        return [name for name in self._columns("judges", fallback="gold") if name not in self.rewards]

    @property
    def unit(self) -> str:
        """What a step of its log is."""
        return "round" if "stages" in self.config else "step"

    @property
    def sizes(self) -> str:
        """``trained at 512 x 512, evaluated at 1024 x 1024``; "" where both are the same, or one is not known."""
        policy = _mapping(self.config.get("policy"))
        while "pipeline" not in policy and isinstance(policy.get("of"), Mapping):
            policy = _mapping(policy["of"])
        trained = _mapping(policy.get("call"))
        evaluated = {**trained, **_mapping(_mapping(self.config.get("evaluation")).get("call"))}
        before, after = (" x ".join(str(call[name]) for name in SIZES if name in call) for call in (trained, evaluated))
        return f"trained at {before}, evaluated at {after}" if before and before != after else ""

    def _columns(self, key: str, *, fallback: str) -> list[str]:
        configured = {**_mapping(self.config.get("evaluation")), "rewards": self.config.get("rewards")}
        listed = self.summary.get(key) or configured.get(key) or []
        names = [str(name) for name in listed] if isinstance(listed, (list, dict)) else []
        logged = {name for row in self.evals for name in row}
        return [name for name in dict.fromkeys([*names, fallback]) if name in logged]


def read(path: Path) -> RunData:
    """Reads ``path``, at any moment of the run. Errors: UserError where there is no folder."""
    if not path.is_dir():
        raise UserError(f"report: got {path}, takes the folder of a run")
    notes: list[str] = []
    rows, torn = read_metrics(path / "metrics.jsonl")
    config_text = _text(path / "config.yaml", notes)
    prompts = _json(path / "samples" / "prompts.json", notes)
    words, seeds = (prompts.get("prompts"), prompts.get("seeds")) if isinstance(prompts, dict) else (prompts, None)
    lines, unread = answers.read(path)
    samples = path / "samples"
    files = sorted(samples.iterdir()) if samples.is_dir() else []
    frames = [(int(match[1]), file) for file in files if (match := FRAME.fullmatch(file.name))]
    benchmarks, damaged = read_benchmarks(path)
    return RunData(
        path=path,
        benchmarks=benchmarks,
        config=_yaml(config_text, notes),
        config_text=config_text,
        versions=_mapping(_json(path / "versions.json", notes)),
        summary=_mapping(_json(path / "summary.json", notes)),
        train=_by_step(row for row in rows if row["phase"] == "train"),
        evals=_by_step(row for row in rows if row["phase"] == "eval"),
        profile=_by_step(row for row in rows if row["phase"] == "profile"),
        prompts=[str(word) for word in words] if isinstance(words, list) else [],
        seeds=list(seeds) if isinstance(seeds, list) else [],
        frames=sorted(frames),
        scores={step: _scores(_json(file.with_suffix(".json"), notes)) for step, file in frames},
        real=samples / "real.png" if (samples / "real.png").is_file() else None,
        videos=sum(file.suffix.lower() in VIDEOS for file in files),
        notes=notes + torn + unread + damaged,
        answers=lines,
        trackers={name: str(where) for name, where in _mapping(_json(path / TRACKERS, notes)).items() if WEB.match(str(where))},
    )


def _scores(value: Any) -> dict[str, list[list[float | None]]]:
    """name -> rows of numbers, of what is one; the rest is left out."""
    tables = {name: rows for name, rows in _mapping(value).items() if isinstance(rows, list) and all(isinstance(row, list) for row in rows)}
    return {name: [[cell if is_number(cell) else None for cell in row] for row in rows] for name, rows in tables.items()}


def _by_step(rows: Iterable[dict[str, Any]]) -> list[dict[str, Any]]:
    """One row for each step: what was logged later adds to it, or overrides."""
    merged: dict[int, dict[str, Any]] = {}
    for row in rows:
        merged.setdefault(row["step"], {}).update(row)
    return [merged[step] for step in sorted(merged)]


def _text(path: Path, notes: list[str]) -> str:
    if not path.exists():
        return ""
    try:
        return path.read_text(encoding="utf-8", errors="replace")
    except OSError:
        notes.append(f"{path.name} could not be read")
        return ""


def _json(path: Path, notes: list[str]) -> Any:
    text = _text(path, notes)
    try:
        return json.loads(text, parse_int=_int) if text or path.is_file() else None
    except (ValueError, RecursionError):
        notes.append(f"{path.name} could not be read")
        return None


def _int(digits: str) -> float:
    """A whole number of JSON; infinite where it is larger than any that can be shown."""
    number = int(digits)
    return number if is_number(number) else math.inf


def _yaml(text: str, notes: list[str]) -> dict[str, Any]:
    import yaml

    try:
        return _mapping(yaml.safe_load(text))
    except (
        yaml.YAMLError,
        ValueError,
        TypeError,
        LookupError,
        ArithmeticError,
        AttributeError,
        RecursionError,
    ):
        notes.append("config.yaml could not be read")
        return {}


def _mapping(value: Any) -> dict[str, Any]:
    return {str(key): item for key, item in value.items()} if isinstance(value, Mapping) else {}
